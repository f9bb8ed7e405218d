"""The values that a stored weight may take. In: a matrix in units of its scales, a format. Out: a grid to snap to.

Every value is an int8 code, whatever the format: what is stored in fewer bits unfolds to int8 at load, so that int8
kernels read it. A grid knows how; solvers only ask it for the nearest value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.formats import CODE_WORDS, FULL, Format

Matrix = NDArray[np.float32]
SHRINKS = (1.0, 0.93, 0.86, 0.79, 0.72, 0.63)  # shares of a block's range that are tried
ROUNDS, VECTORS = 12, 1 << 14  # of k-means, and the vectors it sees
TINY = 1e-12
SMALL_PRODUCT = 1 << 18  # multiplications up to which OpenBLAS stays on one thread: waiting for others takes longer
PART = 1 << 20  # weights of a matrix that are looked at together: an embedding table needs no copies of itself


class Grid(Protocol):
    """Values that can be stored."""

    def width(self, outputs: int) -> int:
        """Digits stored for one row of ``outputs`` weights."""

    def snap(self, rows: NDArray[np.intp], target: Matrix) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """The digits and values nearest to ``target`` [G, N]; ``rows`` [G]: the input that each group's row meets."""


@dataclass(frozen=True)
class EvenGrid:
    """Evenly spaced around zero, the same for all weights: -128 + ... + 127 at most."""

    levels: int

    @property
    def lowest(self) -> int:
        return lowest_digit(self.levels)

    def width(self, outputs: int) -> int:
        return outputs

    def snap(self, rows: NDArray[np.intp], target: Matrix) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        values = np.clip(np.rint(target), self.lowest, self.lowest + self.levels - 1)
        return (values - self.lowest).astype(np.uint8), values.astype(np.int8)


