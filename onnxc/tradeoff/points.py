"""One plan of a trade-off, and all that are left. In: figures of what was built. Out: a Point each, a Frontier."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxc.codes.formats import FLOATS, INT8
from onnxc.judge import SMALL_SHARE
from onnxc.quality import Quality, relative_drop
from onnxc.report import plain


@dataclass
class Point:
    """One plan that was built.

    Attributes:
        key: of the plan, the input, the data and the options.
        files: names in the folder, the model first; empty where the model was not kept.
        digest: SHA-256 of the files.
        size: bytes, external data included; share: of the input's.
        speed: input's time over this model's, with its spread over rounds; seconds: per run.
        load_seconds, load_bytes: what creating a session takes.
        sqnr_db, agreement, changed, judged: of the outputs, over all samples; outputs: SQNR in dB of every output that
            is a quantity; score: of the user's metric.
        predicted_share, predicted_speed, predicted_sqnr_db: what the plan was chosen for; predicted_drop: of the score,
            as the other models that were scored tell it of its noise, before its own score is looked at.
        sites: in int8; formats: format -> weights stored in it; form: what was cut or factored
            before, empty where nothing was; kernels: the same for plans that compute alike.
        damages: weight -> damage of its codes, others: bytes that are no weights; the next plans are made with both.
        rejected: why it is no model to deliver, whatever the floors; None if it is one.
        beaten_by: key of the point that is smaller, faster and better.
    """

    key: str
    files: list[str] = field(default_factory=list)
    digest: str = ""
    size: int = 0
    share: float = 1.0
    speed: float | None = None
    speed_low: float | None = None
    speed_high: float | None = None
    seconds: float | None = None
    load_seconds: float | None = None
    load_bytes: int | None = None
    sqnr_db: float | None = None
    outputs: dict[str, float] = field(default_factory=dict)
    agreement: float | None = None
    changed: int = 0
    judged: int = 0
    score: float | None = None
    predicted_share: float | None = None
    predicted_speed: float | None = None
    predicted_sqnr_db: float | None = None
    predicted_drop: float | None = None
    sites: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    form: str = ""
    kernels: str = ""
    damages: dict[str, float] = field(default_factory=dict)
    others: float = 0.0
    rejected: str | None = None
    beaten_by: str | None = None

    @property
    def quality(self) -> Quality:
        """What the floors look at."""
        sqnr = -math.inf if self.sqnr_db is None else self.sqnr_db
        return Quality([], sqnr, self.agreement, self.changed, self.judged)

    @property
    def allowed_share(self) -> float:
        """Of the allowed drop: a plan below 8 bits is one of many that were tried on the same items."""
        return SMALL_SHARE if set(self.formats) - {INT8.name, *FLOATS} else 1.0


@dataclass
class Frontier:
    """The result.

    Attributes:
        input, folder: as given.
        bytes, seconds, score, load_seconds, load_bytes: of the input; None where it was not measured.
        points: those that no other one beats, largest first.
        hook: name of the user's metric, None without one.
        generated, data: what the samples were.
        notes: sentences that the user should read.
        files: tables and plots that were written.
        built: how many models were built in this run; known: how many had been built before.
    """

    input: str
    folder: str
    bytes: int
    seconds: float | None = None
    score: float | None = None
    load_seconds: float | None = None
    load_bytes: int | None = None
    points: list[Point] = field(default_factory=list)
    hook: str | None = None
    generated: bool = False
    data: str = ""
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    built: int = 0
    known: int = 0

    @property
    def name(self) -> str:
        """The input's name without folder and suffix."""
        return Path(self.input).stem

    def drop(self, point: Point) -> float | None:
        """The relative loss of the score, None where there is none."""
        if self.score is None or point.score is None:
            return None
        return relative_drop(self.score, point.score)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON has, without what only the next run needs."""
        result: dict[str, Any] = plain(self)
        for each in result["points"]:
            each["file"] = each.pop("files")[0]
            for name in ("damages", "others", "digest", "key", "kernels", "rejected", "beaten_by"):
                del each[name]
        return result
