"""The smallest set of sites to leave in float. In: two models, floors. Out: the sites, what they bring and cost.

Which sites hurt most is heard from the other side: every site in float but one, by a switch each, on a few samples.
Where everything is broken at once, putting one site back shows nothing. In that order the shortest beginning with which
the model holds the floors is bracketed by doubling and bisected; of what it holds everything is put back that is not
needed after all. Every step is a real model, judged on all samples and by the user's metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from onnxc.culprits.matching import Pair
from onnxc.culprits.restoring import restored, switched
from onnxc.culprits.scales import Factors
from onnxc.data import Calibration
from onnxc.exactness import SLOWEST, file_bytes
from onnxc.model import Model
from onnxc.quality import Quality, floor_met
from onnxc.recipe import Budget
from onnxc.reference import ReferenceOutputs
from onnxc.reports.figures import amount
from onnxc.runtime.timing import Ratio
from onnxc.samples.hooks import Evaluation
from onnxc.sensitivity import FEW_SWITCHES, Meter, loudness
from onnxc.session import Options, Session, measure_ratio

PROBES = 8  # samples on which sites are heard alone
MOST_PUT_BACK = 16  # a larger set is not thinned out one by one
SPEED_SAMPLES = 16


@dataclass(frozen=True)
class Verdict:
    """One model, judged: ``missed`` is the floor that it misses, None if it holds all."""

    sqnr_db: float
    changed: int
    judged: int
    score: float | None
    missed: str | None


@dataclass
class SmallestSet:
    """What was found.

    Attributes:
        sites: to leave in float, the one that hurts most first; empty where nothing has to be, or nothing helps.
        candidates: sites that could be put back; unmatched: those that could not.
        before, after: the new model, and the same with ``sites`` in float.
        added_bytes: of the file.
        ratio: the new model's time over that with ``sites`` in float; None where it was not measured.
        speed: how many times as fast as the original it then is; None where it was not measured.
        models: how many were built and judged.
    """

    sites: list[str]
    candidates: int
    unmatched: int
    before: Verdict
    after: Verdict
    added_bytes: int = 0
    ratio: Ratio | None = None
    speed: float | None = None
    models: int = 0

    @property
    def sentence(self) -> str:
        """The finding in one line."""
        if self.before.missed is None:
            return "every floor holds: no site has to be in float"
        if self.after.missed is not None:
            return (
                f"with all {self.candidates} sites that both models have in float it is still so: {self.after.missed}; "
                "what hurts lies elsewhere"
            )
        few = len(self.sites)
        gain = [f"{self.after.sqnr_db - self.before.sqnr_db:+.1f} dB"]
        if self.before.score is not None and self.after.score is not None:
            gain.insert(0, f"{100 * (self.after.score - self.before.score):+.2g} points")
        if self.before.changed != self.after.changed:
            gain.append(f"{self.before.changed - self.after.changed} answers of {self.after.judged} right again")
        gain.append(f"{'-' if self.added_bytes < 0 else '+'}{amount(abs(self.added_bytes))}")
        if self.ratio is not None:
            gain.append(f"{self.ratio.median:.2f} times as fast")
        these = "this 1" if few == 1 else f"these {few}"
        found = f"leave {these} of {self.candidates} in float: {', '.join(gain)}"
        if self.speed is not None and self.speed < SLOWEST:
            found += f"; slower than the original, {self.speed:.2f} times as fast as that"
        return found


@dataclass
class Bisection:
    """One search.

    Attributes:
        new, pairs: the model, and the sites that can be put back.
        reference: outputs of the original on all samples; score: of the original, None without ``evaluation``.
        budget: the floors; factors: of the tensors that the model holds in other units than the original.
    """

    new: Model
    pairs: Sequence[Pair]
    samples: Calibration
    reference: ReferenceOutputs
    budget: Budget
    options: Options
    factors: Factors = field(default_factory=dict)
    evaluation: Evaluation | None = None
    score: float | None = None
    say: Callable[[str], None] = lambda message: None
    known: dict[tuple[str, ...], Verdict] = field(default_factory=dict)

    def found(self, unmatched: int, *, speed: bool = True) -> SmallestSet:
        """Search; the new model itself and the one with every pair restored are judged first."""
        before = self.verdict(())
        if before.missed is None or not self.pairs:
            return SmallestSet([], len(self.pairs), unmatched, before, before, models=len(self.known))
        order = self.loudest()
        if (last := self.verdict(order)).missed is not None:
            return SmallestSet([], len(order), unmatched, before, last, models=len(self.known))
        chosen = self.thinned(self.shortest(order))
        result = SmallestSet(list(chosen), len(order), unmatched, before, self.verdict(chosen))
        made = self.model(chosen)
        result.added_bytes = file_bytes(made) - file_bytes(self.new)
        if speed:
            first, second = Session(self.new, self.options), Session(made, self.options)
            result.ratio = measure_ratio(first, second, self.samples.take(SPEED_SAMPLES))
        result.models = len(self.known)
        return result

    def loudest(self) -> tuple[str, ...]:
        """The sites, the one first whose own form alone makes most noise."""
        self.say("hearing every site alone")
        meter = Meter(switched(self.new, self.pairs, self.factors), self.samples.take(PROBES), self.options)
        noise = loudness(meter, grouped=len(self.pairs) > FEW_SWITCHES)
        return tuple(sorted((pair.site for pair in self.pairs), key=lambda site: -noise[site]))

    def shortest(self, order: tuple[str, ...]) -> tuple[str, ...]:
        """The shortest beginning of ``order`` that holds the floors, which all of it does."""
        low, high = 0, 1
        while high < len(order) and self.verdict(order[:high]).missed is not None:
            low, high = high, 2 * high
        high = min(high, len(order))
        while high - low > 1:
            middle = (low + high) // 2
            if self.verdict(order[:middle]).missed is None:
                high = middle
            else:
                low = middle
        return order[:high]

    def thinned(self, chosen: tuple[str, ...]) -> tuple[str, ...]:
        """``chosen`` without what is not needed, the quietest tried first."""
        if len(chosen) > MOST_PUT_BACK:
            return chosen
        for site in reversed(chosen):
            fewer = tuple(each for each in chosen if each != site)
            if fewer and self.verdict(fewer).missed is None:
                chosen = fewer
        return chosen

    def model(self, sites: Sequence[str]) -> Model:
        """The new model with ``sites`` as in the reference."""
        wanted = set(sites)
        return restored(self.new, [pair for pair in self.pairs if pair.site in wanted], self.factors)

    def verdict(self, sites: tuple[str, ...]) -> Verdict:
        """How the new model does with ``sites`` in float; the hook is asked only if the outputs allow it."""
        key = tuple(sorted(sites))
        if key not in self.known:
            self.say(f"judging the model with {len(sites)} sites in float")
            session = Session(self.model(sites) if sites else self.new, self.options)
            self.known[key] = self.judged(session, self.reference.judge(session), always=not sites)
        return self.known[key]

    def judged(self, session: Session, quality: Quality, *, always: bool) -> Verdict:
        """``quality`` against the floors, and the score where it can matter or ``always`` is wanted."""
        pair = (self.score, self.score) if self.score is not None else None
        missed = floor_met(quality, self.budget, generated=self.samples.generated, score=pair)
        score = None
        if self.evaluation is not None and self.score is not None and (missed is None or always):
            score = self.evaluation(session)
            missed = missed or floor_met(
                quality, self.budget, generated=self.samples.generated, score=(self.score, score)
            )
        return Verdict(quality.sqnr_db, quality.changed, quality.judged, score, missed)
