"""Structure that pays, found where nobody named it. In: a planned model. Out: it, or a smaller form of it, planned.

Every pass that acts unasked offers smaller forms; the most promising ones are planned afresh, and of what was built the
best is taken. How long that may take depends on how long the run took so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import process_time

from onnxc.contract.passes import StructuralPass
from onnxc.errors import DataError, ModelError
from onnxc.file.storage import drop_pages
from onnxc.judge import Judge
from onnxc.model import Model
from onnxc.price_file import PriceFile
from onnxc.search import CLOSE
from onnxc.structure.planned import Aim, Clock, Planned
from onnxc.structure.prospects import Cut, Prospects

MOST = 2  # forms that are planned, but for those of which no plan holds
OUT_OF_REACH = 2  # times as many, and as long: where the whole model misses a limit, a form is what may hold it
ALWAYS, SHARE = 90.0, 1.0  # seconds that may be spent anyway, and how much of the run so far
LONG, WORTH = 80.0, 0.9  # where planning takes more seconds, a form has to promise more: it takes as long again
UNSURE = 0.75  # elsewhere, what a promise counts of a pass of which nothing was planned yet: it may be off by more


@dataclass
class Choice:
    """The search for a smaller form.

    Attributes:
        whole: the plan of the whole model; seconds: of the processor, what the run took until there.
        plan: plans a model of which the float form is so many times as fast and makes so much noise, and takes its best
            trials to the gate.
        stamp: what tells this run from others, for the price file.
        notes: gets what was tried and what came of it.
    """

    whole: Planned
    seconds: float
    plan: Callable[[Model, float, float], Planned]
    judge: Judge
    prices: PriceFile
    stamp: str
    say: Callable[[str], None]
    notes: list[str] = field(default_factory=list)

    def best(self, passes: Sequence[StructuralPass]) -> Planned:
        """The whole model's plan, or a better one of a smaller form; its notes say what was tried."""
        trial, aim = self.whole.delivery.trial, Aim(self.judge.budget)
        if not passes or self.judge.samples.generated or trial is None or not self.whole.planning.attempts:
            return self.whole
        limited = self.judge.budget.size is not None and self.judge.budget.speed is not None
        if limited and aim.holds(self.whole.figures):  # the least damage is wanted, and every cut does some
            return self.whole
        clock = Clock(self.prices, self.stamp)
        whole = clock.took("the whole model", self.seconds)
        clock.allowed, clock.spent = max(ALWAYS, SHARE * whole), 0.0
        if not self.whole.planning.problem.noise:
            self.whole.planning.sensitivities(trial)
        self.whole.planning.coder.forget()
        drop_pages()
        prospects = Prospects(self.whole, trial, self.judge, clock, aim, self.stamp, self.say, notes=self.notes)
        context = prospects.context()
        found = self.planned([cut for each in passes for cut in prospects.of(each, context)], prospects, whole)
        found.planning.proposals.refusals += prospects.refusals
        return replace(found, notes=[*found.notes, *self.notes])

    def planned(self, cuts: Sequence[Cut], prospects: Prospects, whole: float) -> Planned:
        """The best of the whole model's plan and those of the most promising of ``cuts``; planning one of them takes
        about as long as ``whole``.
        """
        best, scales, aim, clock = self.whole, dict[str, float](), prospects.aim, prospects.clock
        wanted, what = (WORTH, f"not worth {whole:.0f} s") if whole > LONG else (CLOSE, "no better")
        tried = made = 0
        for cut in sorted(cuts, key=lambda each: aim.of(each.predicted)):
            harder = 1 if aim.holds(best.figures) else OUT_OF_REACH
            unknown = UNSURE if tried and whole <= LONG else 1.0
            if aim.of(cut.predicted) * scales.get(cut.by, unknown) >= wanted * aim.of(best.figures):
                self.notes.append(f"{cut.text}: not planned, predicted to be {what}")
                continue
            if made >= MOST * harder:
                self.notes.append(f"{cut.text}: not planned, {made} others promised more")
                continue
            if tried and clock.spent + whole > clock.allowed * harder:
                self.notes.append(f"{cut.text}: not planned, the time for trying structures is used up")
                continue
            tried += 1
            if (found := self.attempt(cut, clock)) is not None:
                made += 1
                (size, speed), (small, fast) = found.figures, cut.predicted
                scales[cut.by] = size / speed / (small / fast)
                if (better := self.better(best, found, cut, aim)) is not best:
                    best = self.refined(better, cut, prospects, whole)
        return best

    def refined(self, best: Planned, winner: Cut, prospects: Prospects, whole: float) -> Planned:
        """``best``, the plan of the ``winner``, or that of a deeper form of the same pass, or where the next one is no
        better of a shallower one, as long as they get better and time is left.
        """
        clock, first = prospects.clock, best
        for step in (1, -1):
            while clock.spent + whole <= clock.allowed and (cut := prospects.beside(winner, step)) is not None:
                made = self.attempt(cut, clock)
                better = self.better(best, made, cut, prospects.aim) if made is not None else best
                if better is best:
                    break
                best, winner = better, cut
            if best is not first:
                break
        return best

    def attempt(self, cut: Cut, clock: Clock) -> Planned | None:
        """The plan of a form, None where none passes."""
        self.say(f"planning {cut.text}")
        start = process_time()
        drops, self.judge.drops, self.judge.strictly = self.judge.drops, [], True
        try:
            made = self.plan(cut.level.model, cut.lead, cut.noise)
        except (ModelError, DataError) as error:
            self.notes.append(f"{cut.text}: not taken, {error}")
            return None
        finally:
            self.judge.drops, self.judge.strictly = drops, False
            clock.took(f"planning {cut.text}", process_time() - start)
        trial = made.delivery.trial
        if trial is None:
            self.notes.append(f"{cut.text}: not taken, {made.delivery.rejected[-1]}")
            return None
        return made

    def better(self, best: Planned, made: Planned, cut: Cut, aim: Aim) -> Planned:
        """The better one of the best so far and the plan of a cut."""
        size, speed = made.figures
        what = f"planned with it the file has {size:.1%} of the bytes and is {speed:.2f} times as fast"
        old = "without" if best is self.whole else "with the form before"
        old += ", {:.1%} and {:.2f} times".format(*best.figures)
        if aim.of(made.figures) >= CLOSE * aim.of(best.figures):
            self.notes.append(f"{cut.text}: not taken, {what}; {old}")
            return best
        self.notes.append(f"{cut.text}; {what}; {old}")
        return replace(made, notes=[*made.notes, *(f"{cut.by}: {note}" for note in cut.level.notes)])
