"""GPTQ: rounding a weight column by column, each error fed forward into the columns still to come.

In: a matrix, the inputs it meets, a grid of values that can be stored. Out: codes with the least output error.
Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022): the blocked Cholesky form, with the columns of largest second moment first (act-order). Scales of
blocks are fixed before, from the weight itself, so that any order of columns keeps to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.grids import Grid, nearest, parts

BLOCK = 32  # columns whose errors are fed forward one by one; what lies behind them meets a product of all
DAMPING = 0.01
INVERTED = 64  # rows of a triangle that are inverted at once

Matrix = NDArray[np.float32]


def second_moment(rows: Matrix) -> Matrix:
    """H = E[x xT], [K, K], of input rows [R, K]; infinite where squares overflow, which factorize() leaves alone."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(rows.T @ rows / max(len(rows), 1), np.float32)


def shrunk_moment(rows: Matrix) -> Matrix:
    """H = E[x xT] as far as rows [R, K] tell it: drawn towards its diagonal by as much as they leave it uncertain.

    With few rows products of different inputs are mostly chance, and a solver that trusts them fits the samples, not
    the model. Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004), with
    the chance that Gaussian rows have: measured fourth moments are themselves chance where values have long tails.
    Mean and covariance are drawn apart: behind a Relu the mean is large and well known, and says nothing of how well
    the rest is.
    """
    count = max(len(rows), 1)
    moment = second_moment(rows)
    if not np.isfinite(moment).all():
        return moment
    diagonal = np.diagonal(moment).copy()
    mean = rows.mean(0, dtype=np.float64) if len(rows) else np.zeros(rows.shape[1])
    outer = np.outer(mean, mean).astype(np.float32)
    moment -= outer  # the covariance
    spread = np.diagonal(moment).astype(np.float64)
    squares = float((spread**2).sum())
    off = float(np.einsum("kl,kl->", moment, moment, dtype=np.float64)) - squares
    chance = (float(spread.sum()) ** 2 - squares + off) / count
    share = np.float32(np.clip(chance / off, 0.0, 1.0)) if off > 0 else np.float32(1.0)
    moment *= 1 - share
    power = float(mean @ mean)
    known = np.clip(1 - float(spread.sum()) / (count * power), 0.0, 1.0) if power > 0 else 0.0
    moment += np.float32(known) * outer
    np.fill_diagonal(moment, diagonal)
    return moment


@dataclass(frozen=True)
class Factor:
    """What GPTQ needs of the inputs; sites that read one tensor share it.

    Attributes:
        order: [G, K], the inputs by falling second moment.
        upper: [G, K, K], U in that order, UT U = H^-1.
        moment: H itself, [G, K, K], as measured.
    """

    order: NDArray[np.intp]
    upper: Matrix
    moment: Matrix

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.order.nbytes + self.upper.nbytes + self.moment.nbytes


def factorize(moment: Matrix) -> Factor:
    """The factor of second moments H [G, K, K], with DAMPING times the mean of H's diagonal added to it.

    A group whose inputs were always zero, or not finite, gets the identity: rounding to nearest.
    """
    depth = moment.shape[1]
    diagonal = np.diagonal(moment, axis1=1, axis2=2).astype(np.float64)
    mean = diagonal.mean(1)
    sound = np.asarray(np.isfinite(moment).all((1, 2)))
    if not sound.all():
        moment = np.where(sound[:, None, None], moment, np.eye(depth, dtype=np.float32))
    idle = ~(sound & (mean > 0))
    order = np.argsort(-np.where(idle[:, None], 0.0, diagonal), axis=1, kind="stable")
    damped = np.take_along_axis(np.take_along_axis(moment, order[:, :, None], 1), order[:, None, :], 2).astype(
        np.float64
    )
    damped[idle] = np.eye(depth)
    damped[:, np.arange(depth), np.arange(depth)] += DAMPING * np.where(idle, 1.0, mean)[:, None]
    return Factor(order, inverse_factor(damped), moment)


