"""The page of optimize. In: a Report. Out: what was done, what was refused, the totals, what the user should know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from onnxc.reports.choices import next_best
from onnxc.reports.comparison_page import print_totals
from onnxc.reports.figures import amount, decibels, milliseconds, operations, percent
from onnxc.reports.tables import print_sentences, print_table

if TYPE_CHECKING:
    from onnxc.report import RefusalRow, Report, SiteRow

MOST_ROWS = 30
"""A report with more sites is grouped by operator and choice."""


def print_report(report: Report, console: Console) -> None:
    """The page of optimize: what was done, what was refused, the totals, and what the user should know."""
    changed = [row for row in report.rows if row.changed]
    if changed:
        _print_sites(changed, console, report.allowed_noise)
    print_refusals(report.refusals, console)
    if report.comparison is not None:
        print_totals(report.comparison, console, report.bytes_before, report.bytes_after)
    print_sentences(report.sentences, console)
    if report.output and not report.missed:
        saved = f"{amount(report.bytes_before)} -> {amount(report.bytes_after)} ({percent(report.size_ratio)})"
        console.print(
            f"\nwrote {report.output}: {saved}, {report.seconds:.1f} s",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def print_refusals(refusals: Sequence[RefusalRow], console: Console) -> None:
    """One row per reason, with how many places it kept a pass from, and one of them."""
    rows = [
        [row.pass_name, str(row.count), row.reason, row.examples[0] if row.examples else ""]
        for row in sorted(refusals, key=lambda row: (row.pass_name, -row.count))
    ]
    if rows:
        print_table(console, ["refused by", "places", "reason", "example"], rows, right=[1], title="Refused")


def _print_sites(rows: Sequence[SiteRow], console: Console, allowed: float | None) -> None:
    if len(rows) <= MOST_ROWS:
        heading = ["site", "operator", "weight", "bytes", "after", "MACs", "ms", "after", "SQNR", "done", "next best"]
        cells = [
            [
                row.site,
                row.operator,
                "x".join(map(str, row.shape)),
                amount(row.bytes_before) if row.bytes_before else "",
                amount(row.bytes_after) if row.bytes_before else "",
                operations(row.macs),
                milliseconds(row.milliseconds_before),
                milliseconds(row.milliseconds_after),
                decibels(row.damage_db),
                f"{row.choice}: {row.specification}" if row.specification else row.choice,
                next_best(row.runner_up, allowed),
            ]
            for row in rows
        ]
        print_table(console, heading, cells, right=[3, 4, 5, 6, 7, 8], title="Done")
        return
    groups: defaultdict[tuple[str, str, str], list[SiteRow]] = defaultdict(list)
    for row in rows:
        groups[row.operator, row.choice, row.specification].append(row)
    heading = ["operator", "sites", "bytes", "after", "MACs", "ms", "after", "worst SQNR", "done", "example"]
    cells = []
    for (operator, choice, specification), members in groups.items():
        before, after = (sum(row.bytes_before for row in members), sum(row.bytes_after for row in members))
        damage = [row.damage_db for row in members if row.damage_db is not None]
        cells.append(
            [
                operator,
                str(len(members)),
                amount(before) if before else "",
                amount(after) if before else "",
                operations(sum(row.macs or 0 for row in members)),
                milliseconds(_total([row.milliseconds_before for row in members])),
                milliseconds(_total([row.milliseconds_after for row in members])),
                decibels(min(damage, default=None)),
                f"{choice}: {specification}" if specification else choice,
                members[0].site,
            ]
        )
    print_table(
        console,
        heading,
        cells,
        right=[1, 2, 3, 4, 5, 6, 7],
        title="Done (--report FILE.html or FILE.json has every site)",
    )


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
