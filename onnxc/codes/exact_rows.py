"""Rows of a table that keep 8 bits beside others of fewer. In: codes of a table. Out: the same, some rows exact.

... (as the other rows unfold) ── W_q ── ScatterND(rows, codes of 8 bits) ── W_q
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.sheets import Packed, Sheet
from onnxc.model import Tensor

OVERHEAD = 280  # bytes of the nodes and names, about


@dataclass(frozen=True)
class PackedRows:
    """A table of which some rows lie beside the others, in 8 bits.

    Attributes:
        others: the whole table in fewer bits; what it says of ``rows`` does not count.
        rows: their numbers [R]; values: their codes [R, ...], int8.
    """

    others: Packed
    rows: NDArray[Any]
    values: NDArray[np.int8]

    @property
    def kind(self) -> Hashable:
        return "exact rows", self.others.kind

    @property
    def size(self) -> int:
        return self.others.size

    @property
    def bytes(self) -> int:
        return self.others.bytes + exact_bytes(len(self.rows), self.values[0].size)

    def emit(self, sheet: Sheet, forms: Mapping[str, PackedRows]) -> dict[str, Tensor]:
        """Write the nodes that unfold ``forms``, to int8 on any sheet."""
        sheet = replace(sheet, floats=False, groups=None)
        parts = {f"{name}_small": form for name, form in forms.items()}
        unfolded = self.others.emit(sheet, {part: form.others for part, form in parts.items()})
        found: dict[str, Tensor] = {}
        for name, form in forms.items():
            rows = sheet.constant(f"{name}_rows", form.rows[:, None].astype(np.int32))
            rows = sheet.node("Cast", [rows], f"{name}_rows_index", to=TensorProto.INT64)
            exact = sheet.constant(f"{name}_exact", form.values)
            found[name] = sheet.node("ScatterND", [unfolded[f"{name}_small"], rows, exact], name)
        return found


def exact_bytes(rows: int, length: int) -> int:
    """What so many rows of so many entries add to a file."""
    return rows * (length + 4) + OVERHEAD