def gptq(weight: Matrix, factor: Factor | None, grid: Grid) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Codes of W [G, K, N] that minimize tr((W - W')T H (W - W')) of every group, column by column.

    Args:
        weight: G groups of K inputs and N outputs each, in units of one code's scale; its zeros stay zeros as far as
            the grid has them.
        factor: of the inputs' second moments; None: every weight goes to its nearest value.
        grid: the values that the weight may take.

    Returns:
        The values [G, K, N] (int8; float32 of a grid with scales of its own), and the digits that are stored for them
        [G, K, N or words of N].
    """
    groups, depth, outputs = weight.shape
    digits = np.empty((groups, depth, grid.width(outputs)), np.uint8)
    if factor is None:
        digits, values = nearest(grid, weight)
        return values, digits
    order, upper, here = factor.order, factor.upper, np.arange(groups)
    values = np.empty(weight.shape, nearest(grid, weight[:, :1])[1].dtype)
    remaining = np.take_along_axis(weight, order[:, :, None], 1).astype(np.float32)
    for start in range(0, depth, BLOCK):
        stop = min(start + BLOCK, depth)
        errors = np.empty((groups, stop - start, outputs), np.float32)
        for row in range(start, stop):
            place = order[:, row]
            found, rounded = grid.snap((here, place), remaining[:, row] * (weight[here, place] != 0))
            values[here, place], digits[here, place] = rounded, found
            error = (remaining[:, row] - rounded) / upper[:, row, row, None]
            remaining[:, row + 1 : stop] -= upper[:, row, row + 1 : stop, None] * error[:, None, :]
            errors[:, row - start] = error
        remaining[:, stop:] -= upper[:, start:stop, stop:].swapaxes(1, 2) @ errors
    return values, digits


def damage(weight: Matrix, values: Matrix, moment: Matrix | None) -> float:
    """tr((W - W')T H (W - W')) / tr(WT H W) over all groups of W [G, K, N], with W' = ``values`` and H = ``moment``
    [G, K, K]; None: the identity, where nothing is known of the inputs.
    """
    peak = np.float32(max(float(weight.max(initial=0.0)), -float(weight.min(initial=0.0)), 1e-30))
    lost = whole = 0.0
    for part in parts(weight):
        true, error = weight[:, :, part], weight[:, :, part] - values[:, :, part]
        lost += power(error / peak, moment)  # squares of huge weights would overflow
        whole += power(true / peak, moment)
    return lost / max(whole, 1e-30)


def power(matrix: Matrix, moment: Matrix | None) -> float:
    """tr(MT H M), with H the identity where ``moment`` is None."""
    spread = matrix if moment is None else moment @ matrix
    return float(np.einsum("gkn,gkn->", spread, matrix, dtype=np.float64))


def inverse_factor(moment: NDArray[np.float64]) -> Matrix:
    """U [G, K, K], upper triangular, with UT U = H^-1: GPTQ's updates read it row by row.

    With inputs in reverse order H = L LT, and U is L^-1 in reverse again: no inverse of H is needed.
    """
    lower = np.linalg.cholesky(moment[:, ::-1, ::-1])
    return np.ascontiguousarray(inverse_of_lower(lower)[:, ::-1, ::-1], np.float32)


def inverse_of_lower(lower: NDArray[np.floating]) -> NDArray[np.floating]:
    """L^-1 of lower triangular L [G, K, K], by halves: what lies below the two is a product of three."""
    depth = lower.shape[1]
    if depth <= INVERTED:
        return np.asarray(np.linalg.inv(lower))
    half, found = depth // 2, np.zeros_like(lower)
    found[:, :half, :half] = inverse_of_lower(lower[:, :half, :half])
    found[:, half:, half:] = inverse_of_lower(lower[:, half:, half:])
    found[:, half:, :half] = -found[:, half:, half:] @ (lower[:, half:, :half] @ found[:, :half, :half])
    return found
