"""Factors per channel that make a tensor, or the weights that read it, easier to round; the outputs stay equal.

      LayerNorm(g, b) ── x ── MatMul(W)     becomes     LayerNorm(g / s, b / s) ── x / s ── MatMul(W * s)

In: a model and calibration data. Out: a Level. Two ways to choose s:

    activations   s = max |x|^alpha / max |W|^(1 - alpha): outliers of a few channels of x go into W. Xiao, Lin, Seznec,
                  Wu, Demouth, Han, "SmoothQuant" (2022). One alpha for all tensors, the one that serves the outputs of
                  the whole model best, on samples that the factors do not come from; none where that is not clear.
    weights       s = mean |x|^alpha: inputs that matter most get the finest steps of W. Lin, Tang, Tang, Yang, Dang,
                  Han, "AWQ" (2023). alpha is searched on tr((W - W')T H (W - W')) with W in a few bits, and then
                  likewise held against the outputs of the whole model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.saturation import machine_saturates
from onnxc.contract.candidates import Activation
from onnxc.contract.context import Context
from onnxc.contract.passes import Level
from onnxc.data import Calibration, Sample
from onnxc.equalizing.equalization import Ranges, seam_ranges, told_reasons, within_clips
from onnxc.equalizing.readers import Outputs, Vector, blockwise, matrix_of, per_output, stored_as
from onnxc.equalizing.scaling import Seam, input_channels
from onnxc.equalizing.seams import seams
from onnxc.model import Model
from onnxc.observe import Observations
from onnxc.rewriting.rewriter import Rewriter
from onnxc.sensitivity import power
from onnxc.session import Options, Session
from onnxc.sites import Site, find

Aim = Literal["activations", "weights"]
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # per tensor
GLOBAL_ALPHAS = {"activations": (0.35, 0.5, 0.65, 0.8, 0.9, 1.0), "weights": (0.25, 0.5, 0.75)}
QUICK_ALPHAS = (0.5, 0.65, 0.8)  # where nobody asked for factors by name
MOST = 48  # samples that the factors come from there
COARSE, SPOILED = 4, 1.1  # bits of weights that may suffer from factors for activations, and by how much
FEWEST = 4  # samples without which no choice can be judged
SAMPLES = 8  # on which the whole model is run
WORTH = 0.97  # of the error without factors: a smaller gain is no reason to touch a tensor
CONVINCING = 0.8  # the same of the whole model's outputs: the best of several choices on few samples flatters itself
QUIETEST = 0.25  # of the median channel: a channel that was quieter in these samples need not be so in others
LARGEST_FACTOR = 2.0**12
LARGEST_VALUE = 1e12  # of activations and weights that factors are found for


def smoothed(
    context: Context,
    *,
    alpha: float | None = None,
    aim: Aim = "activations",
    bits: int = 4,
    block: int = 64,
    insert: bool = False,
    quick: bool = False,
) -> Level | None:
    """``context.model`` with factors moved across every tensor where they help; None where none do.

    Args:
        alpha: for every tensor, whether it helps or not; None: searched.
        aim: what is to be rounded with less error.
        bits, block: of the weights, for aim="weights": asymmetric, one scale for ``block`` inputs; 0: per channel.
        insert: where nothing before a tensor takes the factors, multiply by them in front of its readers.
        quick: try fewer alphas, with factors from fewer samples.
    """
    if telling_data(context) is None:
        return None
    bench = Bench(context, aim, bits, block, insert, quick=quick)
    if not bench.judges:
        return None
    if alpha is not None:
        best, said = bench.with_alpha(alpha, bench.ranges), f"alpha {alpha:g}"
    else:
        best, said = bench.chosen()
    if not best:
        return None
    model = bench.applied(best)[0]
    model.tidy()
    return Level(model, f"{len(best)} tensors scaled for {aim}, {said}", tuple(told_reasons(bench.reasons)))


def telling_data(context: Context) -> Calibration | None:
    """The calibration data that factors come from, None where there is none."""
    samples = context.samples
    return None if samples is None or samples.generated or not context.observations.samples else samples


@dataclass(frozen=True)
class Every:
    """Every ``step``-th of some samples, from number ``first`` on; iterate over it as often as you like."""

    samples: Calibration
    first: int
    step: int

    def __iter__(self) -> Iterator[Sample]:
        return islice(self.samples, self.first, None, self.step)


def halves(samples: Calibration, most: int) -> tuple[Every, Every]:
    """At most ``most`` samples, evenly spread, in two halves."""
    step = 2 * -(-len(samples) // most)
    return Every(samples, 0, step), Every(samples, step // 2, step)


class Bench:
    """The seams of a model, and what any factors on them do.

    Attributes:
        judges: seam name -> the error of its readers alone.
        reasons: why other tensors are no seams.
    """

    def __init__(
        self,
        context: Context,
        aim: Aim,
        bits: int,
        block: int,
        insert: bool,
        *,
        quick: bool = False,
        only: Callable[[Seam], bool] = lambda seam: True,
    ) -> None:
        """``only`` says which seams are of interest; the rest as smoothed()."""
        self.context, self.aim, self.bits, self.block, self.insert = context, aim, bits, block, insert
        self.alphas = QUICK_ALPHAS if quick else GLOBAL_ALPHAS[aim]
        everything, self.reasons = seams(context.model, context.sites, insert=insert)
        heard = [seam for seam in everything if all(known(site, context.observations) for site in seam.sites)]
        self.seams = [seam for seam in heard if only(seam)]
        assert context.samples is not None
        half, rest = halves(context.samples, MOST if quick else len(context.samples))
        self.half, other = (seam_ranges(context, self.seams, each) for each in (half, rest))
        self.seams = [seam for seam in self.seams if ordinary(seam, self.half)]
        self.ranges = {
            name: (np.minimum(low, other[name][0]), np.maximum(high, other[name][1])) if name in other else (low, high)
            for name, (low, high) in self.half.items()
        }
        self.judges = {seam.name: Outputs(seam, context.observations, bits, block) for seam in self.seams}
        target = context.target  # where pair sums saturate, weights that outliers went into get fewer levels
        self.levels = target.safe_weight_levels if machine_saturates() else target.weight_levels
        self.outputs: list[dict[str, NDArray[np.generic]]] = []

    def chosen(self) -> tuple[dict[str, Vector], str]:
        """Factors that serve the outputs of the whole model, and how they came about; none where nothing convinces.

        Judged on every other sample with factors and ranges of the samples between: on the very samples that they
        come from, any factors look good (24.6 dB, and 10.5 dB on others, of a text encoder with alpha per tensor).
        """
        assert self.context.samples is not None
        if len(self.context.samples) < FEWEST:
            return {}, ""
        trials = {f"alpha {each:g}": self.with_alpha(each, self.half) for each in self.alphas}
        if self.aim == "weights":
            trials["alpha searched per tensor"] = self.searched(self.half)
        movable = {name for factors in trials.values() for name in factors}
        noise = {name: self.noise(factors, movable) for name, factors in trials.items()}
        said = min(noise, key=lambda name: noise[name])
        if not noise[said] < CONVINCING * self.noise({}, movable):
            return {}, ""
        if self.aim == "activations" and self.coarse(trials[said]) > SPOILED * self.coarse({}):
            return {}, ""
        alphas = {f"alpha {each:g}": each for each in self.alphas}
        return (self.with_alpha(alphas[said], self.ranges) if said in alphas else self.searched(self.ranges)), said

    def factors(self, seam: Seam, alpha: float, ranges: Ranges) -> Vector:
        """The factors of one tensor for one alpha."""
        judge = self.judges[seam.name]
        low, high = ranges[seam.name]
        magnitude = np.maximum(np.abs(low), np.abs(high)) if self.aim == "activations" else judge.mean_magnitude()
        return within_clips(seam, factors_of(judge, magnitude, alpha, self.aim), ranges, relative=True)

    def with_alpha(self, alpha: float, ranges: Ranges) -> dict[str, Vector]:
        """Seam name -> factors, one alpha for all; those that stay 1 are left out."""
        found = {seam.name: self.factors(seam, alpha, ranges) for seam in self.seams}
        return {name: factors for name, factors in found.items() if not np.allclose(factors, 1.0)}

    def searched(self, ranges: Ranges) -> dict[str, Vector]:
        """Seam name -> the factors with the least error of the readers' outputs, without those that gain little."""
        found = {}
        for seam in self.seams:
            judge = self.judges[seam.name]
            tried = [self.factors(seam, alpha, ranges) for alpha in ALPHAS]
            error, best = min(((judge.error(each), index) for index, each in enumerate(tried)))
            if error < WORTH * judge.error(np.ones(seam.channels)):
                found[seam.name] = tried[best]
        return found

    def applied(self, factors: Mapping[str, Vector]) -> tuple[Model, list[Seam]]:
        """A copy of the model with ``factors`` moved, and its seams."""
        model = self.context.model.copy()
        copies, _ = seams(model, find(model, self.context.target).in_float32(), insert=self.insert)
        for seam in copies:
            if seam.name in factors:
                seam.apply(model, factors[seam.name])
        return model, [seam for seam in copies if seam.name in self.judges]

    def noise(self, factors: Mapping[str, Vector], names: Collection[str]) -> float:
        """Noise over signal of the worst output of the whole model with the seams called ``names`` rounded.

        What no factor can change is left in float: it could drown the difference.
        """
        model, copies = self.applied(factors)
        rewriter = Rewriter(model, {})
        for seam in copies:
            if seam.name not in names:
                continue
            if self.aim == "weights":
                self.round_weights(seam)
            else:
                low, high = self.half[seam.name]
                scale = factors.get(seam.name, np.ones(seam.channels))
                limits = min(float((low / scale).min()), 0.0), max(float((high / scale).max()), 0.0)
                round_inputs(rewriter, seam, limits, self.levels)
        model.tidy()
        # left on, ONNX Runtime would round the weights between Q and DQ itself
        return self.lost(model, replace(self.context.options, level="off"))

    def coarse(self, factors: Mapping[str, Vector]) -> float:
        """Noise over signal of the worst output with the readers' weights to nearest in few bits, nothing else."""
        model, copies = self.applied(factors)
        for seam in copies:
            for site in seam.sites:
                assert site.weight is not None
                values = np.asarray(site.weight.tensor.values, np.float32)
                matrix = per_output(matrix_of(site, values), 2 ** (COARSE - 1) - 1)
                site.weight.tensor.values = stored_as(site, matrix, values.shape)
        return self.lost(model, self.context.options)

    def lost(self, model: Model, options: Options) -> float:
        """Noise over signal of the worst output of ``model``, on every other sample."""
        assert self.context.samples is not None
        step = 2 * -(-len(self.context.samples) // (2 * SAMPLES))
        samples = list(Every(self.context.samples, 1, step))
        if not self.outputs:
            original = Session(self.context.model, options)
            self.outputs = [original.run(sample) for sample in samples]
        session = Session(model, options)
        signal, lost = defaultdict[str, float](float), defaultdict[str, float](float)
        for sample, wanted in zip(samples, self.outputs, strict=True):
            found = session.run(sample)
            for name, value in wanted.items():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f" and found[name].shape == value.shape:
                    signal[name] += power(value)
                    with np.errstate(invalid="ignore", over="ignore"):
                        lost[name] += power(found[name] - value)
        return max((lost[name] / signal[name] for name in signal if signal[name] > 0), default=0.0)

    def round_weights(self, seam: Seam) -> None:
        """The weights of a seam's readers, in a few bits."""
        for site in seam.sites:
            assert site.weight is not None
            values = np.asarray(site.weight.tensor.values, np.float32)
            matrix = blockwise(matrix_of(site, values), self.bits, self.block)
            site.weight.tensor.values = stored_as(site, matrix, values.shape)


def round_inputs(rewriter: Rewriter, seam: Seam, limits: tuple[float, float], levels: int) -> None:
    """A seam's tensor in uint8 over ``limits``, its readers' weights to nearest on ``levels`` per output."""
    read = seam.sites[0].node.inputs[0]
    rounded = rewriter.quantized(Activation(read.name, *limits))
    for site in seam.sites:
        assert site.weight is not None
        site.node.inputs[0] = rounded
        values = np.asarray(site.weight.tensor.values, np.float32)
        matrix = per_output(matrix_of(site, values), levels)
        site.weight.tensor.values = stored_as(site, matrix, values.shape)


def ordinary(seam: Seam, ranges: Ranges) -> bool:
    """Whether a seam was seen, which one in a body may not be, and no value of it or of what reads it overflows when
    multiplied.
    """
    if seam.name not in ranges:
        return False
    weights = [np.asarray(site.weight.tensor.values) for site in seam.sites if site.weight is not None]
    extremes = [
        *ranges[seam.name],
        *(each for weight in weights if weight.size for each in (weight.min(), weight.max())),
    ]
    return all(bool((np.abs(each) < LARGEST_VALUE).all()) for each in extremes)


def known(site: Site, seen: Observations) -> bool:
    """Whether enough was observed of a site's input to judge factors by."""
    return seen.rows_of(site) is not None or depthwise(site)


def depthwise(site: Site) -> bool:
    """Whether every output of a convolution reads one input channel: its own scale makes any factor free."""
    group = int(site.node.attrs.get("group", 1))
    return site.operator == "Conv" and group > 1 and group == input_channels(site)


def factors_of(judge: Outputs, magnitude: Vector, alpha: float, aim: Aim) -> Vector:
    """The factors for one alpha, with geometric mean 1; idle channels get 1."""
    weight = judge.weight_magnitude()
    usable = (magnitude > 0) & (weight > 0)
    factors = np.ones(len(magnitude))
    if not usable.any():
        return factors
    heard = np.asarray(magnitude[usable], np.float64)
    found = np.maximum(heard, QUIETEST * np.median(heard)) ** alpha
    if aim == "activations":
        found = found / weight[usable] ** (1 - alpha)
    factors[usable] = found / np.exp(np.log(found).mean())
    return np.clip(factors, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
