"""Pages for the terminal. In: a Report, a Comparison, rows of text. Out: tables that survive pasting.

On a terminal rich draws them; anywhere else (a pipe, a file) they are Markdown, one row a line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxc.kernels import fused

if TYPE_CHECKING:
    from onnxc.frontier import Frontier, Point
    from onnxc.inspection import Inspection
    from onnxc.quality import OutputError
    from onnxc.report import RefusalRow, Report, SiteRow
    from onnxc.validate import Comparison

MOST_ROWS = 30
"""A report with more sites is grouped by operator and choice."""


def amount(count: int | None) -> str:
    """Bytes in the unit that gives two to four digits."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.2f} {unit}"
        value /= 1000
    return ""


def decibels(value: float | None) -> str:
    """An SQNR; outputs that are equal have none."""
    if value is None:
        return ""
    return "equal" if value >= 200 else "incomparable" if value == float("-inf") else f"{value:.1f} dB"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return "" if value is None else f"{100 * value:.2f}".rstrip("0").rstrip(".") + " %"


def operations(count: int | None) -> str:
    """Multiply-accumulates with a unit."""
    if not count:
        return ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return str(count)


def milliseconds(value: float | None) -> str:
    """Three significant digits."""
    return "" if value is None else f"{value:.3g}"


SHORT, LONG = 14, 24  # characters: what is no longer is not wrapped; words that are no longer are not broken


def print_table(
    console: Console,
    heading: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    title: str = "",
) -> None:
    """Print one table; columns that are empty in every row are left out."""
    used = [i for i in range(len(heading)) if any(row[i] for row in rows)]
    if title:
        console.print(f"\n[bold]{escape(title)}[/bold]" if console.is_terminal else f"\n{title}\n", highlight=False)
    if not console.is_terminal:
        cells = [[row[i].replace("|", "/") for i in used] for row in (list(heading), *rows)]
        width = [max(len(row[i]) for row in cells) for i in range(len(used))]
        side = [used[i] in right for i in range(len(used))]
        rule = ["-" * (width[i] - 1) + (":" if side[i] else "-") for i in range(len(used))]
        for row in [cells[0], rule, *cells[1:]]:
            text = [cell.rjust(width[i]) if side[i] else cell.ljust(width[i]) for i, cell in enumerate(row)]
            console.out(f"| {' | '.join(text)} |", highlight=False)
        return
    columns = {i: [heading[i], *(row[i] for row in rows)] for i in used}
    longest = {i: max(map(len, cells)) for i, cells in columns.items()}
    words = {i: max(len(word) for cell in cells for word in [*cell.split(), ""]) for i, cells in columns.items()}
    whole = {i: longest[i] if longest[i] <= SHORT else min(words[i], LONG) for i in used}  # figures are not wrapped
    if sum(whole.values()) + 2 * len(used) > console.width and len(used) > 2:
        _print_narrow(console, heading, rows, used, right, longest)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i in used:
        justify: Literal["left", "right"] = "right" if i in right else "left"
        table.add_column(heading[i], justify=justify, overflow="fold", no_wrap=longest[i] <= SHORT, min_width=whole[i])
    for cells_of in rows:
        table.add_row(*(escape(cells_of[i]) for i in used))
    console.print(table)


def _print_narrow(
    console: Console,
    heading: Sequence[str],
    rows: Sequence[Sequence[str]],
    used: Sequence[int],
    right: Sequence[int],
    width: Mapping[int, int],
) -> None:
    """A table wider than the terminal: per row a line with its name, one with its figures, one with the rest."""
    figures = [i for i in used[1:] if width[i] <= SHORT]
    rest = [i for i in used[1:] if width[i] > SHORT]
    for index, row in enumerate((heading, *rows)):
        style = "bold" if not index else None
        cells = [row[i].rjust(width[i]) if i in right else row[i].ljust(width[i]) for i in figures]
        console.out(row[used[0]], style=style, highlight=False)
        for text in ("  ".join(cells), *(row[i] for i in rest)):
            for line in wrap(text, max(console.width - 2, SHORT), drop_whitespace=False):
                console.out(f"  {line}".rstrip(), style=style, highlight=False)


def print_report(report: Report, console: Console) -> None:
    """The page of optimize: what was done, what was refused, the totals, and what the user should know."""
    changed = [row for row in report.rows if row.changed]
    if changed:
        _print_sites(changed, console)
    _print_refusals(report.refusals, console)
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


def _print_refusals(refusals: Sequence[RefusalRow], console: Console) -> None:
    rows = [
        [row.pass_name, str(row.count), row.reason, row.examples[0] if row.examples else ""]
        for row in sorted(refusals, key=lambda row: (row.pass_name, -row.count))
    ]
    if rows:
        print_table(console, ["refused by", "places", "reason", "example"], rows, right=[1], title="Refused")


