"""The scales of weights along a trellis. In: a matrix, how much its inputs count. Out: a scale per output, the grid.

What the scale of an output costs depends on the paths, which its neighbours share: each of a few is tried for all
outputs at once, with paths that need not bite their tails, and every output takes the one with the least error. A large
table, whose paths take seconds, has the share of its rows' peaks that serves some of them best: within 0.1 dB of that.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.grids import Matrix, nearest, parts, rounded_up
from onnxc.codes.trellis import TrellisGrid, union_of

REACHES = (0.75, 0.84, 0.93, 1.03, 1.15, 1.3)  # of the largest value, in that for normal weights: scales that are tried
FURTHER = (0.5, 1.0)  # and between the last of them and one that leaves out nothing, for weights far from all others
SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of its largest value, in that of an output, in a large matrix
LARGE, SOME = 1 << 22, 512  # weights of one, and how many of its outputs are looked at
MOST, OTHERS = 128, 64  # inputs that are looked at: those that count most, and some for all others
LEAST = 1e-6  # of the largest scale, which an output has whose weights are zeros: no path has a zero in every place


def trellis_grid(
    matrix: Matrix, levels: int, importance: Matrix, limit: int, smallest: Matrix | None = None
) -> tuple[TrellisGrid, Matrix]:
    """The grid for W [G, K, N], and the scale of each output [G, N] with the least squared error of open paths.

    Args:
        importance: [G, K], of every input; limit: the largest magnitude of a value.
        smallest: [G, N], the least scales.
    """
    union = union_of(levels, limit)
    if matrix.size >= LARGE:
        scale = shared_reach(matrix, levels, union, importance)
    else:
        scale = np.concatenate([scale_of(matrix[:, :, part], levels, union, importance) for part in parts(matrix)], 1)
    scale = np.maximum(scale, np.float32(max(LEAST * float(scale.max(initial=0.0)), 1e-20)))
    scale = rounded_up(scale if smallest is None else np.maximum(scale, smallest))
    return grid_of(levels, union, scale), scale


def grid_of(levels: int, union: NDArray[np.int8], scale: Matrix, *, closed: bool = True) -> TrellisGrid:
    """The grid on which errors count as the squares of scales [G, N]."""
    return TrellisGrid(levels, union, (scale / max(float(scale.max(initial=0.0)), 1e-20)) ** 2, closed)


def scale_of(matrix: Matrix, levels: int, union: NDArray[np.int8], importance: Matrix) -> Matrix:
    """As trellis_grid(), the scales of all outputs at once."""
    peak = np.maximum(np.abs(matrix).max(1), np.float32(1e-20))
    deviation = peak * np.sqrt(((matrix / peak[:, None]) ** 2).mean(1))
    spread = np.maximum(deviation, LEAST * deviation.max(initial=np.float32(0.0)))
    grid = grid_of(levels, union, spread, closed=False)
    usual = 1.35 * NormalDist().inv_cdf(1 - 0.25 / levels) / float(union[-1])
    normal = np.asarray(np.maximum(deviation, np.float32(1e-20)) * np.float32(usual), np.float32)
    furthest = np.maximum(peak / (normal * float(union[-1]) * REACHES[-1]), 1.0)
    matrix, importance = some_inputs(matrix, importance)
    best, least = normal, np.full(normal.shape, np.inf, np.float32)
    for reach in (*REACHES, *(REACHES[-1] * furthest**share for share in FURTHER)):
        scale = np.asarray(normal * reach, np.float32)
        scaled = matrix / scale[:, None]
        lost = scaled - nearest(grid, scaled)[1]
        error = np.einsum("gk,gkn->gn", importance, lost * lost) * np.asarray(reach * reach, np.float32)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return np.asarray(best, np.float32)


def some_inputs(matrix: Matrix, importance: Matrix) -> tuple[Matrix, Matrix]:
    """The rows of W [G, K, N] that tell what a scale costs, and how much each counts: the MOST important ones, and
    OTHERS that stand for the rest. Half of 384 rows, an eighth of 1,536; codes solved then damage 0.1 % more.
    """
    depth = matrix.shape[1]
    if 2 * depth <= 3 * (MOST + OTHERS):
        return matrix, importance
    order = np.argsort(-importance, axis=1, kind="stable")
    rest = np.linspace(MOST, depth - 1, OTHERS).astype(int)
    picked = np.concatenate([order[:, :MOST], order[:, rest]], 1)
    counts = np.take_along_axis(importance, picked, 1)
    whole = np.take_along_axis(importance, order[:, MOST:], 1).sum(1)
    counts[:, MOST:] *= (whole / np.maximum(counts[:, MOST:].sum(1), np.float32(1e-30)))[:, None]
    return np.take_along_axis(matrix, picked[:, :, None], 1), counts


def shared_reach(matrix: Matrix, levels: int, union: NDArray[np.int8], importance: Matrix) -> Matrix:
    """As trellis_grid(), the scales of all outputs as one share of their peaks: the best one for SOME of them."""
    outputs = matrix.shape[2]
    peak = np.maximum(np.stack([np.abs(group).max(0) for group in matrix]), np.float32(1e-20)) / np.float32(union[-1])
    some = np.linspace(0, outputs - 1, min(SOME, outputs)).astype(int)
    seen, usual = np.ascontiguousarray(matrix[:, :, some]), peak[:, some]
    errors = []
    for share in SHARES:
        scale = usual * np.float32(share)
        grid = grid_of(levels, union, scale, closed=False)
        lost = seen - nearest(grid, seen / scale[:, None])[1] * scale[:, None]
        errors.append(float((importance * np.square(lost, dtype=np.float64).sum(2)).sum()))
    return np.asarray(peak * np.float32(SHARES[int(np.argmin(errors))]))
