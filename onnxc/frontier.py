"""The whole trade-off of a model, from one observation and one pricing. In: a model, a folder. Out: models, a table.

    IN -> DIR/NAME-26.4.onnx  DIR/NAME-17.9.onnx ...   none larger, slower and less accurate than another
          DIR/frontier.csv  frontier.html  frontier.png  frontier.json

Targets go from almost lossless down to the floor. For each the best plan is built, judged, calibrated on, measured and
saved at once, so that a run that was stopped goes on where it was: frontier.json knows every plan that was built.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxc.codes.formats import FLOATS, INT8
from onnxc.compiler import Progress, Run, observed, opened, proposed, receipt, simplified
from onnxc.cost import PriceFile
from onnxc.deliver import Delivery, gate
from onnxc.errors import BudgetError, MissingExtraError, ModelError, UsageError
from onnxc.file.storage import replace_file
from onnxc.judge import SMALL_SHARE
from onnxc.model import Model
from onnxc.planner import Plan, plan, stored_bytes
from onnxc.planning import Planning
from onnxc.quality import FLOOR_SQNR_WITH_HOOK_DB, Quality, floor_met, relative_drop
from onnxc.recipe import Budget, Recipe, load_recipe
from onnxc.report import plain
from onnxc.reports import charts
from onnxc.search import FEWER, HEADROOM, Trial, calibrated, halves, storage_only, under
from onnxc.session import Session
from onnxc.structure.named import shrunk

LADDER_DB = (60.0, 50.0, 40.0, 35.0, 30.0, 25.0, 20.0, 16.0, 13.0, 10.0)
TRIES, NEAR_DB = 3, 1.5  # plans per target, until one is so near it
LEAN = 8.0  # what bytes or time count in the smallest and the fastest plan at the floor
SPEED_NOISE, SMALLER = 0.97, 0.98  # a model that much slower is not known to be slower; what is worth another model
RECORD = "frontier.json"
PAGES = ("frontier.csv", "frontier.html", "frontier.png")


@dataclass
class Point:
    """One plan that was built.

    Attributes:
        key: of the plan, the input, the data and the options.
        files: names in the folder, the model first; empty where the model was not kept.
        digest: SHA-256 of the files.
        size: bytes, external data included; share: of the input's.
        speed: input's time over this model's, with its spread over rounds; seconds: per run.
        load_seconds, load_bytes: what creating a session takes.
        sqnr_db, agreement, changed, judged: of the outputs, over all samples; score: of the user's metric.
        predicted_share, predicted_speed, predicted_sqnr_db: what the plan was chosen for.
        sites: in int8; formats: format -> weights stored in it; kernels: the same for plans that compute alike.
        damages: weight -> damage of its codes, which the next plans are made with.
        rejected: why it is no model to deliver, whatever the floors; None if it is one.
        beaten_by: key of the point that is smaller, faster and better.
    """

    key: str
    files: list[str] = field(default_factory=list)
    digest: str = ""
    size: int = 0
    share: float = 1.0
    speed: float | None = None
    speed_low: float | None = None
    speed_high: float | None = None
    seconds: float | None = None
    load_seconds: float | None = None
    load_bytes: int | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    changed: int = 0
    judged: int = 0
    score: float | None = None
    predicted_share: float | None = None
    predicted_speed: float | None = None
    predicted_sqnr_db: float | None = None
    sites: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    kernels: str = ""
    damages: dict[str, float] = field(default_factory=dict)
    rejected: str | None = None
    beaten_by: str | None = None

    @property
    def quality(self) -> Quality:
        """What the floors look at."""
        sqnr = -math.inf if self.sqnr_db is None else self.sqnr_db
        return Quality([], sqnr, self.agreement, self.changed, self.judged)

    @property
    def allowed_share(self) -> float:
        """Of the allowed drop: a plan below 8 bits is one of many that were tried on the same items."""
        return SMALL_SHARE if set(self.formats) - {INT8.name, *FLOATS} else 1.0


@dataclass
class Frontier:
    """The result.

    Attributes:
        input, folder: as given.
        bytes, seconds, score, load_seconds, load_bytes: of the input; None where it was not measured.
        points: those that no other one beats, largest first.
        hook: name of the user's metric, None without one.
        generated, data: what the samples were.
        notes: sentences that the user should read.
        files: tables and plots that were written.
        built: how many models were built in this run; known: how many had been built before.
    """

    input: str
    folder: str
    bytes: int
    seconds: float | None = None
    score: float | None = None
    load_seconds: float | None = None
    load_bytes: int | None = None
    points: list[Point] = field(default_factory=list)
    hook: str | None = None
    generated: bool = False
    data: str = ""
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    built: int = 0
    known: int = 0

    @property
    def name(self) -> str:
        """The input's name without folder and suffix."""
        return Path(self.input).stem

    def drop(self, point: Point) -> float | None:
        """The relative loss of the score, None where there is none."""
        if self.score is None or point.score is None:
            return None
        return relative_drop(self.score, point.score)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON has, without what only the next run needs."""
        result: dict[str, Any] = plain(self)
        for each in result["points"]:
            each["file"] = each.pop("files")[0]
            for name in ("damages", "digest", "key", "kernels", "rejected", "beaten_by"):
                del each[name]
        return result


def frontier(
    model: str | Path | onnx.ModelProto,
    folder: str | Path,
    *,
    calib: Any = None,
    eval: Any = None,  # the contract's name
    recipe: Recipe | str | Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    prices: str | Path | None = None,
    fresh: bool = False,
    plot: bool | None = None,
    progress: Progress | None = None,
) -> Frontier:
    """Write the models of the trade-off between size, speed and quality of ``model`` to ``folder``.

    Args:
        model, calib, eval, recipe, shapes, batch, prices, progress: as for optimize(). Floors of the recipe's budget
            bound the ladder (without one it ends at 10 dB), its limits of size and speed what is kept.
        folder: made if it is not there; of what is in it only what an earlier run wrote is replaced.
        fresh: measure times and build models again.
        plot: True: frontier.png must be written; None: where matplotlib is installed; False: not.

    Raises:
        BudgetError: no model holds the limits. UsageError: the call is wrong. InputError: what was given is bad.
        MissingExtraError: ``plot`` was asked for without matplotlib.
    """
    wanted = recipe if isinstance(recipe, Recipe) else load_recipe(recipe) if recipe is not None else Recipe()
    if wanted.recover:
        raise UsageError("frontier does not train: give the limits of the model you choose to optimize --recover")
    if plot:
        charts.need_matplotlib()
    say = progress or (lambda message: None)
    place = checked(Path(folder))
    prices_of_run = PriceFile.open(prices, fresh=fresh)
    run = opened(model, None, wanted, calib, eval, shapes or {}, batch, prices_of_run, say)
    record = Record(place, identity(run, eval), fresh=fresh)
    found = Frontier(str(run.original.path or "model"), str(folder), run.original.source_bytes)
    found.score, found.generated, found.data = run.judge.score, run.samples.generated, run.samples.description
    found.hook = run.judge.evaluation.name if run.judge.evaluation is not None else None
    if record.finished(wanted.budget):
        found.known = len(record.points)
    else:
        walk(run, record, found, say)
        select(run, record)  # no call of the hook goes to what is beaten anyway
        score(run, record, say)
        select(run, record)
        missing = sum(1 for point in candidates(run, record) if point.score is None)
        if missing and wanted.budget.evals is not None:
            run.notes.append(f"{missing} models have no score: all {wanted.budget.evals} calls of the hook are used")
        held = within_limits(run, record)
        record.save(wanted.budget, complete=bool(held) or not record.points, notes=run.notes)
        if not held:
            nothing(run, record)
            record.save(wanted.budget, complete=True, notes=run.notes)
    found.points = sorted((p for p in record.points.values() if p.files), key=lambda point: -point.size)
    found.load_seconds, found.load_bytes, found.notes = record.load_seconds, record.load_bytes, record.notes
    measured = next((point for point in found.points if point.speed and point.seconds), None)
    if measured is not None and measured.speed and measured.seconds:
        found.seconds = measured.speed * measured.seconds
    prices_of_run.save()
    write_pages(found, place, plot)
    return found


def checked(folder: Path) -> Path:
    """``folder``, made if need be. UsageError if it cannot be, or holds tables that are not ours."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"DIR '{folder}' is a file; name a folder")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder '{folder}' cannot be made: {error.strerror or error}") from error
    if not (folder / RECORD).exists():
        for name in PAGES:
            if (folder / name).exists():
                raise UsageError(f"'{folder / name}' was not made by onnxc frontier; name another folder")
    return folder


