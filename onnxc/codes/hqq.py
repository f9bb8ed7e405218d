"""Half-quadratic quantization: a scale and a zero point for every block of a weight, without any data.

In: blocks [B, S] of a weight. Out: scale and zero [B], and the codes; value = (code - zero) * scale. And a
matrix, to the grid of steps and offsets in which they are stored.
Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023): the error is measured in the
lp norm with p < 1, which lets a few outliers be wrong so that all other weights are close. An auxiliary error E splits
the problem in two that have closed forms: a shrinkage for E, a mean for the zero point; iterated with a growing weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.grids import BlockGrid, Matrix, block_values, stored_blocks

NORM = 0.7  # p
COUPLING, GROWTH = 10.0, 1.01  # beta and kappa of the paper
ITERATIONS = 20

Blocks = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BlockCodes:
    """Quantized blocks.

    Attributes:
        codes: uint8 [B, S], 0 to levels - 1.
        scale, zero: float32 [B]; ``zero`` holds whole numbers where they were asked for.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.float32]

    def restored(self) -> Blocks:
        """The float32 blocks [B, S] that the codes stand for."""
        shifted = self.codes.astype(np.float32) - self.zero[:, None]
        return np.asarray(shifted * self.scale[:, None], np.float32)


def nearest(blocks: Blocks, levels: int, *, whole_zero: bool = True) -> BlockCodes:
    """Rounding to nearest over the range of every block, zero included: where the iteration starts."""
    top = np.float32(levels - 1)
    low, high = np.minimum(blocks.min(1), 0), np.maximum(blocks.max(1), 0)
    scale = np.where(high > low, (high - low) / top, 1).astype(np.float32)
    zero = np.asarray(-low / scale, np.float32)
    zero = np.rint(zero) if whole_zero else zero
    return BlockCodes(codes_of(blocks, scale, zero, top), scale, zero)


def hqq(blocks: Blocks, levels: int, *, whole_zero: bool = True, iterations: int = ITERATIONS) -> BlockCodes:
    """Codes whose lp error is at most that of rounding to nearest, block by block.

    Args:
        blocks: [B, S]: B blocks of S weights each; at most 2 copies are made.
        levels: of a code, 2 to 256.
        whole_zero: the zero point is a code, as DequantizeLinear wants it; then the scale is fitted again to the codes.
        iterations: at most so many steps.
    """
    values = np.asarray(blocks, np.float32)
    best = nearest(values, levels, whole_zero=whole_zero)
    least = lp_error(values, best)
    start = nearest(values, levels, whole_zero=False)
    scale, zero, beta = start.scale, start.zero, COUPLING
    top = np.float32(levels - 1)
    previous = np.inf
    for _ in range(iterations):
        codes = codes_of(values, scale, zero, top).astype(np.float32)
        residual = values - (codes - zero[:, None]) * scale[:, None]
        error = shrunk(residual, beta)
        zero = np.asarray((codes - (values - error) / scale[:, None]).mean(1), np.float32)
        beta *= GROWTH
        best, least = better(values, finished(values, scale, zero, top, whole_zero=whole_zero), best, least)
        mean = float(np.abs(residual).mean())
        if mean >= previous:
            break
        previous = mean
    return best


def finished(blocks: Blocks, scale: Blocks, zero: Blocks, top: np.float32, *, whole_zero: bool) -> BlockCodes:
    """Codes for a zero point; a whole one moves by up to half a code, so that the scale is fitted to it once more:
    the least squares of the blocks on (code - zero).
    """
    if not whole_zero:
        return BlockCodes(codes_of(blocks, scale, zero, top), scale, zero)
    zero = np.clip(np.rint(zero), 0, top)
    codes = codes_of(blocks, scale, zero, top)
    shifted = codes.astype(np.float32) - zero[:, None]
    fitted = (shifted * blocks).sum(1) / np.maximum((shifted**2).sum(1), np.float32(1e-30))
    fitted = np.where(fitted > 0, fitted, scale).astype(np.float32)
    return BlockCodes(codes_of(blocks, fitted, zero, top), fitted, zero)


def better(
    blocks: Blocks, found: BlockCodes, best: BlockCodes, least: NDArray[np.float64]
) -> tuple[BlockCodes, NDArray[np.float64]]:
    """Of every block the codes with less error, and that error."""
    error = lp_error(blocks, found)
    take = error < least
    return (
        BlockCodes(
            np.where(take[:, None], found.codes, best.codes),
            np.where(take, found.scale, best.scale),
            np.where(take, found.zero, best.zero),
        ),
        np.where(take, error, least),
    )


def lp_error(blocks: Blocks, codes: BlockCodes) -> NDArray[np.float64]:
    """Sum of |error|^p of every block [B]."""
    return np.asarray((np.abs(blocks - codes.restored()) ** np.float32(NORM)).sum(1, dtype=np.float64))


def shrunk(values: Blocks, beta: float) -> Blocks:
    """The generalized soft threshold of the lp norm: what of an error is taken to be an outlier's."""
    size = np.abs(values)
    threshold = np.maximum(size, np.float32(1e-8)) ** np.float32(NORM - 1) / np.float32(beta)
    return np.asarray(np.sign(values) * np.maximum(size - threshold, 0), np.float32)


def codes_of(blocks: Blocks, scale: Blocks, zero: Blocks, top: np.float32) -> NDArray[np.uint8]:
    """The codes [B, S] nearest to ``blocks``."""
    return np.asarray(np.clip(np.rint(blocks / scale[:, None] + zero[:, None]), 0, top), np.uint8)


def half_quadratic_grid(matrix: Matrix, plain: BlockGrid, limit: int) -> BlockGrid:
    """The steps and offsets that HQQ finds for the blocks of W [G, K, N], in units of codes; a block where the 8 bits
    that they are stored in leave more lp error than ``plain`` ones do keeps those.

    Args:
        plain: the steps and offsets of least squared error; limit: the largest magnitude of a value.
    """
    (groups, depth, outputs), levels, block = matrix.shape, plain.levels, plain.block
    blocks = matrix.reshape(groups, depth // block, block, outputs)
    rows = np.ascontiguousarray(blocks.swapaxes(2, 3)).reshape(-1, block)
    found = hqq(rows, levels, whole_zero=False)
    scale, zero = (each.reshape(groups, -1, outputs) for each in (found.scale, found.zero))
    steps, offsets = stored_blocks(levels, limit, scale, -zero * scale, (blocks == 0).any(2))
    own, other = (
        (np.abs(blocks - block_values(blocks, levels, *each)) ** np.float32(NORM)).sum(2, dtype=np.float64)
        for each in ((steps, offsets), (plain.steps, plain.offsets))
    )
    better = own < other
    return BlockGrid(levels, block, np.where(better, steps, plain.steps), np.where(better, offsets, plain.offsets))
