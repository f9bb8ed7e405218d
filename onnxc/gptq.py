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
    """Codes [K, N] for ``weight`` [K, N] that minimize tr((W - W')T H (W - W')) column by column.

    Args:
        weight: W.
        moment: H [K, K], the inputs' second moment.
        scale: [N], one per output; W' = codes * scale.
        levels: largest magnitude of a code.
        damping: share of H's mean diagonal that is added to it.
    """
    depth = len(weight)
    diagonal = np.diag(moment).astype(np.float64)
    mean = float(diagonal.mean())
    if not np.isfinite(mean) or mean <= 0.0:
        return np.clip(np.rint(weight / scale), -levels, levels).astype(np.int8)
    order = np.argsort(-diagonal, kind="stable")
    remaining = weight[order].astype(np.float32)
    damped = moment[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices(depth)] += damping * mean
    factor = inverse_factor(damped)
    codes = np.empty(weight.shape, np.int8)
    for start in range(0, depth, BLOCK):
        stop = min(start + BLOCK, depth)
        errors = np.empty((stop - start, weight.shape[1]), np.float32)
        for row in range(start, stop):
            rounded = np.clip(np.rint(remaining[row] / scale), -levels, levels)
            codes[row] = rounded
            error = (remaining[row] - rounded * scale) / factor[row, row]
            remaining[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], error)
            errors[row - start] = error
        remaining[stop:] -= factor[start:stop, stop:].T @ errors
    restored = np.empty_like(codes)
    restored[order] = codes
    return restored


def inverse_factor(moment: NDArray[np.float64]) -> Matrix:
    """U [K, K], upper triangular, with UT U = H^-1: GPTQ's updates read it row by row."""
    lower = np.linalg.cholesky(np.linalg.inv(moment))
    return np.asarray(lower.T, np.float32)
