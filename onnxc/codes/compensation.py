"""A weight that makes up for what its inputs lost. In: what meets it in both models. Out: the values to round, and H.

An operator reads x' in the model being compressed, where the original read x. Of all weights V the one with the least
E|V'x' - W'x|^2 is W + H^-1 (C - H) W, with H = E[x' x'T] and C = E[x' xT]; rounding V instead of W on H is then the
same least-squares problem as ever. (Li, Yin, Lin and others, "GPTAQ: Efficient Finetuning-Free Quantization for
Asymmetric Calibration", 2025, feed the same term forward column by column.) The correction is fitted to samples, so it
is kept as small as two halves of them, each tried on the other, say that it has to be.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RIDGES = (0.03, 0.3)  # of each input's own power, added to H; beyond them nothing is corrected
SOME = 96  # outputs that tell which ridge is best: they share the inputs
TINY = 1e-12
LOST, FAR = 0.1, 3.0  # of a row's power, and times the median of its sample: a row that lost more is beyond repair

Matrix = NDArray[np.float32]


@dataclass
class Half:
    """Sums over half of the samples: x' x'T and x' xT [G, K, K], x' and x [G, K], and rows."""

    moment: Matrix
    cross: Matrix
    mean: NDArray[np.float64]
    reference: NDArray[np.float64]
    rows: int = 0

    def centred(self, *, centre: bool) -> tuple[Matrix, Matrix]:
        """H and C of this half, about its means where ``centre``."""
        count = np.float32(max(self.rows, 1))
        moment, cross = self.moment / count, self.cross / count
        if centre:
            mean, reference = (self.mean / count).astype(np.float32), (self.reference / count).astype(np.float32)
            moment -= mean[:, :, None] * mean[:, None]
            cross -= mean[:, :, None] * reference[:, None]
        return moment, cross


@dataclass
class Met:
    """What meets one weight, over all samples. Some samples at a time are one part; parts go to two halves in turn.

    Attributes:
        together: samples of a part: sums of few rows take longer than their products.
        halves: the sums; empty until a row came.
        squares: sum over parts of the squares of all products of two different inputs' means over the part.
        samples: that gave rows; parts: how many there were.
    """

    together: int = 1
    halves: list[Half] = field(default_factory=list)
    squares: float = 0.0
    samples: int = 0
    parts: int = 0
    _waiting: list[tuple[Matrix, Matrix]] = field(default_factory=list)

    def add(self, now: Matrix, before: Matrix) -> None:
        """Rows [R, G, K] of one sample, in the model being compressed and in the original, paired."""
        self._waiting.append((now, attainable(now, before)))
        self.samples += 1
        if len(self._waiting) >= self.together:
            self.flush()

    def flush(self) -> None:
        """Add up what waits."""
        if not self._waiting:
            return
        now, before = (np.concatenate(rows).swapaxes(0, 1) for rows in zip(*self._waiting, strict=True))
        self._waiting.clear()
        groups, _, depth = now.shape
        if not self.halves:
            square, line = (groups, depth, depth), (groups, depth)
            self.halves = [
                Half(np.zeros(square, np.float32), np.zeros(square, np.float32), np.zeros(line), np.zeros(line))
                for _ in range(2)
            ]
        half, transposed = self.halves[self.parts % 2], now.swapaxes(1, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            moment = transposed @ now
        if not np.isfinite(moment).all():  # squares of huge values: nothing can be solved on them
            return
        half.moment += moment
        half.cross += moment if np.array_equal(now, before) else transposed @ before
        half.mean += now.sum(1, dtype=np.float64)
        half.reference += before.sum(1, dtype=np.float64)
        half.rows += now.shape[1]
        self.squares += off_diagonal(moment) / now.shape[1] ** 2
        self.parts += 1

    @property
    def whole(self) -> Half:
        """Both halves together."""
        one, other = self.halves
        return Half(
            one.moment + other.moment,
            one.cross + other.cross,
            one.mean + other.mean,
            one.reference + other.reference,
            one.rows + other.rows,
        )

    def moments(self, *, centre: bool) -> Matrix:
        """H [G, K, K], drawn towards its diagonal by as much as samples differ: rows of one sample are alike, and tell
        less than as many rows of different samples would (Ledoit and Wolf, 2004, with samples as observations).
        """
        moment, _ = self.whole.centred(centre=False)
        known = off_diagonal(moment)
        chance = max(self.squares / max(self.parts, 1) - known, 0.0) / max(self.parts - 1, 1)
        if centre:
            moment, _ = self.whole.centred(centre=True)
            known = off_diagonal(moment)
        share = np.float32(np.clip(chance / known, 0.0, 1.0)) if known > 0 else np.float32(1.0)
        steps = np.arange(moment.shape[1])
        diagonal = moment[:, steps, steps].copy()
        moment *= 1 - share
        moment[:, steps, steps] = diagonal
        return moment

    def shift(self, weight: Matrix, rounded: Matrix) -> NDArray[np.float64]:
        """[G * N], by how much the mean of the output is off with ``rounded`` [G, K, N] in place of ``weight``."""
        whole = self.whole
        now = np.einsum("gk,gkn->gn", whole.mean / max(whole.rows, 1), rounded.astype(np.float64))
        before = np.einsum("gk,gkn->gn", whole.reference / max(whole.rows, 1), weight.astype(np.float64))
        return np.asarray((now - before).reshape(-1))


def attainable(now: Matrix, before: Matrix) -> Matrix:
    """``before`` [R, G, K], but rows that lost much more than the others of the sample stay as they are ``now``.

    Where a range cuts off the one huge value of a token, no weight brings it back; least squares would spread what is
    missing over all other tokens (a sentence encoder fell from 17.0 to 4.7 dB). The same goes for a token that takes
    another way through the layers, as one in a hundred does at 2.5 bits (7.0 dB; 12.3 without such rows).
    """
    lost = ((now - before) ** 2).sum((1, 2)) / np.maximum((before**2).sum((1, 2)), np.float32(TINY))
    gone = lost > max(LOST, FAR * float(np.median(lost)))
    return np.where(gone[:, None, None], now, before) if gone.any() else before


def off_diagonal(moment: Matrix) -> float:
    """Sum of the squares of all entries [G, K, K] off the diagonals."""
    diagonal = np.diagonal(moment, axis1=1, axis2=2).astype(np.float64)
    whole = sum(float(np.vdot(each, each)) for each in moment)
    return max(whole - float((diagonal**2).sum()), 0.0)


def compensated(weight: Matrix, met: Met, *, centre: bool) -> Matrix:
    """W [G, K, N] changed so that on x' it gives what it gave on x, as far as samples agree on how.

    Args:
        centre: the means are taken up by a bias.
    """
    halves, outputs = [half.centred(centre=centre) for half in met.halves], weight.shape[2]
    some = weight[:, :, np.linspace(0, outputs - 1, SOME).astype(int)] if outputs > SOME else weight
    wanted = [(cross - moment) @ some for moment, cross in halves]
    best, least = 0.0, 0.0
    for ridge in RIDGES:
        error = 0.0
        for here, there in ((0, 1), (1, 0)):
            change = corrected(halves[here][0], wanted[here], ridge)
            error += float(np.vdot(change, halves[there][0] @ change - 2 * wanted[there]))
        if error < least:
            best, least = ridge, error
    if not best:
        return weight
    moment, cross = met.whole.centred(centre=centre)
    change = corrected(moment, (cross - moment) @ weight, best)
    return np.where(weight == 0, weight, weight + change).astype(np.float32)


def corrected(moment: Matrix, wanted: NDArray[np.floating], ridge: float) -> Matrix:
    """(H + ridge diag(H))^-1 ``wanted``, [G, K, N]; an input that was always zero changes nothing."""
    steps = np.arange(moment.shape[1])
    damped = moment.copy()
    diagonal = damped[:, steps, steps]
    least = TINY + 1e-6 * diagonal.mean(1, keepdims=True)
    damped[:, steps, steps] = diagonal * np.float32(1 + ridge) + least.astype(np.float32)
    return np.asarray(np.linalg.solve(damped, wanted), np.float32)
