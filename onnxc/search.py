"""From a problem to a plan that holds every limit. In: the problem and a judge. Out: the best trial, and all of them.

The first plan is the fastest and smallest one. If it misses the quality floor, the noise of every rounding alone is
measured once, the predicted noise is scaled to what was measured, and the price of noise is raised until the
assembled model holds the floor. Every trial is a real model, run in ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from onnxc.formats import HALF, INT8
from onnxc.model import Model
from onnxc.planner import Plan, Problem, plan, stored_share
from onnxc.quality import Quality
from onnxc.sensitivity import activation_key

TRIALS = 10
HEADROOM = 0.93  # of the allowed noise: predictions are not exact
FARTHEST = 0.25  # of the predicted noise of a plan that failed: the next guess
ENOUGH = 0.7  # of the allowed noise: closer to it there is little left to win
FARTHER = 3.0  # times the predicted noise of a plan that held: the next guess
CLOSE = 0.85  # two plans with noises so near each other: nothing between them is worth a trial
REPAIRS, LOUDEST = 24, 12


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
    sensitivities: Callable[[Trial], None],
    allowed: float,
    variants: Sequence[Callable[[], None]] = (),
    trials: int = TRIALS,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[Trial, list[Trial]]:
    """The best trial that holds every floor, and all of them.

    Args:
        problem: candidates and prices.
        judge: builds and judges a plan.
        sensitivities: fills the problem's noise, and may better its candidates; called at most once, with
            the first trial.
        allowed: noise over signal that the SQNR floor allows.
        variants: each betters or changes the problem's candidates without making them slower; tried on the first plan.
        trials: how many models may be built; the last resort, everything float, comes on top.
    """
    first = judge(plan(problem.in_full_codes()))
    tried, best = [first], first if first.missed is None else None
    if best is not None and not problem.has_small_codes:
        return first, tried
    if best is None and first.noise <= allowed:  # a score or a few answers are not close enough: other ranges, as fast
        for variant in variants:
            variant()
            tried.append(judge(plan(problem.in_full_codes())))
            if tried[-1].missed is None:
                best = tried[-1]
                break
        if best is not None and not problem.has_small_codes:
            return best, tried
    say(f"{first.missed or 'the outputs are right'}: looking for what hurts most")
    sensitivities(first)
    if problem.noise:
        best = bracket(problem, judge, allowed, tried, trials, best)
    for last in (storage_only(problem), halves(problem), Plan()):
        if best is None:
            tried.append(judge(last))
            best = tried[-1] if tried[-1].missed is None else None
    return best or tried[-1], tried


def bracket(
    problem: Problem,
    judge: Callable[[Plan], Trial],
    allowed: float,
    tried: list[Trial],
    trials: int,
    best: Trial | None = None,
) -> Trial | None:
    """Close in on the noisiest plan that holds every floor, between the best that did and the least noisy that did not.

    Predicted noise orders the plans; how far it is from measured noise shows only in trials, and may differ by an
    order of magnitude where errors meet in a recurrent network. So a guess never goes far below a failure at once.
    """
    low, high, step = 0.0, math.inf, 0.8
    trials = trials + len(tried) - 1
    guess = allowed * HEADROOM if problem.has_small_codes else math.inf
    seen: set[object] = {trial.plan.key for trial in tried}
    for _ in range(4 * trials):
        if len(tried) >= trials or (math.isfinite(high) and low > high * CLOSE):
            break
        candidate = under(problem, guess)
        if candidate.key in seen or candidate.noise <= low:  # nothing new between the two
            if low > 0 or guess < allowed * 1e-6:
                break
            guess *= 0.6
            continue
        seen.add(candidate.key)
        trial = judge(candidate)
        tried.append(trial)
        if trial.missed is None:
            if best is None or worth(problem, trial.plan) < worth(problem, best.plan):
                best = trial
            low = candidate.noise
            if (math.isinf(high) and candidate.noise < guess * ENOUGH) or trial.noise > allowed * ENOUGH:
                break
            farther = guess * min(allowed * HEADROOM / max(trial.noise, allowed * 1e-3), FARTHER)
            guess = farther if math.isinf(high) else min(farther, math.sqrt(low * high))
            continue
        high = min(high, candidate.noise)
        if low > 0:
            guess = math.sqrt(low * high)
        elif trial.noise > allowed * HEADROOM:
            guess = high * max(allowed * HEADROOM / trial.noise, FARTHEST)
        else:  # the noise is as wanted, another floor is missed: small steps first, a score may turn on one item
            guess, step = high * step, max(step - 0.1, 0.4)
    return best


def storage_only(problem: Problem) -> Plan:
    """Every operator as it was, every weight that may be as codes."""
    rows = {name: c for name, found in problem.compute.items() for c in found if c.mode == "rows"}
    wide = problem.in_full_codes()
    coded = {
        name: way.mode
        for name in sorted(wide.storage)
        if name not in problem.forbidden and (way := wide.coded(name, 0.0))
    }
    tables = {site.weight.name for site in problem.found if site.name in rows and site.weight}
    coded = dict.fromkeys(sorted(tables), INT8.name) | coded
    return Plan(rows, {**halves(problem).stored, **coded})


def halves(problem: Problem) -> Plan:
    """Every operator as it was, every weight that may be in float16."""
    return Plan(stored={name: HALF for name in sorted(problem.storage) if problem.half(name)})


def worth(problem: Problem, candidate: Plan) -> float:
    """Predicted bytes times seconds, each as a share of the original's: least is best."""
    return stored_share(problem, candidate) * candidate.seconds / max(problem.prices.total, 1e-9)


