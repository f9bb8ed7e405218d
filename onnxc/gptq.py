"""GPTQ: rounding a weight column by column, each error fed forward into the columns still to come.

In: a matrix, the inputs it meets, a scale per output. Out: integer codes with the least output error.
Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022): the blocked Cholesky form, with the columns of largest second moment first (act-order).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 128
DAMPING = 0.01

Matrix = NDArray[np.float32]


def second_moment(rows: Matrix) -> Matrix:
    """H = E[x xT], [K, K], of input rows [R, K]."""
    return np.asarray(rows.T @ rows / max(len(rows), 1), np.float32)


@dataclass(frozen=True)
class Factor:
    """What GPTQ needs of the inputs; sites that read one tensor share it.

    Attributes:
        order: [G, K], the inputs by falling second moment.
        upper: [G, K, K], U in that order, UT U = H^-1.
    """

    order: NDArray[np.intp]
    upper: Matrix


def factorize(moment: Matrix, damping: float = DAMPING) -> Factor:
    """The factor of second moments H [G, K, K], with ``damping`` times the mean of H's diagonal added to it.

    A group whose inputs were always zero, or not finite, gets the identity: rounding to nearest.
    """
    depth = moment.shape[1]
    diagonal = np.diagonal(moment, axis1=1, axis2=2).astype(np.float64)
    mean = diagonal.mean(1)
    idle = ~(np.isfinite(moment).all((1, 2)) & (mean > 0))
    order = np.argsort(-np.where(idle[:, None], 0.0, diagonal), axis=1, kind="stable")
    damped = np.take_along_axis(np.take_along_axis(moment, order[:, :, None], 1), order[:, None, :], 2).astype(
        np.float64
    )
    damped[idle] = np.eye(depth)
    damped[:, np.arange(depth), np.arange(depth)] += damping * np.where(idle, 1.0, mean)[:, None]
    return Factor(order, inverse_factor(damped))


def gptq(weight: Matrix, factor: Factor, scale: Matrix, levels: int) -> NDArray[np.int8]:
    """Codes [G, K, N] that minimize tr((W - W')T H (W - W')) of every group, column by column.

    Args:
        weight: W, [G, K, N]: G groups of K inputs and N outputs each.
        factor: of the inputs' second moments.
        scale: [G, N], one per output; W' = codes * scale.
        levels: largest magnitude of a code.
    """
    depth, order, upper = weight.shape[1], factor.order, factor.upper
    remaining = np.take_along_axis(weight, order[:, :, None], 1).astype(np.float32)
    codes = np.empty(weight.shape, np.int8)
    for start in range(0, depth, BLOCK):
        stop = min(start + BLOCK, depth)
        errors = np.empty((len(weight), stop - start, weight.shape[2]), np.float32)
        for row in range(start, stop):
            rounded = np.clip(np.rint(remaining[:, row] / scale), -levels, levels)
            codes[:, row] = rounded
            error = (remaining[:, row] - rounded * scale) / upper[:, row, row, None]
            remaining[:, row + 1 : stop] -= upper[:, row, row + 1 : stop, None] * error[:, None, :]
            errors[:, row - start] = error
        remaining[:, stop:] -= upper[:, start:stop, stop:].swapaxes(1, 2) @ errors
    restored = np.empty_like(codes)
    np.put_along_axis(restored, order[:, :, None], codes, 1)
    return restored


def inverse_factor(moment: NDArray[np.float64]) -> Matrix:
    """U [G, K, K], upper triangular, with UT U = H^-1: GPTQ's updates read it row by row."""
    lower = np.linalg.cholesky(np.linalg.inv(moment))
    return np.asarray(lower.swapaxes(1, 2), np.float32)
