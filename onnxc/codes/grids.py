"""The values that a stored weight may take. In: a matrix in units of its scales. Out: what it is snapped to.

Every value is an int8 code, whatever the format: what is stored in fewer bits unfolds to int8 at load, so that int8
kernels read it. A grid knows how; solvers only ask it for the nearest value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Places = tuple[NDArray[np.intp], NDArray[np.intp]]  # of rows of W [G, K, N]: group and input, [R] each
SMALL_PRODUCT = 1 << 18  # multiplications up to which OpenBLAS stays on one thread: waiting for others takes longer
TOGETHER = 1 << 14  # weights that are snapped at once: what a search keeps of every step stays in the caches
PART = 1 << 20  # weights of a matrix that are looked at together: an embedding table needs no copies of itself


class Grid(Protocol):
    """Values that can be stored."""

    def width(self, outputs: int) -> int:
        """Digits stored for one row of ``outputs`` weights."""

    def snap(self, at: Places, target: Matrix) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """The digits and values nearest to rows ``target`` [R, N] of a matrix, which lie ``at`` these places."""


def nearest(grid: Grid, matrix: Matrix) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The digits [G, K, width] and values [G, K, N] nearest to all of W [G, K, N]."""
    groups, depth, outputs = matrix.shape
    rows, many = matrix.reshape(groups * depth, outputs), max(TOGETHER // max(outputs, 1), 1)
    group, inputs = np.divmod(np.arange(groups * depth), max(depth, 1))
    digits, values = np.empty((groups * depth, grid.width(outputs)), np.uint8), np.empty(rows.shape, np.int8)
    for start in range(0, len(rows), many):
        part = slice(start, start + many)
        digits[part], found = grid.snap((group[part], inputs[part]), rows[part])
        values = values.astype(found.dtype, copy=False)
        values[part] = found
    return digits.reshape(groups, depth, -1), values.reshape(matrix.shape)


@dataclass(frozen=True)
class EvenGrid:
    """Evenly spaced around zero, the same for all weights: -128 + ... + 127 at most."""

    levels: int

    @property
    def lowest(self) -> int:
        return lowest_digit(self.levels)

    def width(self, outputs: int) -> int:
        return outputs

    def snap(self, at: Places, target: Matrix) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
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

    def snap(self, at: Places, target: Matrix) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        (groups, inputs), lowest = at, lowest_digit(self.levels)
        scale = step_scale(self.levels, self.steps[groups, inputs // self.block])
        offset = self.offsets[groups, inputs // self.block].astype(np.float32)
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

    def snap(self, at: Places, target: Matrix) -> tuple[NDArray[np.uint8], Matrix]:
        """Digits and real values."""
        groups, inputs = at
        scale = self.scales[groups, inputs // self.block]
        codes = EvenGrid(self.levels).snap(at, target / scale)[1].astype(np.float32)
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

    def snap(self, at: Places, target: Matrix) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        dimension, shape = self.table.shape[1], target.shape
        importance = self.importance[at[0]].reshape(-1, dimension)
        nearest = nearest_words(target.reshape(-1, dimension), importance, self.table.astype(np.float32))
        return nearest.reshape(shape[0], -1), self.table[nearest].reshape(shape)


def rounded_up(scale: NDArray[np.floating[Any]]) -> Matrix:
    """Scales with 32 steps from one power of two to the next, none smaller than it was: what is scaled fits where it
    did. bfloat16 holds them, and a model has so few that a byte tells which. Codes are solved for the scale that is
    stored, so what it lacks costs a tenth of a decibel at most.
    """
    exact = np.asarray(scale, np.float32)
    words = (exact.view(np.uint32) + np.uint32(0x3FFFF)) & np.uint32(0xFFFC0000)
    return np.asarray(words.view(np.float32), np.float32)


def lowest_digit(levels: int) -> int:
    """The code that the lowest of ``levels`` digits stands for."""
    return -(levels // 2)


def step_unit(levels: int) -> np.float32:
    """What a step of a block is divided into to be its scale: 255 of them span the whole range of int8."""
    return np.float32((levels - 1) * 255.0 / 254.0)


def step_scale(levels: int, steps: NDArray[Any]) -> Matrix:
    """The scales of blocks: what QuantizeLinear divides codes by."""
    return np.asarray(step_unit(levels) / np.maximum(steps.astype(np.float32), np.float32(1.0)), np.float32)


def stored_blocks(
    levels: int, limit: int, scale: Matrix, bottom: Matrix, zeros: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Steps and offsets as they are stored, of blocks whose lowest digit stands for ``bottom`` and whose digits are
    ``scale`` apart [G, K / block, N]: the outermost codes stay within ``limit``, since kernels could overflow.

    Args:
        zeros: the blocks of which one digit has to stand for zero: the weight has zeros there, which stay.
    """
    lowest, most_steps = lowest_digit(levels), np.full(scale.shape, np.floor((2 * limit - 1) * 255 / 254), np.float32)
    below = np.clip(np.rint(-bottom / np.maximum(scale, np.float32(1e-30))), 0, levels - 1)  # digits lower than zero's
    reach = np.maximum(below, levels - 1 - below)  # both ends are rounded on their own: one code is left for that
    most_steps = np.where(zeros, np.maximum(np.floor((limit - 1) / reach * step_unit(levels)), 1), most_steps)
    steps = np.clip(np.rint(scale * step_unit(levels)), 1, most_steps).astype(np.uint8)
    wide = step_scale(levels, steps)
    least, most = -limit - np.rint(lowest / wide), limit - np.rint((lowest + levels - 1) / wide)
    free = np.clip(np.rint(bottom - lowest / wide), least, most)
    return steps, np.where(zeros, -np.rint((below + lowest) / wide), free).astype(np.int8)


def block_values(blocks: Matrix, levels: int, steps: NDArray[Any], offsets: NDArray[Any]) -> Matrix:
    """What blocks [G, K / block, block, N] are rounded to with ``steps`` and ``offsets`` [G, K / block, N]."""
    wide, moved = step_scale(levels, steps)[:, :, None], offsets[:, :, None].astype(np.float32)
    lowest = lowest_digit(levels)
    codes = np.clip(np.rint((blocks - moved) * wide), lowest, lowest + levels - 1)
    return np.asarray(np.rint(codes / wide) + moved, np.float32)


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
