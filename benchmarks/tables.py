"""Rows of the benchmark as tables. In: rows. Out: Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ALLOWED = 0.01  # relative loss of the score that still counts as the same model
SLOWEST = 0.98  # below this a model is slower than its original


@dataclass
class Row:
    """What one tool made of one model; speed is the original's time over the new one's."""

    model: str
    tool: str
    bytes_original: int
    score_original: float | None
    bytes: int | None = None
    score: float | None = None
    speed: float | None = None
    low: float | None = None
    high: float | None = None
    milliseconds: float | None = None
    milliseconds_original: float | None = None
    seconds: float = 0.0
    failure: str = ""

    @property
    def share(self) -> float:
        """Bytes as a share of the original's; infinite where there is no model."""
        return self.bytes / self.bytes_original if self.bytes else float("inf")

    @property
    def loss(self) -> float | None:
        """Relative loss of the score; None where nothing was scored."""
        if self.score is None or not self.score_original:
            return None
        return (self.score_original - self.score) / self.score_original

    @property
    def faults(self) -> list[str]:
        """What speaks against using the result."""
        if self.failure:
            return ["failed"]
        found = ["loses too much"] if self.loss is not None and self.loss > ALLOWED else []
        found += ["slower"] if self.speed is not None and self.speed < SLOWEST else []
        return found + (["larger"] if self.share > 1 else [])


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> str:
    """A table; columns from ``numbers`` on are aligned to the right."""
    marks = ["---" if index < numbers else "---:" for index in range(len(head))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, marks, *rows))


def text_table(rows: Iterable[Row]) -> str:
    """Every figure of every row."""
    cells = []
    for row in rows:
        if row.failure:
            cells.append([row.model, row.tool, f"failed: {row.failure}", "", "", "", f"{row.seconds:.0f}"])
            continue
        score = f"{row.score:.4f}" if row.score is not None else ""
        loss = f"{100 * row.loss:.2f} %" if row.loss is not None else ""
        spread = f"{row.speed:.2f} ({row.low:.2f} to {row.high:.2f})"
        what = f"{100 * row.share:.1f} %" + ("" if not row.faults else f", {', '.join(row.faults)}")
        cells.append([row.model, row.tool, what, spread, score, loss, f"{row.seconds:.0f}"])
    head = ["model", "tool", "size", "times as fast", "score", "loss", "seconds to make"]
    return markdown(head, cells, 2)


def results_page(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """The page results.md."""
    originals = {row.model: row for row in rows}
    first = markdown(
        ["model", "bytes", "milliseconds", "score"],
        [
            [name, f"{row.bytes_original:,}", _milliseconds(rows, name), f"{row.score_original:.4f}"]
            for name, row in originals.items()
        ],
    )
    counted = markdown(
        ["tool", "models", "failed", "lost over 1 %", "slower", "larger", "none of these", "median size"],
        [
            [tool, str(len(own)), *(str(_count(own, fault)) for fault in (*FAULTS, "")), _median_size(own)]
            for tool, own in _by_tool(rows).items()
        ],
    )
    made = ", ".join(f"{what} {version}" for what, version in versions.items() if what != "processor")
    return PAGE.format(processor=versions["processor"], made=made, first=first, counted=counted, rows=text_table(rows))


FAULTS = ("failed", "loses too much", "slower", "larger")


def _by_tool(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.tool, []).append(row)
    return found


def _count(rows: Iterable[Row], fault: str) -> int:
    return sum(fault in row.faults if fault else not row.faults for row in rows)


def _median_size(rows: Iterable[Row]) -> str:
    return f"{statistics.median(row.share for row in rows if not row.failure):.0%}".replace("%", " %")


def _milliseconds(rows: Iterable[Row], model: str) -> str:
    found = [r.milliseconds_original for r in rows if r.model == model and r.milliseconds_original is not None]
    return f"{found[0]:.3f}" if found else ""


def readme_table(rows: Sequence[Row]) -> str:
    """One line per model: onnxc, and the fastest result of ONNX Runtime's quantizers that keeps the score."""
    cells = []
    for name in dict.fromkeys(row.model for row in rows):
        own = next(row for row in rows if row.model == name and row.tool == "onnxc")
        peers = [r for r in rows if r.model == name and r.tool.startswith("ORT") and r.speed is not None]
        kept = [r for r in peers if "loses too much" not in r.faults]
        best = max(kept, key=lambda r: r.speed or 0.0, default=None)
        cells.append([f"`{name}`", *_pair(own), f"{own.score_original:.4f} → {own.score:.4f}", *_pair(best)])
    head = ["model", "size", "speed", "accuracy", "ORT size", "ORT speed"]
    return markdown(head, cells)


def _pair(row: Row | None) -> tuple[str, str]:
    if row is None or row.speed is None:
        return "none", ""
    return f"{100 * row.share:.0f} %", f"{row.speed:.2f}×"


PAGE = """<!-- written by benchmarks/run.py -->
# Results

`make benchmark` made this page, [results.json](results.json) and the plot.
One thread of {processor}; {made}.

*size* is a share of the original's bytes. *times as fast* is the original's time over the new model's: all
results for a model are interleaved in one process, one sample a run; given is the median of the rounds,
with their 10th and 90th percentile. *score* is the accuracy on test items that no tool has seen. Every tool
got the same 128 calibration samples; onnxc was also given the score on other items. Differences of a few
percent are noise, more so where the spread is wide.

ONNX Runtime's quantizers (*ORT*) are `onnxruntime.quantization`, after its `quant_pre_process`: *dynamic* is
`quantize_dynamic` with int8 weights, *static* is `quantize_static` as it comes, *static u8s8* the same with
uint8 activations and int8 weights per channel, which suits this processor better. Their models may use
operators of com.microsoft, onnxc's only with `--ops ort`.

![Size and speed of every result](results.svg)

## How many can be used

{counted}
*slower* is below 0.98 times the original's speed.

## The originals

{first}
## Every result

{rows}"""
