"""Factors per channel that make a tensor, or the weights that read it, easier to round; the outputs stay equal.

      LayerNorm(g, b) ── x ── MatMul(W)     becomes     LayerNorm(g / s, b / s) ── x / s ── MatMul(W * s)

In: a model and calibration data. Out: a Level. Two ways to choose s:

    activations   s = max |x|^alpha / max |W|^(1 - alpha): outliers of a few channels of x go into W. Xiao, Lin, Seznec,
                  Wu, Demouth, Han, "SmoothQuant" (2022). alpha is searched: one for all tensors, or for each the one
                  with the least error of its readers' outputs, x in uint8 and W in int8; what serves the outputs of
                  the whole model best is taken, and no change is one of the choices.
    weights       s = mean |x|^alpha: inputs that matter most get the finest steps of W. Lin, Tang, Tang, Yang, Dang,
                  Han, "AWQ" (2023). alpha is searched on tr((W - W')T H (W - W')) with W in a few bits, and then
                  likewise held against the outputs of the whole model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxc.equalization import seam_ranges, told_reasons, within_clips
from onnxc.model import Model
from onnxc.observe import Histogram, Observations
from onnxc.rewrite import Activation, Context, Level, Rewriter
from onnxc.saturation import machine_saturates
from onnxc.seams import Seam, as_rows, input_channels, input_order, seams
from onnxc.sensitivity import power
from onnxc.session import Session
from onnxc.sites import Site, find

Aim = Literal["activations", "weights"]
ALPHAS = {
    "activations": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "weights": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
}
GLOBAL_ALPHAS = {"activations": (0.35, 0.5, 0.65, 0.8, 0.9, 1.0), "weights": (0.25, 0.5, 0.75)}
ROWS = 192  # of the sampled rows, on which choices are compared
SAMPLES = 8  # on which the whole model is run
WORTH = 0.97  # of the error without factors: a smaller gain is no reason to touch a tensor
LARGEST_FACTOR = 2.0**12

Matrix = NDArray[np.float32]
Vector = NDArray[np.float64]


def smoothed(
    context: Context,
    *,
    alpha: float | None = None,
    aim: Aim = "activations",
    bits: int = 4,
    block: int = 64,
    insert: bool = False,
) -> Level | None:
    """``context.model`` with factors moved across every tensor where they help; None where none do.

    Args:
        alpha: for every tensor, whether it helps or not; None: searched.
        aim: what is to be rounded with less error.
        bits, block: of the weights, for aim="weights": asymmetric, one scale for ``block`` inputs; 0: per channel.
        insert: where nothing before a tensor takes the factors, multiply by them in front of its readers.
    """
    if context.samples is None or context.samples.generated or not context.observations.samples:
        return None
    bench = Bench(context, aim, bits, block, insert)
    if not bench.judges:
        return None
    if alpha is not None:
        best, said = bench.with_alpha(alpha), f"alpha {alpha:g}"
    else:
        choices = {"": {}, "alpha searched per tensor": bench.searched()}
        choices |= {f"alpha {each:g}": bench.with_alpha(each) for each in GLOBAL_ALPHAS[aim]}
        movable = {name for factors in choices.values() for name in factors}
        noise = {name: bench.noise(factors, movable) for name, factors in choices.items()}
        said = min(noise, key=lambda name: noise[name] if name else WORTH * noise[name])
        best = choices[said]
    if not best:
        return None
    model = bench.applied(best)[0]
    model.tidy()
    return Level(model, f"{len(best)} tensors scaled for {aim}, {said}", tuple(told_reasons(bench.reasons)))


class Bench:
    """The seams of a model, and what any factors on them do.

    Attributes:
        judges: seam name -> the error of its readers alone.
        reasons: why other tensors are no seams.
    """

    def __init__(self, context: Context, aim: Aim, bits: int, block: int, insert: bool) -> None:
        self.context, self.aim, self.bits, self.block, self.insert = context, aim, bits, block, insert
        everything, self.reasons = seams(context.model, context.sites, insert=insert)
        self.seams = [seam for seam in everything if all(known(site, context.observations) for site in seam.sites)]
        self.ranges = seam_ranges(context, self.seams)
        self.judges = {
            seam.name: Outputs(seam, context.observations, self.width(seam.name), aim, bits, block)
            for seam in self.seams
        }
        assert context.samples is not None
        self.samples = context.samples.take(SAMPLES)
        target = context.target  # where pair sums saturate, weights that outliers went into get fewer levels
        self.levels = target.safe_weight_levels if machine_saturates() else target.weight_levels
        self.outputs: list[dict[str, NDArray[np.generic]]] = []

    def width(self, name: str) -> Vector:
        """The width of the range of every channel, zero included."""
        low, high = self.ranges[name]
        return np.asarray(np.maximum(high, 0) - np.minimum(low, 0))

    def factors(self, seam: Seam, alpha: float) -> Vector:
        """The factors of one tensor for one alpha."""
        judge = self.judges[seam.name]
        low, high = self.ranges[seam.name]
        magnitude = np.maximum(np.abs(low), np.abs(high)) if self.aim == "activations" else judge.mean_magnitude()
        return within_clips(seam, factors_of(judge, magnitude, alpha, self.aim), self.ranges, relative=True)

    def with_alpha(self, alpha: float) -> dict[str, Vector]:
        """Seam name -> factors, one alpha for all; those that stay 1 are left out."""
        found = {seam.name: self.factors(seam, alpha) for seam in self.seams}
        return {name: factors for name, factors in found.items() if not np.allclose(factors, 1.0)}

    def searched(self) -> dict[str, Vector]:
        """Seam name -> the factors with the least error of the readers' outputs; without those that gain little."""
        found = {}
        for seam in self.seams:
            judge = self.judges[seam.name]
            tried = [self.factors(seam, alpha) for alpha in ALPHAS[self.aim]]
            error, best = min(((judge.error(each), index) for index, each in enumerate(tried)))
            if error < WORTH * judge.error(np.ones(seam.channels)):
                found[seam.name] = tried[best]
        return found

    def applied(self, factors: Mapping[str, Vector]) -> tuple[Model, list[Seam]]:
        """A copy of the model with ``factors`` moved, and its seams."""
        model = self.context.model.copy()
        copies, _ = seams(model, find(model, self.context.target), insert=self.insert)
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
                scale = factors.get(seam.name, np.ones(seam.channels))
                limits = self.judges[seam.name].limits(scale, self.ranges[seam.name])
                round_inputs(rewriter, seam, limits, self.levels)
        model.tidy()
        options = replace(self.context.options, level="off")  # it would round the weights between Q and DQ itself
        if not self.outputs:
            original = Session(self.context.model, options)
            self.outputs = [original.run(sample) for sample in self.samples]
        session = Session(model, options)
        signal, lost = defaultdict[str, float](float), defaultdict[str, float](float)
        for sample, wanted in zip(self.samples, self.outputs, strict=True):
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


