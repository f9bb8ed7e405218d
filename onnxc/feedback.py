"""Weights solved in the order of the graph, on what the compressed part before them really makes of the samples.

In: a plan, calibration data. Out: the codes of its weights, and by how much biases are shifted. A weight solved on the
original's activations knows nothing of what rounding did before it; here every stage sees the model as it is compressed
so far beside the original, makes up for what was lost, and hands the rest on (see codes/compensation.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxc.coder import Coder
from onnxc.codes.compensation import Met, compensated
from onnxc.codes.gptq import factorize
from onnxc.codes.moments import Given
from onnxc.codes.solve import as_groups
from onnxc.contract.context import Context
from onnxc.contract.rounding import Asked
from onnxc.data import Calibration, Sample
from onnxc.encoding import Codes, round_to_nearest
from onnxc.model import Model
from onnxc.price_file import cpu_name
from onnxc.problem import Plan
from onnxc.pruning.jobs import observable, own_bias, reading_of
from onnxc.rewriting.rewriter import Rewriter
from onnxc.sequential import Reading, Walk, stages
from onnxc.sites import Site
from onnxc.written import written

FEWEST = 8  # samples: from fewer nothing is learned
MOST = 96  # samples that are looked at
ROWS = 4096  # of inputs that a weight sees, over all samples
PARTS, MOST_TOGETHER = 12, 8  # of the samples, to tell chance; samples of one
STAGE_BYTES = 384 << 20  # of the sums of one pass


@dataclass(frozen=True)
class Fitted:
    """The samples that weights may be fitted to."""

    samples: Calibration

    @property
    def positions(self) -> list[int]:
        found = [n for n in range(len(self.samples)) if n not in self.samples.apart]
        return found[:: -(-len(found) // MOST)] if found else found

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Sample]:
        wanted = set(self.positions)
        return (sample for number, sample in enumerate(self.samples) if number in wanted)


def fitted(samples: Calibration, count: int) -> list[Sample]:
    """At most ``count`` of the samples that something may be fitted to, evenly spread; of generated ones any."""
    found = list(Fitted(samples))
    return (
        [found[(2 * index + 1) * len(found) // (2 * count)] for index in range(count)] if count < len(found) else found
    )


def unfitted(samples: Calibration, count: int) -> list[Sample]:
    """The first ``count`` of the samples that nothing is fitted to."""
    wanted = set(sorted(samples.apart)[:count])
    return [sample for number, sample in enumerate(samples) if number in wanted]


@dataclass
class Solved:
    """What was found: the codes of every weight of a plan, and name of a bias -> [N], what is taken out of it."""

    codes: dict[str, Codes] = field(default_factory=dict)
    shifts: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(eq=False)
class Unit:
    """A weight that can be solved on observed inputs.

    Attributes:
        name: of the weight; sites: that read it; reading: how its inputs are observed.
        bias: name of the constant that only its one site adds, None where there is none, or it stays as it is.
        fed: codes are solved on these inputs; else only the bias makes up for what they do.
    """

    name: str
    sites: Sequence[Site]
    reading: Reading
    bias: str | None
    fed: bool


def possible(context: Context) -> bool:
    """Whether there are samples enough."""
    samples = context.samples
    return samples is not None and not samples.generated and len(Fitted(samples)) >= FEWEST


def solving_key(context: Context) -> str:
    """The entry of the price file for the seconds that solving all weights of a model takes."""
    what = [f"{site.operator} {site.weight.shape}" for site in context.sites if site.weight is not None]
    digest = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    return f"solving {digest} | {len(context.samples or ())} samples | {cpu_name()}"


def build_solved(plan: Plan, solved: Solved, context: Context, *, late: bool = False) -> Model:
    """The model of ``plan`` with what was found; ``late``: whether it takes too long to load."""
    return written(context.model, plan, solved.codes, solved.shifts, target=context.target, late=late).model


def asked_for(context: Context, coder: Coder, notes: list[str]) -> bool:
    """Whether fields of passes ask for feedback or for corrected biases, whatever the search decides; ``notes`` gets
    why that cannot be.
    """
    wanted = {name: asked for name, asked in coder.asked.items() if asked.walks}
    if not wanted:
        return False
    if not possible(context):
        notes.append(
            f"feedback=on and bias=corrected need {FEWEST} calibration samples (--calib) beside those that nothing is "
            "fitted to: weights are solved without"
        )
        return False
    readers = {name: [site for site in context.sites if site.weight is coder.weights[name]] for name in wanted}
    found = [name for name, asked in wanted.items() if asked.feedback == "on" or own_bias(readers[name]) is not None]
    if not found:
        notes.append("bias=corrected: no operator here has a bias of its own, so none was corrected")
    return bool(found)


def solve(plan: Plan, context: Context, coder: Coder, *, feedback: bool = True) -> Solved:
    """The codes of every weight that ``plan`` stores in codes.

    Args:
        feedback: whether codes are solved on what the compressed model feeds a weight where no field says.

    Raises:
        ModelError: a part of the model does not run by itself.
    """
    assert context.samples is not None
    units = units_of(plan, context, coder, feedback=feedback)
    others = {name: mode for name, mode in plan.stored.items() if name not in units}
    found = Solved(coder.of(others, plan.compute))
    start = {name: replace(codes, packed=None) for name, codes in found.codes.items()}
    for name, unit in units.items():
        weight = coder.weights[unit.name]
        start[name] = round_to_nearest(coder.values(name), weight.channel_axis, context.target.weight_levels)
    rewriter = written(context.model, plan, start, plain=True, target=context.target)
    samples = Fitted(context.samples)
    walks = [Walk(each, samples, context.options, context.sites.types) for each in (rewriter.model, context.model)]
    for stage in staged(units, context, coder):
        met = observed(stage, rewriter, *walks)
        for unit in stage:
            solve_unit(unit, met[unit.reading.key], plan, coder, rewriter, found)
    return found


def units_of(plan: Plan, context: Context, coder: Coder, *, feedback: bool) -> dict[str, Unit]:
    """Weight name -> unit, of the weights of ``plan`` whose inputs can be seen, and have something to tell."""
    assert context.samples is not None
    units: dict[str, Unit] = {}
    once = context.sites.once  # in a loop its own errors come back to a weight
    quota = -(-ROWS // max(len(Fitted(context.samples)), 1))
    for weight in context.sites.weights:
        sites = [site for site in context.sites if site.weight is weight]
        form = coder.form(weight.name, plan.stored[weight.name]) if weight.name in plan.coded else None
        if form is None or form.scaled or not sites or weight.channel_axis is None:
            continue
        asked = coder.asked.get(weight.name, Asked())
        fed = asked.fed(form.rounding, usual=feedback)
        bias = own_bias(sites) if asked.corrects(fed=fed) else None
        if not fed and bias is None:
            continue
        groups = {int(site.node.attrs.get("group", 1)) for site in sites if site.operator == "Conv"} or {1}
        seen = len(groups) == 1 and len(sites) == len(weight.readers)
        if seen and all(site.node in once and observable(site) for site in sites):
            units[weight.name] = Unit(weight.name, sites, reading_of(sites[0], quota), bias, fed)
    return units


def staged(units: Mapping[str, Unit], context: Context, coder: Coder) -> Iterator[list[Unit]]:
    """Units in the order of the graph, as many at a time as their sums have room for."""
    for stage in stages(context.model, {name: [site.name for site in unit.sites] for name, unit in units.items()}):
        part: list[Unit] = []
        sizes: dict[str, int] = {}
        for name in stage:
            weight = coder.weights[name]
            channels = weight.shape[weight.channel_axis or 0]
            groups = int(units[name].sites[0].node.attrs.get("group", 1))
            size = 16 * groups * (weight.elements // channels) ** 2
            if part and units[name].reading.key not in sizes and sum(sizes.values()) + size > STAGE_BYTES:
                yield part
                part, sizes = [], {}
            part.append(units[name])
            sizes[units[name].reading.key] = size
        yield part


def observed(stage: Sequence[Unit], rewriter: Rewriter, walk: Walk, original: Walk) -> dict[str, Met]:
    """Reading key -> what meets the weights of ``stage`` in both models."""
    readings = {unit.reading.key: unit.reading for unit in stage}
    together = int(np.clip(len(walk.samples) // PARTS, 1, MOST_TOGETHER))
    found = {key: Met(together) for key in readings}
    read = {reading.tensor: rewriter.read_as(reading.tensor) for reading in readings.values()}
    befores = original.advance(list(read))
    for seed, now in enumerate(walk.advance(list(dict.fromkeys(read.values())))):
        before = next(befores)
        for key, reading in readings.items():
            assert reading.rows is not None
            if not now[read[reading.tensor]].size or not before[reading.tensor].size:  # it takes another branch
                continue
            rows = reading.rows(now[read[reading.tensor]], seed)
            others = reading.rows(before[reading.tensor], seed)
            if rows is None or others is None or rows.shape != others.shape or not len(rows):
                continue
            if np.isfinite(rows).all() and np.isfinite(others).all():
                found[key].add(rows, others)
    next(befores, None)  # the last sample's tensors are put away
    for each in found.values():
        each.flush()
    return found


def solve_unit(unit: Unit, met: Met, plan: Plan, coder: Coder, rewriter: Rewriter, found: Solved) -> None:
    """Codes for one weight, in ``found`` and in the model that the next stages see."""
    name, mode = unit.name, plan.stored[unit.name]
    computed = any(site.name in plan.compute for site in coder.readers.get(name, []))
    weight = coder.weights[name]
    depth = weight.elements // weight.shape[weight.channel_axis or 0]
    fits = bool(met.halves) and met.halves[0].moment.shape[1] == depth  # as for a tensor that is read in two ways
    if met.samples < FEWEST or not fits or not all(half.rows for half in met.halves):
        codes = coder.codes(name, mode, computed=computed)
    else:
        groups, axis = met.halves[0].moment.shape[0], coder.weights[name].channel_axis or 0
        matrix = as_groups(coder.values(name), axis, groups)
        bias = unit.bias if unit.bias is not None and rewriter.has_bias(unit.bias) else None
        if unit.fed:
            factor = Given(factorize(met.moments(centre=bias is not None)))
            target = compensated(matrix, met, centre=bias is not None)
            codes = coder.fitted(name, mode, factor, target, computed=computed)
        else:
            codes = coder.codes(name, mode, computed=computed)
        if bias is not None:
            found.shifts[bias] = met.shift(matrix, as_groups(codes.restored(), axis, groups))
    found.codes[name] = codes
    rewriter.recode(name, replace(codes, packed=None))
    if unit.bias in found.shifts:
        rewriter.shift_bias(unit.bias, found.shifts[unit.bias])
