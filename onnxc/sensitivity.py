"""What each rounding alone does to the model's outputs. In: the model, its candidates, a few samples. Out: noise.

One probe model holds every rounding behind a switch: tensor t becomes Where(switch, rounded t, t), for quantized
activations and for weights. One session, run once with each switch alone on, gives the relative noise of the
outputs that each causes. Noise powers of different roundings add, so a plan's noise is estimated by a sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from onnxc.cost import cpu_name
from onnxc.encoding import Codes
from onnxc.file.storage import drop_pages
from onnxc.histograms import Histogram
from onnxc.model import Model, Node, Tensor, Variable
from onnxc.rewrite import Activation, Rewriter
from onnxc.session import Options, Session, runtime_version

Noise = dict[str, float]
MOST_REFINED = 16
FEW, FINALISTS = 4, 3  # samples on which ranges are tried, and how many of them are then held against all samples
MOST_SETTLED, WORTH = (
    6,
    0.97,
)  # activations whose range is tried beside all others, and the noise that a new one must leave
SMALL_SHARE = 0.02  # of the noise of all roundings together: not worth another range
FEW_SWITCHES, TOGETHER, QUIET = 64, 6, 0.5  # groups with less than half of the mean group's noise are quiet
PERCENTILES = (99.999, 99.99, 99.9, 99.5)


def activation_key(activation: Activation) -> str:
    """One key for all tensors that hold the same values."""
    return f"{'dynamic' if activation.dynamic else 'static'} {activation.source or activation.tensor}"


def weight_key(name: str) -> str:
    """The key of a weight's rounding."""
    return f"weight {name}"


@dataclass
class Probe:
    """The model with a switch on every rounding.

    Attributes:
        model: with the switches and the activations' scales and zero points as further inputs.
        switches: key -> name of its switch (a bool scalar).
        parameters: key of a static activation -> names of its scale and zero point inputs.
        resting: every further input with the value it has when nothing is rounded.
    """

    model: Model
    switches: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, tuple[str, str]] = field(default_factory=dict)
    resting: dict[str, np.ndarray] = field(default_factory=dict)

    def add_input(self, name: str, value: np.generic) -> Variable:
        """A further scalar input that holds ``value`` at rest."""
        tensor = Variable(self.model.unique(name), value.dtype, [])
        self.model.graph.inputs.append(tensor)
        self.resting[tensor.name] = np.asarray(value)
        return tensor

    def switch(self, key: str, rewriter: Rewriter, tensor: Tensor, rounded: Tensor) -> None:
        """Every reader of ``tensor`` now reads ``rounded`` while the switch of ``key`` is on."""
        if key not in self.switches:
            made = self.add_input(f"switch_{len(self.switches)}", np.bool_(False))
            self.switches[key] = made.name
            rewriter.tensors[made.name] = made
        switch = rewriter.tensors[self.switches[key]]
        chosen = self.model.insert("Where", [switch, rounded, tensor], [f"{tensor.name}_chosen"]).outputs[0]
        name = tensor.name  # an output of the graph hands it on to what replaces it
        self.model.redirect(tensor, chosen)
        rewriter.tensors[name] = chosen


def telling(
    samples: Sequence[Mapping[str, np.ndarray]], original: Model, rounded: Model, options: Options
) -> list[Mapping[str, np.ndarray]]:
    """``samples``, those on which ``rounded`` errs most first: a few hard ones may hold all of the noise."""
    before, after = Session(original, options), Session(rounded, options)
    names = [info.name for info in before.outputs]
    errors = []
    for sample in samples:
        wanted, found = before.run(sample, names), after.run(sample, names)
        pairs = [(wanted[n], found[n]) for n in names if getattr(wanted[n], "dtype", np.dtype(object)).kind == "f"]
        with np.errstate(invalid="ignore"):  # infinite in both
            errors.append(max((power(b - a) for a, b in pairs if a.shape == b.shape), default=0.0))
    return [samples[index] for index in sorted(range(len(samples)), key=lambda index: -errors[index])]


