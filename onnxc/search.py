"""From a problem to a plan that holds every limit. In: the problem and a judge. Out: the best trial, and all of them.

The first plan is the fastest and smallest one. If it misses the quality floor, the noise of every rounding alone is
measured once, the predicted noise is scaled to what was measured, and the price of noise is raised until the
assembled model holds the floor. Every trial is a real model, run in ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from onnxc.bracket import DOUBTFUL, HEADROOM, Bracket
from onnxc.codes.formats import INT8
from onnxc.limits import LEAST, better, fits
from onnxc.planner import plan
from onnxc.predictions import noise_parts, predicted_noise, stored_bytes
from onnxc.problem import Plan, Problem, small_codes, smaller_floats
from onnxc.room import quietest, rounded_off
from onnxc.trial import NOTHING, Trial
from onnxc.under_noise import light, under

TRIALS = 10
# Of the noise of a plan whose score fell too far by so little that it may be chance, and of the limit of size: plans as
# fast whose weights are rounded otherwise.
BESIDE, BELOW = (1.2, 1.45, 1.1, 0.9), (0.985, 0.97, 0.955)
ALIKE = 0.85  # of the noise of a plan that missed a score by more: one hardly quieter misses it too
FASTER = 1.1  # what makes another try within the limits worth it
LAST_TRIES = (0.4, 0.15)  # of the allowed noise, where every plan was too loud
CLOSE = 0.97  # of the best plan's worth: a smaller gain is not worth another trial
FACTORS, RECENT = 8, 0.6  # calibration: factors up to 2^8, and what a trial counts beside the one after it
WEIGHINGS = 4  # of plans that turn out to be too large


@dataclass
class Search:
    """The search for the best trial that holds every floor.

    Attributes:
        problem: candidates and prices.
        judge: builds and judges a plan.
        allowed: noise over signal that the SQNR floor allows.
        sensitivities: fills the problem's noise, and may better its candidates; called at most once, with
            the first trial.
        variants: each betters or changes the problem's candidates without making them slower; tried on the first plan.
        trials: how many models may be built; the last resort, everything float, comes on top.
        say: is told what is being done.
        closing: called before the search closes in on the noisiest plan; says whether plans are solved with more care
            from then on.
        weigh: says whether the file of a plan is larger than the limit allows after all, and mends the problem's limit.
        in_time: says whether a trial that is to lead loads in time, and mends the problem's limit.
        sparing: trials are few, by order: each halves what is between a plan that holds and one that does not.
        scored: whether the user's score decides too.
        tried: all trials; best: the one that holds every floor, None where none does yet.
    """

    problem: Problem
    judge: Callable[[Plan], Trial]
    allowed: float
    sensitivities: Callable[[Trial], None] = lambda first: None
    variants: Sequence[Callable[[], None]] = ()
    trials: Callable[[], int] = lambda: TRIALS
    say: Callable[[str], None] = lambda message: None
    closing: Callable[[], bool] = lambda: False
    weigh: Callable[[Plan], bool] = lambda plan: False
    in_time: Callable[[Trial], bool] = lambda trial: True
    sparing: bool = False
    scored: bool = False
    tried: list[Trial] = field(default_factory=list)
    best: Trial | None = None

    def run(self) -> Trial:
        """The best trial; the last one where none holds."""
        problem, first = self.problem, self.attempt(plan(self.problem.in_full_codes()))
        self.best, self.scored = holding(first), first.score is not None
        if self.best is not None and not problem.has_small_codes:
            return first
        if self.best is not None and problem.most_seconds is None and fits(problem, first.plan):
            self.sensitivities(first)
            return self.as_fast(first)  # the fastest one: how quiet?
        if self.best is None and first.noise <= self.allowed:  # a score or a few answers are not close enough
            self.best = self.other_ranges()
            if self.best is not None and not problem.has_small_codes:
                return self.best
        self.say(f"{first.missed or 'the outputs are right'}: looking for what hurts most")
        self.sensitivities(first)
        if problem.noise:
            self.by_noise()
        if problem.noise and problem.has_small_codes and (self.best is None or not small_codes(self.best.plan)):
            self.best = self.last_tries() or self.best
        self.as_it_was()
        return self.best or self.tried[-1]

    def attempt(self, candidate: Plan) -> Trial:
        """The trial of a plan."""
        self.tried.append(self.judge(candidate))
        return self.tried[-1]

    def other_ranges(self) -> Trial | None:
        """The first plan with other ranges, as fast, that holds."""
        for variant in self.variants:
            variant()
            if (trial := self.attempt(plan(self.problem.in_full_codes()))).missed is None:
                return trial
        return None

    def as_fast(self, first: Trial) -> Trial:
        """The ``first`` trial, or one as fast and less noisy, made with what a limit of size leaves."""
        problem, closed, quiet = self.problem, self.closing(), first.plan
        if problem.noise:
            quiet = rounded_off(problem, quietest(problem, replace(first.plan, price=LEAST)), self.weigh)
        quieter = quiet.noise < predicted_noise(problem, first.plan.compute, first.plan.stored)
        if closed or (quieter and quiet.key != first.plan.key):
            trial = self.attempt(quiet if quieter else first.plan)
            if trial.missed is None and trial.noise < first.noise:
                return trial
        return first

    def by_noise(self) -> None:
        """What the noise of every rounding alone leads to: full codes with the better ranges that were found, then
        fewer bits up to the floors, and nearer to the limits.
        """
        problem, fewer = self.problem, self.problem.has_small_codes
        if self.best is None:
            self.best = holding(self.attempt(plan(problem.in_full_codes())))
        if self.best is not None and not fewer:
            return
        known, closed = self.tried[-1:], self.closing()
        if closed and self.best is None:
            self.best = holding(self.attempt(plan(problem.in_full_codes())))
            known, closed = self.tried[-1:], False
        if self.best is None and self.tried[-1].noise > self.allowed:  # what 8 bits hold, before fewer are tried
            problem.heard = calibrated(problem, known)
            known.append(self.attempt(under(problem.in_full_codes(), self.allowed * HEADROOM)))
            self.best = holding(known[-1])
        count = len(self.tried)
        if self.best is None or fewer:
            self.close_in(known, self.best.noise if self.sparing and self.best is not None else 0.0)
        if closed and self.best is not None and len(self.tried) == count:  # no other plan: the same one with more care
            trial = self.attempt(self.best.plan)
            self.best = trial if trial.missed is None and trial.noise < self.best.noise else self.best
        if problem.most_bytes is None and problem.most_seconds is None:
            return
        self.best = self.close_miss() or self.best
        if not self.within_limits:
            problem.unlimited()  # out of reach: how near to the limits one can come is still to be said
            self.close_in(self.tried[-1:])

    @property
    def within_limits(self) -> bool:
        """Whether the best trial holds the limits of size and speed."""
        return self.best is not None and fits(self.problem, self.best.plan)

    def close_in(self, known: Sequence[Trial], held: float = 0.0) -> None:
        """Close in on the noisiest plan that holds every floor.

        Noises measured one by one do not add up exactly: errors cancel, or meet in a recurrent network. So after every
        trial the predictions of all plans are scaled to what trials measured, activations and weights apart, and the
        next plan is the best one whose scaled prediction is the noise aimed at.

        Args:
            known: trials that predictions are scaled to.
            held: noise that is known to be allowed.
        """
        problem, known, before = self.problem, list(known), len(self.tried) - 1
        bracket, seen = Bracket.of(self.allowed, held, scored=self.scored), self.seen
        if self.best is not None:
            self.lead(self.best)
        for _ in range(3 * TRIALS):
            problem.heard = calibrated(problem, known)
            for trial in self.tried:
                if trial is not self.best:
                    trial.model = NOTHING  # of models that are not delivered only the figures are kept
            if len(self.tried) - before >= self.trials() or bracket.aim < self.allowed * 1e-6:
                break
            candidate = self.light_enough(bracket.aim)
            if candidate.key in seen or self.no_gain(candidate) or self.hopeless(candidate):
                if candidate.noise > bracket.aim and fits(problem, candidate) and not self.within_limits:
                    break  # the quietest one within the limits
                if not bracket.passed_over(found=self.best is not None):
                    break
                continue
            seen.add(candidate.key)
            trial = self.attempt(candidate)
            known.append(trial)
            if trial.missed is not None:
                bracket.miss(trial, candidate.noise)
                continue
            gained, ahead = self.ahead(trial, CLOSE), self.ahead(trial, 1.0)
            if ahead and not self.in_time(trial):
                continue  # the next one has less time
            if ahead:
                self.lead(trial)
            if not bracket.hit(trial.noise, gained=gained):
                break

    @property
    def seen(self) -> set[object]:
        """What tells the plans that were tried."""
        return {trial.plan.key for trial in self.tried}

    def ahead(self, trial: Trial, share: float) -> bool:
        """Whether a trial is better than the best one, by more than ``share`` says."""
        best = self.best
        return best is None or better(self.problem, trial.plan, best.plan, share, (trial.others, best.others))

    def lead(self, trial: Trial) -> None:
        """``trial`` is the best one; shares of its bytes and seconds are traded from now on."""
        self.best = trial
        self.problem.pace, self.problem.unit = trial.plan.seconds, stored_bytes(self.problem, trial.plan.stored)

    def light_enough(self, noise: float) -> Plan:
        """The best plan of so much noise, found anew as long as its file turns out to be larger than the limit."""
        found = quietest(self.problem, light(self.problem, noise))
        for _ in range(WEIGHINGS):
            if not self.weigh(found):
                break
            found = quietest(self.problem, light(self.problem, noise))
        return rounded_off(self.problem, found, self.weigh)

    def no_gain(self, candidate: Plan) -> bool:
        """Whether a plan is within the limits and hardly better than the best one that is too: not worth a trial."""
        if self.best is None or not self.within_limits or not fits(self.problem, candidate):
            return False
        return not better(self.problem, candidate, self.best.plan, CLOSE)

    def hopeless(self, candidate: Plan) -> bool:
        """Whether a plan is within the limits and hardly quieter than another one within them whose score fell too far
        by more than a little.
        """
        problem = self.problem
        far = [trial.plan for trial in self.tried if trial.missed is not None and trial.excess > DOUBTFUL]
        noises = [predicted_noise(problem, each.compute, each.stored) for each in far if fits(problem, each)]
        return fits(problem, candidate) and candidate.noise > ALIKE * min(noises, default=math.inf)

    def close_miss(self) -> Trial | None:
        """A trial that holds limits and floors, where one within the limits missed a floor by little: a score turns on
        single items, and plans of about the same noise have others wrong. Where the best one is within the limits too,
        only faster ones are worth it.
        """
        problem = self.problem
        most = self.best.plan.seconds / FASTER if self.best is not None and self.within_limits else math.inf
        near = [t for t in self.tried if fits(problem, t.plan) and t.missed and t.noise <= self.allowed]
        near = [trial for trial in near if trial.excess <= DOUBTFUL and trial.plan.seconds < most]
        seen = self.seen
        noise = min((predicted_noise(problem, t.plan.compute, t.plan.stored) for t in near), default=0.0)
        tries = [partial(self.light_enough, noise * factor) for factor in BESIDE]
        if problem.most_bytes is not None:
            tries += [partial(self.below, noise * max(BESIDE), share) for share in BELOW]
        for made in tries if near else ():
            candidate = made()
            if candidate.key in seen or not fits(problem, candidate) or candidate.seconds >= most:
                continue
            seen.add(candidate.key)
            if (trial := self.attempt(candidate)).missed is None:
                return trial
        return None

    def below(self, noise: float, share: float) -> Plan:
        """The best plan of so much noise within ``share`` of the limit of size."""
        assert self.problem.most_bytes is not None
        smaller = replace(self.problem, most_bytes=self.problem.most_bytes * share)
        return quietest(smaller, light(smaller, noise))

    def last_tries(self) -> Trial | None:
        """A trial that holds, of quieter plans than all with fewer than 8 bits that missed a floor, where tries ran out
        before the noise was low enough; None where none is better than the best one.
        """
        problem, best = self.problem, self.best
        missed = [trial.noise for trial in self.tried if trial.missed is not None and small_codes(trial.plan)]
        seen = self.seen
        for share in LAST_TRIES if missed or best is None else ():
            candidate = light(problem, min([self.allowed, *missed]) * share)
            others = self.beside(small=True)
            if candidate.key in seen or (best is not None and not better(problem, candidate, best.plan, CLOSE, others)):
                continue
            trial = self.attempt(candidate)
            if trial.missed is None and self.ahead(trial, CLOSE):
                return trial
        return None

    def as_it_was(self) -> None:
        """Every operator as it was, weights stored smaller or not: where nothing better holds, or that is better."""
        problem = self.problem
        for last in (storage_only(problem), halves(problem), Plan()):
            stale = last.key in self.seen
            timed = replace(last, seconds=problem.prices.total)
            others, best = self.beside(small=False), self.best
            if best is None or (better(problem, timed, best.plan, CLOSE, others) and not stale):  # quiet: easily missed
                self.best = holding(self.attempt(timed)) or best

    def beside(self, *, small: bool) -> tuple[float, float]:
        """Bytes that files take besides their weights: the least of plans with fewer than 8 bits, or without, and that
        of the best one; the same where none was tried.
        """
        known = self.best.others if self.best is not None else 0.0
        alike = (trial.others for trial in self.tried if small_codes(trial.plan) == small)
        return min(alike, default=known), known


def holding(trial: Trial) -> Trial | None:
    """``trial``, None where it misses a floor."""
    return trial if trial.missed is None else None


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
