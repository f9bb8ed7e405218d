"""What each rounding alone does to the model's outputs. In: the model, its candidates, a few samples. Out: noise.

A probe model holds many roundings: a quantized tensor t becomes Where(switch, rounded t, t), and a weight is an input,
so that a run reads it where it lies and only the one that is rounded is ever unfolded. One session, run once with each
rounding alone on, gives the relative noise of the outputs that each causes. Noise powers of different roundings add,
so a plan's noise is estimated by a sum. Activations have a probe of their own: kernels read a weight that is an input
up to five times as slowly as a constant, and that time hears more samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from onnxc.contract.candidates import Activation
from onnxc.encoding import Codes
from onnxc.file.storage import drop_pages
from onnxc.histograms import Histogram
from onnxc.model import Constant, Graph, Model, Node, Tensor, Variable
from onnxc.parts import MOVED, Loudness, Parts
from onnxc.price_file import cpu_name
from onnxc.refining import refine
from onnxc.rewriting.rewriter import Rewriter
from onnxc.session import Options, Session, runtime_version

Noise = dict[str, float]
PASSES = 8  # over all samples on which ranges are chosen: fewer samples are taken for more of them
HEARD = 16  # most samples for the noise of single roundings; ranges are chosen on all
SQUASHING = ("Softmax", "Sigmoid")
FEW_SWITCHES, TOGETHER, QUIET = 64, 6, 0.5  # groups with less than half of the mean group's noise are quiet
LONGER = 1.5  # times the seconds given: every rounding is heard alone where that takes no longer


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
        model: with the weights, the switches and the activations' scales and zero points as further inputs.
        switches: key of an activation -> name of its switch (a bool scalar).
        weights: key of a weight -> name of the input that holds it, and its codes.
        parameters: key of a static activation -> names of its scale and zero point inputs.
        resting: every further input with the value it has when nothing is rounded.
        parts: what the model's outputs join.
    """

    model: Model
    switches: dict[str, str] = field(default_factory=dict)
    weights: dict[str, tuple[str, Codes]] = field(default_factory=dict)
    parameters: dict[str, tuple[str, str]] = field(default_factory=dict)
    resting: dict[str, np.ndarray] = field(default_factory=dict)
    parts: Parts | None = None

    def roundings(self) -> list[str]:
        """The keys of all."""
        return [*self.weights, *self.switches]

    def add_input(self, name: str, value: np.generic | np.ndarray) -> Variable:
        """A further input that holds ``value`` at rest."""
        tensor = Variable(self.model.unique(name), value.dtype, list(value.shape))
        self.model.graph.inputs.append(tensor)
        self.resting[tensor.name] = np.ascontiguousarray(value) if value.shape else np.asarray(value)
        return tensor

    def free(self, weight: Constant, codes: Codes) -> None:
        """``weight`` becomes an input, of which `Meter.on` may hand in ``codes`` instead."""
        given = self.add_input(f"{weight.name}_given", weight.values)
        self.weights[weight_key(weight.name)] = given.name, codes
        self.model.redirect(weight, given)

    def switch(self, key: str, rewriter: Rewriter, tensor: Tensor, rounded: Tensor, graph: Graph) -> None:
        """Every reader of ``tensor``, of ``graph``, now reads ``rounded`` while the switch of ``key`` is on."""
        if key not in self.switches:
            made = self.add_input(f"switch_{len(self.switches)}", np.bool_(False))
            self.switches[key] = made.name
            rewriter.tensors[made.name] = made
        switch = rewriter.tensors[self.switches[key]]
        chosen = self.model.insert("Where", [switch, rounded, tensor], [f"{tensor.name}_chosen"], graph=graph).outputs[
            0
        ]
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


