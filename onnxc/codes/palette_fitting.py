"""The few values that fit a weight best, and a scale per output. In: a matrix, how much its inputs count. Out: a grid.

One palette serves all outputs, so values and scales are found in turn: k-means of what the outputs are in their scales,
weighted by the second moment (Lloyd, 1957), then the scale of least squares of each output for the values that it took.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.grids import CodebookGrid, Matrix, rounded_up

TURNS, ROUNDS, SEEN = 4, 8, 1 << 16  # of values and scales, of k-means, and the weights that they look at
TINY, SMALLEST = 1e-12, np.float32(1e-30)


def palette_grid(
    matrix: Matrix, entries: int, importance: Matrix, limit: int, smallest: Matrix | None = None
) -> tuple[CodebookGrid, Matrix]:
    """The grid of ``entries`` values for W [G, K, N], and the scale of each output [G, N] that they are in.

    As many values as int8 has codes are these codes, each output in the scale of its peak.

    Args:
        importance: [G, K], the second moment of every input.
        limit: largest magnitude of an int8 code.
        smallest: [G, N], the least scale that keeps a bias in range.
    """
    peak = np.maximum(np.abs(matrix).max(1), TINY)
    scale, table = peak / np.float32(limit), np.arange(-limit, limit + 1, dtype=np.float32)
    if entries < 2 * limit:
        scale = peak * np.sqrt(((matrix / peak[:, None]) ** 2).mean(1))
        scale, table = fitted(matrix, importance, np.maximum(scale, SMALLEST).astype(np.float32), entries)
        reach = np.float32(np.abs(table).max() / limit)
        scale, table = scale * reach, np.clip(np.rint(table / reach), -limit, limit)
    scale = np.where(np.abs(matrix).max(1) > 0, scale, SMALLEST).astype(np.float32)  # zero may be none of the values
    if smallest is not None:
        scale = np.maximum(scale, smallest)
    codes = np.resize(np.unique(table.astype(np.int8)), entries)  # those that are missing are the first ones again
    return CodebookGrid(codes[:, None], np.ones_like(scale)), rounded_up(scale)


def fitted(matrix: Matrix, importance: Matrix, scale: Matrix, entries: int) -> tuple[Matrix, Matrix]:
    """Scales [G, N] from ``scale`` on, and values [entries] in their units."""
    scaled = matrix / scale[:, None]
    step = max(matrix[0].size * len(matrix) // SEEN, 1)
    table = np.quantile(scaled.reshape(-1)[::step], (np.arange(entries) + 0.5) / entries).astype(np.float32)
    weights = importance[:, :, None]
    for _ in range(TURNS):
        spread = weights * np.square(scale / max(float(scale.max()), TINY))[:, None]
        table = k_means(scaled.reshape(-1)[::step], spread.reshape(-1)[::step], table)
        taken = table[np.searchsorted((table[1:] + table[:-1]) / 2, scaled)]
        power = (weights * taken**2).sum(1)
        gain = np.where(power > TINY, (weights * taken * scaled).sum(1) / np.maximum(power, TINY), 1.0)
        scale = np.asarray(scale * np.where(gain > TINY, gain, 1.0), np.float32)
        scaled = matrix / scale[:, None]
    return scale, table


def k_means(values: Matrix, weights: Matrix, table: Matrix) -> Matrix:
    """``table``, sorted, moved to where ``values`` are, each counting as much as its weight."""
    for _ in range(ROUNDS):
        nearest: NDArray[np.intp] = np.searchsorted((table[1:] + table[:-1]) / 2, values)
        total = np.bincount(nearest, weights, len(table))
        summed = np.bincount(nearest, weights * values, len(table))
        table = np.sort(np.where(total > 0, summed / np.maximum(total, TINY), table)).astype(np.float32)
    return table
