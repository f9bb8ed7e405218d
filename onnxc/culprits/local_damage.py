"""What happened to every site alone. In: two models, their pairs, samples. Out: the damage of each, worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxc.culprits.matching import Pair, matched, showing, tensors
from onnxc.culprits.scales import Factors, scaled
from onnxc.errors import DataError, ModelError
from onnxc.model import Model, Tensor, Variable
from onnxc.session import Options, Session
from onnxc.shapes import infer

SITES_AT_ONCE = 64  # captured in one run: bounds the memory

Sample = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SiteDamage:
    """What happened to one site, given the inputs that it has in the original.

    Attributes:
        site, operator: the original's node.
        damage: sum |y - y'|^2 / sum |y|^2 over the samples, of what is finite; infinite where the two models differ in
            what is, NaN where nothing is.
        keep_bytes: what the new model's file would grow by, were this site as in the original.
        keep_milliseconds: what a run would take longer; None where kernels cannot be told apart.
    """

    site: str
    operator: str
    damage: float
    keep_bytes: int | None = None
    keep_milliseconds: float | None = None

    @property
    def sqnr_db(self) -> float:
        """The damage as a signal to noise ratio, capped at 200 dB."""
        return 200.0 if self.damage <= 1e-20 else -10 * math.log10(self.damage)


def site_damage(
    reference: Model, new: Model, samples: Sequence[Sample], factors: Factors, *, options: Options = Options()
) -> tuple[list[SiteDamage], list[str]]:
    """Local damage of every site of the main graph, worst first, and the sites without a counterpart.

    The new model is cut at the sites' input tensors, and every cut is fed with what the original has there:
    an error made elsewhere does not count. ``factors`` are those of tensors that it holds in other units (scales.py).
    """
    pairs, missing = matched(reference, new)
    damages: dict[str, float | None] = {}
    for start in range(0, len(pairs), SITES_AT_ONCE):
        chunk = pairs[start : start + SITES_AT_ONCE]
        try:
            damages |= damage_of(reference, new, chunk, samples, factors, options)
        except (ModelError, DataError):  # channels were cut: what the original has does not fit some of the sites
            for pair in chunk:
                damages |= alone(reference, new, pair, samples, factors, options)
    known = [SiteDamage(p.site, p.operator, value) for p in pairs if (value := damages[p.target]) is not None]
    missing += [pair.site for pair in pairs if damages[pair.target] is None]
    return sorted(known, key=lambda each: math.inf if math.isnan(each.damage) else -each.damage), missing


def alone(
    reference: Model, new: Model, pair: Pair, samples: Sequence[Sample], factors: Factors, options: Options
) -> dict[str, float | None]:
    """The damage of one site, None where it cannot take what the original has there."""
    try:
        return damage_of(reference, new, [pair], samples, factors, options)
    except (ModelError, DataError):
        return {pair.target: None}


def damage_of(
    reference: Model,
    new: Model,
    pairs: Sequence[Pair],
    samples: Sequence[Sample],
    factors: Factors,
    options: Options,
) -> dict[str, float | None]:
    """Local damage by the target's name, None where its shape is another one: two sessions, one sample's tensors in
    memory at a time.
    """
    sources = list(dict.fromkeys(pair.source for pair in pairs))
    targets = list(dict.fromkeys(pair.target for pair in pairs))
    graph_inputs = {t.name for t in reference.graph.inputs}
    shown = [name for name in dict.fromkeys(sources + targets) if name not in graph_inputs]
    whole = Session(showing(reference, shown), options)
    places = tensors(new)
    seen = {name: rounded(places[name]).name for name in targets}
    parts, renamed = cut(new, sources, list(dict.fromkeys(seen.values())))
    pieces = Session(parts, options)
    needed = {each.name for each in pieces.inputs}
    noise, signal, other = dict.fromkeys(targets, 0.0), dict.fromkeys(targets, 0.0), set[str]()
    numbers = dict.fromkeys(targets, not samples)
    for sample in samples:
        values: dict[str, Any] = {**sample, **whole.run(sample, shown)}
        feeds = {renamed.get(name, name): scaled(values[name], factors, name) for name in values}
        results = pieces.run({name: feeds[name] for name in feeds if name in needed})
        for name in targets:
            old, fresh = (np.asarray(each, np.float64) for each in (values[name], results[seen[name]]))
            if old.shape != fresh.shape:  # it was cut smaller: another site by now
                other.add(name)
                continue
            fresh = fresh / factors[name] if name in factors else fresh
            finite = np.isfinite(old)
            if not np.array_equal(finite, np.isfinite(fresh)):
                noise[name] = math.inf
                continue
            error = old[finite] - fresh[finite]
            noise[name] += float(np.dot(error, error))
            signal[name] += float(np.dot(old[finite], old[finite]))
            numbers[name] |= bool(finite.any()) or not finite.size
    damages = {name: noise[name] / (signal[name] or 1.0) for name in targets}
    unknown = {name: math.nan for name in targets if not numbers[name] and not noise[name]}
    return {name: None if name in other else value for name, value in (damages | unknown).items()}


def rounded(tensor: Tensor) -> Tensor:
    """What the readers of a site's result get: behind the Q and DQ that alone read it, where there are any. An
    activation may have vanished into the Q, which clips as it did.
    """
    if len(tensor.outputs) != 1 or tensor.outputs[0].op != "QuantizeLinear":
        return tensor
    readers = tensor.outputs[0].outputs[0].outputs
    return readers[0].outputs[0] if readers and readers[0].op == "DequantizeLinear" else tensor


def cut(model: Model, sources: Sequence[str], targets: Sequence[str]) -> tuple[Model, dict[str, str]]:
    """A copy that computes ``targets`` from ``sources``, and its inputs' names that replace ``sources``."""
    copy = model.copy()
    found, types = tensors(copy), infer(model)
    renamed = {}
    for name in sources:
        tensor = found[name]
        if tensor.inputs:  # the graph's own inputs are cut already
            known = types[name].dtype if name in types else None
            kind = tensor.dtype or known or np.dtype(np.float32)
            entry = Variable(copy.unique(f"{name}_given"), dtype=kind)
            copy.graph.inputs.append(entry)
            copy.redirect(tensor, entry)
            renamed[name] = entry.name
    copy.graph.outputs = [found[name] for name in targets]
    copy.tidy()
    return copy, renamed
