"""Which channels go, and how many of each group. In: groups, moments, sizes. Out: an order of removal per group with
the damage after every step, and a number of units per group that meets a target.

The second-order order is that of Optimal Brain Surgeon (Hassibi and Stork, 1993) for blocks of inputs: removing the
inputs S of y = x W and refitting the rest costs tr(W_S' [(H^-1)_SS]^-1 W_S), H = E[x x']; the cheapest unit goes first,
and H^-1 and W are updated for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd

import numpy as np
from numpy.typing import NDArray

from onnxc.coupling.common import is_constant
from onnxc.coupling.consumers import Consumer, Moments, Wide
from onnxc.coupling.graph import Axis, Coupling, Group, Indices
from onnxc.errors import DataError

DAMPING = 0.01  # of the mean of H's diagonal
STEPS = 64  # of the removal of all units: more than one unit goes at a time in wider groups
FEWEST = 4  # channels of a layer that always stay
LIKED = ((64, 16), (32, 8), (8, 4))  # layers of so many channels keep multiples of so many


@dataclass
class Damage:
    """What removing units of one group costs.

    Attributes:
        order: units, the cheapest first, [units] or as many as may go.
        errors: after the removal of the first 0, 1, 2 ... of them: the refitted error of every consumer relative to
            its output, added up; [len(order) + 1].
        measured: whether activations were seen.
    """

    order: Indices
    errors: Wide
    measured: bool = True


@dataclass
class Problem:
    """One consumer of a group, for the second-order order: H [G, K, K] damped, W [G, K, N], units [K], -1 for other
    groups' inputs; weight: what its relative error counts; scale: the energy of its output over that.
    """

    moment: Wide
    matrix: Wide
    units: Indices
    weight: float = 1.0
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        energy = float(np.einsum("gkn,gkl,gln->", self.matrix, self.moment, self.matrix, optimize=True))
        self.scale = max(energy, 1e-30) / max(self.weight, 1e-12)


def centred(moments: Moments) -> Wide:
    """The covariance [G, K, K] of the rows: their mean is left to the bias."""
    count = moments.own[:, -1:, -1:]
    sums = moments.own[:, :-1, -1:]
    return np.asarray((moments.own[:, :-1, :-1] - sums * sums.swapaxes(1, 2) / count) / count)


def problem(group: Group, consumer: Consumer, moments: Moments, weight: float = 1.0) -> Problem:
    """The second-order problem of one consumer, whose relative error counts ``weight``."""
    units = group.members[consumer.reader.weight, consumer.reader.axis][consumer.channels]
    if not moments.own[:, -1, -1].all():
        raise DataError(f"the samples hold nothing finite that meets '{consumer.reader.weight}'")
    if consumer.bias is not None:
        moment = centred(moments)
    else:
        moment = moments.own[:, :-1, :-1] / moments.own[:, -1:, -1:]
    depth = moment.shape[1]
    mean = np.maximum(np.trace(moment, axis1=1, axis2=2) / depth, 1e-12)
    moment[:, np.arange(depth), np.arange(depth)] += DAMPING * mean[:, None]
    return Problem(moment, consumer.matrix.astype(np.float64), units, weight)


def second_order(group: Group, problems: Sequence[Problem], most: int) -> Damage:
    """The order in which ``most`` units go, by the least error of all consumers after their best refit."""
    inverses: list[Wide] = [np.asarray(np.linalg.inv(each.moment), np.float64) for each in problems]
    matrices: list[Wide] = [each.matrix.copy() for each in problems]
    inputs = [unit_inputs(each.units, group.units) for each in problems]
    left = np.ones(group.units, np.bool_)
    order: list[int] = []
    errors = [0.0]
    batch = -(-group.units // STEPS)
    while len(order) < most:
        there = np.flatnonzero(left)
        cost = np.zeros(len(there))
        for each, inverse, matrix, rows in zip(problems, inverses, matrices, inputs, strict=True):
            cost += block_costs(inverse, matrix, rows[there]) / each.scale
        chosen = there[np.argsort(cost, kind="stable")[: min(batch, most - len(order))]]
        before = errors[-1]
        gone = 0.0
        for number, each in enumerate(problems):
            rows = inputs[number][chosen].reshape(-1)
            gone += remove(inverses[number], matrices[number], rows) / each.scale
        errors += list(before + gone * np.arange(1, len(chosen) + 1) / len(chosen))
        order += chosen.tolist()
        left[chosen] = False
    return Damage(np.asarray(order, np.int64), np.asarray(errors))


def unit_inputs(units: Indices, count: int) -> Indices:
    """The inputs of every unit, [units, inputs per unit]."""
    mine = np.flatnonzero(units >= 0)
    return np.asarray(mine[np.argsort(units[mine], kind="stable")].reshape(count, -1), np.int64)


def block_costs(inverse: Wide, matrix: Wide, rows: Indices) -> Wide:
    """tr(W_S' [(H^-1)_SS]^-1 W_S) of the blocks of inputs ``rows`` [units, S], over all groups."""
    width = matrix.shape[2] * rows.shape[1] * matrix.shape[0]
    step = max(1, (1 << 23) // max(width, 1))
    parts = []
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        block = inverse[:, some[:, :, None], some[:, None, :]]
        picked = matrix[:, some]
        if some.shape[1] == 1:
            parts.append(((picked**2).sum((2, 3)) / block[:, :, 0, 0]).sum(0))
        else:
            parts.append((picked * np.linalg.solve(block, picked)).sum((0, 2, 3)))
    return np.concatenate(parts)


def remove(inverse: Wide, matrix: Wide, rows: Indices) -> float:
    """Take the inputs ``rows`` out of H^-1 and W in place; the error that this adds."""
    block = inverse[:, rows[:, None], rows[None, :]]
    strip = inverse[:, :, rows]
    solved = np.linalg.solve(block, np.concatenate([matrix[:, rows], strip.swapaxes(1, 2)], 2))
    outputs = matrix.shape[2]
    cost = float((matrix[:, rows] * solved[:, :, :outputs]).sum())
    matrix -= strip @ solved[:, :, :outputs]
    inverse -= strip @ solved[:, :, outputs:]
    depth = np.arange(inverse.shape[1])[rows]
    matrix[:, rows] = 0.0
    inverse[:, rows, :] = 0.0
    inverse[:, :, rows] = 0.0
    inverse[:, depth, depth] = 1.0
    return cost


def by_variance(group: Group, wanted: Sequence[tuple[Consumer, Moments]]) -> Damage:
    """Units by the variance that they bring to their consumers' outputs: input variance times squared weights."""
    cost = np.zeros(group.units)
    for consumer, moments in wanted:
        units = group.members[consumer.reader.weight, consumer.reader.axis][consumer.channels]
        variance = np.maximum(np.diagonal(centred(moments), axis1=1, axis2=2), 0.0)
        energy = (variance * (consumer.matrix.astype(np.float64) ** 2).sum(2)).sum(0)
        cost += np.bincount(units[units >= 0], energy[units >= 0], group.units) / max(float(energy.sum()), 1e-30)
    return ordered(cost)


def by_norm(group: Group, weights: Mapping[str, NDArray[np.generic]]) -> Damage:
    """Units by the squared norm of all their weights, each weight's relative to its whole."""
    cost = np.zeros(group.units)
    for (name, axis), units in group.members.items():
        if name in weights:
            squares = np.asarray(weights[name], np.float64) ** 2
            energy = squares.sum(tuple(other for other in range(squares.ndim) if other != axis))
            cost += np.bincount(units[units >= 0], energy[units >= 0], group.units) / max(float(energy.sum()), 1e-30)
    damage = ordered(cost)
    damage.measured = False
    return damage


def ordered(cost: Wide) -> Damage:
    """The damage of units whose costs add up."""
    order = np.argsort(cost, kind="stable")
    return Damage(order.astype(np.int64), np.concatenate([[0.0], np.cumsum(cost[order])]))


def steps(group: Group, rounding: int) -> Indices:
    """The numbers of units that may go: what stays is a multiple of 16 channels in layers of 64 and more, of 8 and 4
    in narrower ones, never above ``rounding``, and at least 4 channels and one unit. Heads are not rounded.
    """
    channels = group.units * group.width
    multiple = next((step for least, step in LIKED if channels >= least), 1)
    multiple = min(multiple, max(rounding, 1))
    unit = 1 if group.kind == "heads" else multiple // gcd(multiple, group.width)
    while FEWEST * unit > group.units and group.width > 1 and unit > 1:
        unit //= 2  # of few units with an odd number of channels each, no four steps would be left
    least = max(1, -(-min(FEWEST, channels) // group.width))
    stays = np.arange(group.units, 0, -1)
    allowed = (stays >= least) & ((stays % unit == 0) | (stays == group.units))
    return np.asarray((group.units - stays)[allowed], np.int64)


@dataclass
class Sizes:
    """Parameters and multiply-adds as products of axes, for any number of units.

    Attributes:
        parameters, macs: the terms, each a list of axes and what the axes that are never cut multiply to.
    """

    parameters: list[tuple[float, list[Axis]]]
    macs: list[tuple[float, list[Axis]]]
    full: dict[Axis, int]
    per_unit: dict[int, dict[Axis, int]]

    @classmethod
    def of(cls, coupling: Coupling, groups: Sequence[Group]) -> Sizes:
        """The terms of a model whose ``groups`` may be cut."""
        per_unit = {
            number: {axis: group.per_unit(axis) for axis in group.members} for number, group in enumerate(groups)
        }
        cut = {axis for found in per_unit.values() for axis in found}
        full = {axis: coupling.size(axis) for axis in cut}

        def term(axes: Sequence[Axis]) -> tuple[float, list[Axis]]:
            rest = [coupling.shapes[name][axis] for name, axis in axes if (name, axis) not in cut]
            return float(np.prod(rest)), [axis for axis in axes if axis in cut]

        def every(name: str) -> list[Axis]:
            return [(name, axis) for axis in range(len(coupling.shapes.get(name, ())))]

        model = coupling.model
        filled = [node.outputs[0] for node in model.graph.nodes if node.op == "ConstantOfShape"]
        weights = [*model.graph.weights, *(tensor for tensor in filled if is_constant(tensor))]
        parameters = [term(every(tensor.name)) for tensor in weights if tensor.name in coupling.shapes]
        macs = []
        for node in model.graph.nodes:
            names = [tensor.name for tensor in (*node.inputs[:2], *node.outputs[:1])]
            if node.op not in {"MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"}:
                continue
            if not all(name in coupling.shapes for name in names):
                continue
            if node.op == "Conv":
                macs.append(term([*every(names[2]), *every(names[1])[1:]]))
            elif node.op == "ConvTranspose":
                macs.append(term([*every(names[0]), *every(names[1])[1:]]))
            elif node.op in {"MatMul", "Gemm"}:
                rank = len(coupling.shapes[names[0]])
                inner = 0 if node.op == "Gemm" and node.attrs.get("transA", 0) else rank - 1
                macs.append(term([*every(names[2]), (names[0], inner)]))
            else:
                positions = every(names[0])[:2]
                macs += [term([*positions, *every(tensor.name)]) for tensor in node.inputs[1:3]]
        return cls(parameters, macs, full, per_unit)

    def shares(self, coupling: Coupling, gains: Mapping[str, float]) -> list[tuple[float, list[Axis]]]:
        """Terms of which each counts what ``gains`` says of its weight, times what is left of it."""
        terms = []
        for name, gain in gains.items():
            axes = [(name, axis) for axis in range(len(coupling.shapes.get(name, ()))) if (name, axis) in self.full]
            terms.append((gain / float(np.prod([self.full[axis] for axis in axes])), axes))
        return terms

    def count(self, terms: Sequence[tuple[float, list[Axis]]], removed: Mapping[int, int]) -> float:
        """The sum of ``terms`` with so many units of every group removed."""
        left = dict(self.full)
        for number, units in removed.items():
            for axis, each in self.per_unit[number].items():
                left[axis] -= each * units
        return sum(rest * float(np.prod([left[axis] for axis in axes])) for rest, axes in terms)


def uniform(groups: Sequence[Group], fraction: float, rounding: int) -> dict[int, int]:
    """So many units of every group that ``fraction`` of them is gone, as nearly as the allowed sizes come."""
    removed = {}
    for number, group in enumerate(groups):
        allowed = steps(group, rounding)
        removed[number] = int(allowed[np.argmin(np.abs(allowed - fraction * group.units))])
    return removed


def evenly(
    groups: Sequence[Group], count: Callable[[Mapping[int, int]], float], fraction: float, rounding: int
) -> dict[int, int]:
    """The smallest uniform cut after which ``count`` is down by ``fraction``, the largest where none reaches it. Groups
    of one size all take their next step at the same cut: only as many of them take it as are needed.
    """
    total = count({})

    def enough(removed: Mapping[int, int]) -> bool:
        return count(removed) <= (1 - fraction) * total * (1 + 1e-9)

    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(uniform(groups, middle, rounding)) else (middle, high)
    fewer, more = uniform(groups, low, rounding), uniform(groups, high, rounding)
    waiting = [number for number in more if more[number] != fewer[number]]
    waiting.sort(key=lambda number: count(fewer | {number: more[number]}))  # what saves most may stay first
    for number in waiting:
        if enough(more | {number: fewer[number]}):
            more[number] = fewer[number]
    return more


def allocate(
    groups: Sequence[Group],
    damages: Sequence[Damage],
    count: Callable[[Mapping[int, int]], float],
    fraction: float,
    rounding: int,
) -> dict[int, int]:
    """Units to remove so that ``count`` falls by ``fraction`` at the least damage.

    Each group offers the steps of the lower convex hull of its damage over what it saves; the steps are taken by
    damage per saving, over all groups, until the target is met.
    """
    total = count({})
    offers: list[tuple[float, int, int]] = []
    for number, (group, damage) in enumerate(zip(groups, damages, strict=True)):
        allowed = [int(step) for step in steps(group, rounding) if step < len(damage.errors)]
        saving = max(total - count({number: 1}), 1e-9)
        place = 0
        while place < len(allowed) - 1:
            ahead = np.asarray(allowed[place + 1 :])
            slopes = (damage.errors[ahead] - damage.errors[allowed[place]]) / ((ahead - allowed[place]) * saving)
            best = int(np.argmax(slopes <= slopes.min() + 1e-9 * abs(slopes.min())))
            place += 1 + best
            offers.append((float(slopes[best]), number, allowed[place]))
    offers.sort(key=lambda offer: (offer[0], offer[2], offer[1]))

    def after(taken: int) -> dict[int, int]:
        removed: dict[int, int] = {}
        for _, number, step in offers[:taken]:
            removed[number] = max(removed.get(number, 0), step)
        return removed

    low, high = 0, len(offers)
    while low < high:
        middle = (low + high) // 2
        if count(after(middle)) <= (1 - fraction) * total * (1 + 1e-9):
            high = middle
        else:
            low = middle + 1
    return after(high)
