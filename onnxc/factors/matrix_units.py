"""Linear layers and tables, factored. In: matrices that are decided together. Out: units and jobs for factoring.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.factors import low_rank
from onnxc.factors.common import Met, constant, met, placed, posed
from onnxc.factors.goals import DENSE, Curve, Goal, Loss, rank_of
from onnxc.factors.low_rank import Decomposition, break_even, regularized
from onnxc.factors.matrices import Matrix, Reader
from onnxc.factors.units import Job, Stats, Unit
from onnxc.model import Constant, Graph, Model, Node, Tensor
from onnxc.targets import Target

Array = NDArray[np.float64]


def decomposed(matrix: Matrix, stats: Stats, most: int = 0, damage: float = 0.0) -> Decomposition:
    """The factors of ``matrix`` on what it meets: refitted where that is not what it met in the original.

    Args:
        most: the highest rank of use, 0 for any; damage: below this more ranks are of no use.
    """
    if "rows" in matrix.forms:
        counts = np.zeros(matrix.weight.shape[0])
        for reading in matrix.readings:
            seen_rows = stats[reading.key].counts if reading.key in stats else None
            counts += 0 if seen_rows is None else seen_rows
        head = met([r.reading for r in matrix.readers if r.form == "transposed" and r.reading], stats)
        moment = None if head is None else regularized(head.moment)[0]
        return low_rank.decompose_rows(matrix.stored()[0], counts, moment)
    weight = matrix.values()
    form = matrix.readers[0].form  # of several readers that differ, those like the first one count
    seen = met([r.reading for r in matrix.readers if r.form == form and r.reading], stats)
    if form == "right":
        return least(weight, seen, bias=centered(matrix), most=most, damage=damage)
    made = least(weight.swapaxes(1, 2), seen, bias=False, most=most, damage=damage)
    return replace(made, left=made.right.swapaxes(1, 2), right=made.left.swapaxes(1, 2))


def least(weight: Array, seen: Met | None, *, bias: bool, most: int = 0, damage: float = 0.0) -> Decomposition:
    """The decomposition of W [G, K, N], refitted to what was seen."""
    return low_rank.decompose_until(*posed(weight, seen, bias=bias), most, damage)


def centered(matrix: Matrix) -> bool:
    """Whether a bias of its own can take up a shift of the mean."""
    return len(matrix.readers) == 1 and matrix.readers[0].bias is not None


class Group(Unit):
    """One matrix, or several that read one input and are alone with it."""

    def __init__(self, members: Sequence[Matrix], target: Target) -> None:
        self.members, self.target = list(members), target
        self.name = members[0].name
        self.nodes = [r.node for matrix in members for r in matrix.readers if r.reading is not None]
        self.readings = list({r.key: r for matrix in members for r in matrix.readings}.values())
        depths = [m.shape[1 if "rows" in m.forms else 0] for m in members]
        self.bytes = 16 * max(m.stack * depth**2 for m, depth in zip(members, depths, strict=True))
        self.curves: list[Curve] = []
        self.joint: Curve | None = None
        self.losses: dict[str, Loss] = {}

    @property
    def count(self) -> int:
        return len(self.members)

    def survey(self, stats: Stats, goals: Sequence[Goal]) -> None:
        """Every member's curve, and that of all of them behind one left factor."""
        damage = min(goal.damage if goal.energy else 0.0 for goal in goals)
        self.curves = [Curve(decomposed(m, stats, self.most(m.shape, goals), damage).damages()) for m in self.members]
        if len(self.members) > 1 and not any(goal.rank for goal in goals):
            shape = (self.members[0].shape[0], sum(matrix.shape[1] for matrix in self.members))
            self.joint = Curve(joined(self.members, stats, self.most(shape, goals), damage)[0].damages())

    def most(self, shape: tuple[int, int], goals: Sequence[Goal]) -> int:
        """The highest rank that one of ``goals`` can ask of a matrix [K, N]."""
        shares = [self.target.rank_share if goal.automatic else goal.parameters or 1.0 for goal in goals]
        return max(max(goal.rank, 0) or break_even(*shape, share) for goal, share in zip(goals, shares, strict=True))

    def rank(self, curve: Curve, shape: tuple[int, int], goal: Goal, members: Sequence[Matrix]) -> int | str:
        """The rank of a matrix [K, N] with ``curve``, which ``members`` are side by side, or why there is none."""
        if goal.automatic and any(member.weight.sparse for member in members):
            return DENSE
        names, target = [member.weight.name for member in members], self.target
        return rank_of(curve, *shape, goal, speed=target.rank_share, step=target.rank_step, weights=names)

    def jobs(self, goal: Goal) -> tuple[list[Job], list[str]]:
        """A pair for every member that allows it, or one left factor for all of them."""
        pairs: list[Job] = []
        refused: list[str] = []
        ranks = [self.rank(curve, m.shape, goal, [m]) for m, curve in zip(self.members, self.curves, strict=True)]
        self.losses = {m.name: rank for m, rank in zip(self.members, ranks, strict=True) if isinstance(rank, Loss)}
        for matrix, curve, rank in zip(self.members, self.curves, ranks, strict=True):
            if isinstance(rank, str):
                refused.append(f"{matrix.name}: not factored, {rank}")
            else:
                pairs.append(MatrixJob.of([matrix], rank, curve.at(rank)))
        shared = None if self.joint is None or goal.rank else self.shared(goal, ranks)
        if shared is not None:
            self.losses = {}
            return [shared], []
        return pairs, refused

    def shared(self, goal: Goal, ranks: Sequence[int | str]) -> Job | None:
        """One left factor for all members, where it keeps the energy (of all together, each counting alike) with fewer
        numbers than pairs of their own, or with as many numbers more of it.
        """
        assert self.joint is not None
        depth, width = self.members[0].shape[0], sum(matrix.shape[1] for matrix in self.members)
        rank = self.rank(self.joint, (depth, width), goal, self.members)
        if isinstance(rank, str):
            return None
        if goal.stakes is not None:
            return MatrixJob.of(self.members, rank, self.joint.at(rank)) if self.wins(goal, rank, ranks) else None
        own = [each for each in ranks if not isinstance(each, str)]
        if len(own) == len(ranks):  # all of them could have a pair of their own
            numbers = sum(r * sum(m.shape) for r, m in zip(own, self.members, strict=True))
            apart = float(np.mean([curve.at(r) for r, curve in zip(own, self.curves, strict=True)]))
            better = rank * (depth + width) < numbers if goal.energy else self.joint.at(rank) < apart
            if not better:
                return None
        return MatrixJob.of(self.members, rank, self.joint.at(rank))

    def wins(self, goal: Goal, rank: int, ranks: Sequence[int | str]) -> bool:
        """Whether one left factor of ``rank`` wins more than pairs of ``ranks``, where there are any."""
        assert self.joint is not None
        names = [matrix.weight.name for matrix in self.members]
        depth, width = self.members[0].shape[0], sum(matrix.shape[1] for matrix in self.members)
        together = goal.win(names, rank * (depth + width) / (depth * width), self.joint.at(rank))
        apart = sum(
            goal.win([name], own * sum(matrix.shape) / (matrix.shape[0] * matrix.shape[1]), curve.at(own))
            for name, own, matrix, curve in zip(names, ranks, self.members, self.curves, strict=True)
            if not isinstance(own, str)
        )
        return together > apart


