"""A row of the benchmark, and what it says. In: figures. Out: faults, and where another tool is ahead of onnxc."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ALLOWED = 0.01  # relative loss of the score that still counts as the same model
SLOWEST = 0.98  # below this a model is slower than its original
QUIETEST = 10.0  # dB: below, the outputs are others, whatever the score
FASTER = 1.02  # speeds closer than this are the same
FAULTS = ("failed", "loses too much", "other outputs", "slower", "larger")


@dataclass
class Row:
    """What one tool made of one model; speed is the original's time over the new one's."""

    collection: str
    model: str
    tool: str
    mode: str
    bytes_original: int
    score_original: float | None
    bytes: int | None = None
    score: float | None = None
    interval: list[float] | None = None  # of score - the original's score
    versus: list[float] | None = None  # of score - onnxc's score, where it is higher at no more bytes
    decibels: float | None = None
    speed: float | None = None
    low: float | None = None
    high: float | None = None
    milliseconds: float | None = None
    milliseconds_original: float | None = None
    seconds: float | None = None
    megabytes: float | None = None
    failure: str = ""
    processor: str = ""  # what it was made and timed on

    @property
    def label(self) -> str:
        """Tool and mode."""
        return f"{self.tool} {self.mode}".strip()

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
    def counted(self) -> float:
        """The score; one above the original's counts as the original's."""
        return min(self.score or 0.0, self.score_original or 0.0)

    def reaches(self, score: float) -> bool:
        """Whether the score is as high, or cannot be told from one that is."""
        return self.counted >= score or (
            self.interval is not None and self.interval[1] >= score - (self.score_original or 0.0)
        )

    @property
    def faults(self) -> list[str]:
        """What speaks against using the result."""
        if self.failure:
            return ["failed"]
        found = ["loses too much"] if self.loss is not None and self.loss > ALLOWED else []
        found += ["other outputs"] if self.decibels is not None and self.decibels < QUIETEST else []
        found += ["slower"] if self.speed is not None and self.speed < SLOWEST else []
        return found + (["larger"] if self.share > 1 else [])

    @property
    def kept(self) -> bool:
        """Whether it still is the same model."""
        return not {"failed", "loses too much", "other outputs"} & set(self.faults)


def own_rows(row: Row, rows: Iterable[Row]) -> list[Row]:
    """What onnxc made of the row's model."""
    same = [each for each in rows if (each.collection, each.model) == (row.collection, row.model)]
    return [each for each in same if each.tool == "onnxc" and not each.failure]


def judged(row: Row, own: Iterable[Row]) -> bool:
    """Whether the row of another tool is compared with ``own`` ones of onnxc at all."""
    return row.tool != "onnxc" and not row.failure and "other outputs" not in row.faults and any(own)


def ahead_in_score(row: Row, rows: Iterable[Row]) -> bool:
    """Whether the score is above that of a result of onnxc with as many or more bytes, and none makes up for it."""
    own = own_rows(row, rows)
    above = any(row.counted > each.counted for each in own if row.share <= each.share)
    return (
        judged(row, own) and above and not any(each.counted >= row.counted for each in own if each.share <= row.share)
    )


def ahead_in_size(row: Row, rows: Iterable[Row]) -> bool:
    """Whether the result has no fault and is smaller than every result of onnxc that has none."""
    own = own_rows(row, rows)
    whole = row.speed is not None and not row.faults
    return judged(row, own) and whole and all(row.share < each.share for each in own if not each.faults)


def ahead_in_speed(row: Row, rows: Iterable[Row]) -> bool:
    """Whether the result is faster than one of onnxc of no higher score, and none makes up for it; 1 % is kept."""
    own = [each for each in own_rows(row, rows) if each.speed]
    above = any(row.reaches(each.counted) and faster(row, each) for each in own)
    return (
        judged(row, own) and row.kept and above and all(faster(row, each) for each in own if each.reaches(row.counted))
    )


def faster(row: Row, other: Row) -> bool:
    """Whether it is by more than speeds differ by chance."""
    return row.speed is not None and other.speed is not None and row.speed > FASTER * other.speed
