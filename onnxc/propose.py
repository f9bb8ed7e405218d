"""Which passes may propose, and what they say. In: a recipe and a context. Out: a Problem for the planner, refusals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.formats import FLOATS, HALF, INT8
from onnxc.contract.candidates import Activation, Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.fields import configured
from onnxc.contract.passes import ExactPass, FinishingPass, LossyPass, StructuralPass, TrainingPass
from onnxc.contract.rounding import Asked
from onnxc.cost import Prices
from onnxc.errors import RecipeError
from onnxc.model import Model
from onnxc.naming import overridable
from onnxc.problem import Problem
from onnxc.recipe import PassRequest, Recipe
from onnxc.registry import load_passes
from onnxc.samples.hooks import did_you_mean
from onnxc.sites import Site, Sites, may_be_stored
from onnxc.targets import TARGETS

Pass = ExactPass | StructuralPass | LossyPass | FinishingPass | TrainingPass
CHUNK = 1 << 20  # elements looked at in one go
LARGEST = {"float16": 6e4, "float64": 3e38}  # value of a weight of which codes can still be unfolded


@dataclass
class Chosen:
    """The passes of a run: exact ones in pipeline order, the others with whether they were asked for with fields.

    Attributes:
        unasked: structural passes that may be tried where they pay, since nothing was named.
        notes: sentences on passes that do not run.
    """

    exact: list[ExactPass]
    lossy: list[tuple[LossyPass, bool]]
    structural: list[tuple[StructuralPass, bool]] = field(default_factory=list)
    finishing: list[tuple[FinishingPass, bool]] = field(default_factory=list)
    unasked: list[StructuralPass] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def passes_of(recipe: Recipe) -> Chosen:
    """Instances of every pass that runs. RecipeError for an unknown pass, field or value."""
    known = load_passes()
    asked = dict[str, dict[str, Any]]()
    for request in recipe.passes or ():
        if request.name not in known:
            raise RecipeError(f"unknown pass '{request.name}'; there are: {', '.join(sorted(known))}")
        if request.name in asked:
            raise RecipeError(f"pass '{request.name}' is named twice: name it once, with all of its fields")
        asked[request.name] = request.fields
    chosen = Chosen([], [])
    for name, kind in known.items():
        instance: Pass = configured(kind, name, asked.get(name, {}))
        if isinstance(instance, TrainingPass):
            continue  # it is no part of a plan: see with_training()
        if isinstance(instance, ExactPass):
            chosen.exact.append(instance)
        elif isinstance(instance, StructuralPass):
            if name in asked or (recipe.passes is None and instance.automatic):
                chosen.structural.append((instance, bool(asked.get(name))))
            elif recipe.passes is None and instance.unasked:
                chosen.unasked.append(instance)
        elif recipe.passes is None or name in asked:
            if isinstance(instance, FinishingPass):
                if instance.packs and recipe.target in TARGETS and TARGETS[recipe.target].plain:
                    chosen.notes.append(f"{name}: refused: the target '{recipe.target}' reads weights as initializers")
                    continue
                if instance.hurries and recipe.recover and name not in asked:
                    continue
                chosen.finishing.append((instance, name in asked if instance.hurries else bool(asked.get(name))))
            else:
                chosen.lossy.append((instance, bool(asked.get(name))))
    return chosen


def with_training(recipe: Recipe) -> Recipe:
    """``recipe`` with a training pass that it names as minutes of training; where nothing else is named, everything is
    chosen as it always is. RecipeError where both are given, or fields are wrong.
    """
    known, left, minutes = load_passes(), list[PassRequest](), recipe.recover
    for request in recipe.passes or ():
        kind = known.get(request.name)
        if kind is None or not issubclass(kind, TrainingPass):
            left.append(request)
            continue
        if recipe.recover:
            raise RecipeError(f"pass '{request.name}' and --recover are one: give one of them")
        instance = configured(kind, request.name, request.fields)
        assert isinstance(instance, TrainingPass)
        minutes = instance.minutes
    if minutes == recipe.recover:
        return recipe
    return replace(recipe, passes=tuple(left) or None, recover=minutes)


@dataclass
class Proposals:
    """Everything the passes said.

    Attributes:
        compute: site name -> candidates, one per mode.
        storage: weight name -> ways to store it, one per format.
        refusals: why not.
        told: places whose candidate was asked for with fields.
        asked: weight name -> what fields say of its codes, and rounding: weight and format -> how they are rounded;
            where there is nothing to say, nothing.
    """

    compute: dict[str, list[Candidate]]
    storage: dict[str, list[Candidate]]
    refusals: list[Refusal]
    told: set[str]
    asked: dict[str, Asked] = field(default_factory=dict)
    rounding: dict[tuple[str, str], str] = field(default_factory=dict)

    def ask(self, answer: Candidate, asked: Asked, sites: Sites) -> None:
        """Note what a pass says of the codes of the weights that ``answer`` is about."""
        form = answer.form or INT8.name if answer.kind == "compute" else answer.mode
        if asked == Asked() or form in FLOATS:
            return
        own = [site.weight.name for site in sites if site.name == answer.place and site.weight is not None]
        for name in (*own, *answer.weights) if answer.kind == "compute" else [answer.place]:
            self.asked[name] = asked.beside(self.asked.get(name, Asked()))
            if asked.rounding != "gptq":
                self.rounding[name, form] = asked.rounding

    def roundings(self, context: Context) -> tuple[list[Activation], set[str]]:
        """Every quantized activation, and every weight, that some candidate rounds."""
        made = {t.name for node in context.model.nodes() for t in (*node.inputs, *node.outputs)}
        activations = {
            (a.source or a.tensor, a.dynamic): a
            for found in self.compute.values()
            for c in found
            for a in (*c.reads, *((c.writes,) if c.writes else ()))
        }
        weights = {name for name, found in self.storage.items() if any(c.mode not in FLOATS for c in found)}
        weights |= {s.weight.name for s in context.sites if s.weight and s.name in self.compute}
        weights |= {name for found in self.compute.values() for c in found for name in c.weights}
        sources = [replace(a, tensor=name) for (name, _), a in activations.items() if name in made]
        return sources, weights

    def problem(self, context: Context, prices: Prices) -> Problem:
        elements = {n: int(np.prod(s)) if s else 1 for n, s in context.observations.shapes.items()}
        return Problem(context.sites, self.compute, self.storage, prices, elements, told=self.told)


def collect(lossy: list[tuple[LossyPass, bool]], context: Context) -> Proposals:
    """Ask every lossy pass about every site and weight; what the model's opset or weight does not allow is refused."""
    found = Proposals({}, {}, [], set())
    weights, sites = not_finite(context)
    kept = kept_float(context)
    for tensor in overridable(context.model.graph):
        if may_be_stored(tensor) and len(tensor.shape) > 1:
            found.refusals.append(
                Refusal("every pass", tensor.name, "it is an input with a default: callers may override it")
            )
    for instance, told in lossy:
        own = replace(context, told=told)
        answers = [a for site in context.sites for a in computing(instance, site, own)]
        answers += [a for weight in context.sites.weights for a in instance.store(weight, own)]
        for answer in answers:
            if isinstance(answer, Refusal):
                found.refusals.append(answer)
                continue
            reason = None
            if answer.place in (sites if answer.kind == "compute" else weights):
                reason = "its weight or bias holds values that are NaN, infinite, or too large to round"
            if answer.mode not in FLOATS and kept & {answer.place, *answer.weights}:
                reason = "it stays float, as asked for by name (--keep-float)"
            reason = not_plain(answer, context) or reason
            if context.model.opset < (needed := instance.needed_opset()):
                reason = f"it needs opset {needed}, the model has {context.model.opset}"
                if context.recipe.passes is not None and not told:
                    reason += f"; add raise-opset:version={needed} to --passes"
            if reason is not None:
                found.refusals.append(Refusal(instance.name, answer.place, reason))
                continue
            if answer.kind == "compute":
                found.compute.setdefault(answer.place, []).append(answer)
            else:
                ways = found.storage.setdefault(answer.place, [])
                if answer.mode not in {way.mode for way in ways}:
                    ways.append(answer)
            if told and answer.mode not in FLOATS:
                found.told.add(answer.place)
            found.ask(answer, instance.asked(), context.sites)
    return found