def joined(
    members: Sequence[Matrix], stats: Stats, most: int = 0, damage: float = 0.0
) -> tuple[Decomposition, list[float]]:
    """Matrices [K, N1], [K, N2] ... side by side, each scaled so that its damage counts alike; and the scales."""
    weights = [matrix.values() for matrix in members]
    seen, bias = met(members[0].readings, stats), all(centered(matrix) for matrix in members)
    if seen is None:
        energies = [float(np.square(weight).sum()) for weight in weights]
    else:
        moment = (seen.centered() if bias else seen).moment
        energies = [float(low_rank.output_energy(weight, moment).sum()) for weight in weights]
    scales = [max(energy, 1e-30) ** -0.5 for energy in energies]
    side = np.concatenate([weight * scale for weight, scale in zip(weights, scales, strict=True)], axis=2)
    return least(side, seen, bias=bias, most=most, damage=damage), scales


@dataclass
class MatrixJob(Job):
    """Write the factors of one matrix, or of several behind one left factor."""

    members: list[Matrix]
    rank: int

    @property
    def names(self) -> list[str]:
        return [matrix.weight.name for matrix in self.members]

    @property
    def share(self) -> float:
        depth, width = self.members[0].shape[0], sum(matrix.shape[1] for matrix in self.members)
        return self.rank * (depth + width) / (depth * width)

    @property
    def count(self) -> int:
        return len(self.members)

    @classmethod
    def of(cls, members: Sequence[Matrix], rank: int, damage: float) -> MatrixJob:
        """The job for ``members`` at ``rank``."""
        depth, width, stack = members[0].shape[0], sum(m.shape[1] for m in members), members[0].stack
        text = f"rank {rank} of {min(depth, width)}" + (
            f", left factor shared by {len(members)}" if members[1:] else ""
        )
        nodes = [r.node for m in members for r in m.readers if r.reading is not None]
        readings = list({r.key: r for m in members for r in m.readings}.values())
        saved = stack * (depth * width - rank * (depth + width))
        return cls(members[0].name, nodes, readings, text, damage, saved, list(members), rank)

    def apply(self, model: Model, stats: Stats) -> None:
        """Solve and write."""
        if len(self.members) == 1:
            matrix = self.members[0]
            left, right = decomposed(matrix, stats, self.rank).pair(self.rank)
            widths, scales = [matrix.shape[1]], [1.0]
        else:
            found, scales = joined(self.members, stats, self.rank)
            left, right = found.pair(self.rank)
            widths = [matrix.shape[1] for matrix in self.members]
        stacked = len(self.members[0].weight.shape) > 2
        places = placed(model)
        first = constant(model, self.members[0], "left", left if stacked else left[0], places)
        shared: dict[str, Tensor] = {}
        start = 0
        for matrix, width, scale in zip(self.members, widths, scales, strict=True):
            own = right[:, :, start : start + width] / np.float32(scale)
            start += width
            second = constant(model, matrix, "right", own if stacked else own[0], places)
            transposes: dict[int, Tensor] = {}
            for reader in matrix.readers:
                node, graph = places[reader.node]
                if reader.bias is not None and centered(matrix) and (seen := met(matrix.readings, stats)) is not None:
                    was = seen.reference[0] @ matrix.values()[0]
                    shift(model, node, reader.bias, was - seen.mean[0] @ left[0] @ own[0])
                write(model, graph, node, reader, first, second, shared, transposes)


