"""What is delivered where the best plan cannot be: each plan is made when it is known what became of the one before."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from onnxc.fallbacks import Fallbacks
from onnxc.load_room import lighter
from onnxc.predictions import predicted_loading
from onnxc.problem import Plan
from onnxc.quality import Quality
from onnxc.trial import NOTHING, Trial
from onnxc.under_noise import under
from tests.test_planning_promises import large

ALLOWED = 1e-2


def trial(plan: Plan, missed: str | None = None) -> Trial:
    return Trial(plan, NOTHING, Quality(sqnr_db=20.0), 0.9, missed)


def fallbacks(spare: float) -> tuple[Fallbacks, Plan]:
    """Of a problem whose best plan loads ``spare`` seconds faster than it must."""
    problem = large("MatMul", 12)
    best = under(problem, 0.9 * ALLOWED)
    problem = replace(problem, most_loading=predicted_loading(problem, best), tables=[])
    judge: Any = SimpleNamespace(spare=spare, budget=SimpleNamespace())
    return Fallbacks(problem, judge, ALLOWED), best


def test_after_a_plan_that_was_late_comes_one_that_loads_faster() -> None:
    made, best = fallbacks(-2e-4)
    problem, plans = made.problem, list[Plan]()
    for plan in made.sooner(trial(best)):
        before = predicted_loading(problem, plans[-1] if plans else best)
        assert predicted_loading(problem, plan) <= before - 1e-4
        plans.append(plan)
        made.last = trial(plan)
        if len(plans) == 2:
            break
    assert len(plans) == 2


def test_after_a_plan_that_missed_a_floor_comes_a_quieter_one() -> None:
    made, best = fallbacks(-2e-4)
    noises = list[float]()
    for plan in made.sooner(trial(best)):
        noises.append(plan.noise)
        assert predicted_loading(made.problem, plan) < predicted_loading(made.problem, best)
        made.last = trial(plan, "the score fell")
        if len(noises) == 3:
            break
    assert noises[1] <= 0.5 * 0.9 * ALLOWED
    assert noises[2] <= 0.25 * 0.9 * ALLOWED


def test_how_many_are_made() -> None:
    made, best = fallbacks(-1e-6)
    assert len(list(made.sooner(trial(best)))) == 6


def test_what_is_known_to_load_in_time_comes_first() -> None:
    made, best = fallbacks(-2e-4)
    plans = [under(made.problem, share * ALLOWED) for share in (0.2, 0.4, 0.6, 0.8)]
    tried = [trial(plan, missed) for plan, missed in zip(plans, (None, None, "the score fell", None), strict=True)]
    for each, spare in zip(tried, (1e-3, 1e-3, 1e-3, -1e-3), strict=True):
        each.spare = spare
    found = made.after(trial(best), tried)
    assert [next(found).key for _ in range(2)] == [plans[1].key, plans[0].key]  # the smaller one before
    assert next(found).key not in {plan.key for plan in plans}


def test_what_was_measured_tells_how_long_predicted_seconds_are() -> None:
    made, best = fallbacks(0.0)
    problem = made.problem
    predicted = predicted_loading(problem, best)
    problem.loaded = 0.5 * predicted, predicted  # from half of it on a second takes four
    assert lighter(problem, best, -predicted) == pytest.approx(predicted - 1.15 * predicted / 4)
    problem.loaded = None
    assert lighter(problem, best, 1.0) == pytest.approx(predicted)