def print_sentences(sentences: Sequence[str], console: Console) -> None:
    """One line each, in full: wrapping is the terminal's."""
    if sentences:
        console.print()
    for sentence in sentences:
        console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)


def _print_sites(rows: Sequence[SiteRow], console: Console) -> None:
    if len(rows) <= MOST_ROWS:
        heading = ["site", "operator", "weight", "bytes", "after", "MACs", "ms", "after", "SQNR", "done"]
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
            ]
            for row in rows
        ]
        print_table(console, heading, cells, right=[3, 4, 5, 6, 7, 8], title="Done")
        return
    groups: defaultdict[tuple[str, str, str], list[SiteRow]] = defaultdict(list)
    for row in rows:
        groups[row.operator, row.choice, row.specification].append(row)
    heading = ["operator", "sites", "bytes", "after", "ms", "after", "worst SQNR", "done", "example"]
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
                milliseconds(_total([row.milliseconds_before for row in members])),
                milliseconds(_total([row.milliseconds_after for row in members])),
                decibels(min(damage, default=None)),
                f"{choice}: {specification}" if specification else choice,
                members[0].site,
            ]
        )
    print_table(console, heading, cells, right=[1, 2, 3, 4, 5, 6], title="Done (--report FILE.json lists every site)")


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def print_totals(result: Comparison, console: Console, before: int = 0, after: int = 0) -> None:
    """Both models side by side: size, speed, quality, the user's metric, load and kernels."""
    before, after = before or result.size_reference, after or result.size_new
    rows = [["size", amount(before), amount(after), f"{percent(after / before)} of the bytes" if before else ""]]
    if result.ratio is not None:
        ratio = result.ratio
        rows.append(
            [
                "time per run",
                f"{1e3 * ratio.seconds_a:.3g} ms",
                f"{1e3 * ratio.seconds_b:.3g} ms",
                f"{ratio.median:.2f} times as fast ({ratio.low:.2f} to {ratio.high:.2f})",
            ]
        )
    if result.has_floats:
        worst = f"worst output '{result.worst}'" if len(result.outputs) > 1 else ""
        rows.append(["SQNR", "", decibels(result.sqnr_db), worst])
    if result.agreement is not None:
        changed = f"{result.changed} of {result.judged} changed"
        rows.append(["top-1 answers", "", percent(result.agreement), changed])
    if result.score_reference is not None and result.score_new is not None:
        drop = f"{percent(result.drop)} lost" if result.drop else "nothing lost"
        rows.append(["score", f"{result.score_reference:.6g}", f"{result.score_new:.6g}", drop])
    if result.load_reference is not None and result.load_new is not None:
        old, new = result.load_reference, result.load_new
        rows.append(["load time", *(f"{1e3 * each.seconds:.3g} ms" for each in (old, new)), ""])
        rows.append(["memory at load", amount(old.peak_bytes), amount(new.peak_bytes), ""])
    if result.kernels_new:
        rows.append(["kernels", *_kernel_cells(result)])
    print_table(console, ["", "original", "new", ""], rows, right=[1, 2], title="Totals")
    if result.leftover:
        names = ", ".join(f"'{name}'" for name in result.leftover[:3])
        console.print(
            f"- {len(result.leftover)} weights are unfolded at every run: nothing fused with them: {names}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _kernel_cells(result: Comparison) -> list[str]:
    cells = [f"{kernels.total()}" for kernels in (result.kernels_reference, result.kernels_new)]
    integer = fused(result.kernels_new)
    names = ", ".join(f"{count} {name}" for name, count in integer.most_common(4))
    loose = result.kernels_new["QuantizeLinear"] + result.kernels_new["DequantizeLinear"]
    text = f"{integer.total()} on integers: {names}" if integer else "none on integers"
    return [*cells, f"{text}; {loose} Quantize/DequantizeLinear" if loose else text]


def print_outputs(outputs: Sequence[OutputError], console: Console) -> None:
    """One row per output."""
    rows = [
        [
            each.name,
            decibels(each.sqnr_db),
            "" if each.max_error is None else f"{each.max_error:.3g}",
            "" if each.mean_error is None else f"{each.mean_error:.3g}",
            "" if each.cosine is None else f"{each.cosine:.6f}",
            percent(each.top1_agreement),
            percent(each.equal),
            each.problem or "",
        ]
        for each in outputs
    ]
    heading = ["output", "SQNR", "max error", "mean error", "cosine", "top-1", "equal", "problem"]
    print_table(console, heading, rows, right=[1, 2, 3, 4, 5, 6], title="Outputs")


def print_comparison(result: Comparison, console: Console) -> None:
    """The page of compare."""
    print_outputs(result.outputs, console)
    if result.sites:
        rows = [
            [
                each.site,
                each.operator,
                decibels(each.sqnr_db),
                f"{each.damage:.3g}",
                ""
                if each.keep_bytes is None
                else ("+" if each.keep_bytes >= 0 else "-") + amount(abs(each.keep_bytes)),
                "" if each.keep_milliseconds is None else f"{each.keep_milliseconds:+.3g}",
            ]
            for each in result.sites
        ]
        heading = ["site", "operator", "SQNR", "noise / signal", "bytes in float", "ms in float"]
        title = "Sites, worst first, and what each would cost in float"
        print_table(console, heading, rows, right=[2, 3, 4, 5], title=title)
    print_totals(result, console)
    notes = []
    if (smallest := result.smallest) is not None:
        notes.append(smallest.sentence)
        if smallest.sites:
            notes.append(f"leave in float, the one that hurts most first: {', '.join(smallest.sites)}")
            notes.append(f"so: onnxc optimize REF OUT --keep-float '{','.join(smallest.sites)}'")
        if smallest.unmatched:
            notes.append(f"{smallest.unmatched} sites could not be put back: NEW does not have their tensors")
    if result.unmatched:
        notes.append(f"{len(result.unmatched)} sites have no counterpart in it, e.g. '{result.unmatched[0]}'")
    if result.generated:
        notes.append("inputs were generated: top-1 answers on them say little; --calib gives real ones")
    print_sentences(notes, console)


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
)


