"""The report of optimize as a page. In: a Report. Out: HTML that needs no network and no script.

Figures first; then what every site was, is, and could have been: a row opens to all that was considered.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from onnxc.reports.choices import next_best, option_name, share_of_noise
from onnxc.reports.comparison_page import total_rows
from onnxc.reports.figures import amount, decibels, milliseconds, operations, percent
from onnxc.reports.html import card, document, grid, listed

if TYPE_CHECKING:
    from onnxc.report import Option, Report, SiteRow

MOST_BARS = 24
STYLE = """
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px; margin: 0 0 20px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tile b { display: block; font-size: 26px; line-height: 1.25; font-weight: 650; }
.tile span { color: var(--quiet); font-size: 13px; }
.why { border-left: 4px solid var(--accent); }
.bars { display: grid; grid-template-columns: minmax(90px, 260px) 1fr max-content; gap: 5px 12px; align-items: center; }
.bars span { font-size: 13px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.track { background: var(--mark); border-radius: 4px; height: 14px; }
.fill { background: var(--accent); border-radius: 4px; height: 14px; min-width: 2px; }
details { border-bottom: 1px solid var(--line); }
details:last-of-type { border-bottom: 0; }
summary { cursor: pointer; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary span:first-child::before { content: "\\25B8\\00A0"; color: var(--quiet); }
details[open] summary span:first-child::before { content: "\\25BE\\00A0"; }
.line { display: grid; gap: 12px; padding: 8px 4px; font-size: 14px; font-variant-numeric: tabular-nums;
  grid-template-columns: minmax(120px, 1.3fr) minmax(150px, 1.6fr) 150px 150px minmax(160px, 2fr); }
.line span { overflow-wrap: anywhere; }
.head { color: var(--quiet); font-weight: 600; border-bottom: 1px solid var(--line); }
.quiet { color: var(--quiet); }
.inside { padding: 2px 4px 14px 22px; }
.inside p { margin: 4px 0 8px; color: var(--quiet); font-size: 14px; }
tr.chosen td { background: var(--mark); font-weight: 600; }
@media (max-width: 760px) { .line { grid-template-columns: 1fr 1fr; } .head { display: none; } }
""".strip()


def page(report: Report) -> str:
    """The whole page."""
    name = Path(report.input).name or "model"
    written = report.output or "nothing written"
    lead = f"{report.input} → {written}. Samples: {report.data or 'none'}. It took {report.seconds:.0f} s."
    why = [*(f"not met: {each}" for each in report.missed), *([report.further] if report.further else [])]
    notes = [each for each in report.sentences if each not in why]
    parts = [
        tiles(report),
        f'<div class="card why">{"<br>".join(map(escape, why))}</div>' if why else "",
        card(bars(report.rows), "Where the bytes are"),
        card(sites(report), "Every weight: what was done, and what else was considered"),
        card(forecast(report), "Predicted and measured"),
        card(totals(report), "Totals"),
        card(refusals(report), "Refused"),
        card(listed(notes), "Notes"),
    ]
    return document(f"{name}: what onnxc did", name, lead, parts, STYLE)


def tiles(report: Report) -> str:
    """The figures that one looks for first."""
    found = [
        (percent(report.size_ratio), f"of the size: {amount(report.bytes_before)} to {amount(report.bytes_after)}")
    ]
    measured = report.comparison
    if measured is not None and (ratio := measured.ratio) is not None:
        found.append((f"{ratio.median:.2f}x", f"the speed ({ratio.low:.2f} to {ratio.high:.2f})"))
    if measured is not None and measured.score_reference is not None and measured.score_new is not None:
        drop = f"{percent(measured.drop)} lost" if measured.drop else "nothing lost"
        found.append((f"{measured.score_new:.4g}", f"score, of {measured.score_reference:.4g}: {drop}"))
    if measured is not None and measured.has_floats:
        found.append((decibels(measured.sqnr_db), "signal to noise of the worst output"))
    if measured is not None and measured.agreement is not None:
        found.append((percent(measured.agreement), f"top-1 answers as before: {measured.changed} changed"))
    made = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in found
    )
    return f'<div class="tiles">{made}</div>'


def bars(rows: Sequence[SiteRow]) -> str:
    """The largest weights before (the pale track) and after (the bar)."""
    largest = sorted((row for row in rows if row.bytes_before), key=lambda row: -row.bytes_before)[:MOST_BARS]
    if not largest:
        return ""
    whole = largest[0].bytes_before
    lines = []
    for row in largest:
        track, fill = 100 * row.bytes_before / whole, 100 * row.bytes_after / max(row.bytes_before, 1)
        lines.append(
            f'<span title="{escape(row.site)}">{escape(row.site)}</span>'
            f'<div><div class="track" style="width:{track:.1f}%"><div class="fill" style="width:{min(fill, 100):.1f}%">'
            f"</div></div></div>"
            f'<span class="quiet">{amount(row.bytes_before)} &rarr; {amount(row.bytes_after)}</span>'
        )
    left = sum(1 for row in rows if row.bytes_before) - len(largest)
    more = f'<p class="quiet">and {left} smaller ones</p>' if left > 0 else ""
    return f'<div class="bars">{"".join(lines)}</div>{more}'


def sites(report: Report) -> str:
    """A line per site, largest first, that opens to its options."""
    if not report.rows:
        return ""
    heading = "".join(f"<span>{each}</span>" for each in ("site", "done", "bytes", "milliseconds", "next best"))
    lines = [f'<div class="line head">{heading}</div>']
    for row in sorted(report.rows, key=lambda row: -row.bytes_before):
        done = f"{row.choice}: {row.specification}" if row.specification else row.choice
        size = f"{amount(row.bytes_before)} → {amount(row.bytes_after)}" if row.bytes_before else "shared"
        before, after = milliseconds(row.milliseconds_before), milliseconds(row.milliseconds_after)
        time = f"{before} → {after}" if before and after else ""
        cells = (row.site, done, size, time, next_best(row.runner_up, report.allowed_noise))
        shown = "".join(f"<span>{escape(each)}</span>" for each in cells)
        opened = inside(row, report.allowed_noise)
        lines.append(f'<details><summary class="line">{shown}</summary>{opened}</details>')
    return "\n".join(lines)


def inside(row: SiteRow, allowed: float | None) -> str:
    """What a row opens to: what the site is, why it stayed as it was, and all of its options."""
    facts = [f"{row.operator}, weight {'x'.join(map(str, row.shape))}"]
    if row.macs:
        facts.append(f"{operations(row.macs)} multiply-accumulates a run")
    if row.reason:
        facts.append(row.reason)
    tables = [
        options([each for each in row.considered if each.kind == kind], kind, allowed)
        for kind in ("compute", "storage")
    ]
    return f'<div class="inside"><p>{escape("; ".join(facts))}</p>{"".join(tables)}</div>'


def options(found: Sequence[Option], kind: str, allowed: float | None) -> str:
    """One table: the options of a site's arithmetic, or of its weight's storage; the chosen one is marked."""
    if not found:
        return ""
    heading = ("computed in" if kind == "compute" else "stored as", "pass", "bytes", "ms", "noise, of the allowed")
    rows = [
        (
            option_name(each),
            each.pass_name,
            amount(each.bytes) if each.bytes is not None else "",
            milliseconds(each.milliseconds),
            share_of_noise(each.noise, allowed),
        )
        for each in found
    ]
    made = grid(heading, rows, left=(0, 1))
    lines = made.split("\n")
    first = next(index for index, line in enumerate(lines) if line.startswith("<tbody>")) + 1
    for number, each in enumerate(found):
        if each.chosen:
            lines[first + number] = lines[first + number].replace("<tr>", '<tr class="chosen">', 1)
    return "\n".join(lines)


def forecast(report: Report) -> str:
    """What was predicted beside what came out."""
    measured = report.comparison
    rows = []
    if report.predicted_bytes is not None:
        rows.append(("size", amount(report.predicted_bytes), amount(report.bytes_after)))
    if report.predicted_speed is not None and measured is not None and measured.ratio is not None:
        rows.append(("times as fast", f"{report.predicted_speed:.2f}", f"{measured.ratio.median:.2f}"))
    if report.predicted_sqnr_db is not None and measured is not None and measured.has_floats:
        rows.append(("SQNR", decibels(report.predicted_sqnr_db), decibels(measured.sqnr_db)))
    return grid(("", "predicted", "measured"), rows) if rows else ""


def totals(report: Report) -> str:
    """Both models side by side."""
    if report.comparison is None:
        return ""
    rows = total_rows(report.comparison, report.bytes_before, report.bytes_after)
    return grid(("", "original", "new", "note"), rows, left=(0, 3))


def refusals(report: Report) -> str:
    """Why passes left places alone."""
    rows = [
        (row.pass_name, str(row.count), row.reason, row.examples[0] if row.examples else "")
        for row in sorted(report.refusals, key=lambda row: (row.pass_name, -row.count))
    ]
    return grid(("pass", "places", "reason", "example"), rows, left=(0, 2, 3)) if rows else ""
