"""Codes that stand for one of a few values of the weight's own. In: digits and palettes. Out: nodes, bytes.

    words (uint8) ── Cast ── (+ first word of the weight's own table) ── Gather(tables) ── Split ── W_q, W_q, ...

Of 16 values two digits are in a byte, and the file holds the values alone: the table of all pairs is made at load.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.sheets import OVERHEAD, Piece, Sheet, spread
from onnxc.model import Tensor

Array = NDArray[Any]
PAIRED = 16  # values of which a byte holds two


def palette_bytes(elements: int, entries: int) -> int:
    """Bytes that so many codes add to a file, with their values; without a name."""
    return elements // (2 if entries == PAIRED else 1) + entries + OVERHEAD


@dataclass(frozen=True)
class PackedPalette:
    """One of 256 values a byte, or two of 16.

    Attributes:
        digits: in the weight's own shape, an even number of them where a byte holds two.
        table: [entries] int8.
    """

    digits: Array
    table: Array

    @property
    def paired(self) -> bool:
        return len(self.table) == PAIRED

    @property
    def words(self) -> Array:
        """[words] uint8; the first digit of a pair counts 16."""
        flat = self.digits.reshape(-1).astype(np.uint8)
        return flat[::2] * np.uint8(PAIRED) + flat[1::2] if self.paired else flat

    @property
    def kind(self) -> Hashable:
        return "palette", self.digits.shape, len(self.table)

    @property
    def size(self) -> int:
        return prod(self.digits.shape)

    @property
    def bytes(self) -> int:
        return palette_bytes(self.size, len(self.table))

    def emit(self, sheet: Sheet, forms: Mapping[str, PackedPalette]) -> dict[str, Tensor]:
        """Write the nodes that unfold ``forms``, weights of one shape: their tables lie one behind the other."""
        name, count = next(iter(forms)), len(forms)
        words = np.stack([form.words for form in forms.values()])
        index = sheet.node("Cast", [sheet.constant(f"{name}_words", words)], f"{name}_index", to=TensorProto.INT32)
        if count > 1:
            starts = np.arange(count, dtype=np.int32)[:, None] * np.int32(256)
            index = sheet.node("Add", [index, sheet.constant(f"{name}_starts", starts)], f"{name}_places")
        table = sheet.constant(f"{name}_palette", np.concatenate([form.table for form in forms.values()]))
        if self.paired:
            table = pairs(sheet, table, name, count)
        codes = sheet.node("Gather", [table, index], f"{name}_codes")
        return spread(sheet, codes, dict.fromkeys(forms, Piece.of(self.digits.shape)))


def pairs(sheet: Sheet, palettes: Tensor, name: str, count: int) -> Tensor:
    """[256 for each of ``count`` palettes, 2]: all pairs of the values of one palette, made at load."""
    whole = sheet.shared(f"pairs_{count}", np.asarray([count, PAIRED, PAIRED, 1], np.int64))
    places = []
    for label, shape in (("first", (count, PAIRED, 1, 1)), ("second", (count, 1, PAIRED, 1))):
        column = sheet.reshaped(palettes, shape, f"{name}_{label}")
        places.append(sheet.node("Expand", [column, whole], f"{name}_{label}_all"))
    return sheet.reshaped(sheet.node("Concat", places, f"{name}_grid", axis=3), (-1, 2), f"{name}_pairs")
