"""How long a plan's weights may take to unfold. In: a model that was loaded, and how late it was. Out: seconds.

They are in the measure of Format.load_seconds, which tells formats apart; what the rest of loading takes is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxc.model import Model
from onnxc.predictions import predicted_loading
from onnxc.problem import ARRIVES, Plan, Problem
from onnxc.trial import Trial

LIGHTER = 1.15  # times the seconds to save, where a plan took too long


def room_to_load(
    problem: Problem,
    first: Trial,
    built: Callable[[Plan], Model],
    left: Callable[[Model], float],
    limited: bool,
    pace: float = 1.0,
) -> float:
    """Seconds in which weights may unfold and integer kernels be made ready, so that the file loads in time.

    What else loading takes is measured of the ``first`` plan. Where a limit was given it is measured too what a kernel
    takes, which the problem then knows: kernels are not given up for a limit that nobody asked for.

    Args:
        left: the seconds by which a model loads faster than it must; limited: whether a limit was given; pace: of this
            machine, as load_pace() says.
    """
    problem.arrives = ARRIVES * pace
    spare, sites, problem.must_load = left(first.model), first.plan.integers, limited
    if sites and limited:
        kept = {name: candidate for name, candidate in first.plan.compute.items() if name not in sites}
        floats = replace(first.plan, compute=kept)
        gained = (left(built(floats)) - spare) / problem.arrives
        gained += predicted_loading(problem, floats) - predicted_loading(problem, first.plan)
        problem.site_loading = max(gained, 0.0) / len(sites)
    problem.loaded = predicted_loading(problem, first.plan), spare
    return max(spare / problem.arrives + problem.loaded[0], 0.0)


def lighter(problem: Problem, last: Plan, spare: float) -> float:
    """The same where the ``last`` plan loaded ``spare`` seconds faster than it must; below 0 it was late. What was
    measured of the first one tells how long predicted seconds really are.
    """
    predicted, arrives = predicted_loading(problem, last), problem.arrives
    if problem.loaded is not None and predicted > problem.loaded[0]:
        arrives = max((problem.loaded[1] - spare) / (predicted - problem.loaded[0]), problem.arrives)
    return max(predicted + min(spare, 0.0) * LIGHTER / arrives, 0.0)
