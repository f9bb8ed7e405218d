"""Ranges of activations by what they do to the model's outputs. In: a probe that rounds, samples. Out: better ranges.

A range with the least squared error of its own tensor need not be the best for the outputs: where few large values
carry little of the answer, a narrower one is; where they carry all of it, a wider one. So ranges are tried on the whole
model: every tensor by another rule, then the loudest tensors one by one.

Of many choices on few samples the best one flatters itself. On 16 samples of a residual network the ranges chosen so
are 3 dB better than those by squared error, and 3 dB worse on others. So a choice has to convince: its gain has to be
a share of the noise, and many times the chance that the samples' own differences leave. What was chosen one by one is
held together against what was before, from runs that are kept back for that: errors of neighbours may add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxc.contract.candidates import Activation
from onnxc.histograms import Histogram

Changes = Mapping[str, NDArray[np.generic]]
Limits = tuple[float, float]
Errors = NDArray[np.float64]

RULES = (("percentile", 99.999), ("percentile", 99.99), ("minmax", 100.0))  # beside least squares, for all tensors
PERCENTILES = (99.999, 99.99, 99.9, 99.5)
SCALES = (0.7, 0.5, 0.35, 0.25, 1.4)  # of the range by squared error
MOST, SMALL = 16, 0.02  # tensors tried alone, and the share of all noise below which one is not
FEW, FINALISTS = 4, 3  # samples on which ranges are tried, and how many of them are then held against all samples
GAIN, CLEAR = 0.97, 0.5  # of the noise, and with too few samples to tell
SURE, SURER = 2.0, 3.0  # standard errors of a gain: of one of a few rules, of one of many ranges
SAFE = 0.5  # of a wider range: it cuts off less of other samples too, and often one loud sample is all that tells
FEWEST = 4  # samples that tell how sure a gain is
LEAST = 0.01  # of the mean noise of a sample: what is below it counts as nothing in a ratio


class Bench(Protocol):
    """What runs the model: sensitivity.Meter."""

    def errors(self, changes: Changes, samples: Sequence[int] | None = None) -> Errors:
        """[samples, outputs], noise power of each sample over the whole signal power of the output."""

    def at(self, activation: Activation) -> dict[str, NDArray[np.generic]]:
        """The change that rounds ``activation``."""


@dataclass
class Purse:
    """Runs of one sample that may still be spent."""

    runs: float

    def pays(self, runs: int) -> bool:
        """Spend ``runs``, if there are as many."""
        if self.runs < runs:
            return False
        self.runs -= runs
        return True


def convincing(before: Errors, after: Errors, sure: float) -> bool:
    """Whether ``after`` [samples, outputs] is less noise than ``before``, also for other samples of their kind: by the
    mean of the differences, or of the ratios, where a few loud samples hide what the others have in common.
    """
    totals, found = before.sum(0), after.sum(0)
    worst = int(totals.argmax())
    if len(before) < FEWEST:
        return bool(found.max() < CLEAR * totals[worst])
    if found.max() >= GAIN * totals[worst]:
        return False
    return clear(before[:, worst] - after[:, worst], sure) or clear(ratios(before, after), sure)


def held_together(before: Errors, after: Errors) -> bool:
    """Whether ranges that were chosen one by one are better together too: in all, or on most samples. Of class scores
    most of the noise is in few answers that change with any rounding, to one side or the other.
    """
    return bool(after.sum(0).max() < before.sum(0).max()) or (
        len(before) >= FEWEST and clear(ratios(before, after), SURE)
    )


def ratios(before: Errors, after: Errors) -> NDArray[np.float64]:
    """[samples], logarithms of how many times as loud ``before`` was, in the output that was loudest."""
    worst = int(before.sum(0).argmax())
    least = LEAST * before[:, worst].mean()
    return np.asarray(np.log((before[:, worst] + least) / (after[:, worst] + least)))


def clear(gains: NDArray[np.float64], sure: float) -> bool:
    """Whether the sum of ``gains`` is so many standard errors above 0."""
    return bool(gains.sum() > sure * gains.std(ddof=1) * np.sqrt(len(gains)))


def refine(
    bench: Bench,
    activations: Sequence[Activation],
    noise: Mapping[str, float],
    ranges: Mapping[str, Histogram],
    samples: int,
    runs: float,
) -> dict[str, Limits]:
    """Tensor -> (low, high) of the static activations that another range serves better.

    Args:
        activations: with the ranges they have; noise: tensor -> noise of each alone.
        ranges: histograms of the tensors.
        samples: of the bench; runs: how many runs of one sample may be spent.
    """
    purse = Purse(runs - samples)
    current = {activation.tensor: activation for activation in activations}
    start = dict(current)

    def together(chosen: Mapping[str, Activation]) -> dict[str, NDArray[np.generic]]:
        return {name: value for each in chosen.values() for name, value in bench.at(each).items()}

    def ruled(method: str, percentile: float) -> dict[str, Activation]:
        pairs = {name: ranges[name].limits(method, percentile) for name in current}
        return {name: replace(current[name], low=low, high=high) for name, (low, high) in pairs.items()}

    if not current:
        return {}
    least = bench.errors(together(current)) if purse.pays(samples) else None
    if least is not None and not least.size:  # no output is a quantity: nothing tells one range from another
        return {}
    for rule in RULES:
        if least is None or not purse.pays(samples):
            break
        tried = ruled(*rule)
        found = bench.errors(together(tried))
        if convincing(least, found, SURE):
            current, least = tried, found
    chosen = dict(current)
    for name in sorted(current, key=lambda name: -noise[name])[:MOST]:
        better = best_alone(bench, chosen[name], ranges[name], samples, purse)
        if noise[name] < SMALL * sum(noise.values()) or better is None:
            break
        chosen[name] = better
    if least is None or (chosen != current and held_together(least, bench.errors(together(chosen)))):
        current = chosen
    return {name: (each.low, each.high) for name, each in current.items() if each != start[name]}


def best_alone(
    bench: Bench, activation: Activation, histogram: Histogram, samples: int, purse: Purse
) -> Activation | None:
    """``activation`` in the range with the least noise, its own where no other convinces; None where that cannot be
    paid any more.
    """
    options = [replace(activation, low=low, high=high) for low, high in alternatives(histogram)]
    some = list(range(0, samples, -(-samples // FEW)))
    finalists = min(FINALISTS, len(options))
    if not purse.pays(len(options) * len(some) + (finalists + 1) * samples):
        return None
    quick = sorted(options, key=lambda option: bench.errors(bench.at(option), some).sum(0).max())[:finalists]
    if options[0] not in quick:  # the whole range: a few samples seldom tell what it is for
        quick[-1] = options[0]
    before = bench.errors(bench.at(activation))
    tried = [(bench.errors(bench.at(option)), option) for option in quick]
    errors, best = min(tried, key=lambda pair: float(pair[0].sum(0).max()))
    wider = best.low <= activation.low and best.high >= activation.high
    return best if convincing(before, errors, SAFE if wider else SURER) else activation


def alternatives(histogram: Histogram) -> list[Limits]:
    """Other ranges to try: the whole one, percentiles, and narrower ones around zero."""
    found = [histogram.limits("minmax"), *(histogram.limits("percentile", share) for share in PERCENTILES)]
    low, high = histogram.limits("mse")
    found += [(low * ratio, high * ratio) for ratio in SCALES]
    return list(dict.fromkeys(pair for pair in found if pair[1] > pair[0]))
