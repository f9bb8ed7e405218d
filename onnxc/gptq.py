"""GPTQ: rounding a weight column by column, each error fed forward into the columns still to come.

In: a matrix, the inputs it meets, a scale per output. Out: integer codes with the least output error.
Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022): the blocked Cholesky form, with the columns of largest second moment first (act-order).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 128
DAMPING = 0.01

Matrix = NDArray[np.float32]


def second_moment(rows: Matrix) -> Matrix:
    """H = E[x xT], [K, K], of input rows [R, K]."""
    return np.asarray(rows.T @ rows / max(len(rows), 1), np.float32)


def gptq(weight: Matrix, moment: Matrix, scale: Matrix, levels: int, damping: float = DAMPING) -> NDArray[np.int8]:
    """Codes that minimize tr((W - W')T H (W - W')) of every group, column by column.

    Args:
        weight: W, [G, K, N]: G groups of K inputs and N outputs each.
        moment: H, [G, K, K], the inputs' second moment.
        scale: [G, N], one per output; W' = codes * scale.
        levels: largest magnitude of a code.
        damping: share of H's mean diagonal that is added to it.

    Returns:
        [G, K, N]. Groups whose inputs were always zero, or not finite, are rounded to nearest.
    """
    depth = weight.shape[1]
    diagonal = np.diagonal(moment, axis1=1, axis2=2).astype(np.float64)
    mean = diagonal.mean(1)
    idle = ~(np.isfinite(moment).all((1, 2)) & (mean > 0))
    order = np.argsort(-np.where(idle[:, None], 0.0, diagonal), axis=1, kind="stable")
    remaining = np.take_along_axis(weight, order[:, :, None], 1).astype(np.float32)
    damped = np.take_along_axis(np.take_along_axis(moment, order[:, :, None], 1), order[:, None, :], 2).astype(np.float64)
    damped[idle] = np.eye(depth)
    damped[:, np.arange(depth), np.arange(depth)] += damping * np.where(idle, 1.0, mean)[:, None]
    factor = inverse_factor(damped)
    codes = np.empty(weight.shape, np.int8)
    for start in range(0, depth, BLOCK):
        stop = min(start + BLOCK, depth)
        errors = np.empty((len(weight), stop - start, weight.shape[2]), np.float32)
        for row in range(start, stop):
            rounded = np.clip(np.rint(remaining[:, row] / scale), -levels, levels)
            codes[:, row] = rounded
            error = (remaining[:, row] - rounded * scale) / factor[:, row, row, None]
            remaining[:, row + 1 : stop] -= factor[:, row, row + 1 : stop, None] * error[:, None, :]
            errors[:, row - start] = error
        remaining[:, stop:] -= factor[:, start:stop, stop:].swapaxes(1, 2) @ errors
    restored = np.empty_like(codes)
    np.put_along_axis(restored, order[:, :, None], codes, 1)
    return restored


def inverse_factor(moment: NDArray[np.float64]) -> Matrix:
    """U [G, K, K], upper triangular, with UT U = H^-1: GPTQ's updates read it row by row."""
    lower = np.linalg.cholesky(np.linalg.inv(moment))
    return np.asarray(lower.swapaxes(1, 2), np.float32)