def build_probe(
    model: Model, activations: Sequence[Activation], weights: Mapping[str, Codes], parts: Parts | None = None
) -> Probe:
    """Put every rounding of ``activations`` and ``weights`` behind a switch; ``parts`` are those of ``model``."""
    copy = model.copy()
    probe, rewriter = Probe(copy, parts=parts), Rewriter(copy, {})
    for name, codes in weights.items():
        held = rewriter.tensors[name]
        assert isinstance(held, Constant)
        probe.free(held, codes)
    for activation in activations:
        tensor, key = rewriter.tensors[activation.tensor], activation_key(activation)
        graph = rewriter.maker(activation.tensor)
        if activation.dynamic:
            names = [f"{tensor.name}_{part}" for part in ("codes", "scale", "zero")]
            parameters = copy.insert("DynamicQuantizeLinear", [tensor], names, graph=graph).outputs
        else:
            scale = probe.add_input(f"{tensor.name}_scale", activation.scale)
            zero = probe.add_input(f"{tensor.name}_zero", activation.zero_point)
            probe.parameters[key] = (scale.name, zero.name)
            parameters = [
                copy.insert("QuantizeLinear", [tensor, scale, zero], [f"{tensor.name}_codes"], graph=graph).outputs[0],
                scale,
                zero,
            ]
        rounded = copy.insert("DequantizeLinear", list(parameters), [f"{tensor.name}_rounded"], graph=graph).outputs[0]
        probe.switch(key, rewriter, tensor, rounded, graph)
    listen_before(copy)
    copy.tidy()
    return probe


def listen_before(model: Model) -> None:
    """Outputs that are probabilities become what they are computed from: there every rounding is heard in proportion,
    while a probability near one half jumps. On a text recognizer the sites found on three samples so are as good as
    those found on twelve by probabilities.
    """
    for number, output in enumerate(model.graph.outputs):
        scores = scores_of(model, output)
        if scores is not None and scores not in model.graph.outputs:
            scores.dtype = scores.dtype or output.dtype
            model.graph.outputs[number] = scores


def scores_of(model: Model, tensor: Tensor) -> Variable | None:
    """What probabilities are computed from, None where ``tensor`` holds none. An If gives one more output, with the
    scores of each of its branches, where all of them make probabilities.
    """
    while len(tensor.inputs) == 1 and tensor.inputs[0].op in MOVED and tensor.inputs[0].inputs:
        tensor = tensor.inputs[0].inputs[0]
    maker = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if maker is None:
        return None
    if maker.op == "If":
        return scores_of_branches(model, maker, maker.outputs.index(tensor))
    scores = maker.inputs[0] if maker.op in SQUASHING else None
    return scores if isinstance(scores, Variable) and scores.inputs else None


def scores_of_branches(model: Model, node: Node, position: int) -> Variable | None:
    """A new output of an If in place of the one at ``position``: the scores."""
    found = [(branch, scores_of(model, branch.outputs[position])) for branch in node.bodies()]
    told = [(branch, scores) for branch, scores in found if scores is not None]
    if len(told) < len(found):
        return None
    for branch, scores in told:
        branch.outputs.append(model.insert("Identity", [scores], [f"{scores.name}_told"], graph=branch).outputs[0])
    made = Variable(model.unique(f"{node.outputs[position].name}_scores"), node.outputs[position].dtype)
    node.outputs.append(made)
    return made


