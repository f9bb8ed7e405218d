"""From a problem to a plan that holds every limit. In: the problem and a judge. Out: the best trial, and all of them.

The first plan is the fastest and smallest one. If it misses the quality floor, the noise of every rounding alone is
measured once, the predicted noise is scaled to what was measured, and the price of noise is raised until the
assembled model holds the floor. Every trial is a real model, run in ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from onnxc.model import Model
from onnxc.planner import Plan, Problem, plan
from onnxc.quality import Quality
from onnxc.sensitivity import Noise

TRIALS = 10
HEADROOM = 0.93  # of the allowed noise: predictions are not exact


@dataclass
class Trial:
    """One plan, built and judged.

    Attributes:
        plan, model: what was decided, and the model that came out.
        quality: against the original, over all samples.
        score: of the user's metric, None without a hook.
        missed: the sentence of the floor that is missed, None when all hold.
    """

    plan: Plan
    model: Model
    quality: Quality
    score: float | None
    missed: str | None

    @property
    def noise(self) -> float:
        """Measured noise over signal of the worst output."""
        return 10 ** (-self.quality.sqnr_db / 10) if math.isfinite(self.quality.sqnr_db) else 1e6


def search(
    problem: Problem,
    judge: Callable[[Plan], Trial],
    sensitivities: Callable[[], Noise],
    allowed: float,
    trials: int = TRIALS,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[Trial, list[Trial]]:
    """The first trial, or the one with the least price of noise found that holds every floor.

    Args:
        problem: candidates and prices; its noise is filled when needed.
        judge: builds and judges a plan.
        sensitivities: measures the noise of each rounding alone; called at most once.
        allowed: noise over signal that the SQNR floor allows.
        trials: how many models may be built; the last resort, everything float, comes on top.
    """
    first = judge(plan(problem))
    tried = [first]
    if first.missed is None:
        return first, tried
    say(f"{first.missed}: looking for what hurts most")
    problem.noise = problem.noise or sensitivities()
    worst = plan_with(problem, 0.0)
    scale = first.noise / worst.noise if worst.noise > 0 else 1.0
    ceiling = min(allowed, first.noise * 0.9) * HEADROOM
    best: Trial | None = None
    seen = {first.plan.key}
    while len(tried) < trials:
        candidate = under(problem, ceiling / scale)
        if candidate.key in seen:
            ceiling *= 0.7
            if ceiling < allowed * 1e-5:
                break
            continue
        seen.add(candidate.key)
        trial = judge(candidate)
        tried.append(trial)
        if trial.missed is None:
            best = trial
            break
        if candidate.noise > 0 and trial.noise > ceiling:
            scale = max(scale * 0.5, trial.noise / candidate.noise)
            ceiling = min(ceiling, allowed * HEADROOM)
        else:  # the noise is as wanted, another floor is missed
            ceiling = min(ceiling, trial.noise) * 0.5
    if best is None:
        best = judge(Plan())
        tried.append(best)
    return best, tried


def plan_with(problem: Problem, price: float) -> Plan:
    return plan(problem, price)


def under(problem: Problem, noise: float) -> Plan:
    """The plan with the lowest price of noise whose predicted noise is at most ``noise``; by bisection."""
    low, high = 1e-4, 1e9
    best = plan(problem, high)
    for _ in range(24):
        middle = math.sqrt(low * high)
        candidate = plan(problem, middle)
        if candidate.noise <= noise:
            best, high = candidate, middle
        else:
            low = middle
        if high / low < 1.05:
            break
    return best
