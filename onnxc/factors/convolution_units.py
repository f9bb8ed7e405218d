"""Convolutions, factored. In: a kernel. Out: a unit, its cheapest way under every goal, and jobs for factoring.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.bodies import run_once
from onnxc.factors import low_rank
from onnxc.factors.common import Met, constant, met, placed, posed
from onnxc.factors.convolutions import Form, Kernel, Ranks, Way
from onnxc.factors.goals import DENSE, Goal, Loss
from onnxc.factors.kernel_rank import Spatial, Tucker, damage, kernel_of, lost, matrix_of
from onnxc.factors.low_rank import rounded
from onnxc.factors.units import Job, Stats, Unit
from onnxc.model import Constant, Model
from onnxc.targets import Target

Array = NDArray[np.float64]
TRIED, MOST_TRIED = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), 4  # damages that ways are looked for at; built of those
HARDER = (4.0, 2.0, 1.0, 0.5, 0.25)  # times the energy that may be lost: what the estimates of a HOSVD are tried at


class Solver:
    """A kernel on what it meets, ready to be taken apart in any form."""

    def __init__(self, kernel: Kernel, seen: Met | None) -> None:
        self.kernel = kernel
        self.matrix, self.moment, total = posed(matrix_of(kernel.values()), seen, bias=bool(kernel.bias))
        self.total = np.square(self.matrix).sum((1, 2)) if total is None else total
        self.values = kernel_of(self.matrix, kernel.channels, kernel.size)
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
        once = run_once(kernel.model)
        self.nodes = [site.name for site in kernel.sites if site.node in once]
        self.readings = kernel.readings
        self.bytes = 16 * kernel.groups * (kernel.channels * prod(kernel.size)) ** 2
        self.ways: dict[Goal, Way | str] = {}
        self.losses: dict[str, Loss] = {}

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
        if goal.automatic and kernel.weight.sparse:
            return DENSE
        if goal.automatic and kernel.weight.elements < self.target.smallest_linear:
            return "too small to pay"
        return None

    def way(self, solver: Solver, goal: Goal) -> Way | str:
        """The cheapest form that reaches ``goal``; with a share of the numbers, the one with the least damage."""
        if goal.stakes is not None:
            return self.paying(solver, goal)
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

    def paying(self, solver: Solver, goal: Goal) -> Way | str:
        """The way that wins most where every damage has its price; why there is none where none wins anything.

        The estimates of a HOSVD are too high by up to a factor: only ways that might win are really tried.
        """
        names, elements, found = [self.kernel.weight.name], self.kernel.weight.elements, dict[tuple[Form, Ranks], Way]()

        def win(way: Way) -> float:
            return goal.win(names, share(way), way.damage, kernels(way))

        def share(way: Way) -> float:
            return (way.numbers + way.products) / (2 * elements)

        def kernels(way: Way) -> int:
            return 2 if way.form == "tucker" else 1

        for form in self.forms:
            for allowed in TRIED:
                way = self.fitting(solver, form, allowed)
                if way.products <= self.target.rank_share * elements:
                    found.setdefault((form, way.ranks), replace(way, damage=allowed / max(HARDER)))
        if not found:
            return f"no form takes less than {self.target.rank_share:.0%} of its products"
        hopeful = sorted((way for way in found.values() if win(way) > 0), key=win, reverse=True)[:MOST_TRIED]
        made = [
            replace(way, damage=solver.damage(way.form, way.ranks)) for way in hopeful or [max(found.values(), key=win)]
        ]
        best = max(made, key=win)
        if win(best) > 0:
            return best
        return Loss.of(goal, names, best.text, share(best), best.damage, kernels(best))

    def fitting(self, solver: Solver, form: Form, allowed: float) -> Way:
        """A form at ranks that are estimated to lose ``allowed``, rounded to what kernels like."""
        exact, step = solver.ranks(form, allowed), self.target.channel_step
        full = self.full(form)
        ranks = [rounded(each, step if most > step else 1, most) for each, most in zip(exact, full, strict=True)]
        return self.kernel.way(form, tuple(ranks))

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
        kernel, best = self.kernel, None
        elements = kernel.weight.elements
        last = ""
        for factor in HARDER if form != "channel" else (1.0,):
            allowed = min(goal.damage * factor, 1.0)
            way = self.fitting(solver, form, allowed)
            if not goal.automatic and way.numbers >= elements:
                way = kernel.way(form, solver.ranks(form, allowed))
            ranks = way.ranks
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
        self.losses = {self.name: way} if isinstance(way, Loss) else {}
        if isinstance(way, str):
            return [], [f"{self.name}: not factored, {way}"]
        saved = self.kernel.weight.elements - way.numbers
        return [ConvJob(self.name, self.nodes, self.readings, way.text, way.damage, saved, self.kernel, way)], []


@dataclass
class ConvJob(Job):
    """Write the factors of one kernel."""

    kernel: Kernel
    way: Way

    @property
    def names(self) -> list[str]:
        return [self.kernel.weight.name]

    @property
    def share(self) -> float:
        return (self.way.numbers + self.way.products) / (2 * self.kernel.weight.elements)

    def apply(self, model: Model, stats: Stats) -> None:
        """Solve and write."""
        kernel, way = self.kernel, self.way
        seen = met(self.readings, stats)
        solver = Solver(kernel, seen)
        parts = solver.parts(way.form, way.ranks)
        places = placed(model)
        labels = ("left", "right") if len(parts) == 2 else ("left", "core", "right")
        factors = [constant(model, kernel, label, part, places) for label, part in zip(labels, parts, strict=True)]
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
