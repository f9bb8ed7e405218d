"""From weights to factors: which ranks, in which order, refitted to what. In: units and a goal. Out: smaller models.

A *unit* is what is decided together: a weight, or several that read one input. It is surveyed once (its damage at
every rank, on what it meets in the original model) and then asked for *jobs*, whatever the goal. Jobs are done in the
order of the graph: each is solved on what the model factored so far really gives it, against the original's outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxc.contract.candidates import Refusal
from onnxc.contract.context import Context, Stakes
from onnxc.contract.passes import Level, Offer, Offers
from onnxc.errors import DataError, ModelError, RecipeError
from onnxc.factors.low_rank import break_even, rounded
from onnxc.model import Model
from onnxc.sequential import Reading, Statistic, Walk, stages, statistics
from onnxc.session import Session, measure_ratio

SAMPLES = 128  # most that are looked at
ROWS = 8192  # of all samples together, that a statistic is made of
CAUTIONS = (4.0, 1.0, 0.25)  # times the estimated cost of damage: errors of layers do not add up exactly
AUTOMATIC = (0.999, 0.997, 0.99, 0.97)  # energies of the levels where nothing was told: 30, 25, 20 and 15 dB per site
SLOWEST = 0.98  # a level that is measured slower than this is not offered
ATTEMPTS = 3  # a busy machine must not decide: slower is believed when it is measured so often
COSTS_MORE = "factors cost more, with the bits that would make their damage good, than they save"
STAGE_BYTES = 1 << 30  # of the moments of one stage

Stats = Mapping[str, Statistic]


@dataclass(frozen=True)
class Goal:
    """How far to go at each site; one of the first three is set, or ``stakes``.

    Attributes:
        rank: this rank, whatever it costs.
        energy: the lowest rank that keeps this share of E|y|^2; about the mean where a bias makes that good.
        parameters: the rank whose factors hold this share of the weight's numbers.
        automatic: nobody told; only what can be expected to pay in time.
        stakes: what weights are worth to a plan: the rank that saves most, less what its damage costs.
        caution: times what damages are estimated to cost there.
    """

    rank: int = 0
    energy: float = 0.0
    parameters: float = 0.0
    automatic: bool = False
    stakes: Stakes | None = field(default=None, compare=False)
    caution: float = 1.0

    @classmethod
    def told(cls, name: str, rank: int, energy: float, parameters: float) -> Goal | None:
        """What a pass's fields say, None where they say nothing. RecipeError for values that make no sense."""
        if sum(map(bool, (rank, energy, parameters))) > 1:
            raise RecipeError(f"pass '{name}' takes one of rank, energy and parameters, not several")
        if rank < 0:
            raise RecipeError(f"{name}:rank={rank} is not a rank: write 1 or more")
        for field_name, value in (("energy", energy), ("parameters", parameters)):
            if not 0 <= value <= 1:
                raise RecipeError(f"{name}:{field_name}={value} is not between 0 and 1")
        return cls(rank, energy, parameters) if rank or energy or parameters else None

    @property
    def damage(self) -> float:
        """The damage that is allowed where an energy is asked for."""
        return 1.0 - self.energy if self.energy else 0.0

    def win(self, weights: Iterable[str], share: float, damage: float, kernels: int = 1) -> float:
        """What is won by factors of ``weights`` that hold this share of their numbers: what they save, less what
        ``kernels`` more take, what their damage costs, and that of the codes of one more factor.
        """
        assert self.stakes is not None
        return -kernels * self.stakes.kernel + sum(
            self.stakes.gain(name) * (1 - share)
            - self.caution * self.stakes.cost(name) * (damage + self.stakes.damages.get(name, 0.0))
            for name in weights
        )


@dataclass(frozen=True)
class Curve:
    """damage(rank) of one matrix, from one decomposition: [Q + 1], from rank 0 on."""

    damages: NDArray[np.float64]

    def at(self, rank: int) -> float:
        return float(self.damages[min(rank, len(self.damages) - 1)])

    def rank_for(self, damage: float) -> int:
        """The lowest rank with at most ``damage``; beyond the last where there is none."""
        below = np.flatnonzero(self.damages <= damage + 1e-9)
        return max(int(below[0]), 1) if len(below) else len(self.damages)


