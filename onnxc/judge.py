"""A plan becomes a model and is judged against the original. In: plans. Out: trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import lcm

from onnxc.answers import class_scores
from onnxc.coder import Coder
from onnxc.contract.passes import FinishingPass
from onnxc.data import Calibration, Sample
from onnxc.errors import DataError, ModelError, UsageError
from onnxc.hardness import disturbed
from onnxc.model import Model
from onnxc.overheard import Overheard
from onnxc.parts import Parts
from onnxc.problem import Plan, small_codes
from onnxc.quality import (
    FLOOR_CHANGED,
    FLOOR_DROP,
    FLOOR_SQNR_DB,
    FLOOR_SQNR_WITH_HOOK_DB,
    Quality,
    floor_met,
    relative_drop,
)
from onnxc.recipe import DEFAULT_LOAD_TIME, Budget
from onnxc.reference import ReferenceOutputs
from onnxc.samples.batches import as_run
from onnxc.samples.hooks import Evaluation
from onnxc.session import Options, Session, TensorInfo
from onnxc.trial import NOTHING, Trial
from onnxc.written import written

# Of the allowed drop that a plan below 8 bits may use where nothing tells how far the score can be trusted: it is one
# of many that were tried on the same few items, and loses more on others (a transformer on digits: 0.7 and 0.5 % on a
# thousand items that were tried, 1.4 and 1.1 % on as many others; a residual network in factors 0.3 and 1.1 %).
SMALL_SHARE = 0.5
CHANGED_SCORED = 0.1  # of the answers on samples
TINY = 1e-12
MOST_ITEMS, FEWEST_ITEMS = 20_000, 20  # that scores can be told to count


def step(reference: float, scores: Iterable[float]) -> float:
    """What one item is worth, as a drop relative to the ``reference`` score; 0 where scores do not count items.

    Scores that are fractions with a common denominator n <= MOST_ITEMS count n items. Where all are equal they tell
    little, and at least FEWEST_ITEMS are taken.
    """
    found = {reference, *scores}
    counts = [Fraction(score).limit_denominator(MOST_ITEMS) for score in found]
    if any(abs(float(each) - score) > TINY for each, score in zip(counts, found, strict=True)):
        return 0.0
    items = max(lcm(*(each.denominator for each in counts)), FEWEST_ITEMS if len(counts) < 2 else 1)
    return 1 / (items * abs(reference)) if items <= MOST_ITEMS and reference else 0.0


def luck(item: float, changed: int, judged: int) -> float:
    """The standard deviation of what other items as good as these lose, relative, beyond what these lost, where
    ``changed`` of ``judged`` answers did: n items of which a share c change gain or lose sqrt(c n) of them, each worth
    ``item`` = 1 / n, and so do the others, by luck of their own: sqrt(2 c n).
    """
    return math.sqrt(2 * succession(changed, judged) * item)


def succession(changed: int, judged: int) -> float:
    """The share of other answers that change, where ``changed`` of ``judged`` did (Laplace's rule of succession, 1814):
    none of few does not mean none of many.
    """
    return (changed + 1) / (judged + 2)


def suspected(reference: float, drop: float, item: float, changed: int, judged: int) -> float:
    """The relative drop that a score and the changed answers tell together, where ``changed`` of ``judged`` answers did
    (posterior mean of a normal prior): a lucky score of few items is not believed while many answers change.

    Of n items a share c changes, and of these the original had ``reference`` right and the new answer at most the rest:
    changes alone suggest a loss of (2 reference - 1) c, give or take as much. The score tells it give or take
    sqrt(c / n), and nothing is gained by compression: a score above the original's counts as the original's.
    """
    share, net = succession(changed, judged), max(2 * abs(reference) - 1, 0.0)
    items = 1 / (item * abs(reference))
    weight = net**2 * share * items / (1 + net**2 * share * items)
    return weight * max(drop, 0.0) + (1 - weight) * net * share / abs(reference)


def smoothed(points: Sequence[tuple[float, float]]) -> float:
    """The last of ``points`` (noise, drop) on the curve of least squares that never falls as noise rises (isotonic
    regression by pooling of adjacent violators; Ayer and others, 1955).
    """
    order = sorted(range(len(points)), key=lambda index: points[index])
    pools: list[tuple[float, list[int]]] = []
    for index in order:
        total, members = points[index][1], [index]
        while pools and pools[-1][0] / len(pools[-1][1]) >= total / len(members):
            before, others = pools.pop()
            total, members = total + before, others + members
        pools.append((total, members))
    return next(total / len(members) for total, members in pools if len(points) - 1 in members)


def build(model: Model, plan: Plan, codes: Coder) -> Model:
    """``model`` with ``plan`` applied, a copy."""
    made = codes.of(plan.stored, plan.compute)
    return written(model, plan, made, target=codes.context.target, late=codes.late).model


@dataclass
class Judge:
    """Everything that decides whether a model is good enough.

    Attributes:
        original: what is compared with.
        samples: calibration data or generated inputs.
        budget: the limits; evaluation: the user's hook, None without one.
        evaluations: how often the hook was called; the budget may bound it.
        failed: (SQNR in dB, share of the allowed drop) of the most exact model whose score was too low.
        finishing: passes that rewrite every model before it is judged, each with whether it was told to.
        drops: (noise in dB, relative drop of the score, below 0 where it rose) of every model that was scored.
        strictly: every plan is held to the share of the allowed drop that plans below 8 bits are held to: the model
            was fitted to the samples.
        free: whether the limits of size and speed count no more: they are out of reach.
        patient: passes were told what to do, or nothing that was named makes models load sooner: that may take as long
            to load as it does, but for a limit that was given; grace: seconds more than the original's that a model may
            take where none was.
        late: whether models are late to load, so that what makes them load sooner runs too.
        remembers: whether figures of other runs count.
        spare: seconds by which the last model that was measured loads faster than it must; below 0 where it does not.
        out_of_reach: whether no plan was found that is predicted to hold the limits of size and speed.
        overheard: the original's answers on the items of the score.
        batch, shapes: what inputs look like when models are timed; as the samples are where neither is given.
    """

    original: Model
    samples: Calibration
    budget: Budget
    options: Options
    evaluation: Evaluation | None = None
    reference: ReferenceOutputs = field(init=False)
    overheard: Overheard = field(init=False)
    score: float | None = None
    evaluations: int = 0
    careful: bool = True
    failed: tuple[float, float] = (-math.inf, 0.0)
    finishing: Sequence[tuple[FinishingPass, bool]] = ()
    drops: list[tuple[float, float]] = field(default_factory=list)
    strictly: bool = False
    free: bool = False
    patient: bool = False
    grace: float = 0.0
    late: bool = False
    remembers: bool = True
    spare: float = 0.0
    out_of_reach: bool = False
    batch: int | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    inputs: Sequence[TensorInfo] = ()

    @property
    def resized(self) -> bool:
        """Whether models are timed on other shapes than the samples have; generated ones are made as asked for."""
        return not self.samples.generated and (self.batch is not None or bool(self.shapes))

    def timed(self, count: int) -> list[Sample]:
        """At most ``count`` inputs to time models with; UsageError where the model does not take their shape."""
        taken = self.samples.take(min(count, len(self.samples)))
        return as_run(taken, self.inputs, batch=self.batch, shapes=self.shapes) if self.resized else taken

    def time_to_load(self, before: float) -> float:
        """Seconds that a model may take to load whose original takes ``before``."""
        if self.budget.max_load_time is not None:
            return self.budget.max_load_time * before
        return math.inf if self.patient else max(DEFAULT_LOAD_TIME * before, before + self.grace)

    def finished(self, model: Model) -> tuple[Model, tuple[str, ...]]:
        """Run the finishing passes on ``model``, once; it, and what they said."""
        notes = list[str]()
        for each, told in self.finishing:
            if self.late or told or not each.hurries:
                notes += [f"{each.name}: {note}" for note in each.finish(model, told=told).notes]
        return model, tuple(notes)

    @property
    def lowest_sqnr(self) -> float:
        """The SQNR floor in force, in dB."""
        if self.budget.min_sqnr is not None:
            return self.budget.min_sqnr
        return FLOOR_SQNR_DB if self.evaluation is None else FLOOR_SQNR_WITH_HOOK_DB

    def prepare(self, session: Session) -> None:
        """Run the original once: its outputs, and its score."""
        answers, parts = class_scores(self.original), Parts(self.original, self.options)
        self.reference = ReferenceOutputs(session, self.samples, answers, self.samples.apart, parts)
        noisy = disturbed(self.original) if self.samples.apart else None
        if noisy is not None:
            with suppress(ModelError, DataError):  # indices among its constants: samples are as hard as they are loud
                self.reference.hear(Session(noisy, self.options))
        if self.evaluation is not None:
            self.overheard = Overheard(answers)
            with self.overheard.listening(session) as self.overheard.original:
                self.score = self.evaluation.reference(session)
            self.evaluations += 1
        elif self.budget.evals is not None:
            raise UsageError("--evals bounds the calls of a hook: give one with --eval FILE.py:FUNCTION")

    def judge(self, model: Model, share: float = 1.0) -> tuple[Quality, float | None, str | None]:
        """Quality, score, and the floor that ``model`` misses (None: none). The hook runs only if outputs allow it;
        a model that does not run although the original does misses every floor.

        Args:
            share: of the allowed drop of the score that the model may use. Below 1 the answers on the samples must
                agree too: a score on few items says little.
        """
        try:
            session = Session(model, self.options)
            quality = self.reference.judge(session)
        except (ModelError, DataError) as error:
            return Quality(sqnr_db=-math.inf, problem=str(error)), None, f"a plan does not run: {error}"
        evaluation = self.evaluation

        def asked() -> float:
            assert evaluation is not None
            with self.overheard.listening(session) as heard:
                score = evaluation(session)
            quality.scored_changed, quality.scored_judged = self.overheard.changed(heard)
            return score

        return self.verdict(quality, None if evaluation is None else asked, share)

    def verdict(
        self, quality: Quality, scored: Callable[[], float] | None, share: float
    ) -> tuple[Quality, float | None, str | None]:
        """As judge(), of a model with ``quality``; ``scored`` asks the hook."""
        budget = self.strict(quality, share)
        if scored is not None and self.score is not None:
            missed = floor_met(quality, budget, generated=self.samples.generated, score=(self.score, self.score))
            missed = missed or self.saved(quality, share)
            if missed is not None:
                return quality, None, missed
            score = scored()
            self.evaluations += 1
            missed = self.dropped(quality, score, share)
            if missed is not None and quality.sqnr_db > self.failed[0]:
                self.failed = quality.sqnr_db, share
            return quality, score, missed
        return quality, None, floor_met(quality, budget, generated=self.samples.generated)

    def dropped(self, quality: Quality, score: float, share: float) -> str | None:
        """The sentence about a score that is too low, None for one that is not.

        A score on few items turns on one or two of them, and the best of several trials is lucky: what a model that
        may use only ``share`` of the allowed drop loses is read off the curve through all trials, which tells it no
        finer than by one item. Where items can be told from the drops it may be what luck() leaves, if that is more;
        what changed answers make suspected() may be no more than what is allowed, or half an item.
        """
        assert self.score is not None
        drop, allowed = relative_drop(self.score, score), self.budget.max_drop
        allowed = FLOOR_DROP if allowed is None else allowed
        gained = (self.score - score) / abs(self.score)  # also above the original's: luck has no bound there
        self.drops.append((-quality.sqnr_db, gained))
        known = (self.score - each * abs(self.score) for _, each in self.drops)
        likely, item = smoothed(self.drops), step(self.score, known)
        bound = max(allowed * share, item)
        changed, judged = quality.changed + quality.scored_changed, quality.judged + quality.scored_judged
        if item and judged and not self.limited:
            bound = max(allowed - luck(item, changed, judged), bound)
            doubted = suspected(self.score, likely, item, changed, judged)
            if likely <= bound + TINY:  # the score tells no more; answers may
                likely, bound = doubted, max(allowed, item / 2)
        if drop <= allowed + TINY and (share >= 1 or likely <= bound + TINY):
            return None
        fell = f"the score fell from {self.score:.6g} to {score:.6g}, by {drop:.2%}"
        if drop > allowed + TINY:
            return f"{fell}; at most {100 * allowed:g} % is allowed"
        tell = f"by {likely:.2%} as all trials and changed answers tell"
        if not drop:
            fell = f"the score is {score:.6g} after {self.score:.6g}, but falls {tell}"
        elif abs(likely - drop) > TINY:
            fell = f"{fell}, and {tell}"
        return f"{fell}; at most {100 * bound:.2g} % is allowed below 8 bits, where luck may decide"

    def saved(self, quality: Quality, share: float) -> str | None:
        """Why the hook is not asked, where the calls of it are bounded; None if it is.

        A call is spent only on outputs closer to the original's than those of every model that failed.
        """
        if self.budget.evals is None:
            return None
        if quality.sqnr_db <= self.failed[0] and share <= self.failed[1]:
            said = f"a closer one, with {self.failed[0]:.1f} dB, scored too low"
            return f"a plan with an SQNR of {quality.sqnr_db:.1f} dB was not evaluated: {said}"
        if self.evaluations >= self.budget.evals:
            return f"a plan was not evaluated: all {self.budget.evals} calls of the hook (--evals) are used"
        return None

    def strict(self, quality: Quality, share: float) -> Budget:
        """The budget of a model that may use only ``share`` of the allowed drop. Where a sample has one answer, so few
        of them may change that, with 95 % confidence, 2 % of all answers do. Where a hook decides, an answer that was
        wrong may become another wrong one: only where many change its score is not believed.
        """
        budget, count = self.budget, quality.judged
        each = 0 < count <= len(self.samples)
        if share < 1 and each and budget.min_agreement is None and not self.samples.generated:
            budget = replace(budget, min_agreement=1 - self.tolerated(count) / count)
        return budget

    def tolerated(self, count: int) -> int:
        """Changed answers of ``count`` that leave 95 % confidence in the floor; with a hook, that it may overrule."""
        if self.evaluation is not None:
            return max(1, int(CHANGED_SCORED * count))
        expected = FLOOR_CHANGED * count
        return max(int(expected - 2 * math.sqrt(expected)), 0)

    def scored(self, model: Model) -> float:
        """The score of ``model``, whatever its outputs."""
        assert self.evaluation is not None
        self.evaluations += 1
        return self.evaluation(Session(model, self.options))

    def trial(self, made: Model, plan: Plan) -> Trial:
        """Judge what was made of ``plan``."""
        made, notes = self.finished(made)
        return self.weighed(made, plan, self.judge(made, self.share(plan)), notes)

    def again(self, plan: Plan, quality: Quality, score: float | None, notes: tuple[str, ...]) -> Trial | None:
        """The trial of a plan that is known to measure so much, without its model; None where a score is to be asked
        for that nobody knows.
        """

        def scored() -> float:
            if score is None:
                raise LookupError
            return score

        try:
            verdict = self.verdict(quality, None if self.evaluation is None else scored, self.share(plan))
        except LookupError:
            return None
        return self.weighed(NOTHING, plan, verdict, notes)

    def share(self, plan: Plan) -> float:
        """Of the allowed drop of the score: what the model of ``plan`` may use.

        All of it where a limit says how small or fast: the most exact plan within it is looked for, not the lightest
        that passes, and luck has less of a choice. What was fitted to the samples may use a share even then.
        """
        return SMALL_SHARE if self.careful and (self.strictly or (small_codes(plan) and not self.limited)) else 1.0

    @property
    def limited(self) -> bool:
        """Whether a limit of size or speed was given, and counts."""
        return not self.free and (self.budget.size is not None or self.budget.speed is not None)

    def weighed(
        self, made: Model, plan: Plan, verdict: tuple[Quality, float | None, str | None], notes: tuple[str, ...]
    ) -> Trial:
        """The trial of a plan and the verdict on its model."""
        quality, score, missed = verdict
        excess = 1.0
        if score is not None and self.score is not None:
            share = self.budget.max_drop if self.budget.max_drop is not None else FLOOR_DROP
            item = step(self.score, (self.score - each * abs(self.score) for _, each in self.drops))
            excess = max(relative_drop(self.score, score) / max(share, item, 1e-6), 1.0)
        if missed is not None and quality.judged and self.share(plan) < 1:
            excess = max(excess, quality.changed / max(self.tolerated(quality.judged), 1))
        return Trial(plan, made, quality, score, missed, notes, excess)
