"""Coordinate descent on rounded weights: one input after the other gets the best value there is, given all others.

In: a weight, a rounding of it, and the second moment of its inputs. Out: values of the same grid with less damage
tr((W - W')T H (W - W')), never with more. Behdin, Acharya, Gupta, Song, Zhu, Keerthi, Mazumder, "QuantEase:
Optimization-based Quantization for Language Models" (2023); CDQuant (2024). What gradient-based learned rounding
(AdaRound) approximates on the same objective, this solves directly: it also moves by more than one code.

With V the current values and D = W - V, the damage as a function of row k alone is a parabola around
V_k + (H D)_k / H_kk: the grid value nearest to that is the best one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

BLOCK = 64
SWEEPS = 4
SETTLED = 1e-3  # a sweep that gains less of the damage is the last

Matrix = NDArray[np.float32]
Snap = Callable[[int, Matrix], Matrix]


def descend(weight: Matrix, values: Matrix, moment: Matrix, snap: Snap, sweeps: int = SWEEPS) -> Matrix:
    """Values [G, K, N] of the grid, at most as damaging as ``values``.

    Args:
        weight: W, [G, K, N]: G groups of K inputs and N outputs each.
        values: where to start, W' of any rounding, of the grid.
        moment: H, [G, K, K], symmetric.
        snap: (k, target [G, N]) -> the values of the grid nearest to the target in row k of every group and output:
            with one scale per output, with one per block of rows, or out of a codebook.
        sweeps: over all rows, at most.
    """
    current = np.array(values, np.float32)
    diagonal = np.diagonal(moment, axis1=1, axis2=2)
    sound = np.asarray(np.isfinite(moment).all((1, 2)))
    finite = np.where(sound[:, None, None], moment, 0)
    usable = np.where(sound[:, None] & (diagonal > 0), diagonal, 0)
    pull = finite @ (weight - current)  # H D
    total = float(np.einsum("gkn,gkn->", weight - current, pull, dtype=np.float64))
    for _ in range(sweeps):
        gained = sweep(current, pull, finite, usable, snap)
        total -= gained
        if gained <= SETTLED * max(total, 0.0):
            break
    return current


def sweep(current: Matrix, pull: Matrix, moment: Matrix, diagonal: Matrix, snap: Snap) -> float:
    """One pass over all rows, ``current`` and ``pull`` = H D changed in place; how much damage is gone."""
    depth = current.shape[1]
    gained = 0.0
    for start in range(0, depth, BLOCK):
        stop = min(start + BLOCK, depth)
        steps = np.zeros((len(current), stop - start, current.shape[2]), np.float32)
        for row in range(start, stop):
            weight = diagonal[:, row, None]
            with np.errstate(divide="ignore", invalid="ignore"):
                target = np.where(weight > 0, current[:, row] + pull[:, row] / weight, current[:, row])
            found = snap(row, target)
            step = found - current[:, row]
            less = step * (2 * pull[:, row] - weight * step)  # of the damage
            take = (less > 0) & (weight > 0)
            step = np.where(take, step, 0)
            gained += float(np.where(take, less, 0).sum(dtype=np.float64))
            current[:, row] = np.where(take, found, current[:, row])
            steps[:, row - start] = step
            pull[:, start:stop] -= moment[:, start:stop, row, None] * step[:, None, :]
        pull[:, stop:] -= moment[:, stop:, start:stop] @ steps
        pull[:, :start] -= moment[:, :start, start:stop] @ steps
    return gained