def computing(instance: LossyPass, site: Site, context: Context) -> list[Candidate | Refusal]:
    """What a pass says of computing a site; of one that does not compute in float32, at most that it cannot."""
    answers = list(instance.propose(site, context))
    if not answers or site.weight is None or not site.weight.cast:
        return answers
    kind = np.dtype(site.weight.tensor.dtype).name
    return [Refusal(instance.name, site.name, f"it computes in {kind}, and int8 kernels take and give float32")]


def not_plain(answer: Candidate, context: Context) -> str | None:
    """Why a target that wants codes as plain int8 initializers cannot read what ``answer`` writes, None if it can."""
    target = context.target
    if not target.plain:
        return None
    where = f"the target '{target.name}'"
    if answer.kind == "compute":
        if answer.mode not in target.ways:
            return f"{where} has no operators for it"
        sites = [site for site in context.sites if site.name == answer.place]
        if any(site.transposed for site in sites):
            return f"{where} reads a weight in codes as an initializer, not through a Transpose"
        read = [site.weight for site in sites if site.weight is not None]
    else:
        read = [weight for weight in context.sites.weights if weight.name == answer.place]
        if answer.mode in FLOATS:
            vector = any(max(weight.shape, default=0) == weight.elements for weight in read)
            if vector and target.float_biases:
                return f"{where} reads biases as float32 initializers"
            return None if answer.mode == HALF else f"{where} reads floats of 16 or 32 bits, no {answer.mode}"
        if answer.mode != INT8.name:
            return f"{where} reads codes as int8 initializers: nothing unfolds there"
    readers = [(node.op, place) for weight in read for node, place in weight.readers]
    others = sorted({operator for operator, place in readers if operator not in target.plain or place != 1})
    return (
        f"{where} reads codes as weights of {', '.join(sorted(target.plain))}, not of {others[0]}" if others else None
    )


