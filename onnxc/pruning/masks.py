"""Zeros in a weight, and what is left of it made the best of. In: a matrix, what meets it. Out: the pruned matrix.

A matrix is [G, K, N]: G groups of K inputs and N outputs each. What meets it is H = E[x xT], [G, K, K]; a change of
the matrix from W to W' costs tr((W - W')T H (W - W')), the power of the output's error.

Which weights go is decided by one of four scores, all of them the estimated cost of a zero:
magnitude      w^2.
activation     w^2 H_kk: Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models"
               (Wanda, 2023).
gradient       w^2 (E[(dy/dw)^2] + a share of its mean) of the whole model's scores y (training/importance.py), which
               the pass hands in.
second-order   w^2 / U_kk^2 with UT U = H^-1, block by block of inputs, every error fed forward into the inputs still
               to come: Frantar, Alistarh, "SparseGPT" (2023), the blocked form of the optimal brain surgeon
               (Hassibi, Stork 1993).
What survives is then refitted by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.gptq import inverse_factor
from onnxc.sequential import Statistic

Importance = Literal["second-order", "activation", "magnitude", "gradient"]
Matrix = NDArray[np.float32]
Mask = NDArray[np.bool_]

BLOCK = 128  # inputs whose mask is chosen at once
DAMPING = 0.05  # of the mean of the diagonal: less fits the calibration data better, and new data worse
ROUNDS = 8  # in which zeros come
STEPS = 60  # of conjugate gradients
TOLERANCE = 1e-5  # of the residual


@dataclass(frozen=True)
class Pattern:
    """Where zeros may lie.

    Attributes:
        kept, of: at most ``kept`` survivors in every ``of`` neighbouring inputs of an output; 0: anywhere.
        inputs, outputs: zeros come in blocks of that many neighbouring inputs and outputs.
    """

    kept: int = 0
    of: int = 0
    inputs: int = 1
    outputs: int = 1

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern of "2:4" or "4x1" (inputs x outputs), of "" zeros anywhere; ValueError for anything else."""
        if not text:
            return cls()
        first, sign, second = text.partition(":" if ":" in text else "x")
        if not (sign and first.isdecimal() and second.isdecimal() and int(first) and int(second)):
            raise ValueError(f"'{text}' is no pattern: write N:M, as in 2:4, or a block, as in 4x1")
        one, two = int(first), int(second)
        if sign == ":" and one > two:
            raise ValueError(f"'{text}' keeps {one} of {two}: write N:M with N at most M, as in 2:4")
        return cls(kept=one, of=two) if sign == ":" else cls(inputs=one, outputs=two)


@dataclass(frozen=True)
class Curvature:
    """H [G, K, K] of the inputs of a weight, damped so that it can be inverted.

    Attributes:
        moment: H, with a share of the mean of its diagonal added to it.
        damping: that share, [G].
        upper: U, upper triangular, with UT U = H^-1.
    """

    moment: Matrix
    damping: Matrix
    upper: Matrix

    @classmethod
    def of(cls, moment: Matrix) -> Curvature:
        """Of measured moments; a group whose inputs were always zero, or not finite, gets the identity."""
        moment = np.array(moment, np.float32)
        mean = np.diagonal(moment, axis1=1, axis2=2).mean(1)
        idle = ~(np.isfinite(moment).all((1, 2)) & (mean > 0))
        steps, damping = np.arange(moment.shape[1]), np.where(idle, 1.0, DAMPING * mean).astype(np.float32)
        moment[idle] = 0
        moment[:, steps, steps] += damping[:, None]
        return cls(moment, damping, inverse_factor(moment.astype(np.float64)))

    @property
    def diagonal(self) -> Matrix:
        """E[x^2], [G, K, 1]."""
        return np.asarray(np.diagonal(self.moment, axis1=1, axis2=2)[:, :, None], np.float32)

    @property
    def prices(self) -> Matrix:
        """What a weight's square is multiplied by: the cost of its zero when all others make up for it, [G, K, 1]."""
        return np.asarray(1 / np.square(self.upper).sum(1), np.float32)[:, :, None]