class Meter:
    """Runs a probe: the noise of the worst float output for any setting of its switches."""

    def __init__(
        self,
        probe: Probe,
        samples: Sequence[Mapping[str, np.ndarray]],
        options: Options,
        session: Session | None = None,
    ) -> None:
        """``session``: of the probe, where there is one."""
        self.probe, self.samples = probe, list(samples)
        self.session = session or Session(probe.model, options)
        self.outputs = [info.name for info in self.session.outputs]
        self.references = [
            {n: v for n, v in self.run(sample, {}).items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
            for sample in self.samples
        ]
        parts, self.masks = probe.parts, [list[tuple[str, np.ndarray]]() for _ in self.samples]
        if parts is not None and parts.leaves:
            loudness = Loudness(parts)
            for sample, reference in zip(self.samples, self.references, strict=True):
                loudness.add(sample, reference)
            quiet = loudness.quiet()
            self.masks = [[(name, parts.mask(each, name, group)) for name, group in quiet] for each in self.samples]
        self.powers = np.array([self.heard(number, reference) for number, reference in enumerate(self.references)])

    def run(self, sample: Mapping[str, np.ndarray], changes: Mapping[str, np.ndarray]) -> dict[str, object]:
        return dict(self.session.run({**sample, **self.probe.resting, **changes}, self.outputs))

    def noise(self, changes: Mapping[str, np.ndarray]) -> float:
        """Noise power over signal power of the worst output with these inputs changed."""
        return float(self.errors(changes).sum(0).max(initial=0.0))

    def errors(self, changes: Mapping[str, np.ndarray], samples: Sequence[int] | None = None) -> np.ndarray:
        """[samples, outputs], the noise power of each sample over the signal power that all of ``samples`` have."""
        numbers = list(range(len(self.samples)) if samples is None else samples)
        found = np.zeros((len(numbers), self.powers.shape[1]))
        for row, number in enumerate(numbers):
            results = self.run(self.samples[number], changes)
            errors = dict[str, np.ndarray]()
            for name, value in self.references[number].items():
                other = np.asarray(results[name])
                with np.errstate(invalid="ignore", over="ignore"):  # infinite minus infinite counts as nothing
                    errors[name] = other - value if other.shape == value.shape else value
            found[row] = self.heard(number, errors)
        total = self.powers[numbers].sum(0)
        return np.asarray(found[:, total > 0] / total[total > 0])

    def heard(self, number: int, values: Mapping[str, np.ndarray]) -> list[float]:
        """The power of every output of a sample, then that of every quiet part."""
        marked = [(values[name], mask) for name, mask in self.masks[number]]
        quiet = [power(value[mask]) if value.shape == mask.shape else 0.0 for value, mask in marked]
        return [*(power(value) for value in values.values()), *quiet]

    def at(self, activation: Activation) -> dict[str, np.ndarray]:
        """The change that rounds a static activation in its own range."""
        key = activation_key(activation)
        scale, zero = self.probe.parameters[key]
        return self.on(key) | {scale: np.asarray(activation.scale), zero: np.asarray(activation.zero_point)}

    def on(self, key: str) -> dict[str, np.ndarray]:
        """The change that makes the rounding of ``key``."""
        if key in self.probe.weights:
            name, codes = self.probe.weights[key]
            return {name: np.ascontiguousarray(codes.restored(), self.probe.resting[name].dtype)}
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
    refining: float = 15.0,
    alone: Collection[str] = (),
    unseen: Sequence[Mapping[str, np.ndarray]] = (),
) -> tuple[Noise, dict[str, tuple[float, float]]]:
    """The noise of each rounding alone, and better ranges for the activations that hurt most.

    Args:
        model: the simplified model; activations and weights of its graphs.
        samples: as many are used as fit in about ``seconds`` (at least one); ``refining``: seconds for better ranges.
        ranges: histograms of the activations.
        prices: entries of the price file: how long a rounding takes is kept there, so that what is left out for want
            of time is the same in every run.
        alone: weights that share no noise with others where there are many roundings.
        unseen: samples that no codes were fitted to, where there are some: weights are heard on them. A projection of
            1,152 inputs that 48 images were seen with lost 19 times as much on others.

    Returns:
        key -> noise power over signal power of the worst float output; tensor -> refined (low, high).
    """
    noise, refined, parts = Noise(), dict[str, tuple[float, float]](), Parts(model, options)
    share = seconds / ((len(activations) > 0) + (len(weights) > 0) or 1)
    if weights:
        noise, _, _ = hear(build_probe(model, (), weights, parts), unseen or samples, options, prices, share, alone)
    if activations:
        heard, meter, once = hear(build_probe(model, activations, {}, parts), samples, options, prices, share)
        noise |= heard
        static = [activation for activation in activations if not activation.dynamic]
        refined = refined_ranges(meter, static, noise, samples, options, ranges, refining / once)
        for activation in static:
            if activation.tensor in refined:
                low, high = refined[activation.tensor]
                noise[activation_key(activation)] = meter.noise(meter.at(replace(activation, low=low, high=high)))
    return noise, refined


