"""From a problem to a plan that holds every limit. In: the problem and a judge. Out: the best trial, and all of them.

The first plan is the fastest and smallest one. If it misses the quality floor, the noise of every rounding alone is
measured once, the predicted noise is scaled to what was measured, and the price of noise is raised until the
assembled model holds the floor. Every trial is a real model, run in ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import helper

from onnxc.codes.formats import INT8
from onnxc.limits import LEAST, better, fits
from onnxc.model import Model
from onnxc.planner import plan
from onnxc.predictions import noise_parts, predicted_noise, stored_bytes
from onnxc.problem import Plan, Problem, small_codes, smaller_floats
from onnxc.quality import Quality
from onnxc.room import quietest, rounded_off
from onnxc.under_noise import light, under

TRIALS = 10
HEADROOM = 0.93  # of the allowed noise: predictions are not exact
FARTHER, FEWER, FEWEST, LESS = 3.0, 0.75, 0.25, 0.9  # steps of the noise aimed at
FIRST = 4.0  # where a score decides, it mostly does before the SQNR floor: the first aim is so much lower
SURPRISED = 0.5  # exponent of how many times louder a plan was than predicted, by which the next one is planned quieter
LOST = 0.4  # noise over signal that says no more than that it is too much
NEAR, BESIDE = 2.0, (1.2, 1.45, 1.1, 0.9)  # times the allowed drop; of the noise of a plan that missed by so little
ALIKE = 0.85  # of the noise of a plan that missed a score by more: one hardly quieter misses it too
DOUBTFUL = 3.0  # times the allowed drop, up to which a first miss may be bad luck
DOUBT = 1.7  # times the noise of a plan whose score fell too far by little: the next one tells whether by chance
MUCH_FASTER = 1.3  # what makes another try within the limits worth it
LAST_TRIES = (0.4, 0.15)  # of the allowed noise, where every plan was too loud
CLOSE = 0.97  # of the best plan's worth: a smaller gain is not worth another trial
FACTORS, RECENT = 8, 0.6  # calibration: factors up to 2^8, and what a trial counts beside the one after it
WEIGHINGS = 4  # of plans that turn out to be too large
LEAST_SHARE = 0.02  # of a form's noise, that rounding makes: what is left of a difference of two like figures


NOTHING = Model.load(helper.make_model(helper.make_graph([], "nothing", [], [])))


@dataclass
class Trial:
    """One plan, built and judged.

    Attributes:
        plan, model: what was decided, and the model that came out.
        quality: against the original, over all samples.
        score: of the user's metric, None without a hook.
        missed: the sentence of the floor that is missed, None when all hold.
        excess: how many times over the allowed one the drop of the score is, 1 where it is allowed or not known.
        notes: what finishing passes said.
        before: noise over signal of the model before anything is rounded: of a form that is smaller than the original.
        others: bytes of the file besides the weights.
    """

    plan: Plan
    model: Model
    quality: Quality
    score: float | None
    missed: str | None
    notes: tuple[str, ...] = ()
    excess: float = 1.0
    before: float = 0.0
    others: float = 0.0

    @property
    def noise(self) -> float:
        """Measured noise over signal of the worst output: that of rounding."""
        total = 10 ** (-self.quality.sqnr_db / 10) if math.isfinite(self.quality.sqnr_db) else 1e6
        return max(total - self.before, LEAST_SHARE * total)


def search(
    problem: Problem,
    judge: Callable[[Plan], Trial],
    sensitivities: Callable[[Trial], None],
    allowed: float,
    variants: Sequence[Callable[[], None]] = (),
    trials: Callable[[], int] = lambda: TRIALS,
    say: Callable[[str], None] = lambda message: None,
    closing: Callable[[], bool] = lambda: False,
    weigh: Callable[[Plan], bool] = lambda plan: False,
    *,
    sparing: bool = False,
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
        closing: called before the search closes in on the noisiest plan; says whether plans are solved with more care
            from then on.
        weigh: says whether the file of a plan is larger than the limit allows after all, and mends the problem's limit.
        sparing: trials are few, by order: each halves what is between a plan that holds and one that does not.
    """
    first = judge(plan(problem.in_full_codes()))
    tried, best = [first], first if first.missed is None else None
    if best is not None and not problem.has_small_codes:
        return first, tried
    if best is not None and problem.most_seconds is None and fits(problem, first.plan):  # the fastest one: how quiet?
        sensitivities(first)
        return as_fast(problem, judge, tried, best, closing, weigh), tried
    scored = first.score is not None
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
        if best is None:  # with the better ranges that were found
            tried.append(judge(plan(problem.in_full_codes())))
            best = tried[-1] if tried[-1].missed is None else None
        if best is None or problem.has_small_codes:
            known, closed = tried[-1:], closing()
            if closed and best is None:
                tried.append(judge(plan(problem.in_full_codes())))
                known = tried[-1:]
                best = tried[-1] if tried[-1].missed is None else None
                closed = False
            if best is None and tried[-1].noise > allowed:  # what 8 bits hold, before fewer are tried
                problem.heard = calibrated(problem, known)
                tried.append(judge(under(problem.in_full_codes(), allowed * HEADROOM)))
                known, best = [*known, tried[-1]], tried[-1] if tried[-1].missed is None else None
            count = len(tried)
            if best is None or problem.has_small_codes:
                held = best.noise if sparing and best is not None else 0.0
                best = bracket(
                    problem, judge, allowed, tried, trials, best, known, held, judged_by_score=scored, weigh=weigh
                )
            if closed and best is not None and len(tried) == count:  # no other plan: the same one with more care
                tried.append(judge(best.plan))
                best = tried[-1] if tried[-1].missed is None and tried[-1].noise < best.noise else best
            limited = problem.most_bytes is not None or problem.most_seconds is not None
            if limited:
                best = close_miss(problem, judge, allowed, tried, best, weigh) or best
            if limited and (best is None or not fits(problem, best.plan)):
                problem.unlimited()  # out of reach: how near to the limits one can come is still to be said
                best = bracket(problem, judge, allowed, tried, trials, best, tried[-1:], judged_by_score=scored)
    if problem.noise and problem.has_small_codes and (best is None or not small_codes(best.plan)):
        best = last_tries(problem, judge, allowed, tried, best) or best
    for last in (storage_only(problem), halves(problem), Plan()):
        stale = any(trial.plan.key == last.key for trial in tried)
        timed = replace(last, seconds=problem.prices.total)  # every operator as it was
        others = beside(tried, best, small=False)
        if best is None or (better(problem, timed, best.plan, CLOSE, others) and not stale):  # quiet: easily missed
            tried.append(judge(timed))
            best = tried[-1] if tried[-1].missed is None else best
    return best or tried[-1], tried


