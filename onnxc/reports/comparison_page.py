"""The page of compare. In: a Comparison. Out: outputs, sites, and both models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING

from rich.console import Console

from onnxc.kernels import fused
from onnxc.reports.figures import UNHEARD, amount, decibels, percent
from onnxc.reports.tables import print_sentences, print_table

if TYPE_CHECKING:
    from onnxc.quality import OutputError
    from onnxc.validate import Comparison


def print_totals(result: Comparison, console: Console, before: int = 0, after: int = 0) -> None:
    """Both models side by side: size, speed, quality, the user's metric, load and kernels."""
    rows = total_rows(result, before, after)
    print_table(console, ["", "original", "new", ""], rows, right=[1, 2], title="Totals")
    if result.leftover:
        names = ", ".join(f"'{name}'" for name in result.leftover[:3])
        console.print(
            f"- {len(result.leftover)} weights are unfolded at every run: nothing fused with them: {names}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def total_rows(result: Comparison, before: int = 0, after: int = 0) -> list[list[str]]:
    """What is measured, of the original, of the new model, and a word on it."""
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
    elif any(each.nowhere_finite for each in result.outputs):
        rows.append(["SQNR", "", UNHEARD, ""])
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
    return rows


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
            UNHEARD if each.nowhere_finite else decibels(each.sqnr_db),
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
                "" if isnan(each.damage) else f"{each.damage:.3g}",
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
