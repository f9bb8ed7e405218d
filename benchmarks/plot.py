"""The plot of the benchmark. In: rows. Out: an SVG that reads on light and dark pages.

Two panels, a line per model: size on the left, speed on the right. A hollow mark lost more than 1 % of the
score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tables import Row

WIDTH, LABEL, PANEL, GAP, STEP, TOP = 880, 150, 320, 50, 38, 86
COLORS = {
    "onnxc": "#1a7f37",
    "onnxc --ops ort": "#55a868",
    "onnxc, no data": "#a5d6ae",
    "ORT dynamic": "#bf5b04",
    "ORT static": "#6f4bb8",
    "ORT static u8s8": "#2f6fc4",
}
SPEED_LOW, SPEED_HIGH = 0.09, 4.0
SIZE_HIGH = 1.2

STYLE = """
    .card { fill: #ffffff; stroke: #d0d7de; }
    text { fill: #1f2328; font-size: 12px; }
    .small { font-size: 11px; fill: #57606a; }
    .bold { font-weight: 600; }
    .grid { stroke: #d8dee4; }
    .one { stroke: #57606a; stroke-dasharray: 3 3; }
    .hollow { fill: #ffffff; stroke-width: 2; }
    @media (prefers-color-scheme: dark) {
      .card { fill: #0d1117; stroke: #30363d; }
      text { fill: #e6edf3; }
      .small { fill: #9aa4af; }
      .grid { stroke: #262c33; }
      .one { stroke: #9aa4af; }
      .hollow { fill: #0d1117; }
    }
"""


def size_x(share: float) -> float:
    """Where a share of the bytes lies in the left panel."""
    return LABEL + PANEL * min(share, SIZE_HIGH) / SIZE_HIGH


def speed_x(speed: float) -> float:
    """Where a speed lies in the right panel, on a logarithmic scale."""
    position = math.log(speed / SPEED_LOW) / math.log(SPEED_HIGH / SPEED_LOW)
    return LABEL + PANEL + GAP + PANEL * min(max(position, 0.0), 1.0)


def draw(rows: Sequence[Row]) -> str:
    """The whole picture."""
    models = list(dict.fromkeys(row.model for row in rows))
    bottom = TOP + STEP * len(models)
    height = bottom + 40
    fonts = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
    place = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {place} role="img" font-family="{fonts}">',
        "<title>Size and speed of every result, as a share and a multiple of the original's</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>',
    ]
    x = 20.0
    for tool, color in COLORS.items():
        parts.append(f'<circle cx="{x + 5}" cy="22" r="5" fill="{color}"/><text x="{x + 16}" y="26">{tool}</text>')
        x += 34 + 7 * len(tool)
    parts.append(f'<circle class="hollow" cx="25" cy="{bottom + 14}" r="5" stroke="#57606a"/>')
    parts.append(f'<text class="small" x="36" y="{bottom + 18}">lost over 1 %</text>')
    parts.append(f'<text class="bold" x="{LABEL}" y="58">size (left is better)</text>')
    parts.append(f'<text class="bold" x="{LABEL + PANEL + GAP}" y="58">speed (right is better)</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += tick(size_x(share), bottom, f"{share:.0%}", one=share == 1)
    for speed in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0):
        parts += tick(speed_x(speed), bottom, f"{speed:g}×", one=speed == 1)
    for number, model in enumerate(models):
        y = TOP + STEP * (number + 0.5)
        parts.append(f'<text x="20" y="{y + 4}">{escape(model)}</text>')
        for lane, tool in enumerate(reversed(COLORS)):
            parts += marks([r for r in rows if (r.model, r.tool) == (model, tool)], y + 4 * (2.5 - lane), tool)
    return "\n".join([*parts, "</svg>\n"])


def tick(x: float, bottom: float, label: str, *, one: bool) -> list[str]:
    """A vertical line with its number."""
    kind = "one" if one else "grid"
    return [
        f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 14}" y2="{bottom}"/>',
        f'<text class="small" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>',
    ]


def marks(rows: Sequence[Row], y: float, tool: str) -> list[str]:
    """Two circles per result; none where a tool failed."""
    found = []
    for row in rows:
        if row.failure or row.speed is None:
            continue
        lost = "loses too much" in row.faults
        paint = f'class="hollow" stroke="{COLORS[tool]}"' if lost else f'fill="{COLORS[tool]}"'
        hint = escape(f"{row.model}, {tool}: {row.share:.1%} of the bytes, {row.speed:.2f} times as fast")
        found += [
            f'<circle {paint} cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{hint}</title></circle>'
            for x in (size_x(row.share), speed_x(row.speed))
        ]
    return found