def grouped(values: NDArray[np.generic], axis: int | None, groups: int) -> Matrix:
    """A weight as W [G, K, N], its axis of outputs last, in groups; [1, all, 1] where it has no such axis."""
    if axis is None:
        return np.asarray(values, np.float32).reshape(1, -1, 1)
    first = np.moveaxis(np.asarray(values, np.float32), axis, 0)
    return np.ascontiguousarray(first.reshape(groups, len(first) // groups, -1).swapaxes(1, 2))


def ungrouped(matrix: Matrix, shape: tuple[int, ...], axis: int | None) -> Matrix:
    """[G, K, N] as a weight of that shape."""
    if axis is None:
        return matrix.reshape(shape)
    others = [size for place, size in enumerate(shape) if place != axis]
    first = matrix.swapaxes(1, 2).reshape(shape[axis], *others)
    return np.ascontiguousarray(np.moveaxis(first, 0, axis))


@dataclass(frozen=True)
class Meeting:
    """What a weight W [G, K, N] meets, x in the original and x' in the pruned model, centred where a bias takes up the
    means.

    Attributes:
        curvature: of E[x' x'T]; cross: E[x' xT], [G, K, K]; mean, before: of x' and x, [G, K].
    """

    curvature: Curvature
    cross: Matrix
    mean: Matrix
    before: Matrix

    @classmethod
    def of(cls, seen: Statistic, *, centred: bool) -> Meeting | None:
        """From sums over rows; None where there are none."""
        if seen.moment is None or seen.mean is None:
            return None
        share = 1 / max(seen.rows, 1)
        moment, mean = seen.moment * share, seen.mean * share
        cross = moment if seen.cross is None else seen.cross * share
        before = mean if seen.reference is None else seen.reference * share
        if centred:
            moment = moment - mean[:, :, None] * mean[:, None, :]
            cross = cross - mean[:, :, None] * before[:, None, :]
        made = [np.asarray(each, np.float32) for each in (moment, cross, mean, before)]
        return cls(Curvature.of(made[0]), *made[1:])

    def wanted(self, weight: Matrix) -> Matrix:
        """Y of ``refit``, [G, K, N]: what W makes of x, with W itself where the inputs say nothing."""
        return np.asarray(self.cross @ weight + self.curvature.damping[:, None, None] * weight, np.float32)

    def dense(self, weight: Matrix) -> Matrix:
        """Without new zeros, the weight that makes of x' what W makes of x."""
        return np.asarray(np.linalg.solve(self.curvature.moment, self.wanted(weight)) * (weight != 0), np.float32)

    def shift(self, weight: Matrix, pruned: Matrix) -> Matrix:
        """[G, N], what the bias takes up."""
        lost = np.einsum("gk,gkn->gn", self.before, weight) - np.einsum("gk,gkn->gn", self.mean, pruned)
        return np.asarray(lost, np.float32)


def survivors(score: Matrix, fraction: float, pattern: Pattern) -> Mask:
    """Which weights of [G, K, N] survive when the cheapest go: as ``pattern`` says, else ``fraction`` of all. Weights
    of no score (zeros) go first.
    """
    groups, depth, outputs = score.shape
    if pattern.of:
        padded = np.pad(score, ((0, 0), (0, -depth % pattern.of), (0, 0)), constant_values=-1.0)
        runs = padded.reshape(groups, -1, pattern.of, outputs)
        order = np.argsort(-runs, axis=2, kind="stable")
        kept = np.zeros(runs.shape, np.bool_)
        np.put_along_axis(kept, order[:, :, : pattern.kept], True, axis=2)
        return kept.reshape(padded.shape)[:, :depth]
    if pattern.inputs * pattern.outputs == 1:
        return cheapest(score, round(fraction * score.size))
    tall, wide = pattern.inputs, pattern.outputs
    padded = np.pad(score, ((0, 0), (0, -depth % tall), (0, -outputs % wide)))
    blocks = padded.reshape(groups, padded.shape[1] // tall, tall, padded.shape[2] // wide, wide).sum((2, 4))
    kept = cheapest(blocks, round(fraction * blocks.size))
    return kept.repeat(tall, 1).repeat(wide, 2)[:, :depth, :outputs]


def cheapest(score: Matrix, count: int) -> Mask:
    """All but the ``count`` entries with the smallest score."""
    kept = np.ones(score.shape, np.bool_)
    if count > 0:
        kept.reshape(-1)[np.argpartition(score.reshape(-1), min(count, score.size) - 1)[:count]] = False
    return kept


def prune(weight: Matrix, met: Meeting, fraction: float, pattern: Pattern) -> Matrix:
    """``weight`` [G, K, N] with zeros chosen by the second order, and survivors that make up for them.

    The zeros come in rounds, each chosen on what the last refit left; the last round is SparseGPT's.
    """
    given, curvature, wanted = weight != 0, met.curvature, met.wanted(weight)
    weight = met.dense(weight)
    for share, allowed in rounds(fraction, pattern):
        kept = survivors(np.square(weight) * curvature.prices, share, allowed) & given
        weight = refit(weight * kept, curvature.moment, wanted, STEPS // 4)
    return refit(second_order(weight, curvature, fraction, pattern), curvature.moment, wanted)


def pruned_alone(weight: Matrix, moment: Matrix | None, fraction: float) -> Matrix:
    """``weight`` [G, K, N] with that share of zeros, where nothing before it changed and no bias makes up for them: by
    the second order of its inputs' ``moment``, by magnitude where nothing is known of them.
    """
    if moment is None:
        return np.asarray(weight * survivors(np.square(weight), fraction, Pattern()), np.float32)
    still = np.zeros(moment.shape[:2], np.float32)
    return prune(weight, Meeting(Curvature.of(moment), moment, still, still), fraction, Pattern())


def rounds(fraction: float, pattern: Pattern) -> list[tuple[float, Pattern]]:
    """The rounds before the last: rising fractions, or fewer and fewer survivors in a group."""
    if pattern.of:
        return [(0.0, Pattern(kept, pattern.of)) for kept in range(pattern.of - 1, pattern.kept, -1)][-ROUNDS:]
    return [(fraction * number / ROUNDS, pattern) for number in range(1, ROUNDS)]


def second_order(weight: Matrix, curvature: Curvature, fraction: float, pattern: Pattern) -> Matrix:
    """``weight`` [G, K, N] with the zeros of SparseGPT, its survivors making up for them. Zeros stay zero.

    Every block of inputs ends with the same share of zeros; those with the least w^2 / U_kk^2 go, as far as the
    pattern allows.
    """
    depth, upper, period = weight.shape[1], curvature.upper, pattern.of or pattern.inputs
    diagonal = np.diagonal(upper, axis1=1, axis2=2)[:, :, None]
    remaining, given = weight.astype(np.float32), weight != 0
    block = max(BLOCK // period, 1) * period
    for start in range(0, depth, block):
        stop = min(start + block, depth)
        errors = np.empty((len(weight), stop - start, weight.shape[2]), np.float32)
        kept = np.empty(errors.shape, np.bool_)
        step = period if pattern.of else block
        for row in range(start, stop):
            if (row - start) % step == 0:
                end = min(row + step, stop)
                score = np.square(remaining[:, row:end] / diagonal[:, row:end]) * given[:, row:end]
                kept[:, row - start : end - start] = survivors(score, fraction, pattern) & given[:, row:end]
            error = np.where(kept[:, row - start], 0, remaining[:, row] / diagonal[:, row])
            remaining[:, row + 1 : stop] -= upper[:, row, row + 1 : stop, None] * error[:, None, :]
            remaining[:, row] *= kept[:, row - start]
            errors[:, row - start] = error
        remaining[:, stop:] -= upper[:, start:stop, stop:].swapaxes(1, 2) @ errors
    return remaining


def refit(pruned: Matrix, moment: Matrix, wanted: Matrix, steps: int = STEPS) -> Matrix:
    """The survivors of ``pruned`` [G, K, N] that minimize tr(W'T H W') - 2 tr(W'T Y), every output on its own: with
    Y = H W the nearest to W, with Y = E[x' xT] W the nearest to what W makes of other inputs x.

    Conjugate gradients on the survivors of all outputs at once (Hestenes, Stiefel 1952), preconditioned by the
    diagonal and started from ``pruned``: never worse than that, and bounded in time.
    """
    kept = pruned != 0
    inverse = 1 / np.diagonal(moment, axis1=1, axis2=2)[:, :, None]
    solution = pruned.astype(np.float32)
    residual = (wanted - moment @ solution) * kept
    limit = TOLERANCE**2 * np.square(wanted).sum(1)
    step = inverse * residual
    direction, power = step, np.einsum("gkn,gkn->gn", residual, step)
    for _ in range(steps):
        active = np.square(residual).sum(1) > limit
        if not active.any():
            break
        ahead = (moment @ direction) * kept
        curvature = np.einsum("gkn,gkn->gn", direction, ahead)
        length = np.where(active & (curvature > 0), power / np.where(curvature > 0, curvature, 1), 0)[:, None]
        solution += length * direction
        residual -= length * ahead
        step = inverse * residual
        before, power = power, np.einsum("gkn,gkn->gn", residual, step)
        direction = step + np.where(before > 0, power / np.where(before > 0, before, 1), 0)[:, None] * direction
    return solution


def kth_smallest(parts: Callable[[], Iterable[Matrix]], count: int) -> float:
    """The ``count``-th smallest of all entries of ``parts`` (none negative, count from 1), which is gone through
    twice: a radix select over the bits of float32, whose order is that of the numbers.
    """
    high = np.zeros(1 << 16, np.int64)
    for part in parts():
        high += np.bincount(part.reshape(-1).view(np.uint32) >> 16, minlength=1 << 16)
    first = int(np.searchsorted(np.cumsum(high), count))
    low = np.zeros(1 << 16, np.int64)
    for part in parts():
        bits = part.reshape(-1).view(np.uint32)
        low += np.bincount(bits[bits >> 16 == first] & 0xFFFF, minlength=1 << 16)
    second = int(np.searchsorted(np.cumsum(low), count - int(high[:first].sum())))
    return float(np.asarray((first << 16) | second, np.uint32).view(np.float32))
