"""frontier.json: what a run remembers for the next one. In: a folder. Out: points that need not be built again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnxc.errors import ModelError, UsageError
from onnxc.file.storage import replace_file
from onnxc.model import Model
from onnxc.recipe import Budget
from onnxc.report import plain
from onnxc.tradeoff.points import Point

RECORD = "frontier.json"


class Record:
    """frontier.json: every plan that was built, with what was measured of it.

    Args:
        folder: where it lies, beside the models.
        identity: of this run. UsageError if the folder holds another model's frontier.
        fresh: models are built again, and replace those that are there.
    """

    def __init__(self, folder: Path, identity: str, *, fresh: bool = False) -> None:
        self.folder, self.identity, self.fresh = folder, identity, fresh
        self.points: dict[str, Point] = {}
        self.before = set[str]()
        self.complete: dict[str, Any] | None = None
        self.notes: list[str] = []
        self.load_seconds: float | None = None
        self.load_bytes: int | None = None
        path = folder / RECORD
        if not path.exists():
            return
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            theirs, self.notes = values["run"], list(values["notes"])
            self.complete = values["budget"] if values["complete"] else None
            self.load_seconds, self.load_bytes = values["load_seconds"], values["load_bytes"]
            self.points = {each["key"]: Point(**each) for each in values["points"]}
            self.before = {point.key for point in self.points.values() if point.files}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"'{path}' was not made by this onnxc frontier; name another folder") from error
        if theirs != identity:
            raise UsageError(
                f"'{folder}' holds the frontier of another model, other data or other options; name another folder"
            )
        if fresh:
            self.complete = None
            for point in self.points.values():
                self.discard(point)
            self.points = {}

    def finished(self, budget: Budget) -> bool:
        """Whether an earlier run with the same limits got to its end, and nothing is missing since."""
        kept = [point for point in self.points.values() if point.files]
        return self.complete == plain(budget) and bool(kept) and all(self.intact(point) for point in kept)

    def intact(self, point: Point) -> bool:
        """Whether the files of a point are as they were written."""
        return bool(point.files) and digest(self.folder, point.files) == point.digest

    def discard(self, point: Point) -> None:
        """Remove the files of a point, unless somebody has changed them."""
        if self.intact(point):
            for name in point.files:
                (self.folder / name).unlink(missing_ok=True)
        point.files, point.digest = [], ""

    def reusable(self, key: str, floor: Callable[[Point], str | None]) -> Point | None:
        """The point of a plan that need not be built again: its file is there, or it is known to be of no use."""
        point = self.points.get(key)
        if point is None or self.intact(point):
            return point
        if point.files:
            return None
        beaten = self.points.get(point.beaten_by or "")
        useless = point.rejected is not None or floor(point) is not None or (beaten is not None and self.intact(beaten))
        return point if useless else None

    def add(self, point: Point, model: Model | None, stem: str, *, external_data: bool) -> None:
        """Keep what was measured, and the model in a file of its own."""
        if model is not None:
            name = self.free(stem, point.share)
            model.save(self.folder / name, external_data=external_data)
            beside = sorted(each.name for each in self.folder.iterdir() if each.name.startswith(f"{name}."))
            point.files = [name, *beside]
            point.digest = digest(self.folder, point.files)
        self.points[point.key] = point

    def free(self, stem: str, share: float) -> str:
        """A name with the size in percent, with as many digits as it takes to be free."""
        for digits in range(1, 13):
            name = f"{stem}-{100 * share:.{digits}f}.onnx"
            if not any(each.name.startswith(name) for each in self.folder.iterdir()):
                return name
        raise UsageError(f"'{self.folder}' is full of other models called {name}; name another folder")

    def save(self, budget: Budget, *, complete: bool, notes: Sequence[str]) -> None:
        """Write frontier.json in one step."""
        self.notes = list(notes)
        values = {
            "run": self.identity,
            "complete": complete,
            "budget": plain(budget),
            "notes": self.notes,
            "load_seconds": self.load_seconds,
            "load_bytes": self.load_bytes,
            "points": [plain(point) for point in self.points.values()],
        }
        write_file(self.folder / RECORD, json.dumps(values, indent=1))


def digest(folder: Path, names: Sequence[str]) -> str:
    """SHA-256 of files, empty where one is missing."""
    made = hashlib.sha256()
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                while chunk := file.read(1 << 22):
                    made.update(chunk)
        except OSError:
            return ""
    return made.hexdigest()


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file in one step; ModelError if it cannot be written."""
    data = content.encode() if isinstance(content, str) else content
    try:
        replace_file(path, lambda file: file.writelines([data]))
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error.strerror or error}") from error