def identity(run: Run, hook: Any) -> str:
    """What makes two runs the same: versions, input, data, hook, and every option but the limits."""
    made = hashlib.sha256(receipt(replace(run, recipe=replace(run.recipe, budget=Budget())))["onnxc"].encode())
    made.update(f"{run.samples.digest} {run.original.source_bytes}".encode())
    if run.original.path is None or run.original.path.stat().st_size != run.original.source_bytes:
        for graph in run.original.graphs():  # weights beside the file
            for tensor in graph.weights:
                values = np.asarray(run.original.values(tensor))
                if values.dtype != object:
                    made.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    if isinstance(hook, str | Path):
        made.update(str(hook).rpartition(":")[2].encode())
        made.update(Path(str(hook).rpartition(":")[0]).read_bytes())
    elif hook is not None:
        made.update(str(getattr(hook, "__qualname__", type(hook).__name__)).encode())
    return made.hexdigest()[:32]


class Record:
    """frontier.json: every plan that was built, with what was measured of it.

    Args:
        folder: where it lies, beside the models.
        identity: of this run. UsageError if the folder holds another model's frontier.
        fresh: models are built again, and replace those that are there.
    """

    def __init__(self, folder: Path, identity: str, *, fresh: bool = False) -> None:
        self.folder, self.identity, self.fresh = folder, identity, fresh
        self.points: dict[str, Point] = {}
        self.before = set[str]()
        self.complete: dict[str, Any] | None = None
        self.notes: list[str] = []
        self.load_seconds: float | None = None
        self.load_bytes: int | None = None
        path = folder / RECORD
        if not path.exists():
            return
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            theirs, self.notes = values["run"], list(values["notes"])
            self.complete = values["budget"] if values["complete"] else None
            self.load_seconds, self.load_bytes = values["load_seconds"], values["load_bytes"]
            self.points = {each["key"]: Point(**each) for each in values["points"]}
            self.before = {point.key for point in self.points.values() if point.files}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"'{path}' was not made by this onnxc frontier; name another folder") from error
        if theirs != identity:
            raise UsageError(
                f"'{folder}' holds the frontier of another model, other data or other options; name another folder"
            )
        if fresh:
            self.complete = None
            for point in self.points.values():
                self.discard(point)
            self.points = {}

    def finished(self, budget: Budget) -> bool:
        """Whether an earlier run with the same limits got to its end, and nothing is missing since."""
        kept = [point for point in self.points.values() if point.files]
        return self.complete == plain(budget) and bool(kept) and all(self.intact(point) for point in kept)

    def intact(self, point: Point) -> bool:
        """Whether the files of a point are as they were written."""
        return bool(point.files) and digest(self.folder, point.files) == point.digest

    def discard(self, point: Point) -> None:
        """Remove the files of a point, unless somebody has changed them."""
        if self.intact(point):
            for name in point.files:
                (self.folder / name).unlink(missing_ok=True)
        point.files, point.digest = [], ""

    def reusable(self, key: str, floor: Callable[[Point], str | None]) -> Point | None:
        """The point of a plan that need not be built again: its file is there, or it is known to be of no use."""
        point = self.points.get(key)
        if point is None or self.intact(point):
            return point
        if point.files:
            return None
        beaten = self.points.get(point.beaten_by or "")
        useless = point.rejected is not None or floor(point) is not None or (beaten is not None and self.intact(beaten))
        return point if useless else None

    def add(self, point: Point, model: Model | None, stem: str, *, external_data: bool) -> None:
        """Keep what was measured, and the model in a file of its own."""
        if model is not None:
            name = self.free(stem, point.share)
            model.save(self.folder / name, external_data=external_data)
            beside = sorted(each.name for each in self.folder.iterdir() if each.name.startswith(f"{name}."))
            point.files = [name, *beside]
            point.digest = digest(self.folder, point.files)
        self.points[point.key] = point

    def free(self, stem: str, share: float) -> str:
        """A name with the size in percent, with as many digits as it takes to be free."""
        for digits in range(1, 13):
            name = f"{stem}-{100 * share:.{digits}f}.onnx"
            if not any(each.name.startswith(name) for each in self.folder.iterdir()):
                return name
        raise UsageError(f"'{self.folder}' is full of other models called {name}; name another folder")

    def save(self, budget: Budget, *, complete: bool, notes: Sequence[str]) -> None:
        """Write frontier.json in one step."""
        self.notes = list(notes)
        values = {
            "run": self.identity,
            "complete": complete,
            "budget": plain(budget),
            "notes": self.notes,
            "load_seconds": self.load_seconds,
            "load_bytes": self.load_bytes,
            "points": [plain(point) for point in self.points.values()],
        }
        write_file(self.folder / RECORD, json.dumps(values, indent=1))