@dataclass(frozen=True)
class BlockGrid:
    """round(code / scale) + offset, codes evenly spaced around zero, a step and an offset for every block of inputs.

    Attributes:
        steps: [G, K / block, N] uint8, in units of 1 / ``step_unit``; offsets: the same shape, int8.
    """

    levels: int
    block: int
    steps: NDArray[np.uint8]
    offsets: NDArray[np.int8]

    def width(self, outputs: int) -> int:
        return outputs

    def snap(self, rows: NDArray[np.intp], target: Matrix) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        here, lowest = np.arange(len(rows)), lowest_digit(self.levels)
        scale = step_scale(self.levels, self.steps[here, rows // self.block])
        offset = self.offsets[here, rows // self.block].astype(np.float32)
        codes = np.clip(np.rint((target - offset) * scale), lowest, lowest + self.levels - 1).astype(np.float32)
        values = np.clip(np.rint(codes / scale) + offset, -128, 127)
        return (codes - lowest).astype(np.uint8), values.astype(np.int8)


@dataclass(frozen=True)
class ScaledGrid:
    """code * scale, codes evenly spaced around zero, with a float scale for every block of inputs.

    Attributes:
        scales: [G, K / block, N] float32.
    """

    levels: int
    block: int
    scales: Matrix

    def width(self, outputs: int) -> int:
        return outputs

    def snap(self, rows: NDArray[np.intp], target: Matrix) -> tuple[NDArray[np.uint8], Matrix]:
        """Digits and real values."""
        scale = self.scales[np.arange(len(rows)), rows // self.block]
        codes = EvenGrid(self.levels).snap(rows, target / scale)[1].astype(np.float32)
        return (codes - lowest_digit(self.levels)).astype(np.uint8), np.asarray(codes * scale, np.float32)


@dataclass(frozen=True)
class CodebookGrid:
    """Code words of ``dimension`` neighbouring outputs each.

    Attributes:
        table: [code words, dimension] int8.
        importance: [G, N], how much an error of each output counts.
    """

    table: NDArray[np.int8]
    importance: Matrix

    def width(self, outputs: int) -> int:
        return outputs // int(self.table.shape[1])

    def snap(self, rows: NDArray[np.intp], target: Matrix) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        dimension, shape = self.table.shape[1], target.shape
        nearest = nearest_words(
            target.reshape(-1, dimension), self.importance.reshape(-1, dimension), self.table.astype(np.float32)
        )
        return nearest.reshape(shape[0], -1), self.table[nearest].reshape(shape)


def rounded_up(scale: NDArray[np.floating[Any]]) -> Matrix:
    """Scales as bfloat16 holds them, none smaller than it was: what is scaled fits where it did. They are stored so;
    codes are solved for the scale that is stored, so its few bits cost nothing.
    """
    exact = np.asarray(scale, np.float32)
    words = (exact.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    return np.asarray(words.view(np.float32), np.float32)


def lowest_digit(levels: int) -> int:
    """The code that the lowest of ``levels`` digits stands for."""
    return -(levels // 2)


def step_unit(levels: int) -> np.float32:
    """What a step of a block is divided into to be its scale: 255 of them span the whole range of int8."""
    return np.float32((levels - 1) * 255.0 / 254.0)


def step_scale(levels: int, steps: NDArray[np.uint8]) -> Matrix:
    """The scales of blocks: what QuantizeLinear divides codes by."""
    return np.asarray(step_unit(levels) / np.maximum(steps.astype(np.float32), np.float32(1.0)), np.float32)


def nearest_words(vectors: Matrix, importance: Matrix, table: Matrix) -> NDArray[np.uint8]:
    """The index of the code word with the least weighted squared distance to each of ``vectors`` [V, d].

    Some dozens of vectors at a time, whose distances stay in the processor's cache, with one product for both terms,
    small enough that no thread waits for another.
    """
    terms = np.concatenate([importance, vectors * importance], 1)
    factors = np.ascontiguousarray(np.concatenate([table**2, -2 * table], 1).T)
    found, near = np.empty(len(vectors), np.uint8), max(SMALL_PRODUCT // factors.size, 1)
    distance = np.empty((near, len(table)), np.float32)
    for start in range(0, len(vectors), near):
        part = terms[start : start + near]
        np.matmul(part, factors, out=distance[: len(part)])
        found[start : start + near] = distance[: len(part)].argmin(1)
    return found


def parts(matrix: Matrix) -> list[slice]:
    """The outputs of W [G, K, N] in slices of about PART weights."""
    width = max(1, PART // max(matrix.shape[0] * matrix.shape[1], 1))
    return [slice(start, start + width) for start in range(0, max(matrix.shape[2], 1), width)]


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


def block_grid(matrix: Matrix, levels: int, block: int, importance: Matrix, limit: int) -> BlockGrid:
    """Steps and offsets with the least weighted squared error for every block of W [G, K, N], in units of codes.

    Args:
        importance: [G, K]; limit: the largest magnitude of a value.
    """
    each = [block_grid_of(matrix[:, :, part], levels, block, importance, limit) for part in parts(matrix)]
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
    unit, lowest, least = step_unit(levels), lowest_digit(levels), np.full(low.shape, np.inf, np.float32)
    highest, widest = lowest + levels - 1, np.floor((2 * limit - 1) * 255 / 254)
    steps, offsets = np.zeros(low.shape, np.uint8), np.zeros(low.shape, np.int8)
    for shrink in SHRINKS:
        bottom, top = np.maximum(low * shrink, -limit), np.minimum(high * shrink, limit)
        step = np.clip(np.rint((top - bottom) / (levels - 1) * unit), 1, widest)
        scale = step_scale(levels, step)
        offset = np.rint(bottom - lowest / scale)  # the outermost codes stay within the limit: kernels could overflow
        offset = np.clip(offset, -limit - np.rint(lowest / scale), limit - np.rint(highest / scale))
        wide, moved = scale[:, :, None], offset[:, :, None]
        codes = np.clip(np.rint((blocks - moved) * wide), lowest, highest)
        values = np.rint(codes / wide) + moved
        error = (weights * (blocks - values) ** 2).sum(2)
        better = error < least
        least = np.where(better, error, least)
        steps, offsets = (
            np.where(better, step, steps).astype(np.uint8),
            np.where(better, offset, offsets).astype(np.int8),
        )
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
    if not chosen.block and not chosen.dimension:
        count = 2 * levels + 1 if chosen.levels == FULL else chosen.levels
        scale = even_scale(matrix, count, importance)
    elif chosen.block:
        scale = np.maximum(np.abs(matrix).max(1), TINY) / np.float32(levels)
    else:
        peak = np.maximum(np.abs(matrix).max(1), TINY)
        deviation = peak * np.sqrt(((matrix / peak[:, None]) ** 2).mean(1))
        reach = np.quantile(np.abs(matrix) / np.maximum(deviation, TINY)[:, None], 0.9998) if matrix.size else 1.0
        scale = deviation * np.float32(max(float(reach), 1.0) / levels)
    scale = np.where(scale < np.float32(1e-30), np.float32(1.0), scale).astype(np.float32)
    if smallest is not None:
        scale = np.maximum(scale, smallest)
    scale = rounded_up(scale)
    if not chosen.block and not chosen.dimension:
        return EvenGrid(count), scale
    scaled = matrix / scale[:, None]
    if chosen.block:
        return block_grid(scaled, chosen.levels, chosen.block, importance, levels), scale
    return codebook_grid(scaled, chosen.dimension, importance, (scale / scale.max()) ** 2, levels), scale