def rank_of(
    curve: Curve, depth: int, width: int, goal: Goal, *, speed: float, step: int, weights: Sequence[str] = ()
) -> int | str:
    """The rank of a matrix [depth, width] under ``goal``, or why there is none.

    Args:
        speed: the largest share of K N at which a pair is faster; step: multiples that kernels like.
        weights: the names of what the matrix holds, for stakes.
    """
    full = min(depth, width)
    if goal.stakes is not None:
        return paying_rank(curve, depth, width, goal, speed=speed, step=step, weights=weights)
    if goal.rank:
        return goal.rank if goal.rank <= full else f"rank {goal.rank} is above its full rank {full}"
    if goal.parameters:
        rank = min(break_even(depth, width, goal.parameters), full)
        return rank or f"{goal.parameters:.0%} of its numbers are less than rank 1"
    most = min(break_even(depth, width, speed if goal.automatic else 1 - 1e-6), full)
    rank = curve.rank_for(goal.damage)
    if not most:
        return "rank 1 already takes more than the weight itself"
    if rank > most:
        share = most * (depth + width) / (depth * width)
        return f"rank {most}, {share:.0%} of its numbers, keeps {1 - curve.at(most):.1%}, not {goal.energy:.1%}"
    return rounded(rank, step, most)


def paying_rank(
    curve: Curve, depth: int, width: int, goal: Goal, *, speed: float, step: int, weights: Sequence[str]
) -> int | str:
    """The rank that wins most where every rank has its price; why there is none where none wins anything."""
    most = min(break_even(depth, width, speed), len(curve.damages) - 1)
    if most < 1:
        return "rank 1 already takes more than pays in time"
    ranks = sorted({*range(min(step, most), most, step), most})
    shares = {rank: rank * (depth + width) / (depth * width) for rank in ranks}
    wins = {rank: goal.win(weights, shares[rank], curve.at(rank)) for rank in ranks}
    best = max(ranks, key=lambda rank: (wins[rank], -rank))
    return best if wins[best] > 0 else Loss.of(goal, weights, f"rank {best}", shares[best], curve.at(best))


class Loss(str):
    """Why factors win nothing, at the prices of a plan: what the best that was found is, and how many times of what it
    saves it costs.
    """

    times: float

    @classmethod
    def of(cls, goal: Goal, weights: Sequence[str], what: str, share: float, damage: float, kernels: int = 1) -> Loss:
        assert goal.stakes is not None
        saved = sum(goal.stakes.gain(name) * (1 - share) for name in weights)
        times = 1 - replace(goal, caution=1.0).win(weights, share, damage, kernels) / max(saved, 1e-12)
        found = f"{what}, {share:.0%} of its numbers, loses {damage:.2g} of its output"
        made = cls(f"{found}: with the bits that would make it good that costs {times:.1f} times what it saves")
        made.times = times
        return made


@dataclass
class Job(ABC):
    """A factorization that was decided.

    Attributes:
        name: of the node, or the first of several; nodes: of the main graph, where it takes place.
        readings: what it has to see.
        text: for the report; damage: estimated; saved: numbers fewer than before.
    """

    name: str
    nodes: Sequence[str]
    readings: Sequence[Reading]
    text: str
    damage: float
    saved: int

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Of its weights."""

    @property
    @abstractmethod
    def share(self) -> float:
        """Of their numbers and products, that the factors hold."""

    def stakes(self, stakes: Stakes) -> tuple[float, float]:
        """What it saves, and what its damage costs."""
        saved = sum(stakes.gain(name) for name in self.names) * (1 - self.share)
        return saved, sum(stakes.cost(name) for name in self.names) * self.damage

    @property
    def count(self) -> int:
        """How many weights it is about."""
        return 1

    @abstractmethod
    def apply(self, model: Model, stats: Stats) -> None:
        """Solve on ``stats`` (without one of its own: as if inputs were white) and write the factors into ``model``."""


class Unit(ABC):
    """What is decided together.

    Attributes:
        name: of a node; nodes: all of the main graph that it is about; readings: what its survey has to see.
        bytes: of the moments that its survey and its jobs hold.
        losses: name of a node -> why it won nothing under the last goal that has stakes.
    """

    name: str
    nodes: Sequence[str]
    readings: Sequence[Reading]
    bytes: int
    losses: dict[str, Loss]

    @property
    def count(self) -> int:
        """How many weights it is about."""
        return 1

    @abstractmethod
    def survey(self, stats: Stats, goals: Sequence[Goal]) -> None:
        """Note the damage at every rank that ``goals`` can ask for."""

    @abstractmethod
    def jobs(self, goal: Goal) -> tuple[list[Job], list[str]]:
        """What to do, and sentences about what is not done."""


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
        """Units or jobs of the main graph in stages, cut where their moments would take too much memory."""
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
                        unit.survey(stats, goals)
                        seen.add(unit.name)
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