def kept_float(context: Context) -> set[str]:
    """Names of the sites and weights that are to stay float: those asked for, the weights of these sites, and every
    site that reads one of these weights.
    """
    kept = set(context.recipe.keep_float)
    kept |= {site.weight.name for site in context.sites if site.weight is not None and site.name in kept}
    return kept | {site.name for site in context.sites if site.weight is not None and site.weight.name in kept}


def check_kept(original: Model, context: Context) -> str | None:
    """A sentence on names that stay float but are of no site by now; RecipeError for one that the model never had."""
    there = [*(site.name for site in context.sites), *(weight.name for weight in context.sites.weights)]
    gone = [name for name in context.recipe.keep_float if name not in there]
    before = {node.name for node in original.nodes()} | {t.name for graph in original.graphs() for t in graph.weights}
    for name in gone:
        if name not in before:
            raise RecipeError(
                f"keep-float: the model has no site or weight '{name}'{did_you_mean(name, there, 'it has')}"
            )
    if not gone:
        return None
    return f"{len(gone)} of the names in keep-float are of nothing that could be compressed: '{gone[0]}'"


def holds(values: NDArray[Any]) -> bool:
    """Whether codes can stand for all of ``values``."""
    most = LARGEST.get(values.dtype.name)
    return bool(np.isfinite(values).all() and (most is None or np.abs(values).max(initial=0) <= most))


def not_finite(context: Context) -> tuple[set[str], set[str]]:
    """Names of weights with NaN or infinite values, which no code stands for, and of the sites that read them; of other
    types than float32 also those with values that float32, or the type once they are rounded up, cannot hold.
    """
    weights = set()
    for weight in context.sites.weights:
        flat = np.asarray(context.model.values(weight.tensor)).reshape(-1)
        if not all(holds(flat[start : start + CHUNK]) for start in range(0, flat.size, CHUNK)):
            weights.add(weight.name)
    return weights, {site.name for site in context.sites if any(t.name in weights for t in site.node.inputs)}
