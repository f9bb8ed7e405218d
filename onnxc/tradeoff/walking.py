"""The way down: a plan for every target, built, judged, measured and saved at once. In: a run. Out: points.

Targets go from almost lossless down to the floor; every model that is built betters the predictions of the next.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from onnxc.codes.formats import FLOATS
from onnxc.compiler import Progress, Run, observed, proposed, receipt, simplified
from onnxc.deliver import Delivery, gate
from onnxc.model import Model
from onnxc.overheads import counts
from onnxc.planner import Plan, plan, stored_bytes
from onnxc.planning import Planning
from onnxc.search import FEWER, HEADROOM, Trial, calibrated, halves, storage_only, under
from onnxc.structure.named import shrunk
from onnxc.tradeoff.choosing import candidates, floor, floored
from onnxc.tradeoff.points import Frontier, Point
from onnxc.tradeoff.record import Record

LADDER_DB = (60.0, 50.0, 40.0, 35.0, 30.0, 25.0, 20.0, 16.0, 13.0, 10.0)
TRIES, NEAR_DB = 3, 1.5  # plans per target, until one is so near it
LEAN = 8.0  # what bytes or time count in the smallest and the fastest plan at the floor


def targets(lowest: float) -> list[float]:
    """SQNRs to plan for, in dB, from almost lossless to the floor."""
    return [each for each in LADDER_DB if each > lowest] + [lowest]


def walk(run: Run, record: Record, found: Frontier, say: Progress) -> None:
    """Observe, price, then build one plan after the other."""
    smaller = shrunk(run.chosen.structural, simplified(run), partial(observed, run), run.judge, run.notes, say)
    judge = run.judge
    judge.careful = False  # every point is shown with what it costs
    judge.budget, evaluation, judge.evaluation = floored(judge.budget), judge.evaluation, None
    try:
        planning = proposed(run, smaller)
        Walk(run, record, found, planning, say).down()
    finally:
        judge.evaluation = evaluation


@dataclass
class Walk:
    """The way down the ladder."""

    run: Run
    record: Record
    found: Frontier
    planning: Planning
    say: Progress
    seen: set[object] = field(default_factory=set)

    def down(self) -> None:
        """Visit the best plan of every target."""
        planning, problem = self.planning, self.planning.problem
        if not (problem.compute or problem.storage):
            return
        first = planning.judged(plan(problem.in_full_codes()))
        self.found.built += 1
        point = self.predicted(self.key(first.plan), first.plan)
        old = self.record.reusable(point.key, lambda point: floor(self.run, point))
        if old is None:
            self.keep(point, first)
        else:
            planning.overheads.seen[-1] = counts(first.plan), old.others
        self.seen.add(first.plan.key)
        planning.sensitivities(first)
        self.run.prices.save()
        if not problem.noise:  # nothing is known of single roundings: what can be planned without
            for each in (halves(problem), storage_only(problem), plan(problem.in_full_codes()), plan(problem)):
                self.visit(each)
            return
        known = list[Trial]()
        for target in targets(planning.judge.lowest_sqnr):
            self.reach(target, known)
        if problem.most_bytes is None and problem.most_seconds is None and known:
            for byte_price, time_price in ((LEAN, 1.0), (1.0, LEAN)):
                aim = 10 ** (-planning.judge.lowest_sqnr / 10) * HEADROOM
                problem.heard = calibrated(problem, known)
                trial = self.visit(under(replace(problem, byte_price=byte_price, time_price=time_price), aim))
                known += [trial] if trial is not None else []
        for each in (storage_only(problem), halves(problem), Plan()):
            if not candidates(self.run, self.record):
                self.visit(each)

    def reach(self, target: float, known: list[Trial]) -> None:
        """Build plans until one is near ``target`` [dB]; every one of them teaches the predictions."""
        problem, allowed, built = self.planning.problem, 10 ** (-target / 10), 0
        aim, last = allowed * HEADROOM, target <= self.planning.judge.lowest_sqnr
        for _ in range(3 * TRIES):
            if built >= TRIES:
                return
            problem.heard = calibrated(problem, known)
            trial = self.visit(under(problem, aim))
            if trial is None and not last:
                return
            if trial is None:  # too noisy, or already there: the noisiest plan above the floor is wanted
                aim *= FEWER
                continue
            built += 1
            known.append(trial)
            problem.pace, problem.unit = trial.plan.seconds, max(stored_bytes(problem, trial.plan.stored), 1)
            if last and trial.missed is not None:
                aim *= FEWER
            elif abs(trial.quality.sqnr_db - target) < NEAR_DB:
                return

    def visit(self, chosen: Plan) -> Trial | None:
        """``chosen`` as a trial, built unless it was before; None where this run has seen it."""
        if chosen.key in self.seen:
            return None
        self.seen.add(chosen.key)
        planning, record, run = self.planning, self.record, self.run
        key = self.key(chosen)
        old = record.reusable(key, lambda point: floor(run, point))
        if old is not None:
            self.found.known += 1
            self.remember(old, chosen)
            planning.overheads.seen.append((counts(chosen), old.others))
            return Trial(chosen, planning.context.model, old.quality, None, floor(run, old))
        point = self.predicted(key, chosen)
        trial = planning.judged(chosen)
        self.found.built += 1
        self.keep(point, trial)
        return trial

    def keep(self, point: Point, trial: Trial) -> None:
        """Record what was built, with its file where it holds the floor."""
        planning, record, run, chosen = self.planning, self.record, self.run, trial.plan
        quality, total = trial.quality, planning.judge.original.source_bytes
        point.sqnr_db = quality.sqnr_db if math.isfinite(quality.sqnr_db) else None
        point.agreement, point.changed, point.judged = quality.agreement, quality.changed, quality.judged
        point.damages = {name: self.damage(name, mode) for name, mode in chosen.stored.items() if mode not in FLOATS}
        point.damages = {name: value for name, value in point.damages.items() if math.isfinite(value)}
        model = None
        if quality.problem is not None:
            point.rejected = quality.problem
        elif trial.missed is None:
            told = any(told for _, told in run.chosen.structural)
            delivery = gate(planning.judge, [trial], run.prices, receipt(run), self.say, told=told)
            model = self.measured(point, delivery, total)
            self.weighed(point, chosen)
        point.others = planning.overheads.seen[-1][1]
        record.add(point, model, self.found.name, external_data=run.recipe.external_data)
        record.save(run.recipe.budget, complete=False, notes=())
        run.prices.save()

    def key(self, chosen: Plan) -> str:
        """Of a plan with the ranges of its activations, for this input and these options."""
        rounded = {
            f"{a.tensor} {a.dynamic} {np.asarray(a.scale).tolist()} {np.asarray(a.zero_point).tolist()}"
            for c in chosen.compute.values()
            for a in (*c.reads, *((c.writes,) if c.writes else ()))
        }
        return hashlib.sha256(repr((self.record.identity, chosen.key, sorted(rounded))).encode()).hexdigest()[:32]

    def predicted(self, key: str, chosen: Plan) -> Point:
        """A point with what the plan was chosen for."""
        problem, original = self.planning.problem, self.planning.judge.original
        point = Point(key, sites=len(chosen.compute), formats=dict(sorted(Counter(chosen.stored.values()).items())))
        point.kernels = hashlib.sha256(repr(chosen.key[0]).encode()).hexdigest()[:16]
        point.predicted_share = self.planning.overheads.file_bytes(problem, chosen) / original.source_bytes
        if chosen.seconds > 0:
            point.predicted_speed = problem.prices.total / chosen.seconds
        if chosen.noise > 0:
            point.predicted_sqnr_db = -10 * math.log10(chosen.noise)
        return point

    def measured(self, point: Point, delivery: Delivery, total: int) -> Model | None:
        """Size, speed and load cost of what is delivered, or why it is not; the model to save."""
        if delivery.trial is None:
            point.rejected = delivery.rejected[-1]
            return None
        point.size, point.share = delivery.size, delivery.size / total
        if (ratio := delivery.ratio) is not None:
            point.speed, point.speed_low, point.speed_high = ratio.median, ratio.low, ratio.high
            point.seconds = ratio.seconds_b
        if delivery.loads is not None:
            before, after = delivery.loads
            point.load_seconds, point.load_bytes = after.seconds, after.peak_bytes
            self.record.load_seconds, self.record.load_bytes = before.seconds, before.peak_bytes
        return delivery.trial.model

    def weighed(self, point: Point, chosen: Plan) -> None:
        """What is no weight, as the file that is kept has it."""
        if point.size:
            self.planning.overheads.correct(self.planning.problem, chosen, point.size)

    def damage(self, name: str, mode: str) -> float:
        """Of the codes of a weight, as solved."""
        made = self.planning.coder.made
        return next((made[key].damage for narrow in (True, False) if (key := (name, mode, narrow)) in made), math.nan)

    def remember(self, old: Point, chosen: Plan) -> None:
        """The true damages that building ``chosen`` would have shown: the next plans must come out the same."""
        coder = self.planning.coder
        for name, value in old.damages.items():
            if name in coder.damages and name in chosen.stored:
                coder.damages[name][chosen.stored[name]] = value
        if self.planning.problem.ratios:
            self.planning.problem.ratios = coder.noise_ratios()
