"""How long a plan's weights may take to unfold. In: models that were loaded, and how late they were. Out: seconds.

They are in the measure of Format.load_seconds, which tells formats apart; what the rest of loading takes is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from onnxc.model import Model
from onnxc.predictions import predicted_loading
from onnxc.problem import ARRIVES, Plan, Problem
from onnxc.trial import NOTHING, Trial

CLOSE, LATE = 0.5, 0.75  # of the allowed time: what a plan of int8 codes alone takes of it where models load late
BOUNDS = np.array([0.5, 3.0])  # of what predicted seconds take by the pace of the machine: what a model may say of it
NEAR = 0.98  # of the allowed time: what takes more may turn out to be late when it is measured again
LIGHTER = 1.15  # times the seconds to save, where a plan took too long


@dataclass
class LoadRoom:
    """What is known of how long plans of one model take to load.

    Attributes:
        problem: gets the seconds.
        taken: seconds that a plan's model may take to load, and those that it takes; NOTHING where it is to be made.
        hurry: makes models load sooner from now on.
        close: whether all that might be delivered are measured.
        known: the most seconds predicted of a plan that was in time; too_late: plans that were not, and how
            many times as long as allowed they take.
    """

    problem: Problem
    taken: Callable[[Plan, Model], tuple[float, float]]
    hurry: Callable[[], None]
    close: bool = False
    known: float = 0.0
    too_late: list[tuple[Plan, float]] = field(default_factory=list)

    def measure(self, first: Trial, pace: float = 1.0) -> float:
        """Seconds in which weights may unfold and integer kernels be made ready, so that the file loads in time.

        What else loading takes is measured of the ``first`` plan. Where that leaves less than half of the time, it is
        measured too what a predicted second and a kernel take, which the problem then knows; where it leaves little,
        models are hurried. ``pace`` is of this machine, see load_pace().
        """
        problem = self.problem
        problem.arrives = ARRIVES * pace
        allowed, seconds = self.taken(first.plan, first.model)
        self.close = seconds > CLOSE * allowed
        if seconds > LATE * allowed:
            self.hurry()
            allowed, seconds = self.taken(first.plan, NOTHING)
        if self.close:
            self.compare(first.plan, allowed - seconds)
        problem.loaded = predicted_loading(problem, first.plan), allowed - seconds
        return max(problem.loaded[1] / problem.arrives + problem.loaded[0], 0.0)

    def compare(self, first: Plan, spare: float) -> None:
        """Load ``first``, which leaves so many seconds, without its kernels, and without its codes too."""
        problem, sites = self.problem, first.integers
        kept = {name: candidate for name, candidate in first.compute.items() if name not in sites}
        floats = replace(first, compute=kept)
        predicted = predicted_loading(problem, floats)
        (most, unfolded), (allowed, plain) = (self.taken(each, NOTHING) for each in (floats, Plan()))
        left = most - unfolded
        if predicted > 0:
            problem.arrives = float(np.clip((allowed - plain - left) / predicted, *(problem.arrives * BOUNDS)))
        if sites:
            gained = (left - spare) / problem.arrives + predicted - predicted_loading(problem, first)
            problem.site_loading = max(gained, 0.0) / len(sites)

    def in_time(self, trial: Trial) -> bool:
        """Whether a plan that might be delivered loads in time: measured where it is close, and other plans get as much
        more or less time as it says.
        """
        problem, predicted = self.problem, predicted_loading(self.problem, trial.plan)
        if not self.close or problem.most_loading is None:
            return True
        allowed, seconds = self.taken(trial.plan, trial.model)
        trial.spare = NEAR * allowed - seconds
        if trial.spare >= 0:
            self.known = max(self.known, predicted)
            problem.most_loading = max(problem.most_loading, predicted + trial.spare / LIGHTER / problem.arrives)
            return True
        self.too_late.append((trial.plan, seconds / allowed))
        problem.most_loading = max(min(problem.most_loading, lighter(problem, trial.plan, trial.spare)), self.known)
        return False


def lighter(problem: Problem, last: Plan, spare: float) -> float:
    """The same where the ``last`` plan loaded ``spare`` seconds faster than it must; below 0 it was late. What was
    measured of the first one tells how long predicted seconds really are.
    """
    predicted, arrives = predicted_loading(problem, last), problem.arrives
    if problem.loaded is not None and predicted > problem.loaded[0]:
        arrives = max((problem.loaded[1] - spare) / (predicted - problem.loaded[0]), problem.arrives)
    return max(predicted + min(spare, 0.0) * LIGHTER / arrives, 0.0)
