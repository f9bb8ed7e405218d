"""Smaller forms in float: which are worth a plan. In: what passes offer for a planned model. Out: cuts, judged.

A form is fitted to all samples but those that are kept apart, and judged on those as well: what is fitted to few
samples looks better on them than it is. From the noise that a form makes, the bytes that it saves and the time that it
wins the plan of the whole model tells how good a plan of it can be: coarser codes are what pays for noise. Of many
offers few are made: the first one shows what the estimated costs of all are worth.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from time import process_time

from onnxc.bracket import HEADROOM
from onnxc.contract.candidates import Refusal
from onnxc.contract.context import Context
from onnxc.contract.passes import Level, Offer, StructuralPass
from onnxc.cost import speed_up
from onnxc.errors import DataError, ModelError
from onnxc.file.storage import drop_pages
from onnxc.judge import SMALL_SHARE, Judge
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.predictions import stored_bytes
from onnxc.price_file import Finding
from onnxc.search import CLOSE
from onnxc.session import Session
from onnxc.structure.planned import Aim, Clock, Figures, Planned
from onnxc.structure.stakes import stakes_of
from onnxc.trial import Trial

WON = 0.5  # of the time that a form wins in float (as an exponent), what is expected to be won in a plan
TRUSTED = 0.67  # how much the floor counts, and not the noise of the best plan: a score may have stopped it by chance
# Where the time to load stopped the plan, the exponent of the share of the weights that is left: what unfolds sooner
# may have fewer bits (0.53 and 0.68 of a voice detector's weights became 0.42 and 0.55 of its bytes); and that of the
# time that is won: there is room for kernels on integers.
RELIEVED, RELIEVED_TIME = 1.5, 0.75
ROOM = 0.2  # of the noise that is allowed, left for codes: with less no plan gets smaller
MADE = 3  # forms of one pass that are made
LEADING = 1.0  # seconds in which the float form is timed


@dataclass(frozen=True)
class Cut:
    """A form that was made and judged in float.

    Attributes:
        by: name of the pass; at: which of its offers this is.
        lead: times as fast as the whole model in float; noise: over signal, that it makes in float.
        predicted: figures of its best plan.
    """

    by: str
    at: int
    level: Level
    lead: float
    noise: float
    predicted: Figures

    @property
    def text(self) -> str:
        return f"{self.by}: {self.level.specification}"


@dataclass
class Prospects:
    """What smaller forms of a planned model promise.

    Attributes:
        whole: the plan of the whole model; best: the trial that is delivered of it.
        stamp: what tells this run from others, for the price file.
        notes, refusals: get what was not taken, and why.
        offers: of every pass that was asked, least saved first.
    """

    whole: Planned
    best: Trial
    judge: Judge
    clock: Clock
    aim: Aim
    stamp: str
    say: Callable[[str], None]
    notes: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    offers: dict[str, tuple[Offer, ...]] = field(default_factory=dict)

    @property
    def allowed(self) -> float:
        """Noise over signal that a plan may have: between that of the best plan, which a score may have stopped, and
        what the floor allows; the latter where the time to load stopped it, or nothing did within a limit of size: the
        fastest plan is made as quiet as can be.
        """
        planning = self.whole.planning
        floor = planning.allowed * HEADROOM
        unstopped = self.aim.budget.size is not None and all(each.missed is None for each in planning.attempts)
        if planning.problem.hurried or unstopped:
            return floor
        return float(min(floor, floor**TRUSTED * max(self.best.noise, 1e-12) ** (1 - TRUSTED)))

    def context(self) -> Context:
        """What passes make offers from."""
        planning, samples = self.whole.planning, self.judge.samples
        context = planning.context.in_float32()
        return replace(context, samples=samples.fitted(), stakes=stakes_of(planning, self.best.plan))

    def of(self, instance: StructuralPass, context: Context) -> list[Cut]:
        """What a pass offers, as far as it is worth making. That nothing is, is a finding: what was said then is said
        again, and the time that it took counts again.
        """
        cuts: list[Cut] | None = None

        def look() -> Finding:
            nonlocal cuts
            notes, refusals, spent = len(self.notes), len(self.refusals), self.clock.spent
            cuts = self.looked(instance, context)
            said = [astuple(each) for each in self.refusals[refusals:]]
            spent = self.clock.spent - spent
            return {"cuts": len(cuts), "notes": self.notes[notes:], "refusals": said, "seconds": spent}

        parts = (self.stamp, repr(self.best.plan.key), repr(self.judge.score), repr(instance))
        found = self.clock.prices.found("forms", *parts, learn=look)
        if cuts is None and not found["cuts"]:
            self.notes += found["notes"]
            self.refusals += [Refusal(*each) for each in found["refusals"]]
            self.clock.spent += found["seconds"]
            return []
        return cuts if cuts is not None else self.looked(instance, context)

    def looked(self, instance: StructuralPass, context: Context) -> list[Cut]:
        """The cuts of a pass that are worth a plan."""
        try:
            return self.made(instance.name, self.offered(instance, context))
        except (ModelError, DataError) as error:
            self.notes.append(f"{instance.name}: not tried: {error}")
            return []
        finally:
            drop_pages()

    def offered(self, instance: StructuralPass, context: Context) -> tuple[Offer, ...]:
        """What a pass offers; what it says against it goes into notes and refusals."""
        self.say(f"{instance.name}: looking for what a smaller form would save")
        start = process_time()
        try:
            offers = instance.offers(context)
        except (ModelError, DataError) as error:
            self.notes.append(f"{instance.name}: not tried: {error}")
            return ()
        self.clock.took(f"{instance.name} offers", process_time() - start)
        self.refusals += offers.refusals
        if offers.reason:
            self.notes.append(f"{instance.name}: not tried: {offers.reason}")
        return offers.found

    def made(self, by: str, offers: tuple[Offer, ...]) -> list[Cut]:
        """The promising ones of ``offers``: the middle one is made first, then what its noise says is the best. Of what
        lies between one that held the floors and one that did not, only the nearer half is made.
        """
        self.offers[by] = offers
        found, waiting, least = list[Cut](), dict(enumerate(offers)), CLOSE * self.aim.of(self.whole.figures)
        chosen, tried, reasons = len(offers) // 2, 0, dict[int, str]()
        held, missed = 0, len(offers)
        while waiting and tried < MADE and self.clock.spent <= self.clock.allowed / 2:
            offer, start, tried = waiting.pop(chosen), process_time(), tried + 1
            level, noise, problem = self.formed(offer)
            held, missed = (held, chosen) if problem is not None else (max(held, chosen), missed)
            if problem is not None:
                reasons[chosen] = f"{level.specification}: {problem}"
            elif (cut := self.judged(by, chosen, level, noise)) is not None and self.aim.of(cut.predicted) < least:
                found.append(cut)
                least = CLOSE * self.aim.of(cut.predicted)
            else:
                sqnr = -10 * math.log10(max(noise, 1e-20))
                reasons[chosen] = f"{level.specification}, {sqnr:.1f} dB in float: predicted to be no better"
            self.clock.took(f"{by} {level.specification}", process_time() - start)
            rate = noise / max(offer.cost, 1e-12)
            furthest = (held + missed) // 2 if missed < len(offers) else missed
            promises = {at: self.aim.of(self.promised(each, rate)) for at, each in waiting.items() if at <= furthest}
            chosen = min(promises, key=lambda at: promises[at], default=0)
            if not promises or promises[chosen] >= least:
                break
        if reasons and not found:
            self.notes.append(f"{by}: not planned: {reasons[min(reasons)]}")
        return found

    def beside(self, cut: Cut, step: int) -> Cut | None:
        """The form that is ``step`` offers of its pass further than a ``cut``; None where there is none, it misses a
        floor, or leaves no room for codes.
        """
        offers, at = self.offers[cut.by], cut.at + step
        if not 0 <= at < len(offers):
            return None
        start = process_time()
        level, noise, problem = self.formed(offers[at])
        found = self.judged(cut.by, at, level, noise) if problem is None else None
        self.clock.took(f"{cut.by} {level.specification}", process_time() - start)
        return found

    def formed(self, offer: Offer) -> tuple[Level, float, str | None]:
        """The form of an offer, its noise, and the floor that it misses."""
        level = offer.make()
        name_nodes(level.model)
        return level, *self.noise(level.model)

    def noise(self, model: Model) -> tuple[float, str | None]:
        """Noise over signal of a form in float; and the floor that it misses, held to the share of the allowed drop
        that its plans will be held to. The hook is not asked where its calls are bounded.
        """
        judge, drops = self.judge, self.judge.drops
        if judge.budget.evals is not None:
            quality = judge.reference.judge(Session(model, judge.options))
            missed = quality.problem
        else:
            judge.drops = []  # what a whole model loses at some noise says nothing about this one
            quality, _, missed = judge.judge(model, SMALL_SHARE)
            judge.drops = drops
        return 10 ** (-quality.sqnr_db / 10) if quality.problem is None else 1e6, missed

    def judged(self, by: str, at: int, level: Level, noise: float) -> Cut | None:
        """A form with what its plan is predicted to be; None where no room is left for codes."""
        model, judge = self.whole.planning.context.model, self.judge
        if (more := self.finer(noise)) is None:
            return None
        key = hashlib.sha256(f"{self.stamp} {by} {level.specification}".encode()).hexdigest()[:24]
        sample = judge.samples.take(1)[0]
        lead = speed_up(model, level.model, sample, judge.options, self.clock.prices, key, LEADING)
        share = weight_bytes(level.model) / max(weight_bytes(model), 1)
        return Cut(by, at, level, lead, noise, self.figures(share, lead, more))

    def promised(self, offer: Offer, rate: float) -> Figures:
        """Figures of an offer that makes ``rate`` times its cost of noise: it saves as much of the bytes as of time."""
        more, left = self.finer(rate * offer.cost), max(1 - offer.saved, 1e-3)
        return self.figures(left, 1 / left, more) if more is not None else (1.0, 1e-9)

    def finer(self, noise: float) -> float | None:
        """How many times as many bits codes have to have, less 1, to make good ``noise``; None where they cannot."""
        planning = self.whole.planning
        if noise >= (1 - ROOM) * self.allowed:
            return None
        stored = stored_bytes(planning.problem, self.best.plan.stored)
        bits = 8 * stored / max(sum(planning.problem.sizes.values()), 1)
        return 0.5 * math.log2(self.allowed / (self.allowed - noise)) / max(bits, 1.0)

    def figures(self, share: float, lead: float, more: float) -> Figures:
        """Those of the plan of a form with a share of the weights' bytes that is ``lead`` times as fast in float."""
        size, speed = self.whole.figures
        planning = self.whole.planning
        close, won = planning.loads is not None and planning.loads.close, WON
        if close:
            share, won = share**RELIEVED, RELIEVED_TIME
        stored = stored_bytes(planning.problem, self.best.plan.stored) / self.judge.original.source_bytes
        return max(size - stored, 0.0) + stored * share * (1 + more), speed * lead**won


def weight_bytes(model: Model) -> int:
    """Of all initializers, as they are."""
    return sum(weight.nbytes for graph in model.graphs() for weight in graph.weights)
