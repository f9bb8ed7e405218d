"""What trials of a run before this one measured. In: a plan and the price file. Out: its figures, without the model.

Solving the weights of a large model for one plan takes longer than all the rest of a run. What came of it is a finding
like any other: the search goes the same way again by figures alone, and only what it delivers is built, and measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from onnxc.price_file import Finding, PriceFile
from onnxc.problem import Plan
from onnxc.quality import OutputError, Quality
from onnxc.trial import Trial

WHAT = "trial"


class OutdatedError(Exception):
    """A plan measures otherwise than remembered: what it was judged by is no longer the same."""


@dataclass(frozen=True)
class Figures:
    """What a trial measured.

    Attributes:
        quality: against the original.
        score: of the user's metric; None where it was not asked.
        bytes: of the file.
        notes: what finishing passes said.
    """

    quality: Quality
    score: float | None
    bytes: int
    notes: tuple[str, ...]


@dataclass
class Memory:
    """Figures in a price file.

    Attributes:
        prices: the file.
        about: everything but the plan that figures depend on; None: nothing is remembered.
    """

    prices: PriceFile
    about: Sequence[str] | None = None

    def recall(self, plan: Plan) -> Figures | None:
        """What ``plan`` measured; None where that is not known."""
        if self.about is None:
            return None
        found = self.prices.known(WHAT, *self.about, *parts(plan))
        if found is None:
            return None
        quality = dict(found["quality"])
        quality["outputs"] = [OutputError(**each) for each in quality["outputs"]]
        return Figures(Quality(**quality), found["score"], found["bytes"], tuple(found["notes"]))

    def keep(self, trial: Trial, size: int) -> None:
        """Remember the figures of ``trial``, whose file has ``size`` bytes."""
        if self.about is not None and trial.quality.problem is None:
            figures: Finding = {"quality": asdict(trial.quality), "score": trial.score, "bytes": size}
            finding = {**figures, "notes": list(trial.notes)}
            self.prices.keep(WHAT, *self.about, *parts(trial.plan), finding=finding)

    def forget(self) -> None:
        """Every figure of a trial, of whatever model."""
        self.prices.forget(WHAT)


def parts(plan: Plan) -> tuple[str, str]:
    """What tells a plan from others: its choices, and the ranges of what it quantizes."""
    return repr(plan.key), repr([(name, way.reads, way.writes) for name, way in sorted(plan.compute.items())])
