"""The plot of the benchmark. In: rows. Out: an SVG that reads on light and dark pages.

A panel per model: size to the right, loss of the score downwards, so that the upper left corner is best. A mark is a
result; its area is its speed, and it is hollow where it is slower than the original. What lost more than the axis
shows stands on its lower edge. Results of other outputs (below 10 dB) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rows import SLOWEST, Row

COLUMNS, PANEL, HIGH, LEFT, TOP, GAP_X, GAP_Y = 4, 196, 132, 50, 92, 28, 62
COLORS = {
    "onnxc": "#1a7f37",
    "ONNX Runtime": "#0969da",
    "onnxsim": "#8250df",
    "NNCF": "#bf3989",
    "AIMET": "#cf222e",
    "Quark": "#d97706",
    "ModelOpt": "#6e7781",
    "Olive": "#0e8a8a",
    "Neural Compressor": "#7d4e00",
}
SIZE_HIGH = 1.0
LOSS_LOW, LOSS_HIGH = -0.01, 0.04
AREA = 34.0  # square pixels of a mark as fast as the original
SLOW, FAST = 0.25, 6.0  # speeds beyond are drawn as these

STYLE = """
    .card { fill: #ffffff; stroke: #d0d7de; }
    text { fill: #1f2328; font-size: 12px; }
    .small { font-size: 10.5px; fill: #57606a; }
    .bold { font-weight: 600; }
    .grid { stroke: #e4e8ec; }
    .limit { stroke: #8c959f; stroke-dasharray: 3 3; }
    @media (prefers-color-scheme: dark) {
      .card { fill: #0d1117; stroke: #30363d; }
      text { fill: #e6edf3; }
      .small { fill: #9aa4af; }
      .grid { stroke: #21262d; }
      .limit { stroke: #6e7681; }
    }
"""


def draw(rows: Sequence[Row]) -> str:
    """The whole picture."""
    drawn = [row for row in rows if not row.failure and row.speed and "other outputs" not in row.faults]
    models = list(dict.fromkeys((row.collection, row.model) for row in rows))
    width = LEFT + COLUMNS * (PANEL + GAP_X) + 4
    height = TOP + math.ceil(len(models) / COLUMNS) * (HIGH + GAP_Y) - 28
    fonts = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
    place = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {place} role="img" font-family="{fonts}">',
        "<title>Loss of score against size of every result; the area of a mark is its speed</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>',
        *legend(),
    ]
    for number, model in enumerate(models):
        x = LEFT + (number % COLUMNS) * (PANEL + GAP_X)
        y = TOP + (number // COLUMNS) * (HIGH + GAP_Y)
        own = [row for row in drawn if (row.collection, row.model) == model]
        parts += panel(model[1], own, x, y, first=number % COLUMNS == 0)
    return "\n".join([*parts, "</svg>\n"])


def legend() -> list[str]:
    """Colors, and what areas mean."""
    parts, x = [], 20.0
    for tool, color in COLORS.items():
        parts.append(f'<circle cx="{x + 5}" cy="22" r="5" fill="{color}"/><text x="{x + 15}" y="26">{tool}</text>')
        x += 32 + 6.6 * len(tool)
    parts.append('<text class="small" x="20" y="50">area: times as fast</text>')
    x = 130.0
    for speed in (0.5, 1.0, 2.0, 4.0):
        parts += [mark(x, 46, speed, "#57606a"), f'<text class="small" x="{x + 12}" y="50">{speed:g}</text>']
        x += 44
    parts.append(f'<text class="small" x="{x}" y="50">hollow: slower than the original</text>')
    text = "across: bytes against the original's; down: loss of the score; dashed: 1 %"
    parts.append(f'<text class="small" x="{x + 190}" y="50">{text}</text>')
    return parts


def mark(x: float, y: float, speed: float, color: str, hint: str = "") -> str:
    """A circle whose area is a speed."""
    radius = math.sqrt(AREA * min(max(speed, SLOW), FAST) / math.pi)
    slow = speed < SLOWEST
    paint = f'fill="none" stroke="{color}" stroke-width="1.4"' if slow else f'fill="{color}" fill-opacity="0.8"'
    return f'<circle {paint} cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}"><title>{escape(hint)}</title></circle>'


def panel(name: str, rows: Sequence[Row], x: float, y: float, *, first: bool) -> list[str]:
    """One model; onnxc is drawn last, above the others, and large marks below small ones."""

    def across(share: float) -> float:
        return x + PANEL * min(share, SIZE_HIGH * 1.03) / SIZE_HIGH

    def down(loss: float) -> float:
        return y + HIGH * (min(max(loss, LOSS_LOW), LOSS_HIGH) - LOSS_LOW) / (LOSS_HIGH - LOSS_LOW)

    parts = [f'<text class="bold" x="{x}" y="{y - 10}">{escape(name)}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line class="grid" x1="{across(share):.1f}" x2="{across(share):.1f}" y1="{y}" y2="{y + HIGH}"/>')
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        place = f'x="{across(share):.1f}" y="{y + HIGH + 16}" text-anchor="{anchor}"'
        parts.append(f'<text class="small" {place}>{100 * share:.0f}{" %" if share == 1 else ""}</text>')
    for loss in (-0.01, 0.0, 0.01, 0.02, 0.03, 0.04):
        kind = "limit" if loss == 0.01 else "grid"
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x + PANEL}" y1="{down(loss):.1f}" y2="{down(loss):.1f}"/>')
        if first:
            text = "4 % +" if loss == LOSS_HIGH else f"{100 * loss:.0f} %"
            place = f'x="{x - 8}" y="{down(loss) + 4:.1f}" text-anchor="end"'
            parts.append(f'<text class="small" {place}>{text}</text>')
    for row in sorted(rows, key=lambda row: (row.tool == "onnxc", -(row.speed or 0.0))):
        hint = f"{row.model}, {row.label}: {row.share:.1%} of the bytes, {row.speed:.2f} times as fast"
        parts.append(mark(across(row.share), down(row.loss or 0.0), row.speed or 0.0, COLORS[row.tool], hint))
    return parts
