"""What is factored together, and what was decided for it. In: moments and goals. Out: jobs, and factors in a model.

A *unit* is what is decided together: a weight, or several that read one input. It is surveyed once (its damage at
every rank, on what it meets in the original model) and then asked for *jobs*, whatever the goal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxc.contract.context import Stakes
from onnxc.factors.goals import Goal, Loss
from onnxc.model import Model
from onnxc.sequential import Reading, Statistic

ROWS = 8192  # of all samples together, that a statistic is made of

Stats = Mapping[str, Statistic]


@dataclass
class Job(ABC):
    """A factorization that was decided.

    Attributes:
        name: of the node, or the first of several; nodes: outside of loops, where it takes place.
        readings: what it has to see.
        text: for the report; damage: estimated; saved: numbers fewer than before.
    """

    name: str
    nodes: Sequence[str]
    readings: Sequence[Reading]
    text: str
    damage: float
    saved: int

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Of its weights."""

    @property
    @abstractmethod
    def share(self) -> float:
        """Of their numbers and products, that the factors hold."""

    def stakes(self, stakes: Stakes) -> tuple[float, float]:
        """What it saves, and what its damage costs."""
        saved = sum(stakes.gain(name) for name in self.names) * (1 - self.share)
        return saved, sum(stakes.cost(name) for name in self.names) * self.damage

    @property
    def count(self) -> int:
        """How many weights it is about."""
        return 1

    @abstractmethod
    def apply(self, model: Model, stats: Stats) -> None:
        """Solve on ``stats`` (without one of its own: as if inputs were white) and write the factors into ``model``."""


class Unit(ABC):
    """What is decided together.

    Attributes:
        name: of a node; nodes: all outside of loops that it is about; readings: what its survey has to see.
        bytes: of the moments that its survey and its jobs hold.
        losses: name of a node -> why it won nothing under the last goal that has stakes.
    """

    name: str
    nodes: Sequence[str]
    readings: Sequence[Reading]
    bytes: int
    losses: dict[str, Loss]

    @property
    def count(self) -> int:
        """How many weights it is about."""
        return 1

    @abstractmethod
    def survey(self, stats: Stats, goals: Sequence[Goal]) -> None:
        """Note the damage at every rank that ``goals`` can ask for."""

    @abstractmethod
    def jobs(self, goal: Goal) -> tuple[list[Job], list[str]]:
        """What to do, and sentences about what is not done."""
