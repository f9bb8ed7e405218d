"""Cross-layer equalization: channels that one weight makes large and the next makes small meet in the middle.

      W1[i] ── Relu ── W2[:, i]     becomes     W1[i] / s ── Relu ── W2[:, i] * s     with s = sqrt(r1 / r2)

In: a model. Out: a Level that computes the same, its weights easier to round. Nagel, van Baalen, Blankevoort, Welling,
"Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1: r1 and r2 are the largest
magnitudes of a channel in the two weights; pairs are equalized in turn until nothing moves. Then high biases are
absorbed: a channel that is never below c > 0 sends c through the next layer's bias instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from onnxc.contract.context import Context
from onnxc.contract.passes import Level
from onnxc.data import Sample
from onnxc.equalizing.scaling import Seam, as_rows, input_order
from onnxc.equalizing.seams import seams, start
from onnxc.model import Constant, Model
from onnxc.observe import channel_ranges
from onnxc.sites import Site, clip_range, find

SWEEPS = 40
SETTLED = 1e-3  # largest change of a factor's logarithm in the last sweep
LARGEST_FACTOR = 2.0**12
MARGIN = 1.25  # a channel below its bound by so much never meets it, as far as the samples tell
KEEPS_OFFSET = frozenset({"Conv", "Gemm", "MatMul", "Add", "Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Clip"})
MOST_REASONS = 8

Vector = NDArray[np.float64]
Ranges = Mapping[str, tuple[Vector, Vector]]


def equalized(context: Context, *, absorb: bool = True) -> Level | None:
    """``context.model`` with equalized pairs of layers; None where there are none.

    Args:
        absorb: also absorb high biases, where calibration data shows that a channel is never low.
    """
    model = context.model.copy()
    found = find(model, context.target).in_float32()
    everything, reasons = seams(model, found)
    pairs = [seam for seam in everything if seam.makers]
    ranges = seam_ranges(context, pairs)
    pairs = [seam for seam in pairs if not seam.clips or all(node.outputs[0].name in ranges for node, _ in seam.clips)]
    if not pairs:
        return None
    factors = {seam.name: np.ones(seam.channels) for seam in pairs}
    for _ in range(SWEEPS):
        moved = 0.0
        for seam in pairs:
            total = factors[seam.name]
            step = balance(seam)
            step = within_clips(seam, total * step, ranges) / total
            seam.apply(model, step)
            factors[seam.name] = total * step
            moved = max(moved, float(np.abs(np.log(step)).max()))
        if moved < SETTLED:
            break
    absorbed = sum(absorb_bias(model, seam, factors[seam.name], ranges) for seam in pairs) if absorb else 0
    model.tidy()
    said = f"{len(pairs)} pairs of layers equalized, {absorbed} high biases absorbed"
    return Level(model, said, tuple(told_reasons(reasons)))


def told_reasons(reasons: list[str]) -> list[str]:
    """The first of them, and how many more there are."""
    more = [f"and {len(reasons) - MOST_REASONS} more"] if len(reasons) > MOST_REASONS else []
    return [f"no factor moves across {reason}" for reason in reasons[:MOST_REASONS]] + more


def balance(seam: Seam) -> Vector:
    """The factors sqrt(r1 / r2) per channel; 1 where a channel is zero on either side. With ``power`` p between the two
    they meet where r1 / s^p = r2 s.
    """
    before, after = np.zeros(seam.channels), np.zeros(seam.channels)
    weights, root = {id(node.inputs[1]) for node in seam.makers}, 2.0
    for constant, order, power in seam.before:
        if id(constant) in weights:
            root = 1 + power
            values = np.abs(np.asarray(constant.values, np.float64))
            np.maximum.at(before, np.broadcast_to(order, values.shape).reshape(-1), values.reshape(-1))
    for site in seam.sites:
        assert site.weight is not None
        after = np.maximum(after, np.abs(as_rows(site, np.asarray(site.weight.tensor.values))).max(1))
    usable = (before > 0) & (after > 0)
    found = np.ones(seam.channels)
    found[usable] = (before[usable] / after[usable]) ** (1 / root)
    return np.clip(found, 1 / LARGEST_FACTOR, LARGEST_FACTOR)


def seam_ranges(context: Context, pairs: list[Seam], samples: Iterable[Sample] | None = None) -> Ranges:
    """What calibration data, or ``samples`` of it, says of the seams' tensors and clips, per channel;
    empty without.
    """
    if context.samples is None or context.samples.generated:
        return {}
    wanted = {seam.name: start(seam.sites[0], seam.channels) for seam in pairs}
    wanted |= {node.outputs[0].name: order for seam in pairs for node, order in seam.clips}
    return channel_ranges(context.model, samples or context.samples, wanted, context.options)


def within_clips(seam: Seam, factors: Vector, ranges: Ranges, *, relative: bool = False) -> Vector:
    """``factors`` that leave every upper bound out of play: a channel that meets the bound keeps its scale, another
    one may grow as long as it stays below.

    Args:
        relative: only their ratios matter: they are first scaled so that those of the channels that meet the bound
            are 1 on average.
    """
    for node, _ in seam.clips:
        cap, highest = clip_range(node)[1], ranges[node.outputs[0].name][1]
        if not np.isfinite(cap):
            return np.ones_like(factors)
        binding = highest * MARGIN >= cap
        if relative and binding.any():
            factors = factors / np.exp(np.log(factors[binding]).mean())
        factors = np.maximum(factors, np.maximum(highest, 0.0) * MARGIN / cap)
        factors = np.where(binding, 1.0, factors)
    return factors


def absorb_bias(model: Model, seam: Seam, factors: Vector, ranges: Ranges) -> int:
    """Move what a channel never goes below from the bias before into the biases after; how many channels were.

    Exact where the layers after see no padding, and as long as no value is lower than all that were observed.
    """
    if seam.name not in ranges or len(seam.makers) != 1 or any(node.op not in KEEPS_OFFSET for node in seam.passed):
        return 0
    maker = seam.makers[0]
    biases = [constant for constant, *_ in seam.before if constant is not maker.inputs[1]]
    if len(biases) != 1 or biases[0].values.size != seam.channels:
        return 0
    if not all(padless(site) and bias_of(site) for site in seam.sites):
        return 0
    lowest = np.maximum(ranges[seam.name][0] / factors, 0.0)
    for node, _ in seam.clips:  # where the bound binds, what lies above it would come back
        lowest[ranges[node.outputs[0].name][1] * MARGIN >= clip_range(node)[1] * factors] = 0.0
    if not np.isfinite(lowest).all() or not lowest.any():
        return 0
    values = np.asarray(biases[0].values)
    biases[0].values = (values.astype(np.float64) - lowest.reshape(values.shape)).astype(values.dtype)
    for site in seam.sites:
        assert site.weight is not None
        weight = np.asarray(site.weight.tensor.values, np.float64) * lowest[input_order(site, seam.channels)]
        axis = site.weight.channel_axis or 0
        sums = weight.sum(tuple(i for i in range(weight.ndim) if i != axis))
        bias = site.bias
        if bias is None:
            site.node.inputs.append(model.constant(f"{site.weight.name}_bias", sums.astype(np.float32)))
        elif isinstance(bias, Constant):
            bias.values = (np.asarray(bias.values, np.float64) + sums).astype(np.float32)
    return int(np.count_nonzero(lowest))


def padless(site: Site) -> bool:
    """Whether a layer reads no zeros beside its input."""
    if site.operator != "Conv":
        return True
    attributes = site.node.attrs
    return not any(attributes.get("pads", [])) and attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")


def bias_of(site: Site) -> bool:
    """Whether a layer has a constant bias of its own, or may get one where it stands."""
    if site.bias is None:
        return site.operator != "MatMul" and len(site.node.inputs) == 2
    return isinstance(site.bias, Constant) and len(site.bias.outputs) == 1 and len(site.bias.shape) == 1
