"""Scales, steps and code words that fit a weight. In: a matrix, a format, how much its inputs count. Out: its grid."""

from __future__ import annotations

import numpy as np

from onnxc.codes.formats import CODE_WORDS, FULL, Format
from onnxc.codes.grids import (
    BlockGrid,
    CodebookGrid,
    EvenGrid,
    Grid,
    Matrix,
    ScaledGrid,
    block_values,
    nearest_words,
    parts,
    rounded_up,
    stored_blocks,
)
from onnxc.codes.hqq import half_quadratic_grid
from onnxc.codes.palette_fitting import palette_grid
from onnxc.codes.trellis_scales import trellis_grid

SHRINKS = (1.0, 0.93, 0.86, 0.79, 0.72, 0.63)  # shares of a block's range that are tried
ROUNDS, VECTORS = 12, 1 << 14  # of k-means, and the vectors it sees
TINY, SMALLEST = 1e-12, np.float32(1e-30)


def even_scale(matrix: Matrix, levels: int, importance: Matrix) -> Matrix:
    """The scale of each output [G, N] with the least squared error of rounding W [G, K, N] to an even grid.

    Args:
        importance: [G, K], the second moment of every input.
    """
    each = [even_scale_of(matrix[:, :, part], levels, importance) for part in parts(matrix)]
    return each[0] if len(each) == 1 else np.concatenate(each, axis=1)