def matrix_of(site: Site, values: Matrix) -> Matrix:
    """The weight of a site as [K, N]; K holds the kernel positions of a convolution."""
    if site.operator == "Conv":
        return np.ascontiguousarray(values.reshape(len(values), -1).T)
    return np.ascontiguousarray(values.T if site.node.attrs.get("transB", 0) else values)


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
    found = magnitude[usable] ** alpha
    if aim == "activations":
        found = found / weight[usable] ** (1 - alpha)
    factors[usable] = found / np.exp(np.log(found).mean())
    return np.clip(factors, 1 / LARGEST_FACTOR, LARGEST_FACTOR)


def stored_as(site: Site, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
    """A matrix [K, N] in the shape of the site's weight: the way back from ``matrix_of``."""
    transposed = site.operator == "Conv" or site.node.attrs.get("transB", 0)
    return np.ascontiguousarray(matrix.T if transposed else matrix).reshape(shape)


class Outputs:
    """The error of a seam's readers for any factors, on sampled input rows.

    Args:
        seam: the tensor and its readers; their weights are taken as they are now.
        seen: sampled rows [R, K] of the readers.
        width: of the range of every channel, zero included.
        aim, bits, block: what is rounded, and how.
    """

    def __init__(self, seam: Seam, seen: Observations, width: Vector, aim: Aim, bits: int, block: int) -> None:
        self.seam, self.width, self.aim, self.bits, self.block = seam, width, aim, bits, block
        self.parts: list[tuple[Matrix, Matrix, NDArray[np.intp], float]] = []
        self.free = np.zeros(seam.channels)
        for site in seam.sites:
            assert site.weight is not None
            values = np.asarray(site.weight.tensor.values, np.float32)
            rows = seen.rows_of(site)
            if rows is None:
                self.free += (as_rows(site, values).astype(np.float64) ** 2).sum(1)
                continue
            self.rows = rows
            rows = rows[:: -(-len(rows) // ROWS)]
            order = np.broadcast_to(input_order(site, seam.channels), values.shape)
            matrix = matrix_of(site, values)
            if site.operator == "Conv":
                channel = order[0].reshape(-1)
            else:
                channel = order[0] if site.node.attrs.get("transB", 0) else order[:, 0]
            signal = float(((rows @ matrix).astype(np.float64) ** 2).sum())
            self.parts.append((rows, matrix, channel, max(signal, 1e-30)))

    def weight_magnitude(self) -> Vector:
        """The largest |W| of every input channel over all readers."""
        found = np.zeros(self.seam.channels)
        for site in self.seam.sites:
            assert site.weight is not None
            found = np.maximum(found, np.abs(as_rows(site, np.asarray(site.weight.tensor.values))).max(1))
        return found

    def mean_magnitude(self) -> Vector:
        """The mean |x| of every channel over the sampled rows; 1 where there are none."""
        total, count = np.zeros(self.seam.channels), np.zeros(self.seam.channels)
        for rows, _, channel, _ in self.parts:
            np.add.at(total, channel, np.abs(rows).mean(0))
            np.add.at(count, channel, 1.0)
        return np.where(count > 0, total / np.maximum(count, 1), 1.0)

    def limits(self, factors: Vector, ranges: tuple[Vector, Vector]) -> tuple[float, float]:
        """The (low, high) of least squared error of the scaled tensor; of depthwise readers' the whole range."""
        if not self.parts:
            low, high = (float(end) for end in ((ranges[0] / factors).min(), (ranges[1] / factors).max()))
            return min(low, 0.0), max(high, 0.0)
        histogram = Histogram()
        histogram.add(np.asarray(self.rows / factors[self.parts[-1][2]], np.float32))
        return histogram.limits()

    def error(self, factors: Vector) -> float:
        """Noise over signal of the readers' outputs, summed over the readers.

        Of depthwise convolutions, whose weights take any factor without loss, what an even rounding error of the
        input does to the output: proportional to the squared step of the range that all channels share.
        """
        if not self.parts:
            step = float(np.max(self.width / factors)) / 255
            return step**2 / 12 * float((self.free * factors**2).sum()) if self.aim == "activations" else 0.0
        total = 0.0
        for rows, matrix, channel, signal in self.parts:
            scale = factors[channel].astype(np.float32)
            weight = matrix * scale[:, None]
            if self.aim == "weights":
                lost = blockwise(weight, self.bits, self.block) - weight
                error = np.asarray(rows @ (lost / scale[:, None]), np.float32)
            else:
                inputs = np.asarray(rows / scale, np.float32)
                error = np.asarray(affine(inputs) @ per_output(weight) - inputs @ weight, np.float32)
            total += float((error.astype(np.float64) ** 2).sum()) / signal
        return total


def affine(values: Matrix) -> Matrix:
    """``values`` rounded to uint8 over the range of least squared error."""
    histogram = Histogram()
    histogram.add(values)
    low, high = histogram.limits()
    step = np.float32(max((high - low) / 255, 1e-12))
    zero = np.rint(-low / step)
    return np.asarray((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step, np.float32)


def per_output(weight: Matrix, levels: int = 127) -> Matrix:
    """A matrix [K, N] rounded to nearest, one scale per output."""
    step = np.maximum(np.abs(weight).max(0) / np.float32(levels), np.float32(1e-30))
    return np.asarray(np.rint(weight / step) * step, np.float32)


def blockwise(weight: Matrix, bits: int, block: int) -> Matrix:
    """A matrix [K, N] rounded to ``bits``, asymmetric, one scale and zero for ``block`` inputs of an output."""
    depth, outputs = weight.shape
    size = min(block, depth) if block else depth
    padded = np.pad(weight, ((0, -depth % size), (0, 0))).reshape(-1, size, outputs)
    low, high = np.minimum(padded.min(1, keepdims=True), 0), np.maximum(padded.max(1, keepdims=True), 0)
    top = np.float32(2**bits - 1)
    step = np.maximum((high - low) / top, np.float32(1e-30))
    zero = np.rint(-low / step)
    rounded = (np.clip(np.rint(padded / step) + zero, 0, top) - zero) * step
    return np.asarray(rounded.reshape(-1, outputs)[:depth], np.float32)
