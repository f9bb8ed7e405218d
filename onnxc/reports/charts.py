"""The frontier as a table, a page and a picture. In: a Frontier. Out: CSV, HTML that works offline, PNG.

Score (SQNR where there is no hook) against size; the area of a bubble is the speed-up. The page holds everything in
itself, and is light or dark as the reader's system is.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from onnxc.errors import MissingExtraError
from onnxc.reports.figures import amount
from onnxc.reports.frontier_page import FRONTIER_HEADING, frontier_cells
from onnxc.reports.html import card, document, grid, listed

if TYPE_CHECKING:
    from onnxc.tradeoff.points import Frontier, Point

WIDTH, HEIGHT = 860, 430
LEFT, RIGHT, TOP, BOTTOM = 72, 28, 24, 58
SMALLEST, LARGEST = 7.0, 26.0  # radii of bubbles in pixels
LABEL_WIDTH = 38.0  # pixels
POINTS_PER_PIXEL = 0.72  # of the PNG, beside the SVG
INPUT_COLOR, POINT_COLOR = "#8b949e", "#2f6fc4"
COLUMNS = (
    "file",
    "size",
    "share",
    "predicted_share",
    "speed",
    "speed_low",
    "speed_high",
    "predicted_speed",
    "seconds",
    "sqnr_db",
    "predicted_sqnr_db",
    "agreement",
    "score",
    "drop",
    "predicted_drop",
    "load_seconds",
    "load_bytes",
    "sites",
    "formats",
    "form",
)

PLOT = """
svg { display: block; width: 100%; height: auto; min-width: 560px; }
svg text { fill: var(--quiet); font-size: 12px; }
svg .name { fill: var(--text); font-size: 12px; font-weight: 600; }
.grid { stroke: var(--line); }
.path { fill: none; stroke: var(--accent); stroke-opacity: .45; stroke-width: 1.5; stroke-dasharray: 4 4; }
.bubble { fill: var(--accent); fill-opacity: .32; stroke: var(--accent); stroke-width: 1.5; }
a:hover .bubble, a:focus .bubble { fill-opacity: .75; }
.input { fill: none; stroke: var(--quiet); stroke-width: 1.5; stroke-dasharray: 3 3; }
""".strip()


def table(found: Frontier) -> str:
    """One line per model as CSV, largest first; a column that was not measured is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in found.points:
        formats = " ".join(f"{name}:{count}" for name, count in point.formats.items())
        own = {"file": point.files[0], "drop": found.drop(point), "formats": formats}
        values = [own[name] if name in own else getattr(point, name) for name in COLUMNS]
        writer.writerow(["" if value is None else value for value in values])
    return stream.getvalue()


def scored(found: Frontier) -> list[tuple[Point, float]]:
    """Each point with what goes up: the score where every point has one, else the SQNR [dB]."""
    if found.points and all(point.score is not None for point in found.points):
        return [(point, float(point.score or 0.0)) for point in found.points]
    return [(point, float(point.sqnr_db)) for point in found.points if point.sqnr_db is not None]


def by_score(found: Frontier) -> bool:
    """Whether scored() gives scores."""
    return bool(found.points) and all(point.score is not None for point in found.points)


