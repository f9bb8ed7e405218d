"""Plans of one model, judged. In: what passes proposed, a judge, prices. Out: trials, best first.

Prices are measured once, the noise of single roundings when the first plan shows that it matters; then every plan is a
question of arithmetic, until one is built and judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import InitVar, dataclass, field, replace
from functools import cached_property, partial
from time import perf_counter, process_time
from typing import Any

import numpy as np

from onnxc import __version__
from onnxc.coder import Coder
from onnxc.codes.formats import is_small, parse_format
from onnxc.contract.candidates import Activation
from onnxc.contract.context import Context
from onnxc.contract.passes import LossyPass
from onnxc.data import Calibration
from onnxc.deliver import time_taken
from onnxc.errors import DataError, ModelError
from onnxc.exactness import file_bytes
from onnxc.fallbacks import Fallbacks
from onnxc.feedback import asked_for, build_solved, possible, solve, solving_key, unfitted
from onnxc.file.storage import drop_pages
from onnxc.judge import Judge, build
from onnxc.limits import shortfall
from onnxc.load_pace import load_pace
from onnxc.load_room import LoadRoom
from onnxc.model import Model
from onnxc.price import priced
from onnxc.price_file import Finding, PriceFile, cpu_name
from onnxc.problem import Plan, Problem
from onnxc.propose import Proposals, collect
from onnxc.recipe import Budget
from onnxc.remembered import Memory, OutdatedError
from onnxc.search import TRIALS, Search
from onnxc.sensitivity import HEARD, measure, telling, weight_key
from onnxc.session import runtime_version
from onnxc.size_limit import TIGHT, SizeLimit
from onnxc.trial import LEAST_SHARE, NOTHING, Trial
from onnxc.weighing import Scales

RANGES = (("minmax", 100.0), ("percentile", 99.99), ("percentile", 99.999))  # other choices than least squares
BEYOND = 1.1  # times over a limit: no plan after the best one is nearer
SOLVING, FEWEST_TRIALS = 60.0, 5  # seconds for solving all plans, and plans that are solved however long it takes
HEARD_SECONDS = {False: 4.0, True: 2.0}  # for the noise of single roundings: made up samples say less
TELLING = 4  # fewest samples kept apart on which weights are heard
PROBES = 64  # most samples for better ranges; the noise of single roundings is heard on the first HEARD of them


@dataclass(frozen=True)
class Attempt:
    """A plan that was built, without its model: what was measured, and the floor it misses (None: none)."""

    plan: Plan
    sqnr_db: float
    score: float | None
    missed: str | None
    predicted_bytes: int | None = None  # of the file, before it was built


@dataclass
class Planning:
    """Everything that plans of one model need.

    Attributes:
        context, proposals, coder: the model, what passes said of it, and the codes of its weights.
        lossy: the passes, asked again when ranges change.
        judge: decides; its budget holds the limits.
        samples: calibration data or generated inputs.
        prices: the file of measured times; problem: what plans are made from; size: what a limit leaves to weights.
        notes: gets sentences for the user; say: is told what is being done.
        attempts: every plan that was judged.
        feedback: whether weights are solved on what the compressed model feeds them; walks: whether fields of passes
            ask for that, or for biases that it corrects; pace: seconds that it takes.
        loads: how long plans may take to load.
        most: plans that are built.
        lead: how many times as fast as the original the float form of this model is, for ``problem``; before: the noise
            over signal that it makes before anything is rounded.
    """

    context: Context
    proposals: Proposals
    coder: Coder
    lossy: list[tuple[LossyPass, bool]]
    judge: Judge
    samples: Calibration
    prices: PriceFile
    notes: list[str]
    say: Callable[[str], None]
    lead: InitVar[float] = 1.0
    before: float = 0.0
    problem: Problem = field(init=False)
    size: SizeLimit = field(init=False)
    attempts: list[Attempt] = field(default_factory=list)
    feedback: bool = False
    walks: bool = field(init=False)
    pace: float | None = None
    loads: LoadRoom | None = None
    most: int = TRIALS

    def __post_init__(self, lead: float) -> None:
        self.coder.late = self.judge.late
        self.walks = asked_for(self.context, self.coder, self.notes)
        self.say("measuring times in place")
        sample = self.judge.timed(1)[0]
        prices = priced(self.context, self.proposals, self.coder, sample, self.context.options, self.prices)
        self.problem = self.proposals.problem(self.context, prices)
        self.problem.late = self.judge.late
        share, whole = self.judge.budget.size, self.judge.original.source_bytes
        scales = Scales(self.coder, self.judge.finished)
        self.size = SizeLimit(self.problem, None if share is None else share * whole, scales)
        self.judge.patient |= self.context.recipe.passes is not None and not self.problem.has_small_codes
        self.shaped(lead, self.before)

    def shaped(self, lead: float, before: float) -> None:
        """What is known of this form of the model."""
        self.problem.lead, self.before = lead, before
        if self.judge.budget.speed is not None:
            self.problem.most_seconds = self.problem.original_seconds / self.judge.budget.speed * TIGHT

    def trials(self) -> Iterator[Trial]:
        """The trials to deliver, best first: the searched plan, then what can be delivered where it cannot."""
        variants = [partial(self.ranges, *choice) for choice in RANGES] if self.context.observations.ranges else []
        search = Search(
            self.problem,
            self.recalled,
            self.allowed,
            self.sensitivities,
            variants,
            self.affordable,
            self.say,
            self.feed_back,
            self.size.exceeded,
            lambda trial: self.loads is None or self.loads.in_time(trial),
            sparing=self.judge.budget.evals is not None,
        )
        best = search.run()
        self.judge.out_of_reach = self.problem.free or shortfall(self.problem, best.plan) > BEYOND
        yield self.built_again(best)
        seen = {best.plan.key}
        fallbacks = Fallbacks(self.problem, self.judge, self.allowed)
        for plan in fallbacks.after(best, search.tried):
            if plan.key not in seen:
                seen.add(plan.key)
                fallbacks.last = self.judged(plan)
                yield fallbacks.last

    def loading(self, first: Trial) -> float | None:
        """Seconds in which weights may unfold at load, so that the file is in time; None where nobody knows or asks."""
        measured, limited = self.context.target.measured, self.judge.time_to_load(1.0) < math.inf
        if not (self.problem.has_small_codes and measured and limited):
            return None
        self.loads = LoadRoom(self.problem, self.taken, self.hurry)
        return self.loads.measure(first, load_pace(self.context.options, self.prices))

    def hurry(self) -> None:
        """From now on models are made to load sooner."""
        self.judge.late = self.coder.late = self.problem.late = True
        self.coder.forget()
        self.size.scales = Scales(self.coder, self.judge.finished)

    def taken(self, plan: Plan, model: Model) -> tuple[float, float]:
        """Seconds that the model of ``plan`` may take to load, and that it takes; NOTHING: it is still to be made."""
        made = (lambda: self.judge.finished(self.built(plan))[0]) if model is NOTHING else lambda: model
        return time_taken(self.judge, made, self.prices, self.subject, repr(plan.key))

    @property
    def allowed(self) -> float:
        """Noise over signal that the SQNR floor leaves to rounding."""
        floor = float(10 ** (-self.judge.lowest_sqnr / 10))
        return max(floor - self.before, LEAST_SHARE * floor)

    def feed_back(self) -> bool:
        """From now on weights are solved on what the compressed model feeds them: that takes longer for every plan, and
        leaves less noise, which goes into fewer bits.
        """
        self.feedback = possible(self.context)
        if self.feedback:
            self.coder.forget()
            drop_pages()
        return self.feedback

    def affordable(self) -> int:
        """How many plans may be built: fewer where solving takes long. The price file keeps how long the first took, so
        that it is the same number in every run.
        """
        if not self.feedback or self.pace is None:
            return self.most
        return int(np.clip(SOLVING / self.pace, FEWEST_TRIALS, self.most))

    def built(self, plan: Plan) -> Model:
        """``plan`` as a model."""
        if self.feedback or self.walks:
            start, started = perf_counter(), process_time()
            try:
                found = solve(plan, self.context, self.coder, feedback=self.feedback)
                spent = min(perf_counter() - start, process_time() - started)  # others may be at work, or many threads
                self.pace = self.prices.entries.setdefault(solving_key(self.context), spent)
                return build_solved(plan, found, self.context, late=self.judge.late)
            except (ModelError, DataError) as error:
                self.feedback = self.walks = False
                self.notes.append(f"weights were solved on the original's activations alone: {error}")
        return build(self.context.model, plan, self.coder)

    def solved_anew(self, trial: Trial) -> Trial | None:
        """``trial`` with the same formats, all weights solved on what the compressed model feeds them; None where they
        were, or cannot be.
        """
        forms = {name: parse_format(mode) for name, mode in trial.plan.stored.items() if name in trial.plan.coded}
        free = {name: replace(form, rounding="gptq").name for name, form in forms.items()}
        plan = replace(trial.plan, stored={**trial.plan.stored, **free})
        if not free or not possible(self.context) or (self.feedback and plan.stored == trial.plan.stored):
            return None
        try:
            found, late = solve(plan, self.context, self.coder), self.judge.late
            made = build_solved(plan, found, self.context, late=late)
        except (ModelError, DataError) as error:
            self.notes.append(f"recovery: codes could not be solved anew: {error}")
            return None
        return replace(self.judge.trial(made, plan), before=trial.before)

    def judged(self, plan: Plan) -> Trial:
        """``plan`` as a model, held against the original."""
        self.say(f"judging a plan with {len(plan.compute)} sites in int8 and {len(plan.coded)} weights as codes")
        self.judge.free = self.problem.free
        expected = self.size.expected(plan) if self.attempts or self.size.scales.able else None
        trial = self.judge.trial(self.built(plan), plan)
        return self.learned(trial, file_bytes(trial.model), expected)

    def recalled(self, plan: Plan) -> Trial:
        """As judged(), but where weights are solved with feedback and another run did, its figures without a model."""
        figures = self.memory.recall(plan) if self.feedback else None
        if figures is not None:
            self.judge.free = self.problem.free
            expected = self.size.expected(plan) if self.attempts or self.size.scales.able else None
            trial = self.judge.again(plan, figures.quality, figures.score, figures.notes)
            if trial is not None:
                self.pace = self.prices.entries.get(solving_key(self.context))
                return self.learned(trial, figures.bytes, expected)
        trial = self.judged(plan)
        if self.feedback:
            self.memory.keep(trial, file_bytes(trial.model))
        return trial

    def built_again(self, trial: Trial) -> Trial:
        """``trial`` with its model. Raises OutdatedError where it is not what another run said of it."""
        if trial.model is not NOTHING:
            return trial
        judge, drops, calls = self.judge, list(self.judge.drops), self.judge.evaluations
        judge.free = False  # it may have been judged before limits were given up
        self.say("building the best plan, whose figures are known")
        made = replace(judge.trial(self.built(trial.plan), trial.plan), before=trial.before, others=trial.others)
        judge.drops, judge.evaluations = drops, calls
        if self.judge.remembers and (made.missed is None) != (trial.missed is None):
            raise OutdatedError
        return made

    def learned(self, trial: Trial, written: int, expected: int | None) -> Trial:
        """``trial``, of a file of so many bytes, after predictions were held against it."""
        trial, plan = replace(trial, before=self.before), trial.plan
        trial.others = self.size.learn(plan, written)
        share = written / max(self.judge.original.source_bytes, 1)
        self.say(f"about {share:.1%} of the bytes, {trial.quality.sqnr_db:.1f} dB: {trial.missed or 'it holds'}")
        self.attempts.append(Attempt(plan, trial.quality.sqnr_db, trial.score, trial.missed, expected))
        if not self.feedback:
            self.coder.settle(plan.stored, plan.compute)
        if self.problem.ratios and not self.feedback:
            self.problem.ratios = self.coder.noise_ratios()  # with the true damage of what was solved
        return trial

    def sensitivities(self, first: Trial) -> None:
        """Measure the noise of every rounding alone and better the loudest ranges; ``first`` shows the hard samples."""
        if first.model is NOTHING:  # its figures are those of an earlier search
            first = replace(first, model=self.built(first.plan))
        self.say("measuring what each rounding does to the outputs")
        self.problem.most_loading = self.loading(first)
        self.ranges("", 0.0)
        activations, weights = self.proposals.roundings(self.context)
        formats = sorted((name, self.coder.probed(name)) for name in weights)
        parts = (self.subject, repr(activations), repr(formats), repr(first.plan.key))
        try:
            found = self.prices.found("noise", *parts, learn=partial(self.heard, first, activations, weights))
        except (ModelError, DataError) as error:
            self.notes.append(f"the noise of single roundings could not be measured: {error}")
            return
        self.coder.known |= {(name, mode): found["damages"][name] for name, mode in formats if name in found["damages"]}
        self.context.observations.refined.update({name: (low, high) for name, (low, high) in found["ranges"].items()})
        self.problem.noise, self.problem.compute = dict(found["noise"]), collect(self.lossy, self.context).compute
        self.spared(
            [name for name, _ in formats if found["noise"].get(weight_key(name)) == 0 < found["damages"].get(name, 0)]
        )
        ways = repr(sorted(self.coder.ways.items()))
        damages = self.prices.found("damages", self.subject, ways, learn=self.coder.estimates)
        self.coder.damages = {name: dict(each) for name, each in damages.items()}
        self.problem.ratios = self.coder.noise_ratios()

    def conditional(self, weights: Collection[str]) -> set[str]:
        """Those of ``weights`` that only bodies read: of If, Loop or Scan, which may not run."""
        main = {tensor.name for node in self.context.model.graph.nodes for tensor in node.inputs}
        return set(weights) - main

    def spared(self, unheard: Collection[str]) -> None:
        """Weights whose rounding no sample shows, as in a branch that none takes, keep 8 bits: what nobody hears seems
        to cost nothing.
        """
        ways = self.problem.storage
        full = {name: [way for way in ways.get(name, ()) if not is_small(way.mode)] for name in unheard}
        kept = {name: found for name, found in full.items() if 0 < len(found) < len(ways[name])}
        self.problem.storage = {**ways, **kept}
        if kept and not self.samples.generated:
            which = f"{len(kept)} weights ({', '.join(sorted(kept)[:3])}{' ...' if len(kept) > 3 else ''})"
            why, help_ = f"no sample shows what {which} do", ": samples that need them allow fewer"
            if not self.judge.reference.hears:
                why, help_ = f"no output is a quantity in which rounding {which} could be heard", ""
            self.notes.append(f"{why}, so they keep 8 bits{help_}")

    def heard(self, first: Trial, activations: Sequence[Activation], weights: Collection[str]) -> Finding:
        """The noise of every rounding, ranges that are better, and the damage of the codes that were heard."""
        samples: Sequence[Any] = self.samples.take(PROBES)  # also those kept apart: ranges are of all samples
        seen, options = self.context.observations, self.context.options
        samples = telling(samples[:HEARD], self.context.model, first.model, options) + list(samples[HEARD:])
        unseen: Sequence[Any] = unfitted(self.samples, HEARD)
        unseen = telling(unseen, self.context.model, first.model, options) if len(unseen) >= TELLING else ()
        codes = self.coder.probe(weights, self.proposals.compute)
        noise, refined = measure(
            self.context.model,
            activations,
            codes,
            samples,
            options,
            seen.ranges,
            self.prices.entries,
            seconds=HEARD_SECONDS[self.samples.generated],
            alone=self.conditional(weights),
            unseen=unseen,
        )
        drop_pages()
        for name, made in codes.items() if not unseen else ():
            if (key := weight_key(name)) in noise:
                noise[key] *= self.coder.optimism(name, made)
        damages = {name: float(made.damage) for name, made in codes.items() if np.isfinite(made.damage)}
        ranges = {name: (float(low), float(high)) for name, (low, high) in refined.items()}
        return {"noise": {key: float(value) for key, value in noise.items()}, "ranges": ranges, "damages": damages}

    @cached_property
    def memory(self) -> Memory:
        """What trials of other runs measured, where the hook can be told from others."""
        hook = self.judge.evaluation
        if not self.judge.remembers or (hook is not None and hook.identity is None):
            return Memory(self.prices)
        asked = "" if hook is None else f"{hook.identity} {self.judge.score!r}"
        finishing = repr([(repr(each), told) for each, told in self.judge.finishing])
        return Memory(self.prices, (self.subject, asked, finishing))

    @cached_property
    def subject(self) -> str:
        """What findings of this planning are about: the model, its data, what was asked for but limits, the machine."""
        recipe, options = replace(self.context.recipe, budget=Budget()), self.context.options
        of = (self.context.model.digest(), self.samples.digest, recipe, options, __version__, runtime_version())
        return repr((*of, cpu_name()))

    def ranges(self, method: str, percentile: float) -> None:
        """Propose again with all ranges chosen by ``method``; by least squares where it is empty."""
        seen = self.context.observations
        seen.refined = {name: seen.ranges[name].limits(method, percentile) for name in seen.ranges} if method else {}
        self.problem.compute = collect(self.lossy, self.context).compute