def as_fast(
    problem: Problem,
    judge: Callable[[Plan], Trial],
    tried: list[Trial],
    best: Trial,
    closing: Callable[[], bool],
    weigh: Callable[[Plan], bool],
) -> Trial:
    """The ``best`` trial, or one as fast and less noisy, made with what a limit of size leaves."""
    closed = closing()
    candidate = (
        rounded_off(problem, quietest(problem, replace(best.plan, price=LEAST)), weigh) if problem.noise else best.plan
    )
    quieter = candidate.noise < predicted_noise(problem, best.plan.compute, best.plan.stored)
    if closed or (quieter and candidate.key != best.plan.key):
        tried.append(judge(candidate if quieter else best.plan))
        if tried[-1].missed is None and tried[-1].noise < best.noise:
            return tried[-1]
    return best


def last_tries(
    problem: Problem, judge: Callable[[Plan], Trial], allowed: float, tried: list[Trial], best: Trial | None
) -> Trial | None:
    """A trial that holds, of quieter plans than all with fewer than 8 bits that missed a floor, where tries ran out
    before the noise was low enough; None where none is better than the ``best`` one.
    """
    missed = [trial.noise for trial in tried if trial.missed is not None and small_codes(trial.plan)]
    seen = {trial.plan.key for trial in tried}
    for share in LAST_TRIES if missed or best is None else ():
        candidate = light(problem, min([allowed, *missed]) * share)
        others = beside(tried, best, small=True)
        if candidate.key in seen or (best is not None and not better(problem, candidate, best.plan, CLOSE, others)):
            continue
        tried.append(judge(candidate))
        others = (tried[-1].others, others[1])
        if tried[-1].missed is None and (best is None or better(problem, candidate, best.plan, CLOSE, others)):
            return tried[-1]
    return None