def build_probe(model: Model, activations: Sequence[Activation], weights: Mapping[str, Codes]) -> Probe:
    """Put every rounding of ``activations`` and ``weights`` behind a switch."""
    copy = model.copy()
    probe, rewriter = Probe(copy), Rewriter(copy, dict(weights))
    for name in weights:
        tables = [
            node for node in rewriter.tensors[name].outputs if node.op == "Gather" and node.inputs[0].name == name
        ]
        if tables and len(tables) == len(rewriter.tensors[name].outputs):
            for node in tables:  # a table is never unfolded as a whole
                probe.switch(weight_key(name), rewriter, node.outputs[0], gathered(rewriter, node, name))
            continue
        # DequantizeLinear is never folded: the rounded weight exists only while it is read
        probe.switch(weight_key(name), rewriter, rewriter.tensors[name], rewriter.dequantized(name))
    for activation in activations:
        tensor, key = rewriter.tensors[activation.tensor], activation_key(activation)
        if activation.dynamic:
            parts = [f"{tensor.name}_{part}" for part in ("codes", "scale", "zero")]
            codes = copy.insert("DynamicQuantizeLinear", [tensor], parts).outputs
        else:
            scale = probe.add_input(f"{tensor.name}_scale", activation.scale)
            zero = probe.add_input(f"{tensor.name}_zero", activation.zero_point)
            probe.parameters[key] = (scale.name, zero.name)
            codes = [
                copy.insert("QuantizeLinear", [tensor, scale, zero], [f"{tensor.name}_codes"]).outputs[0],
                scale,
                zero,
            ]
        rounded = copy.insert("DequantizeLinear", list(codes), [f"{tensor.name}_rounded"]).outputs[0]
        probe.switch(key, rewriter, tensor, rounded)
    copy.tidy()
    return probe


def gathered(rewriter: Rewriter, node: Node, weight: str) -> Tensor:
    """What ``node`` would gather from the codes of ``weight``, times the scales of the same rows."""
    insert, indices = rewriter.model.insert, node.inputs[1]
    axis = node.attrs.get("axis", 0)
    rows = insert("Gather", [rewriter.weight_codes(weight), indices], [f"{weight}_rows"], axis=axis).outputs[0]
    floats = insert("Cast", [rows], [f"{weight}_row_floats"], to=1).outputs[0]
    scales = rewriter.weight_scale(weight, "broadcast")
    if rewriter.codes[weight].axis == axis:
        scales = insert("Gather", [scales, indices], [f"{weight}_row_scales"], axis=axis).outputs[0]
    return insert("Mul", [floats, scales], [f"{weight}_rows_rounded"]).outputs[0]


