"""What to deliver where the best plan cannot be. In: it, and what became of it. Out: plans, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnxc.bracket import HEADROOM
from onnxc.judge import Judge
from onnxc.limits import nearest_first, worth
from onnxc.load_room import lighter
from onnxc.predictions import predicted_noise
from onnxc.problem import Plan, Problem, small_codes
from onnxc.search import storage_only
from onnxc.trial import Trial
from onnxc.under_noise import light

FASTER = 6  # plans that load faster, where the best one took too long
LOUDER, QUIETER = (1.4, 2.0), (1.0, 0.5)  # of the best plan's noise, in plans that load faster; louder for a size
CAREFUL = 0.5  # of the noise of a plan that misses a floor


@dataclass
class Fallbacks:
    """Plans in the order in which they are worth delivering.

    Attributes:
        problem, judge: what plans are made from, and what measured them; allowed: noise over signal of the SQNR floor.
        last: the trial of the plan that came last, None before there is one.
    """

    problem: Problem
    judge: Judge
    allowed: float
    last: Trial | None = None

    def after(self, best: Trial, tried: Sequence[Trial]) -> Iterator[Plan]:
        """Plans that are known to load in time; others that load faster; the same storage without int8 arithmetic; the
        simplified model as it is. Each is made when it is known how long the one before took to load, or which floor it
        missed.
        """
        known = [trial.plan for trial in tried if trial.missed is None and trial.spare is not None and trial.spare > 0]
        yield from sorted(known, key=lambda each: worth(self.problem, each))
        yield from self.sooner(best)
        yield from [trial.plan for trial in tried if trial.missed is None and not small_codes(trial.plan)][:1]
        rows = {name: c for name, c in best.plan.compute.items() if c.mode == "rows"}
        stored = storage_only(self.problem)  # without its rows a table unfolds at load: that helps no small model
        floats = [stored, replace(best.plan, compute=rows), replace(stored, compute={}), Plan()]
        if small_codes(best.plan):  # the same codes, whose noise is less without that of activations
            floats[:2] = floats[1::-1]
        yield from (replace(each, seconds=self.problem.prices.total) for each in floats)

    def sooner(self, best: Trial) -> Iterator[Plan]:
        """Plans that load faster than the one before them, or make less noise where that missed a floor."""
        problem, noise = self.problem, predicted_noise(self.problem, best.plan.compute, best.plan.stored)
        if not problem.noise or not problem.has_small_codes:
            return
        last, made = best.plan, set[object]()
        shares = (*LOUDER, *QUIETER) if problem.most_bytes is not None else QUIETER
        for _ in range(FASTER):
            missed = self.last is not None and self.last.missed is not None
            if missed or last.key in made:
                noise *= CAREFUL
            else:
                problem = replace(self.problem, most_loading=lighter(self.problem, last, self.judge.spare))
            faster = [light(problem, min(share * noise, self.allowed * HEADROOM)) for share in shares]
            made.add(last.key)
            last = nearest_first(problem, faster)[0]
            yield last
