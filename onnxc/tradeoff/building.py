"""A plan becomes a point of the trade-off, or is known from before. In: a plan. Out: its trial; models in the folder.

What is built is judged, calibrated on, measured and saved at once. What an earlier run built teaches the same as it did
then, so that a run that goes on makes the plans that it would have made.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from onnxc.codes.formats import FLOATS
from onnxc.compiler import Progress, Run, receipt
from onnxc.deliver import Delivery, gate
from onnxc.model import Model
from onnxc.overheads import counts
from onnxc.planning import Planning
from onnxc.problem import Plan
from onnxc.tradeoff.choosing import floor
from onnxc.tradeoff.pacing import Pace
from onnxc.tradeoff.points import Frontier, Point
from onnxc.tradeoff.record import Record
from onnxc.trial import NOTHING, Trial


@dataclass
class Builder:
    """Builds plans, each once.

    Attributes:
        seen: plans that were asked for, each with whether its weights were to be solved with feedback.
        pace: how fast what was built is beside its prices.
        form: what was made of the model before it was planned, if anything.
    """

    run: Run
    record: Record
    found: Frontier
    planning: Planning
    say: Progress
    seen: set[object] = field(default_factory=set)
    pace: Pace = field(default_factory=Pace)
    form: str = ""

    def first(self, chosen: Plan) -> Trial:
        """``chosen``, which is always built: sensitivities are measured beside it."""
        planning = self.planning
        self.seen.add((chosen.key, False))
        trial = planning.judged(chosen)
        self.found.built += 1
        point = self.predicted(self.key(chosen), chosen)
        old = self.record.reusable(point.key, lambda point: floor(self.run, point))
        if old is None:
            self.keep(point, trial)
        else:
            planning.size.overheads.seen[-1] = counts(chosen), old.others
            self.timed(old, chosen)
        return trial

    def visit(self, chosen: Plan) -> Trial | None:
        """``chosen`` as a trial without its model, built unless it was before; None where this run has seen it."""
        planning, record, run = self.planning, self.record, self.run
        if (chosen.key, planning.feedback) in self.seen:
            return None
        self.seen.add((chosen.key, planning.feedback))
        point = self.predicted(self.key(chosen), chosen)
        old = record.reusable(point.key, lambda point: floor(run, point))
        if old is not None:
            self.found.known += 1
            self.remember(old, chosen)
            return Trial(chosen, NOTHING, old.quality, None, floor(run, old), before=planning.before)
        wanted = planning.feedback
        trial = planning.judged(chosen)
        self.found.built += 1
        if planning.feedback != wanted:  # weights could not be solved so, and a note says why
            if (chosen.key, False) in self.seen:
                return None
            self.seen.add((chosen.key, False))
            point.key = self.key(chosen)
        self.keep(point, trial)
        trial.model = NOTHING
        return trial

    def keep(self, point: Point, trial: Trial) -> None:
        """Record what was built, with its file where it holds the floor."""
        planning, record, run, chosen = self.planning, self.record, self.run, trial.plan
        quality, total = trial.quality, planning.judge.original.source_bytes
        point.sqnr_db = quality.sqnr_db if math.isfinite(quality.sqnr_db) else None
        point.outputs = {each.name: each.sqnr_db for each in quality.outputs if each.sqnr_db is not None}
        point.agreement, point.changed, point.judged = quality.agreement, quality.changed, quality.judged
        if not planning.feedback:  # what is fitted to one plan's inputs says nothing of other plans
            damages = {name: self.damage(name, mode) for name, mode in chosen.stored.items() if mode not in FLOATS}
            point.damages = {name: value for name, value in damages.items() if math.isfinite(value)}
        model = None
        if quality.problem is not None:
            point.rejected = quality.problem
        elif trial.missed is None:
            told = any(told for _, told in run.chosen.structural)
            delivery = gate(planning.judge, [trial], run.prices, receipt(run), self.say, told=told)
            model = self.measured(point, delivery, total)
            self.weighed(point, chosen)
            self.timed(point, chosen)
        point.others = planning.size.overheads.seen[-1][1]
        record.add(point, model, self.found.name, external_data=run.recipe.external_data)
        record.save(run.recipe.budget, complete=False, notes=())
        run.prices.save()

    def key(self, chosen: Plan) -> str:
        """Of a plan with the ranges of its activations, for this input, these options and the way weights are solved
        now.
        """
        rounded = {
            f"{a.tensor} {a.dynamic} {np.asarray(a.scale).tolist()} {np.asarray(a.zero_point).tolist()}"
            for c in chosen.compute.values()
            for a in (*c.reads, *((c.writes,) if c.writes else ()))
        }
        parts = (self.record.identity, self.form, chosen.key, sorted(rounded), self.planning.feedback)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def predicted(self, key: str, chosen: Plan) -> Point:
        """A point with what the plan was chosen for."""
        problem, original = self.planning.problem, self.planning.judge.original
        point = Point(key, sites=len(chosen.compute), formats=dict(sorted(Counter(chosen.stored.values()).items())))
        point.kernels, point.form = hashlib.sha256(f"{self.form} {chosen.key[0]}".encode()).hexdigest()[:16], self.form
        point.predicted_share = self.planning.size.expected(chosen) / original.source_bytes
        if chosen.seconds > 0:
            point.predicted_speed = self.pace.of(problem.original_seconds / chosen.seconds)
        if chosen.noise > 0:
            point.predicted_sqnr_db = -10 * math.log10(chosen.noise + self.planning.before)
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
            self.planning.size.overheads.correct(self.planning.problem, chosen, point.size)

    def timed(self, point: Point, chosen: Plan) -> None:
        """How fast a point is beside what prices say of its plan."""
        if point.speed is not None and chosen.seconds > 0:
            predicted = self.planning.problem.original_seconds / chosen.seconds
            self.pace.learn(predicted, point.speed)

    def damage(self, name: str, mode: str) -> float:
        """Of the codes of a weight, as solved."""
        made = self.planning.coder.made
        return next((made[key].damage for narrow in (True, False) if (key := (name, mode, narrow)) in made), math.nan)

    def remember(self, old: Point, chosen: Plan) -> None:
        """All that building ``chosen`` would have taught: the next plans must come out the same."""
        coder = self.planning.coder
        for name, value in old.damages.items():
            if name in coder.damages and name in chosen.stored:
                coder.damages[name][chosen.stored[name]] = value
        self.planning.size.overheads.seen.append((counts(chosen), old.others))
        self.timed(old, chosen)
        if old.damages and self.planning.problem.ratios:
            self.planning.problem.ratios = coder.noise_ratios()
