"""Convolutions to factor. In: weights of Conv with their readers. Out: units and jobs for factoring.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxc.factors import low_rank
from onnxc.factors.factoring import ROWS, Goal, Job, Stats, Unit
from onnxc.factors.kernel_rank import Spatial, Tucker, damage, kernel_of, lost, matrix_of
from onnxc.factors.low_rank import regularized, rounded
from onnxc.factors.matrices import Met, met, own_bias
from onnxc.model import Constant, Model
from onnxc.rewrite import Context
from onnxc.sequential import Reading
from onnxc.sites import Site, Weight
from onnxc.targets import Target

Array = NDArray[np.float64]
Form = Literal["tucker", "spatial", "channel"]
Ranks = tuple[int, ...]
HARDER = (4.0, 2.0, 1.0, 0.5, 0.25)  # times the energy that may be lost: what the estimates of a HOSVD are tried at


@dataclass(frozen=True)
class Way:
    """One way to factor a kernel: its ranks, the numbers of its factors, their products per output position, its damage
    (E|y - y'|^2 / E|y|^2).
    """

    form: Form
    ranks: Ranks
    numbers: int
    products: int
    damage: float

    @property
    def text(self) -> str:
        return f"{self.form} rank {' x '.join(map(str, self.ranks))}"


@dataclass(eq=False)
class Kernel:
    """The weight of one or several Conv nodes.

    Attributes:
        sites: its readers; observed: those of the main graph; readings: how they are observed.
        groups, filters, channels: G, outputs and inputs of a group; size: of the window.
        bias: name of a bias that only this convolution reads.
    """

    weight: Weight
    sites: list[Site]
    readings: list[Reading]
    groups: int
    model: Model
    bias: str | None

    @property
    def name(self) -> str:
        return self.sites[0].name

    @property
    def channels(self) -> int:
        return self.weight.shape[1]

    @property
    def filters(self) -> int:
        return self.weight.shape[0] // self.groups

    @property
    def size(self) -> tuple[int, ...]:
        return self.weight.shape[2:]

    @property
    def strides(self) -> list[int]:
        return [int(s) for s in self.sites[0].node.attrs.get("strides", [1] * len(self.size))]

    @property
    def forms(self) -> list[Form]:
        """The forms that this kernel can take."""
        if prod(self.size) == 1:
            return ["channel"]
        spatial: list[Form] = ["spatial"] if len(self.size) == 2 and min(self.size) > 1 else []
        return spatial if self.channels == 1 else ["tucker", "channel", *spatial]

    def values(self) -> Array:
        """[G, O, C, *k]."""
        array = np.asarray(self.model.values(self.weight.tensor), np.float64)
        return array.reshape(self.groups, self.filters, self.channels, *self.size)

    def way(self, form: Form, ranks: Ranks, found: float = 0.0) -> Way:
        """What a form costs at ``ranks``; the first parts run before (some of) the strides."""
        places, filters, channels = prod(self.size), self.filters, self.channels
        if form == "channel":
            numbers = products = ranks[0] * (channels * places + filters)
        elif form == "spatial":
            first, last = ranks[0] * channels * self.size[0], ranks[0] * filters * self.size[1]
            numbers, products = first + last, first * self.strides[1] + last
        else:
            first, rest = channels * ranks[0], ranks[0] * ranks[1] * places + ranks[1] * filters
            numbers, products = first + rest, first * prod(self.strides) + rest
        return Way(form, ranks, self.groups * numbers, self.groups * products, found)


class Solver:
    """A kernel on what it meets, ready to be taken apart in any form."""

    def __init__(self, kernel: Kernel, seen: Met | None) -> None:
        values = kernel.values()
        matrix = matrix_of(values)
        self.kernel, self.moment = kernel, None
        self.total = np.square(matrix).sum((1, 2))
        if seen is not None:
            moving = seen.centered() if kernel.bias else seen
            self.total = low_rank.output_energy(matrix, moving.moment)
            if moving.cross is not None:
                matrix = low_rank.regression(matrix, moving.moment, moving.cross)
                values = kernel_of(matrix, kernel.channels, kernel.size)
            self.moment = regularized(moving.moment)
        self.values, self.matrix = values, matrix
        self.solvers: dict[Form, Any] = {}

    def solver(self, form: Form) -> Any:
        """The decomposition behind a form, made once."""
        if form not in self.solvers:
            made: Any
            if form == "tucker":
                made = Tucker(self.values, self.moment)
            elif form == "spatial":
                made = Spatial(self.values, self.moment)
            else:
                made = low_rank.decompose(self.matrix, self.moment, total=self.total)
            self.solvers[form] = made
        return self.solvers[form]

    def ranks(self, form: Form, allowed: float) -> Ranks:
        """Ranks at which a form loses about ``allowed`` energy."""
        solver = self.solver(form)
        if form == "tucker":
            return tuple(solver.ranks(allowed))
        if form == "spatial":
            return (max(int(np.argmax(lost(solver.energies.sum(0)) <= allowed + 1e-12)), 1),)
        return (min(solver.rank_for(allowed), solver.full),)

    def parts(self, form: Form, ranks: Ranks, rounds: int | None = None) -> list[Array]:
        """The kernels [G * outputs, inputs, *window] of a form, in order."""
        kernel, solver = self.kernel, self.solver(form)
        ones = (1,) * len(kernel.size)
        more = {} if rounds is None else {"rounds": rounds}
        if form == "tucker":
            first, core, last = solver.parts(ranks, **more)
            found = [first.reshape(*first.shape, *ones), core, last.reshape(*last.shape, *ones)]
        elif form == "spatial":
            found = list(solver.parts(ranks[0], **more))
        else:
            left, right = solver.pair(ranks[0])
            last = right.swapaxes(1, 2)
            found = [kernel_of(left, kernel.channels, kernel.size), last.reshape(*last.shape, *ones)]
        return [part.reshape(-1, *part.shape[2:]) for part in found]

    def product(self, form: Form, parts: Sequence[Array]) -> Array:
        """The matrix [G, C k, O] of the convolution that ``parts`` are."""
        groups, first, last = self.kernel.groups, parts[0], parts[-1]
        first = first.reshape(groups, -1, *first.shape[1:])
        last = last.reshape(groups, -1, *last.shape[1:])
        if form == "channel":
            return np.asarray(matrix_of(first) @ matrix_of(last))
        if form == "spatial":
            return matrix_of(np.einsum("grcia,gorbj->gocij", first, last, optimize=True))
        core = parts[1].reshape(groups, -1, *parts[1].shape[1:])
        flat = core.reshape(*core.shape[:3], -1)
        outer, inner = last.reshape(*last.shape[:3]), first.reshape(*first.shape[:3])
        made = np.einsum("goq,gqpk,gpc->gock", outer, flat, inner, optimize=True)
        return matrix_of(made)

    def damage(self, form: Form, ranks: Ranks) -> float:
        """What a form really does at ``ranks``, after one round of alternation."""
        if form == "channel":
            damages = self.solver(form).damages()
            return float(damages[min(ranks[0], len(damages) - 1)])
        moment = self.moment if self.moment is not None else np.eye(self.matrix.shape[1])[None]
        return damage(self.matrix, self.product(form, self.parts(form, ranks, 1)), moment, self.total)


class ConvUnit(Unit):
    """One kernel, with all convolutions that read it."""

    def __init__(self, kernel: Kernel, target: Target, form: str) -> None:
        self.kernel, self.target = kernel, target
        self.forms = [each for each in kernel.forms if form in ("auto", each)]
        self.name = kernel.name
        self.nodes = [site.name for site in kernel.sites if site.graph is kernel.model.graph]
        self.readings = kernel.readings
        self.bytes = 16 * kernel.groups * (kernel.channels * prod(kernel.size)) ** 2
        self.ways: dict[Goal, Way | str] = {}

    def survey(self, stats: Stats, goals: Sequence[Goal]) -> None:
        """The way to take under every goal, or why there is none."""
        refused = self.refused(goals[0])
        if refused is not None:
            self.ways = dict.fromkeys(goals, refused)
            return
        solver = Solver(self.kernel, met(self.readings, stats))
        self.ways = {goal: self.way(solver, goal) for goal in goals}

    def refused(self, goal: Goal) -> str | None:
        """What can be said without looking at the numbers."""
        kernel = self.kernel
        if not self.forms:
            there = ", ".join(kernel.forms)
            return f"its kernel {tuple(kernel.weight.shape)} has {f'only the form {there}' if there else 'no factors'}"
        if goal.automatic and kernel.channels == 1:
            what = "a depthwise convolution" if kernel.groups > 1 else "a convolution of one channel"
            return f"{what}: two of them are slower than one"
        if goal.automatic and kernel.weight.elements < self.target.smallest_linear:
            return "too small to pay"
        return None

    def way(self, solver: Solver, goal: Goal) -> Way | str:
        """The cheapest form that reaches ``goal``; with a share of the numbers, the one with the least damage."""
        found: list[Way] = []
        missed: list[str] = []
        for form in self.forms:
            answer = self.told(solver, form, goal) if not goal.energy else self.reaching(solver, form, goal)
            if isinstance(answer, Way):
                found.append(answer)
            else:
                missed.append(answer)
        if not found:
            return "; ".join(missed)
        if goal.parameters:
            return min(found, key=lambda way: way.damage)
        best = min(found, key=lambda way: (way.products, way.damage))
        return replace(best, damage=solver.damage(best.form, best.ranks)) if goal.rank else best

    def full(self, form: Form) -> Ranks:
        """The highest ranks of a form."""
        kernel = self.kernel
        if form == "tucker":
            return kernel.channels, kernel.filters
        if form == "spatial":
            return (min(kernel.channels * kernel.size[0], kernel.filters * kernel.size[1]),)
        return (min(kernel.channels * prod(kernel.size), kernel.filters),)

    def told(self, solver: Solver, form: Form, goal: Goal) -> Way | str:
        """A form at the rank, or with the share of the numbers, that was asked for."""
        kernel, full = self.kernel, self.full(form)
        if goal.rank:
            if goal.rank > max(full):
                return f"rank {goal.rank} is above the full rank {max(full)} of its {form} form"
            return kernel.way(form, tuple(min(goal.rank, each) for each in full))
        most = goal.parameters * kernel.weight.elements
        if form == "tucker":
            tried = [solver.ranks(form, allowed) for allowed in np.geomspace(1e-6, 1.0, 200)]
        else:
            tried = [(rank,) for rank in range(full[0], 0, -1)]
        fitting = [each for each in tried if kernel.way(form, each).numbers <= most]
        if not fitting:
            return f"{goal.parameters:.0%} of its numbers are less than {form} rank 1"
        ranks = fitting[0]
        return kernel.way(form, ranks, solver.damage(form, ranks))

    def reaching(self, solver: Solver, form: Form, goal: Goal) -> Way | str:
        """The lowest ranks of a form that really keep the energy, where that takes few enough products."""
        kernel, full, best = self.kernel, self.full(form), None
        elements = kernel.weight.elements
        last = ""
        for factor in HARDER if form != "channel" else (1.0,):
            exact = solver.ranks(form, min(goal.damage * factor, 1.0))
            step = self.target.channel_step
            ranks = tuple(
                rounded(each, step if most > step else 1, most) for each, most in zip(exact, full, strict=True)
            )
            way = kernel.way(form, ranks)
            if not goal.automatic and way.numbers >= elements:
                ranks, way = exact, kernel.way(form, exact)
            share = way.products / elements if goal.automatic else way.numbers / elements
            if share > (self.target.rank_share if goal.automatic else 1 - 1e-9):
                last = f"{way.text} would take {share:.0%} of its {'products' if goal.automatic else 'numbers'}"
                break
            made = solver.damage(form, ranks)
            best = kernel.way(form, ranks, made)
            if made <= goal.damage + 1e-9:
                return best
            last = f"{best.text} keeps {1 - made:.1%}, not {goal.energy:.1%}"
        return last

    def jobs(self, goal: Goal) -> tuple[list[Job], list[str]]:
        """The factors of this kernel, or why not."""
        way = self.ways[goal]
        if isinstance(way, str):
            return [], [f"{self.name}: not factored, {way}"]
        saved = self.kernel.weight.elements - way.numbers
        return [ConvJob(self.name, self.nodes, self.readings, way.text, way.damage, saved, self.kernel, way)], []


@dataclass
class ConvJob(Job):
    """Write the factors of one kernel."""

    kernel: Kernel = field(kw_only=False, default=None)  # type: ignore[assignment]
    way: Way = field(kw_only=False, default=None)  # type: ignore[assignment]

    def apply(self, model: Model, stats: Stats) -> None:
        """Solve and write."""
        kernel, way = self.kernel, self.way
        seen = met(self.readings, stats)
        solver = Solver(kernel, seen)
        parts = solver.parts(way.form, way.ranks)
        places = {node.name: (node, graph) for graph in model.graphs() for node in graph.nodes}
        labels = ("left", "right") if len(parts) == 2 else ("left", "core", "right")
        home = places[kernel.name][1] if kernel.weight.graph is not kernel.model.graph else None
        factors = [
            model.constant(f"{kernel.weight.name}_{label}", np.ascontiguousarray(part, np.float32), home)
            for label, part in zip(labels, parts, strict=True)
        ]
        for site in kernel.sites:
            node, graph = places[site.name]
            inputs, result, attributes = list(node.inputs), node.outputs[0], dict(node.attrs)
            if kernel.bias is not None and seen is not None:
                was = np.einsum("gk,gkn->gn", seen.reference, matrix_of(kernel.values()))
                now = np.einsum("gk,gkn->gn", seen.mean, solver.product(way.form, parts))
                values = np.asarray(model.values(inputs[2]), np.float64) + (was - now).reshape(-1)
                inputs[2] = model.constant(f"{kernel.bias}_refit", values.astype(np.float32))
            node.inputs.clear()
            node.outputs.clear()
            tensor = inputs[0]
            for index, (label, factor) in enumerate(zip(labels, factors, strict=True)):
                last = index == len(factors) - 1
                made = model.insert(
                    "Conv",
                    [tensor, factor, *(inputs[2:] if last else [])],
                    [result if last else f"{result.name}_{label}"],
                    name=f"{node.name}_{label}",
                    graph=graph,
                    **window(attributes, way.form, index, factor, kernel.groups),
                )
                tensor = made.outputs[0]


def window(attributes: dict[str, Any], form: Form, index: int, factor: Constant, groups: int) -> dict[str, Any]:
    """The attributes of part ``index`` of a convolution that had ``attributes``."""
    size = list(factor.shape[2:])
    axes = len(size)
    found: dict[str, Any] = {"kernel_shape": size, "group": groups}
    if form == "channel":
        takes = [index == 0] * axes
    elif form == "spatial":
        takes = [index == 0, index == 1]
    else:
        takes = [index == 1] * axes
    if not any(takes):
        return found
    for key in ("strides", "dilations"):
        if key in attributes:
            found[key] = [int(v) if mine else 1 for v, mine in zip(attributes[key], takes, strict=True)]
    if "pads" in attributes:
        found["pads"] = [int(v) if mine else 0 for v, mine in zip(attributes["pads"], takes * 2, strict=True)]
    if "auto_pad" in attributes:
        found["auto_pad"] = attributes["auto_pad"]
    return found


def understood(weight: Weight, context: Context) -> Kernel | str | None:
    """The kernel that ``weight`` is to all its readers; why it is none; None where no reader is a convolution."""
    model = context.model
    by_node = {id(site.node): site for site in context.sites if site.kind == "convolution"}
    sites = [by_node[id(node)] for node, _ in weight.readers if id(node) in by_node]
    if not sites or len(weight.shape) < 3:  # a bias
        return None
    name = sites[0].name
    for node, position in weight.readers:
        if node.op == "ConvTranspose":
            return f"{name}: not factored, a transposed convolution"
        if id(node) not in by_node or position != 1:
            return f"{name}: not factored, {node.name} ({node.op}) needs its weight '{weight.name}' whole"
    groups = {int(site.node.attrs.get("group", 1)) for site in sites}
    if len(groups) > 1:
        return f"{name}: not factored, its weight is read with {' and '.join(map(str, sorted(groups)))} groups"
    if any(weight.tensor is t for graph in model.graphs() for t in graph.outputs):
        return f"{name}: not factored, its weight '{weight.name}' is an output of the model"
    if not np.isfinite(np.asarray(model.values(weight.tensor))).all():
        return f"{name}: not factored, its weight holds NaN or infinite values"
    bias = own_bias(sites[0], context) if len(sites) == 1 else None
    readings = [reading(site, context) for site in sites if site.graph is model.graph and site.input.name]
    readings = [each for each, site in zip(readings, sites, strict=False) if not isinstance(site.input, Constant)]
    return Kernel(weight, sites, readings, groups.pop(), model, bias)


def padding(site: Site, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) of every axis of an input of ``sizes``."""
    assert site.weight is not None
    attributes, axes = site.node.attrs, len(sizes)
    automatic = attributes.get("auto_pad", "NOTSET")
    if automatic not in {"SAME_UPPER", "SAME_LOWER"}:
        pads = [int(pad) for pad in attributes.get("pads", [0] * 2 * axes)]
        return list(zip(pads[:axes], pads[axes:], strict=True)) if automatic != "VALID" else [(0, 0)] * axes
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    found = []
    for n, k, s, d in zip(sizes, site.weight.shape[2:], strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if automatic == "SAME_UPPER" else (more, less))
    return found


def windows(values: NDArray[np.float32], site: Site, quota: int, seed: int) -> NDArray[np.float32] | None:
    """At most ``quota`` im2col rows [R, G, C k] at different random output positions of one sample."""
    assert site.weight is not None
    attributes, size = site.node.attrs, site.weight.shape[2:]
    axes = len(size)
    if values.ndim != axes + 2:
        return None
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    padded = np.pad(values, [(0, 0), (0, 0), *padding(site, values.shape[2:])])
    extent = tuple((k - 1) * d + 1 for k, d in zip(size, dilations, strict=True))
    if any(n < e for n, e in zip(padded.shape[2:], extent, strict=True)) or not len(padded):
        return None
    seen = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, axes + 2)))
    every = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    seen = seen[(*every, *(slice(None, None, d) for d in dilations))]  # [B, C, *positions, *k], nothing copied yet
    places = (len(padded), *seen.shape[2 : 2 + axes])
    pick = np.random.default_rng(seed).permutation(prod(places))[:quota]
    sample, *position = np.unravel_index(np.sort(pick), places)
    groups = int(attributes.get("group", 1))
    chosen: tuple[Any, ...] = (sample, slice(None), *position)
    return np.ascontiguousarray(seen[chosen]).reshape(len(pick), groups, -1)


def reading(site: Site, context: Context) -> Reading:
    """How the input of a convolution is observed: im2col rows at random places, as many of every sample."""
    quota = -(-ROWS // max(len(context.samples), 1)) if context.samples is not None else 0

    def rows(values: NDArray[Any], seed: int) -> NDArray[np.float32] | None:
        return windows(np.asarray(values, np.float32), site, quota, seed)

    return Reading(site.input.name, f"{site.input.name} of {site.name}", rows)