def under(problem: Problem, noise: float) -> Plan:
    """The best plan found whose predicted noise is at most ``noise``.

    Bisection over the price of noise gives the two plans of the convex hull on either side; between them the noisier
    one is repaired: what brings least for its noise is put back until the rest fits.
    """
    low, high = 1e-5, 1e9
    below, above = plan(problem, high), plan(problem, low)
    if above.noise <= noise:
        return above
    for _ in range(30):
        middle = math.sqrt(low * high)
        candidate = plan(problem, middle)
        if candidate.noise <= noise:
            below, high = candidate, middle
        else:
            above, low = candidate, middle
        if high / low < 1.02:
            break
    repaired = repair(problem, above, noise)
    if repaired is not None and worth(problem, repaired) < worth(problem, below):
        return repaired
    return below


def noisiest(problem: Problem, current: Plan) -> list[str]:
    """The sites and weights of a plan whose own roundings are loudest: a plan for each of them is tried."""
    loud = {name: problem.weight_noise(name, current.stored[name]) for name in sorted(current.stored)}
    for name, candidate in current.compute.items():
        activations = (*candidate.reads, *((candidate.writes,) if candidate.writes else ()))
        loud[name] = max((problem.noise.get(activation_key(each), 0.0) for each in activations), default=0.0)
    return sorted(loud, key=lambda name: -loud[name])[:LOUDEST]


def repair(problem: Problem, start: Plan, noise: float) -> Plan | None:
    """Put sites and weights of ``start`` back, one after another, until its predicted noise fits; None if it never
    does. Each step takes what loses least for the noise that goes.
    """
    forbidden, current = set(problem.forbidden), start
    told = problem.told | {s.weight.name for s in problem.found if s.name in problem.told and s.weight is not None}
    told |= {name for site in problem.told & set(start.compute) for name in start.compute[site].weights}
    for _ in range(REPAIRS):
        if current.noise <= noise:
            return current
        cheapest: tuple[float, Plan, str] | None = None
        for name in noisiest(problem, current):
            if name in told:
                continue
            without = plan(replace(problem, forbidden=forbidden | {name}), start.price)
            gone = current.noise - without.noise
            if gone <= 0:
                continue
            loss = max(worth(problem, without) - worth(problem, current), 1e-9) / min(
                gone, current.noise - noise * 0.999
            )
            if cheapest is None or loss < cheapest[0]:
                cheapest = (loss, without, name)
        if cheapest is None:
            return None
        forbidden.add(cheapest[2])
        current = cheapest[1]
    return None
