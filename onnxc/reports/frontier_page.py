"""The page of frontier. In: a Frontier. Out: a row per model, for the terminal and for every other form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from onnxc.reports.figures import amount, decibels, percent
from onnxc.reports.tables import print_sentences, print_table

if TYPE_CHECKING:
    from onnxc.tradeoff.points import Frontier, Point


FRONTIER_HEADING = (
    "model",
    "size",
    "of the input",
    "predicted",
    "times as fast",
    "predicted",
    "SQNR",
    "predicted",
    "top-1",
    "score",
    "load",
    "int8 sites",
    "smaller form",
)


def frontier_cells(found: Frontier, point: Point | None) -> list[str]:
    """A row of FRONTIER_HEADING; None: the input."""
    if point is None:
        load = f"{1e3 * found.load_seconds:.3g} ms" if found.load_seconds is not None else ""
        score = f"{found.score:.6g}" if found.score is not None else ""
        return [
            f"{found.name} (the input)",
            amount(found.bytes),
            "100 %",
            "",
            "1.00",
            "",
            "",
            "",
            "",
            score,
            load,
            "",
            "",
        ]
    return [
        point.files[0],
        amount(point.size),
        f"{point.share:.1%}".replace("%", " %"),
        f"{point.predicted_share:.1%}".replace("%", " %") if point.predicted_share is not None else "",
        f"{point.speed:.2f}" if point.speed is not None else "",
        f"{point.predicted_speed:.2f}" if point.predicted_speed is not None else "",
        decibels(point.sqnr_db),
        decibels(point.predicted_sqnr_db),
        percent(point.agreement),
        f"{point.score:.6g}" if point.score is not None else "",
        f"{1e3 * point.load_seconds:.3g} ms" if point.load_seconds is not None else "",
        str(point.sites) if point.sites else "",
        point.form.partition(":")[0],
    ]


def print_frontier(found: Frontier, console: Console) -> None:
    """The page of frontier: a row per model, largest first."""
    rows = [frontier_cells(found, point) for point in (None, *found.points)]
    print_table(console, FRONTIER_HEADING, rows, right=range(1, len(FRONTIER_HEADING) - 1))
    notes = list(found.notes)
    if found.generated:
        notes.insert(0, "inputs were generated: how close outputs are on real data is not known; --calib gives them")
    print_sentences(notes, console)
    counts = f"{len(found.points)} models, {found.built} built, {found.known} known from before"
    written = f"wrote {found.folder}: {counts}; {', '.join(found.files)}"
    console.print(f"\n{written}", highlight=False, markup=False, soft_wrap=True)
