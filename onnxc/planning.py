"""Plans of one model, judged. In: what passes proposed, a judge, prices. Out: trials, best first.

Prices are measured once, the noise of single roundings when the first plan shows that it matters; then every plan is a
question of arithmetic, until one is built and judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from onnxc.coder import Coder
from onnxc.cost import PriceFile
from onnxc.data import Calibration
from onnxc.errors import DataError, ModelError
from onnxc.exactness import file_bytes
from onnxc.file.storage import drop_pages
from onnxc.judge import Judge
from onnxc.planner import Plan, Problem, predicted_noise, small_codes, stored_bytes
from onnxc.price import priced
from onnxc.propose import Proposals, collect
from onnxc.rewrite import Context, LossyPass
from onnxc.search import Trial, search, storage_only, under
from onnxc.sensitivity import measure, telling

RANGES = (
    ("minmax", 100.0),
    ("percentile", 99.99),
    ("percentile", 99.999),
)  # other choices than least squares
TIGHT = 0.99  # of a limit is planned for: estimates are not exact
LOADING = (20.0, 10.0)  # steps of the price of loading, where the best plan was refused
PROBES = 16  # most samples for the noise of single roundings


@dataclass(frozen=True)
class Attempt:
    """A plan that was built, without its model: what was measured, and the floor it misses (None: none)."""

    plan: Plan
    sqnr_db: float
    score: float | None
    missed: str | None


@dataclass
class Planning:
    """Everything that plans of one model need.

    Attributes:
        context, proposals, coder: the model, what passes said of it, and the codes of its weights.
        lossy: the passes, asked again when ranges change.
        judge: decides; its budget holds the limits.
        samples: calibration data or generated inputs.
        prices: the file of measured times; problem: what plans are made from.
        notes: gets sentences for the user; say: is told what is being done.
        lead: how many times as fast as the original's the float form of this model is.
        attempts: every plan that was judged; others: bytes of the file beside the weights, seen in the first of them.
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
    lead: float = 1.0
    problem: Problem = field(init=False)
    attempts: list[Attempt] = field(default_factory=list)
    others: int = 0

    def __post_init__(self) -> None:
        self.say("measuring times in place")
        prices = priced(self.context, self.proposals, self.coder, self.samples, self.context.options, self.prices)
        self.problem = self.proposals.problem(self.context, prices)
        if self.judge.budget.speed is not None:
            self.problem.most_seconds = prices.total * self.lead / self.judge.budget.speed * TIGHT

    def trials(self) -> Iterator[Trial]:
        """The trials to deliver, best first: the searched plan; should it turn out slower than the input, the same
        storage without int8 arithmetic; then the simplified model as it is.
        """
        variants = [partial(self.ranges, *choice) for choice in RANGES] if self.context.observations.ranges else []
        best, tried = search(self.problem, self.judged, self.sensitivities, self.allowed, variants, say=self.say)
        yield best
        seen = {best.plan.key}
        if self.problem.noise and self.problem.has_small_codes:  # it may have taken too long to load
            noise = predicted_noise(self.problem, best.plan.compute, best.plan.stored)
            for dearer in LOADING:
                self.problem.load_price *= dearer
                lighter = under(self.problem, noise)
                if lighter.key not in seen:
                    seen.add(lighter.key)
                    yield self.judged(lighter)
        held = next((trial.plan for trial in tried if trial.missed is None and not small_codes(trial.plan)), None)
        if held is not None and held.key not in seen:
            seen.add(held.key)
            yield self.judged(held)
        rows = {name: c for name, c in best.plan.compute.items() if c.mode == "rows"}
        for lesser in (storage_only(self.problem), replace(best.plan, compute=rows), Plan()):
            if lesser.key not in seen:
                seen.add(lesser.key)
                yield self.judged(lesser)

    @property
    def allowed(self) -> float:
        """Noise over signal that the SQNR floor allows."""
        return float(10 ** (-self.judge.lowest_sqnr / 10))

    def judged(self, plan: Plan) -> Trial:
        """``plan`` as a model, held against the original."""
        self.say(f"judging a plan with {len(plan.compute)} sites in int8 and {len(plan.coded)} weights as codes")
        trial = self.judge.trial(self.context.model, plan, self.coder)
        if not self.attempts:  # what is no weight takes as much in every plan
            self.others = file_bytes(trial.model) - stored_bytes(self.problem, plan.stored)
        self.attempts.append(Attempt(plan, trial.quality.sqnr_db, trial.score, trial.missed))
        size = self.judge.budget.size
        if size is not None and self.problem.most_bytes is None:
            self.problem.most_bytes = max(size * self.judge.original.source_bytes * TIGHT - self.others, 1.0)
        self.coder.settle(plan.stored, plan.compute)
        if self.problem.ratios:
            self.problem.ratios = self.coder.noise_ratios()  # with the true damage of what was solved
        return trial

    def sensitivities(self, first: Trial) -> None:
        """Measure the noise of every rounding alone and better the loudest ranges; ``first`` shows the hard samples."""
        self.say("measuring what each rounding does to the outputs")
        self.ranges("", 0.0)
        activations, weights = self.proposals.roundings(self.context)
        samples: Sequence[Any] = self.samples.take(min(PROBES, len(self.samples)))
        seen, options = self.context.observations, self.context.options
        try:
            samples = telling(samples, self.context.model, first.model, options)
            codes = self.coder.probe(weights, self.proposals.compute)
            noise, refined = measure(
                self.context.model, activations, codes, samples, options, seen.ranges, self.prices.entries
            )
        except (ModelError, DataError) as error:
            self.notes.append(f"the noise of single roundings could not be measured: {error}")
            return
        drop_pages()
        seen.refined.update(refined)
        self.problem.noise, self.problem.compute = noise, collect(self.lossy, self.context).compute
        self.problem.ratios = self.coder.noise_ratios()

    def ranges(self, method: str, percentile: float) -> None:
        """Propose again with all ranges chosen by ``method``; by least squares where it is empty."""
        seen = self.context.observations
        seen.refined = {name: seen.ranges[name].limits(method, percentile) for name in seen.ranges} if method else {}
        self.problem.compute = collect(self.lossy, self.context).compute