def shift(model: Model, node: Node, bias: str, by: Array) -> None:
    """Add what the mean of a Gemm's or MatMul's product lost to the bias behind it."""
    holder = node if node.op == "Gemm" else node.outputs[0].outputs[0]
    factor = node.attrs.get("alpha", 1.0) / node.attrs.get("beta", 1.0) if node.op == "Gemm" else 1.0
    for index, tensor in enumerate(holder.inputs):
        if tensor.name == bias:
            values = np.asarray(model.values(tensor), np.float64)
            made = (values + factor * by.reshape(values.shape)).astype(np.float32)
            holder.inputs[index] = model.constant(f"{bias}_refit", made)


def write(
    model: Model,
    graph: Graph,
    node: Node,
    reader: Reader,
    left: Constant,
    right: Constant,
    shared: dict[str, Tensor],
    transposes: dict[int, Tensor],
) -> None:
    """Let ``node`` compute its result by two factors; what it is called stays on the result.

    Args:
        shared: tensor -> it behind the left factor, for all that read it.
        transposes: factors turned around, made once; folded at load.
    """
    result, name, attributes = node.outputs[0], node.name, dict(node.attrs)
    inputs, gemm = list(node.inputs), node.op == "Gemm"
    node.inputs.clear()
    node.outputs.clear()
    inner = [f"{result.name}_rank"]
    if reader.form == "rows":
        rows = model.insert("Gather", [left, inputs[1]], inner, name=f"{name}_left", graph=graph, axis=0)
        model.insert("MatMul", [rows.outputs[0], right], [result], name=f"{name}_right", graph=graph)
        return
    turned = reader.form == "transposed"
    first, second = (right, left) if turned else (left, right)
    if turned and not gemm:
        first, second = (turn(model, factor, transposes) for factor in (first, second))
    thin = shared.get(reader.tensor)
    if thin is None:
        transposed = attributes.get("transA", 0)
        if gemm and (transposed or turned):
            zero = [model.constant(f"{name}_zero", np.zeros(1, np.float32))] if model.opset < 11 else []
            made = model.insert(
                "Gemm", [inputs[0], first, *zero], inner, name=f"{name}_left", graph=graph,
                transA=int(transposed), transB=int(turned),
            )  # fmt: skip
        else:
            made = model.insert("MatMul", [inputs[0], first], inner, name=f"{name}_left", graph=graph)
        thin = made.outputs[0]
        if not turned and not transposed:
            shared[reader.tensor] = thin
    if gemm:
        kept: dict[str, Any] = {key: attributes[key] for key in ("alpha", "beta") if key in attributes}
        kept |= {"transB": 1} if turned else {}
        model.insert("Gemm", [thin, second, *inputs[2:]], [result], name=f"{name}_right", graph=graph, **kept)
    else:
        model.insert("MatMul", [thin, second], [result], name=f"{name}_right", graph=graph)


def turn(model: Model, factor: Constant, transposes: dict[int, Tensor]) -> Tensor:
    """``factor`` transposed, once."""
    if id(factor) not in transposes:
        node = model.insert("Transpose", [factor], [f"{factor.name}_turned"], name=f"{factor.name}_turned", perm=[1, 0])
        transposes[id(factor)] = node.outputs[0]
    return transposes[id(factor)]