def beside(tried: Sequence[Trial], best: Trial | None, *, small: bool) -> tuple[float, float]:
    """Bytes that files take besides their weights: the least of plans with fewer than 8 bits, or without, and that of
    the ``best`` one; the same where none was tried.
    """
    known = best.others if best is not None else 0.0
    return min((trial.others for trial in tried if small_codes(trial.plan) == small), default=known), known


def close_miss(
    problem: Problem,
    judge: Callable[[Plan], Trial],
    allowed: float,
    tried: list[Trial],
    best: Trial | None,
    weigh: Callable[[Plan], bool] = lambda plan: False,
) -> Trial | None:
    """A trial that holds limits and floors, where one within the limits missed a floor by little: a score turns on
    single items, and plans of about the same noise have others wrong. Where the ``best`` one is within the limits too,
    only much faster ones are worth it.
    """
    most = math.inf if best is None or not fits(problem, best.plan) else best.plan.seconds / MUCH_FASTER
    near = [t for t in tried if fits(problem, t.plan) and t.missed and t.noise <= allowed and t.excess <= NEAR]
    near = [trial for trial in near if trial.plan.seconds < most]
    seen: set[object] = {trial.plan.key for trial in tried}
    noise = min((predicted_noise(problem, t.plan.compute, t.plan.stored) for t in near), default=0.0)
    for factor in BESIDE if near else ():
        candidate = light_enough(problem, noise * factor, weigh)
        if candidate.key in seen or not fits(problem, candidate) or candidate.seconds >= most:
            continue
        seen.add(candidate.key)
        tried.append(judge(candidate))
        if tried[-1].missed is None:
            return tried[-1]
    return None


def bracket(
    problem: Problem,
    judge: Callable[[Plan], Trial],
    allowed: float,
    tried: list[Trial],
    trials: Callable[[], int],
    best: Trial | None = None,
    known: Sequence[Trial] = (),
    held: float = 0.0,
    *,
    judged_by_score: bool = False,
    weigh: Callable[[Plan], bool] = lambda plan: False,
) -> Trial | None:
    """Close in on the noisiest plan that holds every floor.

    Noises measured one by one do not add up exactly: errors cancel, or meet in a recurrent network. So after every
    trial the predictions of all plans are scaled to what trials measured, activations and weights apart, and the next
    plan is the best one whose scaled prediction is the noise aimed at. ``held``: noise that is known to be allowed.
    """
    aim, highest, before = allowed * HEADROOM, math.inf, len(tried) - 1
    aim /= FIRST if judged_by_score else 1.0
    seen: set[object] = {trial.plan.key for trial in tried}
    idle, known, unlucky, halving = 0, list(known), list[Trial](), held > 0
    if best is not None:
        problem.pace, problem.unit = best.plan.seconds, stored_bytes(problem, best.plan.stored)
    for _ in range(3 * TRIALS):
        problem.heard = calibrated(problem, known)
        for trial in tried:
            if trial is not best:
                trial.model = NOTHING  # of models that are not delivered only the figures are kept
        if len(tried) - before >= trials() or aim < allowed * 1e-6:
            break
        candidate = light_enough(problem, aim, weigh)
        if candidate.key in seen or no_gain(problem, candidate, best) or hopeless(problem, candidate, tried):
            if candidate.noise > aim and fits(problem, candidate) and not (best and fits(problem, best.plan)):
                break  # the quietest one within the limits
            louder = [each.noise for each in unlucky if each.noise > held]
            closed = best is not None and held > 0 and idle
            if closed and louder and math.isinf(highest):  # a doubt that nothing settled
                highest = min(louder)
                aim = math.sqrt(held * highest)
                continue
            if closed:
                break
            idle, aim = idle + 1, aim * FEWER
            continue
        seen.add(candidate.key)
        trial = judge(candidate)
        tried.append(trial)
        known.append(trial)
        if trial.missed is None:
            others = (trial.others, best.others if best is not None else 0.0)
            gained = best is None or better(problem, trial.plan, best.plan, CLOSE, others)
            idle = 0 if gained else idle + 1
            if best is None or better(problem, trial.plan, best.plan, 1.0, others):
                best = trial
                problem.pace, problem.unit = trial.plan.seconds, stored_bytes(problem, trial.plan.stored)
            held = max(held, trial.noise)
            if idle > 1:
                break
            further = max(held, aim / FARTHER)
            reached = math.sqrt(further * highest) if math.isfinite(highest) else max(further, aim) * FARTHER
            aim = min(allowed * HEADROOM, reached)
        elif trial.noise > allowed:  # calibration brings the next plan down, but not where all signal is lost
            surprise = trial.noise / max(candidate.noise, 1e-12)  # what looks best is what is wrongly predicted, again
            aim *= min(LESS, max(surprise, 1.0) ** -SURPRISED) if trial.noise < max(allowed, LOST) else FEWEST
        elif not halving and by_luck(trial, unlucky) and math.isinf(highest):  # a noisier plan tells
            unlucky.append(trial)
            aim = min(allowed * HEADROOM, trial.noise * (DOUBT if len(unlucky) == 1 else DOUBT**0.25))
        else:  # the noise is as wanted, another floor is missed: by little, and it may turn on one item
            highest = min([highest, trial.noise, *(each.noise for each in unlucky if each.noise > held)])
            step = float(np.clip(trial.excess**-0.5, FEWEST, FEWER))
            aim = math.sqrt(held * highest) if held else min(aim, highest) * step
    return best


