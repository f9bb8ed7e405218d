"""From weights to factors: which ranks, in which order, refitted to what. In: units and a goal. Out: smaller models.

Every unit is surveyed on what it meets in the original model, then asked for jobs. Jobs are done in the order of the
graph: each is solved on what the model factored so far really gives it, against the original's outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from onnxc.contract.candidates import Refusal
from onnxc.contract.context import Context, Stakes
from onnxc.contract.passes import Level, Offer, Offers
from onnxc.errors import DataError, ModelError
from onnxc.factors.goals import Goal
from onnxc.factors.units import Job, Unit
from onnxc.model import Model
from onnxc.sequential import Walk, stages, statistics, too_few
from onnxc.session import Session, measure_ratio

SAMPLES = 128  # most that are looked at
CAUTIONS = (4.0, 1.0, 0.25)  # times the estimated cost of damage: errors of layers do not add up exactly
AUTOMATIC = (0.999, 0.997, 0.99, 0.97)  # energies of the levels where nothing was told: 30, 25, 20 and 15 dB per site
SLOWEST = 0.98  # a level that is measured slower than this is not offered
ATTEMPTS = 3  # a busy machine must not decide: slower is believed when it is measured so often
COSTS_MORE = "factors cost more, with the bits that would make their damage good, than they save"
STAGE_BYTES = 1 << 30  # of the moments of one stage


@dataclass
class Factoring:
    """All units of a pass, and the smaller models made of them."""

    name: str
    what: str
    context: Context
    units: Sequence[Unit]
    refused: list[str] = field(default_factory=list)
    refit: bool = True
    whiten: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def data(self) -> bool:
        """Whether there is real data to look at."""
        samples = self.context.samples
        return self.whiten and samples is not None and not samples.generated

    def walk(self, model: Model) -> Walk:
        """The samples on their way through ``model``."""
        samples = self.context.samples
        assert samples is not None
        few = samples if len(samples) <= SAMPLES else samples.take(SAMPLES)
        return Walk(model, few, self.context.options, self.context.sites.types)

    def staged(self, items: Sequence[Unit] | Sequence[Job]) -> Iterator[list[Unit | Job]]:
        """Units or jobs in stages, cut where their moments would take too much memory."""
        known = {item.name: item for item in items if item.nodes}
        for stage in stages(self.context.model, {name: item.nodes for name, item in known.items()}):
            part: list[Unit | Job] = []
            used = 0
            for name in stage:
                size = sum(self.sizes.get(reading.key, 0) for reading in known[name].readings)
                if part and used + size > STAGE_BYTES:
                    yield part
                    part, used = [], 0
                part.append(known[name])
                used += size
            yield part

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the moments by reading."""
        return {reading.key: unit.bytes for unit in self.units for reading in unit.readings}

    def levels(self, goal: Goal | None) -> Iterator[Level]:
        """One level as told by ``goal``, or without one those of the automatic energies that pay."""
        goals = [goal] if goal is not None else [Goal(energy=energy, automatic=True) for energy in AUTOMATIC]
        self.survey(goals)
        offered, done, reasons = False, set[tuple[str, str]](), list[str]()
        for each in goals:
            found = [unit.jobs(each) for unit in self.units]
            jobs = [job for made, _ in found for job in made]
            reasons = [reason for _, said in found for reason in said]
            key = {(job.name, job.text) for job in jobs}
            if not jobs or key == done:
                continue
            done = key
            model = self.rebuilt(jobs)
            if goal is None and (slower := self.slower(model)) is not None:
                self.notes.append(f"at {each.energy:.1%} of the energy per site the model {slower}")
                continue
            offered = True
            yield Level(model, self.summary(jobs), (*self.notes, *self.refused, *reasons))
        if not offered:  # the reasons have to reach the user
            notes = (*self.notes, *self.refused, *reasons)
            if notes:
                yield Level(self.context.model.copy(), f"no {self.what} is factored", notes)

    def offers(self, stakes: Stakes) -> Offers:
        """Factors at ranks by what numbers are worth to a plan, and what damage costs it."""
        goals = [Goal(automatic=True, stakes=stakes, caution=caution) for caution in CAUTIONS]
        self.survey(goals)
        found, done, reasons = list[Offer](), set[tuple[str, str]](), list[str]()
        for goal in goals:
            pairs = [unit.jobs(goal) for unit in self.units]
            jobs = [job for made, _ in pairs for job in made]
            reasons = [reason for _, said in pairs for reason in said]
            key = {(job.name, job.text) for job in jobs}
            if jobs and key != done:
                done = key
                saved, cost = (sum(sums) for sums in zip(*(job.stakes(stakes) for job in jobs), strict=True))
                found.append(Offer(saved / stakes.total, cost / stakes.total, partial(self.level, jobs)))
        return Offers(tuple(found), "" if found else self.closest(), self.refusals(reasons))

    def level(self, jobs: Sequence[Job]) -> Level:
        """The model with ``jobs`` done."""
        return Level(self.rebuilt(jobs), self.summary(jobs), tuple(self.notes))

    def closest(self) -> str:
        """The sentence about the place where factors come closest to winning something."""
        losses = {place: loss for unit in self.units for place, loss in unit.losses.items()}
        if not losses:
            return f"no {self.what} has factors"
        place = min(losses, key=lambda each: losses[each].times)
        return f"the closest is {place}: {losses[place]}"

    def refusals(self, reasons: Iterable[str]) -> tuple[Refusal, ...]:
        """Places that are not factored, with reasons that many of them share."""
        losses = {place: COSTS_MORE for unit in self.units for place in unit.losses}
        pairs = (reason.partition(": not factored, ")[::2] for reason in (*self.refused, *reasons))
        return tuple(Refusal(self.name, place, losses.get(place, reason)) for place, reason in pairs)

    def summary(self, jobs: Iterable[Job]) -> str:
        """What a level did, for the report."""
        jobs = list(jobs)
        worst = max(jobs, key=lambda job: job.damage)
        saved = sum(job.saved for job in jobs)
        counts = [sum(each.count for each in items) for items in (jobs, self.units)]
        return (
            f"{counts[0]} of {counts[1]} {self.what} weights factored, {saved:,} numbers fewer; largest damage "
            f"{worst.damage:.2g} at {worst.name} ({worst.text})"
        )

    def survey(self, goals: Sequence[Goal]) -> None:
        """Show every unit what it meets in the original model."""
        seen: set[str] = set()
        if self.data:
            try:
                walk = self.walk(self.context.model)
                for stage in self.staged(self.units):
                    stats = statistics(walk, [r for unit in stage for r in unit.readings])
                    for unit in stage:
                        assert isinstance(unit, Unit)
                        seen.add(unit.name)
                        met = [stats[each.key] for each in unit.readings if each.key in stats]
                        reason = too_few((each.rows, each.moment.shape[-1]) for each in met if each.moment is not None)
                        if met and not any(each.rows or each.counts is not None for each in met):
                            reason = "no sample shows what it does"
                        if goals[0].stakes is not None and reason is not None:
                            self.refused.append(f"{unit.name}: not factored, {reason}")
                            self.units = [each for each in self.units if each is not unit]
                        else:
                            unit.survey(stats, goals)
            except (ModelError, DataError) as error:  # a part of it does not run by itself
                self.notes.append(f"inputs could not be observed, all directions count alike: {error}")
        elif self.whiten:
            self.notes.append("without calibration data all directions of an input count alike")
        for unit in self.units:
            if unit.name not in seen:
                unit.survey({}, goals)

    def rebuilt(self, jobs: Sequence[Job]) -> Model:
        """A copy of the model with ``jobs`` done."""
        model = self.context.model.copy()
        done: set[str] = set()
        if self.data:
            original = self.walk(self.context.model)
            walk = self.walk(model) if self.refit else None
            try:
                for stage in self.staged(jobs):
                    readings = [reading for job in stage for reading in job.readings]
                    stats = statistics(walk, readings, original) if walk else statistics(original, readings)
                    for job in stage:
                        assert isinstance(job, Job)
                        job.apply(model, stats)
                        done.add(job.name)
            except (ModelError, DataError) as error:
                self.notes.append(f"{len(jobs) - len(done)} units are factored without data: {error}")
        for job in jobs:
            if job.name not in done:
                job.apply(model, {})
        model.tidy()
        return model

    def slower(self, model: Model) -> str | None:
        """Why ``model`` does not pay, None if it does: bytes as saved, time interleaved with the model as it was."""
        before, samples, options = self.context.model, self.context.samples, self.context.options
        sizes = [sum(w.nbytes for graph in each.graphs() for w in graph.weights) for each in (before, model)]
        if sizes[1] >= sizes[0]:
            return f"would hold {sizes[1]:,} bytes of weights, no fewer than {sizes[0]:,}"
        if samples is None:
            return None
        sessions = Session(before, options), Session(model, options)
        best = 0.0
        for _ in range(ATTEMPTS):
            best = max(best, measure_ratio(*sessions, samples.take(4), seconds=1.0, decide=SLOWEST).median)
            if best >= SLOWEST:
                return None
        return f"would run {best:.2f} times as fast"