class Meter:
    """Runs a probe: the noise of the worst float output for any setting of its switches."""

    def __init__(self, probe: Probe, samples: Sequence[Mapping[str, np.ndarray]], options: Options) -> None:
        self.probe, self.samples = probe, list(samples)
        self.session = Session(probe.model, options)
        self.outputs = [info.name for info in self.session.outputs]
        self.references = [
            {n: v for n, v in self.run(sample, {}).items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
            for sample in self.samples
        ]
        self.signal = {
            name: sum(power(reference[name]) for reference in self.references) for name in self.references[0]
        }

    def run(self, sample: Mapping[str, np.ndarray], changes: Mapping[str, np.ndarray]) -> dict[str, object]:
        return dict(self.session.run({**sample, **self.probe.resting, **changes}, self.outputs))

    def noise(self, changes: Mapping[str, np.ndarray]) -> float:
        """Noise power over signal power of the worst output with these inputs changed."""
        found = dict.fromkeys(self.signal, 0.0)
        for sample, reference in zip(self.samples, self.references, strict=True):
            results = self.run(sample, changes)
            for name, value in reference.items():
                other = np.asarray(results[name])
                with np.errstate(invalid="ignore", over="ignore"):  # infinite minus infinite counts as nothing
                    found[name] += power(other - value) if other.shape == value.shape else power(value)
        return max((value / self.signal[name] for name, value in found.items() if self.signal[name] > 0), default=0.0)

    def at(self, activation: Activation) -> dict[str, np.ndarray]:
        """The change that rounds a static activation in its own range."""
        key = activation_key(activation)
        scale, zero = self.probe.parameters[key]
        return self.on(key) | {scale: np.asarray(activation.scale), zero: np.asarray(activation.zero_point)}

    def on(self, key: str) -> dict[str, np.ndarray]:
        """The change that turns the switch of ``key`` on."""
        return {self.probe.switches[key]: np.asarray(True)}


def measure(
    model: Model,
    activations: Sequence[Activation],
    weights: Mapping[str, Codes],
    samples: Sequence[Mapping[str, np.ndarray]],
    options: Options,
    ranges: Mapping[str, Histogram],
    prices: MutableMapping[str, float] | None = None,
    seconds: float = 4.0,
    refining: float = 10.0,
) -> tuple[Noise, dict[str, tuple[float, float]]]:
    """The noise of each rounding alone, and better ranges for the activations that hurt most.

    A range with the least squared error of its own tensor need not be the best for the outputs: where few large
    values carry little of the answer, a narrower one is. So the worst tensors try other ranges on the whole model.

    Args:
        model: the simplified model; activations and weights of its main graph.
        samples: as many are used as fit in about ``seconds`` (at least one); ``refining``: seconds for better ranges.
        ranges: histograms of the activations.
        prices: entries of the price file: how long a rounding takes is kept there, so that what is left out for want
            of time is the same in every run.

    Returns:
        key -> noise power over signal power of the worst float output; tensor -> refined (low, high).
    """
    probe = build_probe(model, activations, weights)
    drop_pages()
    start = perf_counter()
    meter = Meter(probe, samples[:1], options)
    noise = loudness(meter)
    taken = max(perf_counter() - start, 1e-6)
    once = taken if prices is None else prices.setdefault(pace_key(probe, samples, options), taken)
    count = int(np.clip(seconds / once, 1, len(samples)))
    if count > 1:
        meter = Meter(probe, samples[:count], options)
        noise = loudness(meter)
    few = samples[:: max(1, count // FEW)][:FEW] if count > FEW else samples[:count]
    quick = Meter(probe, few, options) if len(few) < count else meter
    budget = refining / (once / max(len(noise), 1))  # runs of one sample that the rest of the time allows
    refined: dict[str, tuple[float, float]] = {}
    total = sum(noise.values())
    worst = sorted((a for a in activations if not a.dynamic), key=lambda a: -noise[activation_key(a)])
    for activation in worst[:MOST_REFINED]:
        key, others = activation_key(activation), alternatives(ranges[activation.tensor])
        budget -= len(others) * len(few) + FINALISTS * count
        if noise[key] < SMALL_SHARE * total or budget < 0:
            break
        settings = {(low, high): meter.at(replace(activation, low=low, high=high)) for low, high in others}
        promising = sorted(others, key=lambda option: quick.noise(settings[option]))[:FINALISTS]
        found, option = min((meter.noise(settings[option]), option) for option in promising)
        if found < noise[key]:
            noise[key], refined[activation.tensor] = found, option
    refined |= settled(meter, quick, worst, ranges, refined)
    return noise, refined


def settled(
    meter: Meter,
    quick: Meter,
    worst: Sequence[Activation],
    ranges: Mapping[str, Histogram],
    refined: Mapping[str, tuple[float, float]],
) -> dict[str, tuple[float, float]]:
    """Better ranges of the loudest activations while all others are rounded too: errors of neighbours cancel or add up.

    Args:
        meter, quick: on all samples and on few of them; worst: all static activations, the loudest first.
        refined: what was found for each alone.
    """
    found: dict[str, tuple[float, float]] = {}
    if len(worst) < 2:
        return found
    changes: dict[str, np.ndarray] = {}
    for activation in worst:
        low, high = refined.get(activation.tensor, (activation.low, activation.high))
        changes |= meter.at(replace(activation, low=low, high=high))
    least = meter.noise(changes)
    for activation in worst[:MOST_SETTLED]:
        options = [replace(activation, low=low, high=high) for low, high in alternatives(ranges[activation.tensor])]
        best = min(options, key=lambda option: quick.noise(changes | quick.at(option)))
        together = meter.noise(changes | meter.at(best))
        if together < least * WORTH:
            least, found[activation.tensor] = together, (best.low, best.high)
            changes |= meter.at(best)
    return found


def loudness(meter: Meter) -> Noise:
    """The noise of every rounding alone. Of many, groups are heard first: only where one is loud, its members are;
    the members of a quiet group share its noise.
    """
    keys = list(meter.probe.switches)
    if len(keys) <= FEW_SWITCHES:
        return {key: meter.noise(meter.on(key)) for key in keys}
    groups = [keys[start : start + TOGETHER] for start in range(0, len(keys), TOGETHER)]
    together = [
        meter.noise({name: value for key in group for name, value in meter.on(key).items()}) for group in groups
    ]
    loud = QUIET * sum(together) / len(groups)
    noise: Noise = {}
    for group, found in zip(groups, together, strict=True):
        for key in group:
            noise[key] = meter.noise(meter.on(key)) if found > loud else found / len(group)
    return noise


def pace_key(probe: Probe, samples: Sequence[Mapping[str, np.ndarray]], options: Options) -> str:
    """The entry of the price file for the seconds that all roundings of a probe take on its first sample."""
    what = [*probe.switches, *(f"{name}{np.shape(value)}" for name, value in samples[0].items())]
    digest = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    return f"probe {digest} | {options.threads} threads | onnxruntime {runtime_version()} | {cpu_name()}"


def alternatives(histogram: Histogram) -> list[tuple[float, float]]:
    """Other ranges to try: the whole one, percentiles, and narrower ones around zero."""
    found = [histogram.limits("minmax"), *(histogram.limits("percentile", share) for share in PERCENTILES)]
    low, high = histogram.limits("mse")
    found += [(low * ratio, high * ratio) for ratio in (0.7, 0.5, 0.35, 0.25, 1.4)]
    return list(dict.fromkeys(pair for pair in found if pair[1] > pair[0]))


def power(value: np.ndarray) -> float:
    """Sum of squares of the finite entries."""
    finite = np.nan_to_num(np.asarray(value, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return float((finite**2).sum())
