"""The pages of inspect and passes. In: what was found. Out: what is in a model, and what onnxc can do with one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from onnxc.reports.figures import amount, operations
from onnxc.reports.report_page import MOST_ROWS, print_refusals
from onnxc.reports.tables import print_sentences, print_table

if TYPE_CHECKING:
    from onnxc.inspection import Inspection


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
    print_refusals(found.refusals, console)
    print_sentences(found.notes, console)


def print_passes(passes: Mapping[str, type[Any]], console: Console) -> None:
    """One row per pass: name, kind, what it does, its fields with their defaults."""
    rows = []
    for name, kind in passes.items():
        summary = first_sentence(kind.__doc__ or "")
        own = [each for each in fields(kind) if each.init] if is_dataclass(kind) else []
        shown = ", ".join(f"{each.name}={_default(each)}" for each in own)
        rows.append([name, getattr(kind, "kind", ""), summary, shown])
    print_table(console, ["pass", "kind", "what it does", "fields"], rows)


def first_sentence(text: str) -> str:
    """Of a docstring."""
    found = re.match(r"(.*?)(?:(?<!et al)[.](?=\s|$)|\n\s*\n|$)", text.strip(), re.DOTALL)
    return " ".join((found.group(1) if found else "").split())


def _default(of: Field[Any]) -> str:
    if of.default is not MISSING:
        return str(of.default)
    return str(of.default_factory()) if of.default_factory is not MISSING else "required"