def axis_name(found: Frontier) -> str:
    """What goes up."""
    return f"score ({found.hook})" if by_score(found) else "SQNR [dB]"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-12) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    return [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def span(values: Sequence[float], least: float) -> tuple[float, float]:
    """The range of an axis: all values, at least so much of it, with room for bubbles."""
    low, high = min(values), max(values)
    room = max(0.12 * (high - low), (least - (high - low)) / 2)
    return low - room, high + room


def radius(point: Point) -> float:
    """Pixels: the area of a bubble is the speed-up."""
    return min(max(10.0 * math.sqrt(point.speed or 1.0), SMALLEST), LARGEST)


def page(found: Frontier) -> str:
    """The page: picture, table, and what the user should know."""
    rows = [frontier_cells(found, None), *(frontier_cells(found, point) for point in found.points)]
    notes = list(found.notes)
    if found.generated:
        notes.insert(
            0, "inputs were generated: how close outputs are on real data is not known; give them with --calib"
        )
    lead = (
        f"{len(found.points)} models from {amount(found.bytes)}; none is larger, slower and less accurate than "
        f"another. Samples: {found.data}."
    )
    parts = [card(scatter(found)), card(grid(FRONTIER_HEADING, rows, anchor="row")), card(listed(notes))]
    return document(f"{found.name}: size, speed and quality", found.name, lead, parts, PLOT)


@dataclass(frozen=True)
class Axes:
    """Where shares and values lie, in pixels of WIDTH x HEIGHT.

    Attributes:
        right: the largest share, in percent; low, high: the range of values.
    """

    right: float
    low: float
    high: float

    @classmethod
    def around(cls, found: Frontier, points: Sequence[tuple[Point, float]]) -> Axes:
        """Axes that hold all points, and the input's score where scores are shown."""
        reference = found.score if by_score(found) else None
        values = [value for _, value in points] + ([reference] if reference is not None else [])
        low, high = span(values, 0.01 * abs(reference) if reference is not None else 10.0)
        return cls(112 * max(point.share for point, _ in points), low, high)

    def x(self, share: float) -> float:
        """Of a share of the input's bytes."""
        return LEFT + (WIDTH - LEFT - RIGHT) * 100 * share / self.right

    def y(self, value: float) -> float:
        """Of a score or an SQNR."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low)


def scatter(found: Frontier) -> str:
    """The picture as SVG; a bubble leads to its row, its title tells the figures."""
    points = scored(found)
    if not points:
        return "<p>No model is smaller and as fast as the input.</p>"
    reference, axes = found.score if by_score(found) else None, Axes.around(found, points)
    end, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    made = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(axis_name(found))} against size">']
    for value in ticks(axes.low, axes.high):
        y = axes.y(value)
        made.append(f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        made.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    for value in ticks(0.0, axes.right, 8):
        x = axes.x(value / 100)
        made.append(f'<text x="{x:.1f}" y="{floor + 20}" text-anchor="middle">{value:g} %</text>')
        made.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 5}"/>')
    made.append(f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{floor}" y2="{floor}"/>')
    if reference is not None:
        y = axes.y(reference)
        made.append(f'<line class="input" x1="{LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        made.append(f'<text x="{LEFT + 8}" y="{y - 6:.1f}">the input: {reference:.6g}</text>')
    line = " ".join(f"{axes.x(point.share):.1f},{axes.y(value):.1f}" for point, value in points)
    made.append(f'<polyline class="path" points="{line}"/>')
    for (point, value), place in zip(points, labels(points, axes), strict=True):
        made.append(bubble(found, point, axes.x(point.share), axes.y(value), place))
    across, down = (LEFT + end) / 2, (TOP + floor) / 2
    below = "size, of the input's bytes; the larger a bubble, the faster"
    made.append(f'<text x="{across:.0f}" y="{HEIGHT - 14}" text-anchor="middle">{below}</text>')
    turned = f'transform="translate(16 {down:.0f}) rotate(-90)" text-anchor="middle"'
    made.append(f"<text {turned}>{escape(axis_name(found))}</text>")
    return "\n".join([*made, "</svg>"])


def bubble(found: Frontier, point: Point, x: float, y: float, place: tuple[float, float]) -> str:
    """One model: a link to its row, with its figures as a title and its speed beside it."""
    cells = zip(FRONTIER_HEADING, frontier_cells(found, point), strict=True)
    title = "\n".join(f"{name}: {cell}" for name, cell in cells if cell)
    name = f'<text class="name" x="{x + place[0]:.1f}" y="{y + place[1]:.1f}">{label(point)}</text>'
    return (
        f'<a href="#row-{found.points.index(point) + 1}"><title>{escape(title)}</title>'
        f'<circle class="bubble" cx="{x:.1f}" cy="{y:.1f}" r="{radius(point):.1f}"/>{name}</a>'
    )


def label(point: Point) -> str:
    """What stands beside a bubble."""
    return f"{point.speed:.2f}x" if point.speed is not None else ""


def labels(points: Sequence[tuple[Point, float]], axes: Axes) -> list[tuple[float, float]]:
    """Where each label begins, from the middle of its bubble [pixels]: the first of several places that no other label
    or bubble takes.
    """
    bubbles = [(axes.x(point.share), axes.y(value), radius(point)) for point, value in points]
    taken = [(x - r, y - r, x + r, y + r) for x, y, r in bubbles]
    found = []
    for index, (x, y, r) in enumerate(bubbles):
        near, far = 0.75 * r, r + 4
        tries = [
            (near + 2, near + 9),
            (-LABEL_WIDTH / 2, -far - 1),
            (-LABEL_WIDTH / 2, far + 10),
            (-near - 2 - LABEL_WIDTH, -near),
            (far, 4),
            (-far - LABEL_WIDTH, 4),
            *((-LABEL_WIDTH / 2, sign * (far + step) + 5) for step in (16, 30, 44) for sign in (1, -1)),
        ]
        boxes = [(x + across, y + down - 10, x + across + LABEL_WIDTH, y + down + 1) for across, down in tries]
        others = [box for other, box in enumerate(taken) if other != index]
        free = [not any(overlap(box, other) for other in others) for box in boxes]
        chosen = free.index(True) if True in free else 0
        found.append(tries[chosen])
        taken.append(boxes[chosen])
    return found


Box = tuple[float, float, float, float]


def overlap(first: Box, second: Box) -> bool:
    """Of two boxes, each left, top, right, bottom."""
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def need_matplotlib() -> Any:
    """The module matplotlib; MissingExtraError naming the extra where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("the picture needs matplotlib: pip install 'onnxc[plot]'") from error
    return mpl


def picture(found: Frontier) -> bytes:
    """The picture as PNG. MissingExtraError without matplotlib."""
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = scored(found)
    xs, ys = [100 * point.share for point, _ in points], [value for _, value in points]
    axes.plot(xs, ys, linestyle=(0, (4, 4)), linewidth=1, color=POINT_COLOR, alpha=0.5, zorder=1)
    areas = [(1.4 * radius(point)) ** 2 for point, _ in points]
    axes.scatter(xs, ys, s=areas, color=POINT_COLOR, alpha=0.4, edgecolors=POINT_COLOR, zorder=2)
    if points:
        pixels = Axes.around(found, points)
        for (point, value), (across, down) in zip(points, labels(points, pixels), strict=True):
            place = (across * POINTS_PER_PIXEL, -down * POINTS_PER_PIXEL)
            axes.annotate(label(point), (100 * point.share, value), place, textcoords="offset points", fontsize=8)
        axes.set_ylim(pixels.low, pixels.high)
        axes.set_xlim(0, pixels.right)
        if (reference := found.score if by_score(found) else None) is not None:
            axes.axhline(reference, color=INPUT_COLOR, linewidth=1, linestyle=(0, (3, 3)))
            axes.annotate(
                "the input",
                (0.01, reference),
                (2, 4),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                color=INPUT_COLOR,
                fontsize=8,
            )
    axes.set_title(found.name, loc="left", fontweight="bold")
    axes.set_xlabel("size [% of the input's bytes]; the larger a bubble, the faster")
    axes.set_ylabel(axis_name(found))
    axes.grid(axis="y", color="#d8dee4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