def hear(
    probe: Probe,
    samples: Sequence[Mapping[str, np.ndarray]],
    options: Options,
    prices: MutableMapping[str, float] | None,
    seconds: float,
    alone: Collection[str] = (),
) -> tuple[Noise, Meter, float]:
    """The noise of every rounding of ``probe`` on as many of ``samples`` as ``seconds`` allow, its meter, and the
    seconds of a run.
    """
    drop_pages()
    meter = Meter(probe, samples[:1], options)
    start = perf_counter()
    meter.noise({})
    taken = max(perf_counter() - start, 1e-6)
    once = taken if prices is None else prices.setdefault(pace_key(probe, samples, options), taken)
    roundings = len(probe.roundings())
    grouped = roundings > FEW_SWITCHES and once * roundings > seconds * LONGER
    runs = roundings // TOGETHER + roundings // 2 if grouped else roundings  # where half of the groups are loud
    count = int(np.clip(seconds / (once * max(runs, 1)), 1, min(len(samples), HEARD)))
    if count > 1:
        meter = Meter(probe, samples[:count], options, meter.session)
    return loudness(meter, {weight_key(name) for name in alone}, grouped=grouped), meter, once


def refined_ranges(
    meter: Meter,
    activations: Sequence[Activation],
    noise: Noise,
    samples: Sequence[Mapping[str, np.ndarray]],
    options: Options,
    ranges: Mapping[str, Histogram],
    runs: float,
) -> dict[str, tuple[float, float]]:
    """Better ranges, chosen on as many of ``samples`` as ``runs`` runs of one of them allow, evenly spread."""
    count = int(np.clip(runs / PASSES, 1, len(samples)))
    if not activations or not ranges:
        return {}
    spread = [samples[index] for index in np.linspace(0, len(samples) - 1, count).round().astype(int)]
    loud = {activation.tensor: noise[activation_key(activation)] for activation in activations}
    bench = Meter(meter.probe, spread, options, meter.session)
    return refine(bench, activations, loud, ranges, len(spread), runs)


def loudness(meter: Meter, alone: Collection[str] = (), *, grouped: bool = False) -> Noise:
    """The noise of every rounding alone. With ``grouped``, groups are heard first: only where one is loud, its members
    are; the members of a quiet group share its noise. The keys ``alone`` are in no group.
    """
    every = meter.probe.roundings()
    keys = [key for key in every if key not in alone]
    if not grouped:
        return {key: meter.noise(meter.on(key)) for key in every}
    groups = [keys[start : start + TOGETHER] for start in range(0, len(keys), TOGETHER)]
    together = [
        meter.noise({name: value for key in group for name, value in meter.on(key).items()}) for group in groups
    ]
    loud = QUIET * sum(together) / len(groups)
    noise: Noise = {key: meter.noise(meter.on(key)) for key in sorted(alone)}
    for group, found in zip(groups, together, strict=True):
        for key in group:
            noise[key] = meter.noise(meter.on(key)) if found > loud else found / len(group)
    return noise


def pace_key(probe: Probe, samples: Sequence[Mapping[str, np.ndarray]], options: Options) -> str:
    """The entry of the price file for the seconds that a run of a probe takes on its first sample."""
    what = [*probe.roundings(), *(f"{name}{np.shape(value)}" for name, value in samples[0].items())]
    digest = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    return f"run of a probe {digest} | {options.threads} threads | onnxruntime {runtime_version()} | {cpu_name()}"


def power(value: np.ndarray) -> float:
    """Sum of squares of the finite entries."""
    finite = np.nan_to_num(np.asarray(value, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return float((finite**2).sum())