def digest(folder: Path, names: Sequence[str]) -> str:
    """SHA-256 of files, empty where one is missing."""
    made = hashlib.sha256()
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                while chunk := file.read(1 << 22):
                    made.update(chunk)
        except OSError:
            return ""
    return made.hexdigest()


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file in one step; ModelError if it cannot be written."""
    data = content.encode() if isinstance(content, str) else content
    try:
        replace_file(path, lambda file: file.writelines([data]))
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error.strerror or error}") from error


def floored(budget: Budget) -> Budget:
    """The floors of a frontier: those of the user, else 10 dB and nothing said of answers."""
    return replace(
        budget,
        min_sqnr=FLOOR_SQNR_WITH_HOOK_DB if budget.min_sqnr is None else budget.min_sqnr,
        min_agreement=0.0 if budget.min_agreement is None else budget.min_agreement,
    )


def targets(lowest: float) -> list[float]:
    """SQNRs to plan for, in dB, from almost lossless to the floor."""
    return [each for each in LADDER_DB if each > lowest] + [lowest]


def walk(run: Run, record: Record, found: Frontier, say: Progress) -> None:
    """Observe, price, then build one plan after the other."""
    smaller = shrunk(run.chosen.structural, simplified(run), partial(observed, run), run.judge, run.notes, say)
    judge = run.judge
    judge.careful = False  # every point is shown with what it costs
    judge.budget, evaluation, judge.evaluation = floored(judge.budget), judge.evaluation, None
    try:
        planning = proposed(run, smaller)
        Walk(run, record, found, planning, say).down()
    finally:
        judge.evaluation = evaluation


@dataclass
class Walk:
    """The way down the ladder."""

    run: Run
    record: Record
    found: Frontier
    planning: Planning
    say: Progress
    seen: set[object] = field(default_factory=set)

    def down(self) -> None:
        """Visit the best plan of every target."""
        planning, problem = self.planning, self.planning.problem
        if not (problem.compute or problem.storage):
            return
        first = planning.judged(plan(problem.in_full_codes()))
        self.found.built += 1
        point = self.predicted(self.key(first.plan), first.plan)
        if self.record.reusable(point.key, lambda old: floor(self.run, old)) is None:
            self.keep(point, first)
        self.seen.add(first.plan.key)
        planning.sensitivities(first)
        self.run.prices.save()
        if not problem.noise:  # nothing is known of single roundings: what can be planned without
            for each in (halves(problem), storage_only(problem), plan(problem.in_full_codes()), plan(problem)):
                self.visit(each)
            return
        known = list[Trial]()
        for target in targets(planning.judge.lowest_sqnr):
            self.reach(target, known)
        if problem.most_bytes is None and problem.most_seconds is None and known:
            for byte_price, time_price in ((LEAN, 1.0), (1.0, LEAN)):
                aim = 10 ** (-planning.judge.lowest_sqnr / 10) * HEADROOM
                problem.heard = calibrated(problem, known)
                trial = self.visit(under(replace(problem, byte_price=byte_price, time_price=time_price), aim))
                known += [trial] if trial is not None else []
        for each in (storage_only(problem), halves(problem), Plan()):
            if not candidates(self.run, self.record):
                self.visit(each)

    def reach(self, target: float, known: list[Trial]) -> None:
        """Build plans until one is near ``target`` [dB]; every one of them teaches the predictions."""
        problem, allowed, built = self.planning.problem, 10 ** (-target / 10), 0
        aim, last = allowed * HEADROOM, target <= self.planning.judge.lowest_sqnr
        for _ in range(3 * TRIES):
            if built >= TRIES:
                return
            problem.heard = calibrated(problem, known)
            trial = self.visit(under(problem, aim))
            if trial is None and not last:
                return
            if trial is None:  # too noisy, or already there: the noisiest plan above the floor is wanted
                aim *= FEWER
                continue
            built += 1
            known.append(trial)
            problem.pace, problem.unit = trial.plan.seconds, max(stored_bytes(problem, trial.plan.stored), 1)
            if last and trial.missed is not None:
                aim *= FEWER
            elif abs(trial.quality.sqnr_db - target) < NEAR_DB:
                return

    def visit(self, chosen: Plan) -> Trial | None:
        """``chosen`` as a trial, built unless it was before; None where this run has seen it."""
        if chosen.key in self.seen:
            return None
        self.seen.add(chosen.key)
        planning, record, run = self.planning, self.record, self.run
        key = self.key(chosen)
        old = record.reusable(key, lambda point: floor(run, point))
        if old is not None:
            self.found.known += 1
            self.remember(old, chosen)
            self.weighed(old, chosen)
            return Trial(chosen, planning.context.model, old.quality, None, floor(run, old))
        point = self.predicted(key, chosen)
        trial = planning.judged(chosen)
        self.found.built += 1
        self.keep(point, trial)
        return trial

    def keep(self, point: Point, trial: Trial) -> None:
        """Record what was built, with its file where it holds the floor."""
        planning, record, run, chosen = self.planning, self.record, self.run, trial.plan
        quality, total = trial.quality, planning.judge.original.source_bytes
        point.sqnr_db = quality.sqnr_db if math.isfinite(quality.sqnr_db) else None
        point.agreement, point.changed, point.judged = quality.agreement, quality.changed, quality.judged
        point.damages = {name: self.damage(name, mode) for name, mode in chosen.stored.items() if mode not in FLOATS}
        point.damages = {name: value for name, value in point.damages.items() if math.isfinite(value)}
        model = None
        if quality.problem is not None:
            point.rejected = quality.problem
        elif trial.missed is None:
            told = any(told for _, told in run.chosen.structural)
            delivery = gate(planning.judge, [trial], run.prices, receipt(run), self.say, told=told)
            model = self.measured(point, delivery, total)
            self.weighed(point, chosen)
        record.add(point, model, self.found.name, external_data=run.recipe.external_data)
        record.save(run.recipe.budget, complete=False, notes=())
        run.prices.save()

    def key(self, chosen: Plan) -> str:
        """Of a plan with the ranges of its activations, for this input and these options."""
        rounded = {
            f"{a.tensor} {a.dynamic} {np.asarray(a.scale).tolist()} {np.asarray(a.zero_point).tolist()}"
            for c in chosen.compute.values()
            for a in (*c.reads, *((c.writes,) if c.writes else ()))
        }
        return hashlib.sha256(repr((self.record.identity, chosen.key, sorted(rounded))).encode()).hexdigest()[:32]

    def predicted(self, key: str, chosen: Plan) -> Point:
        """A point with what the plan was chosen for."""
        problem, original = self.planning.problem, self.planning.judge.original
        point = Point(key, sites=len(chosen.compute), formats=dict(sorted(Counter(chosen.stored.values()).items())))
        point.kernels = hashlib.sha256(repr(chosen.key[0]).encode()).hexdigest()[:16]
        point.predicted_share = self.planning.overheads.file_bytes(problem, chosen) / original.source_bytes
        if chosen.seconds > 0:
            point.predicted_speed = problem.prices.total / chosen.seconds
        if chosen.noise > 0:
            point.predicted_sqnr_db = -10 * math.log10(chosen.noise)
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
            self.planning.overheads.correct(self.planning.problem, chosen, point.size)

    def damage(self, name: str, mode: str) -> float:
        """Of the codes of a weight, as solved."""
        made = self.planning.coder.made
        return next((made[key].damage for narrow in (True, False) if (key := (name, mode, narrow)) in made), math.nan)

    def remember(self, old: Point, chosen: Plan) -> None:
        """The true damages that building ``chosen`` would have shown: the next plans must come out the same."""
        coder = self.planning.coder
        for name, value in old.damages.items():
            if name in coder.damages and name in chosen.stored:
                coder.damages[name][chosen.stored[name]] = value
        if self.planning.problem.ratios:
            self.planning.problem.ratios = coder.noise_ratios()


def floor(run: Run, point: Point) -> str | None:
    """The floor of the outputs that a point misses, None if it holds all."""
    return floor_met(point.quality, floored(run.judge.budget), generated=run.samples.generated)


def candidates(run: Run, record: Record) -> list[Point]:
    """Points with a model that hold the floors of the outputs, least noise first."""
    held = [p for p in record.points.values() if p.files and p.rejected is None and floor(run, p) is None]
    return sorted(held, key=lambda point: (-(point.sqnr_db or -math.inf), point.size))


def score(run: Run, record: Record, say: Progress) -> None:
    """Ask the hook about every point: the ends first, then what lies farthest from all that is known. Where its calls
    are bounded, none is spent on what is noisier than a point whose score is too low.
    """
    judge, budget = run.judge, run.recipe.budget
    points = candidates(run, record)
    while judge.evaluation is not None and (budget.evals is None or judge.evaluations < budget.evals):
        known = [index for index, point in enumerate(points) if point.score is not None]
        worst = min((i for i in known if budget.evals is not None and too_low(run, points[i])), default=len(points))
        unknown = [index for index, point in enumerate(points[:worst]) if point.score is None]
        if not unknown:
            return
        if worst < len(points):  # where the drop becomes too large is between what passed last and what failed first
            unknown = [
                index for index in unknown if index > max((i for i in known if i < worst), default=-1)
            ] or unknown
        chosen = max(unknown, key=lambda index: (min((abs(index - each) for each in known), default=0), index))
        say("asking the hook")
        path = record.folder / points[chosen].files[0]
        points[chosen].score = judge.evaluation(Session(path, judge.options))
        judge.evaluations += 1
        record.save(budget, complete=False, notes=())


def too_low(run: Run, point: Point) -> bool:
    """Whether the score of a point has dropped by more than the user allows."""
    allowed, before = run.recipe.budget.max_drop, run.judge.score
    if allowed is None or before is None or point.score is None:
        return False
    return relative_drop(before, point.score) > allowed * point.allowed_share + 1e-12


def within_limits(run: Run, record: Record) -> list[Point]:
    """The points that hold every floor and limit."""
    budget, points = run.recipe.budget, candidates(run, record)
    failing = {point.key for point in points if too_low(run, point)}
    if budget.max_drop is not None and run.judge.score is not None:  # what has no score counts as what lies below it
        for index, point in enumerate(points):
            below = next((p for p in points[index:] if p.score is not None), None)
            if point.score is None and below is not None and below.key in failing:
                failing.add(point.key)
            if point.score is None and below is None and any(p.score is not None for p in points):
                failing.add(point.key)
    within = [p for p in points if p.key not in failing]
    within = [p for p in within if budget.size is None or p.share <= budget.size]
    return [p for p in within if budget.speed is None or (p.speed or 0.0) >= budget.speed]


def select(run: Run, record: Record) -> None:
    """Leave the points that hold every limit and that no other one beats; the files of the others go."""
    within, kept = within_limits(run, record), list[Point]()
    everywhere = all(point.score is not None for point in within)
    for point in sorted(within, key=lambda p: worth(p, run.judge.score if everywhere else None), reverse=True):
        better = next((other for other in kept if beats(other, point)), None)
        point.beaten_by = better.key if better is not None else None
        if better is None:
            kept.append(point)
    for point in record.points.values():  # limits that nothing holds take no model away that was there before
        if point not in kept and point.files and (kept or point.key not in record.before):
            record.discard(point)


def worth(point: Point, reference: float | None) -> tuple[float, float, float]:
    """By score, up to the original's, where there is one; then by SQNR; then the smaller one."""
    score = min(point.score, reference) if point.score is not None and reference is not None else 0.0
    return score, point.sqnr_db if point.sqnr_db is not None else -math.inf, -point.size


