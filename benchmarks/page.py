"""Rows of the benchmark as tables. In: rows. Out: Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from rows import FAULTS, Row, ahead_in_score, ahead_in_size, ahead_in_speed, own_rows


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> str:
    """A table; columns from ``numbers`` on are aligned to the right."""
    marks = ["---" if index < numbers else "---:" for index in range(len(head))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, marks, *rows))


def text_table(rows: Iterable[Row]) -> str:
    """The figures of every row; failures last."""
    every = sorted(rows, key=lambda row: bool(row.failure))
    cells = [figures(row) for row in every]
    head = ["tool", "size", "times as fast", "score", "loss", "SQNR", "made in", "memory", "faults"]
    return markdown(head, cells, 1)


def figures(row: Row) -> list[str]:
    """The cells of a row."""
    made = [f"{row.seconds:.0f} s" if row.seconds else "", f"{row.megabytes:.0f} MB" if row.megabytes else ""]
    if row.failure:
        return [row.label, "", "", "", "", "", *made, f"failed: {row.failure}".replace("|", "/")]
    return [
        row.label,
        f"{100 * row.share:.1f} %",
        f"{row.speed:.2f} ({row.low:.2f} to {row.high:.2f})" if row.speed else "",
        f"{row.score:.4f}" if row.score is not None else "",
        f"{100 * row.loss:.2f} %" if row.loss is not None else "",
        f"{row.decibels:.1f} dB" if row.decibels is not None else "",
        *made,
        ", ".join(row.faults),
    ]


def results_page(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """The page results.md."""
    made = ", ".join(f"{what} {version}" for what, version in versions.items())
    models = list(dict.fromkeys((row.collection, row.model) for row in rows))
    every = "".join(one_model([row for row in rows if (row.collection, row.model) == each]) for each in models)
    return PAGE.format(made=made, counted=counted(rows), ahead=ahead(rows), every=every)


def one_model(rows: Sequence[Row]) -> str:
    """The section of a model."""
    first = rows[0]
    times = [row.milliseconds_original for row in rows if row.milliseconds_original is not None]
    score = f", score {first.score_original:.4f}" if first.score_original is not None else ""
    time = f", {times[0]:.3f} ms" if times else ""
    place = "" if first.collection == "models" else f" ({first.collection})"
    on = " and ".join(dict.fromkeys(row.processor for row in rows if row.processor))
    size = f"{first.bytes_original:,} bytes"
    return f"### {first.model}{place}\n\n{size}{time}{score}; {on}.\n\n{text_table(rows)}\n"


def counted(rows: Iterable[Row]) -> str:
    """How many results of each tool have which fault."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.label, []).append(row)
    cells = []
    for label, own in found.items():
        numbers = [str(sum(fault in row.faults for row in own)) for fault in FAULTS]
        whole = [row.share for row in own if not row.faults]
        median = f"{100 * statistics.median(whole):.0f} %" if whole else ""
        cells.append([label, str(len(own)), *numbers, str(len(whole)), median])
    return markdown(["tool", "models", *FAULTS, "none of these", "their median size"], cells)


def ahead(rows: Sequence[Row]) -> str:
    """Where another tool has what no result of onnxc has."""
    cells = []
    for row in rows:
        best = [own for own in own_rows(row, rows) if not own.mode]
        own = ", ".join(three(best[0])) if best else "failed"
        if ahead_in_score(row, rows):
            sure = f"{row.versus[0]:+.4f} to {row.versus[1]:+.4f}" if row.versus else ""
            cells.append([row.model, row.label, "score at no more bytes", *three(row), own, sure])
        if ahead_in_speed(row, rows):
            cells.append([row.model, row.label, "speed at no lower score", *three(row), own, ""])
        if ahead_in_size(row, rows):
            cells.append([row.model, row.label, "size without a fault", *three(row), own, ""])
    if not cells:
        return "Nowhere.\n"
    return markdown(["model", "tool", "ahead in", "size", "score", "speed", "onnxc", "difference of scores"], cells, 3)


def three(row: Row) -> tuple[str, str, str]:
    """Size, score, speed."""
    score = f"{row.score:.4f}" if row.score is not None else ""
    return f"{100 * row.share:.1f} %", score, f"{row.speed:.2f}" if row.speed else ""


def readme_table(rows: Sequence[Row]) -> str:
    """One line per model of models/: onnxc, and the fastest result of any other tool that keeps the score."""
    stored = [row for row in rows if row.collection == "models"]
    cells = []
    for name in dict.fromkeys(row.model for row in stored):
        own = next((row for row in stored if row.model == name and row.label == "onnxc"), None)
        if own is None:
            continue
        peers = [row for row in stored if row.model == name and row.tool != "onnxc" and row.kept and row.speed]
        best = max(peers, key=lambda row: row.speed or 0.0, default=None)
        score = f"{own.score_original:.4f} → {own.score:.4f}" if own.score is not None else "failed"
        cells.append([f"`{name}`", *pair(own), score, best.label if best else "none", *pair(best)])
    return markdown(["model", "size", "speed", "accuracy", "fastest other tool", "size", "speed"], cells)


def pair(row: Row | None) -> tuple[str, str]:
    """Size and speed."""
    if row is None or row.speed is None:
        return "", ""
    return f"{100 * row.share:.0f} %", f"{row.speed:.2f}×"


PAGE = """<!-- written by benchmarks/run.py -->
# Results

`make bench` made this page, [results.json](results.json) and the plot.
One thread; the processor stands beside each model; {made}.

![Score against size and speed of every result](results.svg)

A panel is a model, a mark a result: the further left the smaller, the higher the less was lost, the larger the mark
the faster. Results of another model's outputs (below 10 dB) and failures are not drawn.

- *size* is a share of the original's bytes. *times as fast* is the original's time over the new model's: each
  is interleaved with the original in one process, one thread, one sample a run; given is the median of the rounds,
  with their 10th and 90th percentile. Differences of a few percent are noise, more so where the spread is wide.
- *score* is that of test items which no tool has seen; an error rate is given as 1 - rate. *loss* is relative to the
  original's score. *SQNR* is signal to noise of the worst float output on 16 samples.
- Every tool got the same calibration samples, and runs as its documentation recommends for a CPU; each script in
  [compress/](compress) says which settings. onnxc was given the samples and the score of other items; *--ops ort*
  allows it operators of com.microsoft, which most of the others use; *without data* it gets the model alone. *made in*
  is processor time, *memory* the peak.
- Faults: *loses too much* is over 1 %, *other outputs* below 10 dB, *slower* below 0.98 times the original's speed.
- Models of models/ are described in [models/README.md](../models/README.md). The others are of a zoo folder given
  to `--zoo`, which is not part of this project.

## How many can be used

{counted}
## Where another tool is ahead

*score at no more bytes*: the score is higher than that of a result of onnxc with as many or more bytes, and no other
result of onnxc makes up for it. *speed at no lower score*: faster than a result of onnxc whose score is no higher, or
cannot be told from one that is not, and no other result of onnxc makes up for it; not too much is lost. *size without
a fault*: smaller than every result of onnxc. Scores above the original's count as the original's; results below 10 dB
do not count; speeds within 2 % are equal. *onnxc* is its size, score and speed with samples and score. An interval that
holds 0 (95 %, resampled items) says that the two scores cannot be told apart.

{ahead}
## Every result

{every}"""
