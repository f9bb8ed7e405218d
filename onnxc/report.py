"""What was done, what was refused and why, what it brought. In: rows and figures. Out: JSON or a page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx
    from rich.console import Console

    from onnxc.validate import Comparison

FLOAT = "float"
"""The choice of a row that stayed as it was."""
EXAMPLES = 3
"""Places that a refusal names."""


@dataclass(frozen=True)
class Option:
    """One way to compute a site or to store its weight, as it was planned with.

    Attributes:
        kind: "compute" or "storage"; mode: "float", "static", "dynamic", "rows", or the name of a format.
        bytes: of the stored weight; milliseconds: of the site; None where it is of the other kind, or not measured.
        noise: that it alone adds to the outputs, over their signal; None where that was not needed.
    """

    kind: str
    pass_name: str
    mode: str
    specification: str
    bytes: int | None
    milliseconds: float | None
    noise: float | None
    chosen: bool


@dataclass(frozen=True)
class RunnerUp:
    """The best other option of a site, and what it would have added, everything else as it is."""

    kind: str
    mode: str
    specification: str
    bytes: int
    milliseconds: float
    noise: float | None


@dataclass
class SiteRow:
    """One site, or one weight that no site reads.

    Attributes:
        site: the node's name (the weight's, where there is no site).
        operator: the node's operator.
        shape: of the weight.
        bytes_before, bytes_after: of the weight as stored.
        macs: multiply-accumulates per run; None when the shapes are unknown.
        choice: name of the pass that was chosen; "float" where nothing was.
        specification: what the pass did, e.g. "int8 per channel".
        damage_db: local damage as a signal to noise ratio; None when it was not measured.
        milliseconds_before, milliseconds_after: measured in place; None when it was not.
        reason: why it stayed as it was.
        considered: what was planned with; runner_up: the best of what was not chosen.
    """

    site: str
    operator: str = ""
    shape: tuple[int, ...] = ()
    bytes_before: int = 0
    bytes_after: int = 0
    macs: int | None = None
    choice: str = FLOAT
    specification: str = ""
    damage_db: float | None = None
    milliseconds_before: float | None = None
    milliseconds_after: float | None = None
    reason: str = ""
    considered: list[Option] = field(default_factory=list)
    runner_up: RunnerUp | None = None

    @property
    def changed(self) -> bool:
        """Whether a pass was chosen."""
        return self.choice != FLOAT


@dataclass
class RefusalRow:
    """One reason of one pass, with how many places it kept the pass from and some of their real names."""

    pass_name: str
    reason: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Report:
    """The result of optimize().

    Attributes:
        input, output: paths as given; output is None when nothing was to be written.
        model: the compressed model when no output was given.
        rows: every site and every weight, in file order.
        refusals: filled through refuse().
        comparison: the measurements of the result against the original.
        bytes_before, bytes_after: of the files, external data included.
        predicted_speed: the speed-up that the prices predicted for the plan; comparison.ratio is what was measured.
        predicted_bytes, predicted_sqnr_db: the same of the file and the outputs; None where nothing was predicted.
        allowed_noise: noise over signal that the quality floor allows; what options add is read beside it.
        further: why the model did not get smaller or faster still.
        limits: the limits that were asked for, by name.
        missed: the limits and floors that were not met, as sentences; empty when all were.
        notes: sentences that the user should read.
        changed: whether the model was changed at all; unchanged: what kept every plan from being taken, where not.
        generated: whether the inputs were generated.
        data: what the samples were.
        seconds: how long it took.
        recipe: what was asked for, as plain values.
        receipt: what was written into the model's metadata.
    """

    input: str = ""
    output: str | None = None
    model: onnx.ModelProto | None = None
    rows: list[SiteRow] = field(default_factory=list)
    refusals: list[RefusalRow] = field(default_factory=list)
    comparison: Comparison | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    predicted_speed: float | None = None
    predicted_bytes: int | None = None
    predicted_sqnr_db: float | None = None
    allowed_noise: float | None = None
    further: str = ""
    limits: dict[str, float] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: bool = True
    unchanged: str = ""
    generated: bool = False
    data: str = ""
    seconds: float = 0.0
    recipe: dict[str, Any] = field(default_factory=dict)
    receipt: dict[str, str] = field(default_factory=dict)

    def refuse(self, pass_name: str, reason: str, place: str) -> None:
        """Count a refusal of ``pass_name`` at ``place``; the first few places are kept by name."""
        for row in self.refusals:
            if (row.pass_name, row.reason) == (pass_name, reason):
                break
        else:
            row = RefusalRow(pass_name, reason)
            self.refusals.append(row)
        row.count += 1
        if len(row.examples) < EXAMPLES:
            row.examples.append(place)

    @property
    def size_ratio(self) -> float:
        """Bytes after over bytes before."""
        return self.bytes_after / self.bytes_before if self.bytes_before else 1.0

    @property
    def sentences(self) -> list[str]:
        """What the user should read: limits missed, nothing to compress, generated inputs, other notes."""
        found = [f"not met: {sentence}" for sentence in self.missed]
        if not self.changed:
            found.append(self.why_unchanged())
        if self.generated:
            found.append(
                "inputs were generated: with real data (--calib) convolutions can run in int8, activation "
                "ranges are known and top-1 answers are judged"
            )
        notes = [note for note in self.notes if not self.unchanged.endswith(note)]
        return found + notes + ([self.further] if self.further else [])

    def why_unchanged(self) -> str:
        """The sentence for a model that was left as it is."""
        if not self.rows:
            return "nothing to compress: the model has no float weights that onnxc can store or compute smaller"
        if self.unchanged:
            return f"nothing was changed: {self.unchanged}"
        if self.refusals:
            main = max(self.refusals, key=lambda row: row.count)
            return f"nothing was changed; the most frequent reason: {main.reason} (e.g. '{main.examples[0]}')"
        return "nothing was changed: no candidate was smaller without being slower or less accurate"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model, as values that JSON has; figures that are not finite become None."""
        skipped = {"model"}
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in skipped}
        values["sentences"] = self.sentences
        values["met"] = not self.missed
        result: dict[str, Any] = plain(values)
        return result

    def to_json(self) -> str:
        """One JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def to_html(self) -> str:
        """One page that needs no network."""
        from onnxc.reports.report_html import page

        return page(self)

    def render(self, console: Console) -> None:
        """Print the report's page."""
        from onnxc.reports.report_page import print_report

        print_report(self, console)


def plain(value: Any) -> Any:
    """``value`` as JSON has it: dataclasses become objects, NaN and infinities None, paths strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str | int | bool) or value is None:
        return value
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(each) for each in value]
    return str(value)
