"""What came of planning one form of a model, and what is wanted of it. In: a plan, limits. Out: figures to compare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from onnxc.deliver import Delivery
from onnxc.limits import over
from onnxc.planning import Planning
from onnxc.price_file import PriceFile
from onnxc.recipe import Budget

UNMET = 1e3  # what missing a limit counts, times how many times over it: more than anything else
Figures = tuple[float, float]  # bytes as a share of the original's; how many times as fast


@dataclass
class Planned:
    """A model with what came of planning it.

    Attributes:
        delivery: the best that passed the gate.
        notes: what was said on the way.
    """

    planning: Planning
    delivery: Delivery
    notes: Sequence[str] = ()

    @property
    def figures(self) -> Figures:
        """Bytes as a share of the original's, and how many times as fast it is; predicted where it is not measured."""
        planning, delivery = self.planning, self.delivery
        size = delivery.size / planning.judge.original.source_bytes
        if delivery.ratio is not None or delivery.trial is None:
            return size, delivery.ratio.median if delivery.ratio is not None else 1.0
        return size, planning.problem.original_seconds / max(delivery.trial.plan.seconds, 1e-12)


@dataclass(frozen=True)
class Aim:
    """What is wanted, by the limits."""

    budget: Budget

    def holds(self, figures: Figures) -> bool:
        """Whether the limits of size and speed are met."""
        size, speed = figures
        return (self.budget.size is None or size <= self.budget.size) and (
            self.budget.speed is None or speed >= self.budget.speed
        )

    def of(self, figures: Figures) -> float:
        """What is to be least: bytes times seconds; where one of the two is limited, and holds, the other alone; how
        many times over a limit it is where one is missed.
        """
        size, speed = figures
        if not self.holds(figures):
            slowest = 1 / self.budget.speed if self.budget.speed is not None else None
            return UNMET * over((size, self.budget.size), (1 / speed, slowest))
        if self.budget.size is not None and self.budget.speed is None:
            return 1 / speed
        if self.budget.speed is not None and self.budget.size is None:
            return size
        return size / speed


@dataclass
class Clock:
    """Seconds that steps took: those of an earlier run where the price file knows them, so that the same prices decide
    alike.

    Attributes:
        run: what tells this run from others.
        allowed: seconds that may be spent; spent: in all steps but the first.
    """

    prices: PriceFile
    run: str
    allowed: float = 0.0
    spent: float = 0.0

    def took(self, step: str, seconds: float) -> float:
        """Seconds of a step, which are added to what was spent."""
        key = f"took {hashlib.sha256(f'{self.run} {step}'.encode()).hexdigest()[:24]}"
        known = self.prices.entries.setdefault(key, seconds)
        self.spent += known
        return known