def even_scale_of(matrix: Matrix, levels: int, importance: Matrix) -> Matrix:
    """As even_scale(), all outputs at once."""
    grid, best, least = EvenGrid(levels), None, None
    peak = np.maximum(np.abs(matrix).max(1), TINY)
    for shrink in SHRINKS if levels < FULL else SHRINKS[:1]:
        scale = np.asarray(peak * np.float32(shrink / (levels // 2)), np.float32)
        scaled = matrix / scale[:, None]
        rounded = np.clip(np.rint(scaled), grid.lowest, grid.lowest + levels - 1)
        error = (importance[:, :, None] * ((scaled - rounded) * np.float32(shrink)) ** 2).sum(1)
        if best is None or least is None:
            best, least = scale, error
        else:
            best, least = np.where(error < least, scale, best), np.minimum(error, least)
    assert best is not None
    return np.asarray(best, np.float32)


def block_grid(
    matrix: Matrix, levels: int, block: int, importance: Matrix, limit: int, rounding: str = "gptq"
) -> BlockGrid:
    """Steps and offsets with the least weighted squared error for every block of W [G, K, N], in units of codes, or
    those of HQQ. A block in which the weight has zeros has a zero.

    Args:
        importance: [G, K]; limit: the largest magnitude of a value.
    """
    each = []
    for part in parts(matrix):
        made = block_grid_of(matrix[:, :, part], levels, block, importance, limit)
        each.append(half_quadratic_grid(matrix[:, :, part], made, limit) if rounding == "hqq" else made)
    if len(each) == 1:
        return each[0]
    steps, offsets = (
        np.concatenate(found, axis=2) for found in zip(*((e.steps, e.offsets) for e in each), strict=True)
    )
    return BlockGrid(levels, block, steps, offsets)


def block_grid_of(matrix: Matrix, levels: int, block: int, importance: Matrix, limit: int) -> BlockGrid:
    """As block_grid(), all outputs at once."""
    groups, depth, outputs = matrix.shape
    blocks = matrix.reshape(groups, depth // block, block, outputs)
    weights = importance.reshape(groups, depth // block, block, 1)
    low, high = np.minimum(blocks.min(2), 0.0), np.maximum(blocks.max(2), 0.0)
    zeros = (blocks == 0).any(2)
    least = np.full(low.shape, np.inf, np.float32)
    steps, offsets = np.zeros(low.shape, np.uint8), np.zeros(low.shape, np.int8)
    for shrink in SHRINKS:
        bottom, top = np.maximum(low * shrink, -limit), np.minimum(high * shrink, limit)
        step, offset = stored_blocks(levels, limit, (top - bottom) / (levels - 1), bottom, zeros)
        error = (weights * (blocks - block_values(blocks, levels, step, offset)) ** 2).sum(2)
        better = error < least
        least = np.where(better, error, least)
        steps, offsets = np.where(better, step, steps), np.where(better, offset, offsets)
    return BlockGrid(levels, block, steps, offsets)


def codebook_grid(matrix: Matrix, dimension: int, importance: Matrix, spread: Matrix, limit: int) -> CodebookGrid:
    """Code words by weighted k-means (Lloyd 1957) on the weights themselves, from a fixed start.

    Args:
        matrix: W [G, K, N] in units of codes, N a multiple of ``dimension``.
        importance: [G, K], of every input; spread: [G, N], the squared scale of every output.
    """
    groups, depth, outputs = matrix.shape
    vectors = matrix.reshape(-1, dimension)
    random = np.random.default_rng(0)
    picked = random.permutation(len(vectors))[:VECTORS] if len(vectors) > VECTORS else np.arange(len(vectors))
    rows, columns = np.divmod(picked, outputs // dimension)
    inputs = importance.reshape(-1)[rows]
    share = spread.reshape(groups, -1, dimension)[rows // depth, columns]
    weights = np.maximum(inputs[:, None] * share / max(float((inputs[:, None] * share).mean()), TINY), 1e-6)
    seen = np.asarray(vectors[picked], np.float32)
    table = seen[random.permutation(len(seen))[:CODE_WORDS]].copy()
    for _ in range(ROUNDS):
        nearest = nearest_words(seen, weights.astype(np.float32), table)
        for axis in range(dimension):
            total = np.bincount(nearest, weights[:, axis], len(table))
            summed = np.bincount(nearest, weights[:, axis] * seen[:, axis], len(table))
            table[:, axis] = np.where(total > 0, summed / np.maximum(total, TINY), table[:, axis])
        idle = np.flatnonzero(np.bincount(nearest, minlength=len(table)) == 0)
        if len(idle):  # a code word that nobody takes starts again at a vector that is far from its own
            far = ((seen - table[nearest]) ** 2 * weights).sum(1).argsort()[-len(idle) :]
            table[idle[: len(far)]] = seen[far]
    rounded = np.clip(np.rint(table), -limit, limit).astype(np.int8)
    rounded = rounded[np.lexsort(rounded.T[::-1])]
    return CodebookGrid(rounded, np.asarray(spread / max(float(spread.mean()), TINY), np.float32))


def make_grid(
    matrix: Matrix, chosen: Format, importance: Matrix, levels: int, smallest: Matrix | None = None
) -> tuple[Grid, Matrix]:
    """The grid of a format for W [G, K, N], and the scale of each output [G, N] that it is measured in.

    Args:
        importance: [G, K], the second moment of every input.
        levels: largest magnitude of an int8 code.
        smallest: [G, N], the least scale that keeps a bias in range.
    """
    if chosen.scaled:
        depth = matrix.shape[1] // chosen.block
        blocks = [matrix[:, start * chosen.block : (start + 1) * chosen.block] for start in range(depth)]
        weights = [importance[:, start * chosen.block : (start + 1) * chosen.block] for start in range(depth)]
        count = 2 * levels + 1 if chosen.levels == FULL else chosen.levels
        scales = [even_scale(block, count, share) for block, share in zip(blocks, weights, strict=True)]
        return ScaledGrid(count, chosen.block, np.stack(scales, 1)), np.ones((len(matrix), matrix.shape[2]), np.float32)
    if chosen.trellis:
        return trellis_grid(matrix, chosen.levels, importance, levels, smallest)
    if chosen.dimension == 1:
        return palette_grid(matrix, chosen.entries, importance, levels, smallest)
    if chosen.even:
        count = 2 * levels + 1 if chosen.levels == FULL else chosen.levels
        scale = even_scale(matrix, count, importance)
    elif chosen.block:
        scale = np.maximum(np.abs(matrix).max(1), TINY) / np.float32(levels)
    else:
        peak = np.maximum(np.abs(matrix).max(1), TINY)
        deviation = peak * np.sqrt(((matrix / peak[:, None]) ** 2).mean(1))
        reach = np.quantile(np.abs(matrix) / np.maximum(deviation, TINY)[:, None], 0.9998) if matrix.size else 1.0
        scale = deviation * np.float32(max(float(reach), 1.0) / levels)
    idle = SMALLEST if chosen.dimension else np.float32(1.0)  # of an output of zeros, which no code word may be
    scale = np.where(scale < SMALLEST, idle, scale).astype(np.float32)
    if smallest is not None:
        scale = np.maximum(scale, smallest)
    scale = rounded_up(scale)
    if chosen.even:
        return EvenGrid(count), scale
    scaled = matrix / scale[:, None]
    if chosen.block:
        return block_grid(scaled, chosen.levels, chosen.block, importance, levels, chosen.rounding), scale
    return codebook_grid(scaled, chosen.dimension, importance, (scale / scale.max()) ** 2, levels), scale