def frontier_cells(found: Frontier, point: Point | None) -> list[str]:
    """A row of FRONTIER_HEADING; None: the input."""
    if point is None:
        load = f"{1e3 * found.load_seconds:.3g} ms" if found.load_seconds is not None else ""
        score = f"{found.score:.6g}" if found.score is not None else ""
        return [f"{found.name} (the input)", amount(found.bytes), "100 %", "", "1.00", "", "", "", "", score, load, ""]
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
    ]


def print_frontier(found: Frontier, console: Console) -> None:
    """The page of frontier: a row per model, largest first."""
    rows = [frontier_cells(found, point) for point in (None, *found.points)]
    print_table(console, FRONTIER_HEADING, rows, right=range(1, len(FRONTIER_HEADING)))
    notes = list(found.notes)
    if found.generated:
        notes.insert(0, "inputs were generated: how close outputs are on real data is not known; --calib gives them")
    print_sentences(notes, console)
    counts = f"{len(found.points)} models, {found.built} built, {found.known} known from before"
    written = f"wrote {found.folder}: {counts}; {', '.join(found.files)}"
    console.print(f"\n{written}", highlight=False, markup=False, soft_wrap=True)


def print_inspection(found: Inspection, console: Console) -> None:
    """The page of inspect."""
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found.opsets.items())
    weights = f"{amount(found.weight_bytes)} of weights"
    facts = [
        found.path,
        amount(found.bytes),
        weights,
        f"opset {opsets}",
        f"IR {found.ir_version}",
    ]
    console.print(", ".join(filter(None, facts)), highlight=False, markup=False, soft_wrap=True)
    rows = [["input", *each] for each in found.inputs] + [["output", *each] for each in found.outputs]
    print_table(console, ["", "name", "type", "shape"], rows, title="Inputs and outputs")
    print_table(
        console,
        ["operator", "nodes"],
        [[name, str(number)] for name, number in found.operators.most_common(12)],
        right=[1],
        title="Operators" if len(found.operators) <= 12 else f"Operators (12 of {len(found.operators)})",
    )
    rows = [
        [
            row.site,
            row.operator,
            "x".join(map(str, row.shape)),
            amount(row.bytes_before),
            operations(row.macs),
            row.specification or (f"stays float: {row.reason}" if row.reason else "stays float"),
        ]
        for row in sorted(found.rows, key=lambda row: -row.bytes_before)[:MOST_ROWS]
    ]
    heading = ["site", "operator", "weight", "bytes", "MACs", "what would be tried without data"]
    more = f" ({MOST_ROWS} largest of {len(found.rows)}; --json lists all)" if len(found.rows) > MOST_ROWS else ""
    if rows:
        print_table(console, heading, rows, right=[3, 4], title=f"Sites{more}")
    _print_refusals(found.refusals, console)
    print_sentences(found.notes, console)


def print_passes(passes: Mapping[str, type[Any]], console: Console) -> None:
    """One row per pass: name, kind, what it does, its fields with their defaults."""
    rows = []
    for name, kind in passes.items():
        summary = (kind.__doc__ or "").strip().split("\n")[0]
        own = [each for each in fields(kind) if each.init] if is_dataclass(kind) else []
        shown = ", ".join(f"{each.name}={_default(each)}" for each in own)
        rows.append([name, "exact" if hasattr(kind, "run") else "lossy", summary, shown])
    print_table(console, ["pass", "kind", "what it does", "fields"], rows)


def _default(of: Field[Any]) -> str:
    if of.default is not MISSING:
        return str(of.default)
    return str(of.default_factory()) if of.default_factory is not MISSING else "required"
