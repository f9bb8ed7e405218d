"""The whole trade-off of a model, from one observation and one pricing. In: a model, a folder. Out: models, a table.

    IN -> DIR/NAME-26.4.onnx  DIR/NAME-17.9.onnx ...   none larger, slower and less accurate than another
          DIR/frontier.csv  frontier.html  frontier.png  frontier.json

Targets go from almost lossless down to the floor. For each the best plan is built, judged, calibrated on, measured and
saved at once, so that a run that was stopped goes on where it was: frontier.json knows every plan that was built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import onnx

from onnxc.compiler import Progress, Run, opened, receipt
from onnxc.errors import MissingExtraError, UsageError
from onnxc.price_file import PriceFile
from onnxc.propose import with_training
from onnxc.recipe import Budget, Recipe, load_recipe
from onnxc.reports import charts
from onnxc.tradeoff.choosing import candidates, expect, floored, nothing, score, select, within_limits
from onnxc.tradeoff.forms import walk_forms
from onnxc.tradeoff.points import Frontier
from onnxc.tradeoff.record import RECORD, Record, write_file
from onnxc.tradeoff.walking import walk

GRACE = 0.05  # seconds that a model may take longer to load than the original: it is shown how long
PAGES = ("frontier.csv", "frontier.html", "frontier.png")


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
    wanted = with_training(wanted)
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
        walk_down(run, record, found, say)
        select(run, record)  # no call of the hook goes to what is beaten anyway
        score(run, record, say)
        expect(run, record)
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


def walk_down(run: Run, record: Record, found: Frontier, say: Progress) -> None:
    """The model, and smaller forms of it, down to the floor; the hook is asked later."""
    judge, started = run.judge, process_time()
    judge.careful, judge.grace = False, GRACE  # every point is shown with what it costs
    judge.budget, evaluation, judge.evaluation = floored(judge.budget), judge.evaluation, None
    try:
        walk_forms(run, walk(run, record, found, say), say, started)
    finally:
        judge.evaluation = evaluation


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
