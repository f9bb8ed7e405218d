"""Whether more calibration data would change a range. In: how the samples seen so far differ. Out: a sentence.

A range chosen from a distribution (mse, percentile, entropy) is computed again without each of eight groups of
samples; the differences give its standard error at n samples, and from it how far m more would move it. A range that
is the largest value seen grows without end, ever more slowly: how fast, the spacings of the largest ones say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import isfinite, log, sqrt

import numpy as np

from onnxc.histograms import GROUPS, Histogram, Spread
from onnxc.observe import Observations

SETTLED = 0.01  # of a range's width: moving less than that changes no result
MOST_SAMPLES = 100_000


def movement(spread: Spread, more: int, method: str = "mse", percentile: float = 99.99) -> float:
    """How far the ends of a range would move with ``more`` further samples of the same kind: one standard deviation
    (minmax: the expected growth), as a share of the range's width; nan with fewer samples than groups.
    """
    n = spread.samples
    if n < GROUPS:
        return float("nan")
    if method == "minmax":
        width = max(spread.highest[0], 0.0) - min(spread.lowest[0], 0.0)
        growth = tail_scale(spread.highest) * (spread.highest[0] > 0)
        growth += tail_scale([-low for low in spread.lowest]) * (spread.lowest[0] < 0)
        return growth * log((n + more) / n) / width if width > 0 else 0.0
    return standard_error(spread, method, percentile) * sqrt(more / (n + more))


def standard_error(spread: Spread, method: str, percentile: float) -> float:
    """The jackknife's standard error of both ends together, as a share of the range's width.

    Quenouille (1956), Tukey (1958): groups left out one at a time.
    """
    whole = spread.groups.sum(0)
    parts = [histogram(whole - group, spread.radius).limits(method, percentile) for group in spread.groups]
    ends = np.asarray(parts)
    low, high = histogram(whole, spread.radius).limits(method, percentile)
    variance = (GROUPS - 1) / GROUPS * ((ends - ends.mean(0)) ** 2).sum(0)
    return float(sqrt(variance.sum()) / max(high - low, 1e-30))


def histogram(counts: np.ndarray, radius: float) -> Histogram:
    """A histogram of ``counts`` [bins], its ends those of the outermost bins that hold anything."""
    made = Histogram(radius=radius, counts=counts, total=int(counts.sum()))
    filled = np.flatnonzero(counts)
    if len(filled):
        half = radius / counts.size
        made.lowest, made.highest = made.centres[filled[0]] - half, made.centres[filled[-1]] + half
    return made


def tail_scale(peaks: Sequence[float]) -> float:
    """How much the largest of n values grows when n grows by a factor e.

    Weissman, "Estimation of parameters and large quantiles based on the k largest observations" (1978): the spacings
    of the largest order statistics, times their ranks, all have that mean.
    """
    spacings = [rank * (peaks[rank - 1] - peaks[rank]) for rank in range(1, len(peaks))]
    return sum(spacings) / len(spacings) if spacings else 0.0


def needed(spread: Spread, method: str = "mse", percentile: float = 99.99, share: float = SETTLED) -> int:
    """How many more samples bring the standard error of a range's ends below ``share`` of its width."""
    if spread.samples < GROUPS:
        return GROUPS - spread.samples
    excess = (standard_error(spread, method, percentile) / share) ** 2 - 1
    return min(max(int(np.ceil(spread.samples * excess)), 0), MOST_SAMPLES)


def told(name: str, spread: Spread, more: int, method: str = "mse", percentile: float = 99.99) -> str:
    """The sentence "40 more samples would move the range of 'x' by less than 1 %", or by how much."""
    share = movement(spread, more, method, percentile)
    if not isfinite(share):
        return f"{spread.samples} samples are too few to say whether more would move the range of '{name}'"
    far = "less than 1 %" if share < SETTLED else f"about {share:.0%}"
    return f"{more} more samples would move the range of '{name}' by {far}"


def convergence_note(
    seen: Observations, names: Collection[str] | None = None, method: str = "mse", percentile: float = 99.99
) -> str | None:
    """One sentence on the ranges of the tensors ``names``, of all where None; None where there are none.

    The number of samples that settles a range is that of the loosest one.
    """
    spreads = {name: each for name, each in seen.spreads.items() if names is None or name in names}
    if not spreads:
        return None
    most = max(spread.samples for spread in spreads.values())
    if most < GROUPS:
        return f"{most} calibration samples are too few to tell whether more would change a range"
    moves = {name: movement(spread, most, method, percentile) for name, spread in spreads.items()}
    loose = sorted((name for name, share in moves.items() if share >= SETTLED), key=lambda name: -moves[name])
    if not loose:
        return f"{most} more calibration samples would move every range by less than 1 %"
    worst = told(loose[0], spreads[loose[0]], most, method, percentile)
    count = f"{len(loose)} of {len(moves)} quantized activations have a range that is not settled"
    enough = needed(spreads[loose[0]], method, percentile)
    rest = f"; about {enough:,} would settle it" if method != "minmax" and enough < MOST_SAMPLES else ""
    return f"{count}: {worst}{rest}"