def beats(better: Point, point: Point) -> bool:
    """Whether ``better``, whose outputs are, is hardly larger and not known to be slower: the same kernels take the
    same time, whatever a busy machine measures.
    """
    slower = (better.speed or 0.0) < SPEED_NOISE * (point.speed or 0.0) and better.kernels != point.kernels
    return point.size > SMALLER * better.size and not slower


def nothing(run: Run, record: Record) -> None:
    """No point is left: BudgetError where limits are the reason, a sentence where there is nothing to compress."""
    budget = run.recipe.budget
    asked = [each.name for each in fields(Budget) if each.name != "evals" and getattr(budget, each.name) is not None]
    tried = [point for point in record.points.values() if point.sqnr_db is not None]
    if asked and record.points:
        near = ""
        if tried:
            small = min(tried, key=lambda point: reached(point)[0])
            fast = max(tried, key=lambda point: reached(point)[1])
            close = max(tried, key=lambda point: point.sqnr_db or 0.0)
            near = f"; {described('smallest', small)}, {described('fastest', fast)}, {described('closest', close)}"
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise BudgetError(f"none of {len(record.points)} models holds {flags}{near}")
    reasons = [point.rejected for point in record.points.values() if point.rejected]
    why = f": {reasons[0]}" if reasons else ": no float weights that onnxc can store or compute smaller"
    run.notes.append(f"the input is the only point{why}")


def reached(point: Point) -> tuple[float, float]:
    """Share of the bytes and speed-up of a point, predicted where its model was not kept."""
    share = point.share if point.size else point.predicted_share or 1.0
    return share, point.speed if point.speed is not None else point.predicted_speed or 1.0


def described(what: str, point: Point) -> str:
    """One of the points that were reached."""
    share, speed = reached(point)
    return f"the {what} has {share:.1%} of the bytes, {speed:.2f} times the speed and {point.sqnr_db or 0.0:.1f} dB"


def write_pages(found: Frontier, folder: Path, plot: bool | None) -> None:
    """The table as CSV, the page, and the picture."""
    write_file(folder / "frontier.csv", charts.table(found))
    found.files = ["frontier.csv", "frontier.html"]
    if plot is not False:
        try:
            write_file(folder / "frontier.png", charts.picture(found))
            found.files.append("frontier.png")
        except MissingExtraError as error:
            if plot:
                raise
            found.notes.append(f"frontier.png was not drawn: {error}")
    write_file(folder / "frontier.html", charts.page(found))
