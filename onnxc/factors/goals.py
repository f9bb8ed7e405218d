"""How far to go with one matrix. In: a goal, and the damage at every rank. Out: a rank, or why none pays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxc.contract.context import Stakes
from onnxc.factors.low_rank import break_even, rounded

DENSE = "it was pruned, and factors have no zeros"


@dataclass(frozen=True)
class Goal:
    """How far to go at each site; one of the first three is set, or ``stakes``.

    Attributes:
        rank: this rank, whatever it costs.
        energy: the lowest rank that keeps this share of E|y|^2; about the mean where a bias makes that good.
        parameters: the rank whose factors hold this share of the weight's numbers.
        automatic: nobody told; only what can be expected to pay in time.
        stakes: what weights are worth to a plan: the rank that saves most, less what its damage costs.
        caution: times what damages are estimated to cost there.
    """

    rank: int = 0
    energy: float = 0.0
    parameters: float = 0.0
    automatic: bool = False
    stakes: Stakes | None = field(default=None, compare=False)
    caution: float = 1.0

    @classmethod
    def told(cls, rank: int, energy: float, parameters: float) -> Goal | None:
        """What a pass's fields say, None where they say nothing."""
        return cls(rank, energy, parameters) if rank or energy or parameters else None

    @property
    def damage(self) -> float:
        """The damage that is allowed where an energy is asked for."""
        return 1.0 - self.energy if self.energy else 0.0

    def win(self, weights: Iterable[str], share: float, damage: float, kernels: int = 1) -> float:
        """What is won by factors of ``weights`` that hold this share of their numbers: what they save, less what
        ``kernels`` more take, what their damage costs, and that of the codes of one more factor.
        """
        assert self.stakes is not None
        return -kernels * self.stakes.kernel + sum(
            self.stakes.gain(name) * (1 - share)
            - self.caution * self.stakes.cost(name) * (damage + self.stakes.damages.get(name, 0.0))
            for name in weights
        )


def several(rank: int, energy: float, parameters: float) -> str:
    """What is wrong with more than one of the three; empty where there is none or one."""
    given = sum(map(bool, (rank, energy, parameters)))
    return "it takes one of rank, energy and parameters, not several" if given > 1 else ""


@dataclass(frozen=True)
class Curve:
    """damage(rank) of one matrix, from one decomposition: [Q + 1], from rank 0 on."""

    damages: NDArray[np.float64]

    def at(self, rank: int) -> float:
        return float(self.damages[min(rank, len(self.damages) - 1)])

    def rank_for(self, damage: float) -> int:
        """The lowest rank with at most ``damage``; beyond the last where there is none."""
        below = np.flatnonzero(self.damages <= damage + 1e-9)
        return max(int(below[0]), 1) if len(below) else len(self.damages)


def rank_of(
    curve: Curve, depth: int, width: int, goal: Goal, *, speed: float, step: int, weights: Sequence[str] = ()
) -> int | str:
    """The rank of a matrix [depth, width] under ``goal``, or why there is none.

    Args:
        speed: the largest share of K N at which a pair is faster; step: multiples that kernels like.
        weights: the names of what the matrix holds, for stakes.
    """
    full = min(depth, width)
    if goal.stakes is not None:
        return paying_rank(curve, depth, width, goal, speed=speed, step=step, weights=weights)
    if goal.rank:
        return goal.rank if goal.rank <= full else f"rank {goal.rank} is above its full rank {full}"
    if goal.parameters:
        rank = min(break_even(depth, width, goal.parameters), full)
        return rank or f"{goal.parameters:.0%} of its numbers are less than rank 1"
    most = min(break_even(depth, width, speed if goal.automatic else 1 - 1e-6), full)
    rank = curve.rank_for(goal.damage)
    if not most:
        return "rank 1 already takes more than the weight itself"
    if rank > most:
        share = most * (depth + width) / (depth * width)
        return f"rank {most}, {share:.0%} of its numbers, keeps {1 - curve.at(most):.1%}, not {goal.energy:.1%}"
    return rounded(rank, step, most)


def paying_rank(
    curve: Curve, depth: int, width: int, goal: Goal, *, speed: float, step: int, weights: Sequence[str]
) -> int | str:
    """The rank that wins most where every rank has its price; why there is none where none wins anything."""
    most = min(break_even(depth, width, speed), len(curve.damages) - 1)
    if most < 1:
        return "rank 1 already takes more than pays in time"
    ranks = sorted({*range(min(step, most), most, step), most})
    shares = {rank: rank * (depth + width) / (depth * width) for rank in ranks}
    wins = {rank: goal.win(weights, shares[rank], curve.at(rank)) for rank in ranks}
    best = max(ranks, key=lambda rank: (wins[rank], -rank))
    return best if wins[best] > 0 else Loss.of(goal, weights, f"rank {best}", shares[best], curve.at(best))


class Loss(str):
    """Why factors win nothing, at the prices of a plan: what the best that was found is, and how many times of what it
    saves it costs.
    """

    times: float

    @classmethod
    def of(cls, goal: Goal, weights: Sequence[str], what: str, share: float, damage: float, kernels: int = 1) -> Loss:
        assert goal.stakes is not None
        saved = sum(goal.stakes.gain(name) * (1 - share) for name in weights)
        times = 1 - replace(goal, caution=1.0).win(weights, share, damage, kernels) / max(saved, 1e-12)
        found = f"{what}, {share:.0%} of its numbers, loses {damage:.2g} of its output"
        made = cls(f"{found}: with the bits that would make it good that costs {times:.1f} times what it saves")
        made.times = times
        return made