def light_enough(problem: Problem, noise: float, weigh: Callable[[Plan], bool]) -> Plan:
    """The best plan of so much noise, found anew as long as its file turns out to be larger than the limit allows."""
    found = quietest(problem, light(problem, noise))
    for _ in range(WEIGHINGS):
        if not weigh(found):
            break
        found = quietest(problem, light(problem, noise))
    return rounded_off(problem, found, weigh)


def no_gain(problem: Problem, candidate: Plan, best: Trial | None) -> bool:
    """Whether a plan is within the limits and hardly better than the ``best`` one that is too: not worth a trial."""
    held = best is not None and fits(problem, best.plan) and fits(problem, candidate)
    return held and best is not None and not better(problem, candidate, best.plan, CLOSE)


def hopeless(problem: Problem, candidate: Plan, tried: Sequence[Trial]) -> bool:
    """Whether a plan is within the limits and hardly quieter than another one within them whose score fell too far by
    more than a little.
    """
    far = [trial.plan for trial in tried if trial.missed is not None and trial.excess > NEAR]
    noises = [predicted_noise(problem, each.compute, each.stored) for each in far if fits(problem, each)]
    return fits(problem, candidate) and candidate.noise > ALIKE * min(noises, default=math.inf)


def by_luck(trial: Trial, before: Sequence[Trial]) -> bool:
    """Whether a score that fell too far by little may be bad luck: it is the first one, or fell no further than that of
    a plan ``before`` it with less noise.
    """
    if trial.score is None or trial.excess > DOUBTFUL:
        return False
    return not before or (trial.noise > before[-1].noise and trial.excess <= before[-1].excess)


def calibrated(problem: Problem, tried: Sequence[Trial]) -> tuple[float, float]:
    """The factors of the noise of activations and of weights with which predictions fit the trials, late ones most.

    Least squares of logarithms over a grid, drawn towards 1.
    """
    bare = replace(problem, heard=(1.0, 1.0))
    steps = np.exp2(np.linspace(-FACTORS, FACTORS, 8 * FACTORS + 1))
    first, second = np.meshgrid(steps, steps, indexing="ij")
    error = 0.05 * (np.log(first) ** 2 + np.log(second) ** 2)
    for age, trial in enumerate(reversed(tried)):
        parts = noise_parts(bare, trial.plan.compute, trial.plan.stored)
        if sum(parts) <= 0 or not 0 < trial.noise < 1:  # noise as loud as the signal says nothing more
            continue
        error += RECENT**age * (np.log(first * parts[0] + second * parts[1]) - math.log(trial.noise)) ** 2
    row, column = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(steps[row]), float(steps[column])


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
    return Plan(stored=smaller_floats(problem))
