"""The way down: a plan for every target, built before the next one is made. In: a run. Out: points.

Targets go from almost lossless down to the floor; every model that is built betters the predictions of the next.
Weights are solved on what the compressed model feeds them, as optimize() does; where that takes long, only those of the
lowest targets, which gain most by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from onnxc.bracket import FEWER, HEADROOM
from onnxc.compiler import Progress, Run, proposed, smaller
from onnxc.exactness import file_bytes
from onnxc.feedback import solving_key
from onnxc.planner import plan
from onnxc.planning import Planning
from onnxc.predictions import stored_bytes
from onnxc.problem import Plan, Problem
from onnxc.search import calibrated, halves, storage_only
from onnxc.tradeoff.building import Builder
from onnxc.tradeoff.choosing import candidates
from onnxc.tradeoff.points import Frontier
from onnxc.tradeoff.record import Record
from onnxc.trial import Trial
from onnxc.under_noise import under

LADDER_DB = (60.0, 50.0, 40.0, 35.0, 30.0, 25.0, 20.0, 16.0, 13.0, 10.0)
TRIES, NEAR_DB = 3, 1.5  # plans per target, until one is so near it
LEAN = ((8.0, 1.0), (1.0, 8.0))  # what bytes and time count in the smallest and in the fastest plan at the floor


def targets(lowest: float) -> list[float]:
    """SQNRs to plan for, in dB, from almost lossless to the floor."""
    return [each for each in LADDER_DB if each > lowest] + [lowest]


def walk(run: Run, record: Record, found: Frontier, say: Progress) -> Walk:
    """Observe, price, then build one plan after the other."""
    planning = proposed(run, smaller(run))
    made = Walk(run, record, planning, Builder(run, record, found, planning, say))
    made.down()
    return made


@dataclass
class Walk:
    """The way down the ladder.

    Attributes:
        builder: makes trials of plans.
        known: the trials that teach predictions, of plans without feedback and of those with it.
        left: plans that may still be solved with feedback.
        ladder: the targets, in dB; all down to the floor where none are given.
    """

    run: Run
    record: Record
    planning: Planning
    builder: Builder
    known: dict[bool, list[Trial]] = field(default_factory=lambda: {False: [], True: []})
    left: int = 0
    ladder: Sequence[float] = ()

    def down(self) -> None:
        """Visit the best plan of every target."""
        planning, problem = self.planning, self.planning.problem
        if not (problem.compute or problem.storage):
            if file_bytes(planning.context.model) < planning.judge.original.source_bytes:
                self.visit(Plan())  # what exact passes left
            return
        first = self.builder.first(plan(problem.in_full_codes()))
        planning.sensitivities(first)
        self.run.prices.save()
        if not problem.noise:  # nothing is known of single roundings: what can be planned without
            for each in (halves(problem), storage_only(problem), plan(problem.in_full_codes()), plan(problem)):
                self.visit(each)
            return
        ladder = self.ladder or targets(planning.judge.lowest_sqnr)
        self.affordable(first.plan, len(ladder))
        for step, target in enumerate(ladder):
            self.reach(target, len(ladder) - step - 1)
        if problem.most_bytes is None and problem.most_seconds is None:
            self.lean()
        for each in (storage_only(problem), halves(problem), Plan()):
            if not candidates(self.run, self.record):
                self.visit(each)

    def affordable(self, first: Plan, steps: int) -> None:
        """Find out how many plans may be solved with feedback, which building ``first`` so shows."""
        planning = self.planning
        if not planning.feed_back() or self.visit(first) is None:
            return
        planning.most = steps * TRIES + len(LEAN)
        planning.pace = planning.prices.entries.get(solving_key(planning.context))
        self.left = planning.affordable()
        if self.left < steps:
            note = (
                f"solving the weights on what the compressed model feeds them takes {planning.pace or 0.0:.0f} s a "
                f"model, and was done for the {self.left} lowest of {steps} targets"
            )
            self.run.notes.append(note)
            self.builder.say(note)

    def feed(self, after: int = 0) -> None:
        """From now on plans are solved with feedback where one that may be is left, and one for each of ``after``
        further targets; else they are not.
        """
        self.planning.feedback = self.left > after

    def visit(self, chosen: Plan) -> Trial | None:
        """The trial of ``chosen``, which teaches the predictions of plans that are solved as it is; None where this run
        has seen it.
        """
        wanted, trial = self.planning.feedback, self.builder.visit(chosen)
        if wanted and not self.planning.feedback:  # it cannot be done
            self.left = 0
        if trial is not None:
            self.left -= self.planning.feedback
            self.known[self.planning.feedback].append(trial)
        return trial

    def next(self, problem: Problem, aim: float) -> Trial | None:
        """The best plan with noise over signal ``aim``, visited."""
        problem.heard = calibrated(problem, self.known[self.planning.feedback])
        return self.visit(under(problem, aim))

    def within(self, lowest: float) -> list[Trial]:
        """What was built with at least ``lowest`` dB and holds every floor."""
        built = [trial for trials in self.known.values() for trial in trials if trial.missed is None]
        return [trial for trial in built if trial.quality.sqnr_db >= lowest]

    def lean(self) -> None:
        """The smallest and the fastest plan at the floor."""
        for byte_price, time_price in LEAN:
            self.feed()
            if self.known[self.planning.feedback]:
                leaning = replace(self.planning.problem, byte_price=byte_price, time_price=time_price)
                self.next(leaning, self.planning.allowed * HEADROOM)

    def reach(self, target: float, after: int) -> None:
        """Build plans until one is near ``target`` [dB]; every one of them teaches the predictions. ``after`` targets
        are still to come.
        """
        problem, allowed, built = self.planning.problem, 10 ** (-target / 10) - self.planning.before, 0
        aim, last = allowed * HEADROOM, not after
        self.feed(after)
        tries = min(self.left - after, TRIES) if self.planning.feedback else TRIES
        for _ in range(3 * TRIES):
            if built >= tries:
                return
            trial = self.next(problem, aim)
            if trial is None and not last:
                return
            if trial is None:  # too noisy, or already there: the noisiest plan above the floor is wanted
                aim *= FEWER
                continue
            built += 1
            problem.pace, problem.unit = trial.plan.seconds, max(stored_bytes(problem, trial.plan.stored), 1)
            if last and trial.missed is not None:
                aim *= FEWER
            elif abs(trial.quality.sqnr_db - target) < NEAR_DB:
                return
