"""Codes in fewer than 8 bits, as standard operators that unfold them to int8. In: digits and a grid. Out: nodes, bytes.

    words (uint8) ── Cast ── Gather(table) ─────────────────────────────────────────────┬─ Split ── W_q, W_q, ...
                                    └─ Cast ── Reshape ── QuantizeLinear(step, offset) ─┘

All of it folds to int8 when ONNX Runtime loads the model (DequantizeLinear would not: it is never folded). Blocks
are rows of a matrix with a step and an offset each, which is what QuantizeLinear along an axis rounds with.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import lcm, prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.formats import (
    FEWEST_OUTPUTS,
    PLANES,
    WORDS,
    Format,
    fitting_block,
    trellis_bytes,
    trellis_segment,
    word_bytes,
)
from onnxc.codes.grids import BlockGrid, CodebookGrid, Grid, lowest_digit, step_unit
from onnxc.codes.layouts import Layout
from onnxc.codes.palettes import PAIRED, PackedPalette, palette_bytes
from onnxc.codes.sheets import OVERHEAD, Packed, Piece, Sheet, by_kind, joined, spread
from onnxc.codes.trellis import TrellisGrid
from onnxc.codes.trellis_packing import PackedTrellis
from onnxc.codes.words import separated
from onnxc.model import Tensor

NATIVE_OPSET = 21  # 4-bit integers are a type of their own
BLOCK_OPSET = 13  # the first with QuantizeLinear along an axis

Array = NDArray[Any]


@dataclass(frozen=True)
class PackedDigits:
    """Words of evenly spaced codes, with or without blocks.

    Attributes:
        levels: of a code; digit 0 stands for the lowest of them.
        digits: in the weight's own shape, or as rows [outputs, K] where there are blocks.
        piece: where they belong.
        steps, offsets: [outputs, K / block], where there are blocks.
        native: as 4-bit integers instead of words.
    """

    levels: int
    digits: Array
    piece: Piece
    steps: Array | None = None
    offsets: Array | None = None
    native: bool = False

    @property
    def block(self) -> int:
        """Entries with a step of their own; 0: all of them have none."""
        return self.digits.size // self.steps.size if self.steps is not None else 0

    @property
    def kind(self) -> Hashable:
        return "digits", self.levels, self.block, self.native

    @property
    def size(self) -> int:
        return int(self.digits.size)

    @property
    def bytes(self) -> int:
        steps = 0 if self.steps is None else 2 * self.steps.size
        return word_bytes(self.size, self.levels) + steps + OVERHEAD

    def emit(self, sheet: Sheet, forms: Mapping[str, PackedDigits]) -> dict[str, Tensor]:
        """Write the nodes that unfold ``forms``."""
        pieces = {name: forms[name].piece for name in by_kind({n: f.piece for n, f in forms.items()})}
        name, digits = next(iter(pieces)), joined(forms[each].digits for each in pieces)
        codes, total = self.unfolded(sheet, name, digits)
        if not self.block:
            return spread(sheet, codes, pieces, total)
        if total > digits.size:
            codes = sheet.reshaped(codes, (-1,), f"{name}_padded")
            codes = sheet.split(codes, (digits.size, total - digits.size), (f"{name}_digits", f"{name}_rest"))[0]
        rows = sheet.reshaped(codes, (-1, self.block), f"{name}_blocks")
        step = sheet.constant(f"{name}_step", joined(np.asarray(forms[each].steps) for each in pieces))
        step = sheet.node("Cast", [step], f"{name}_steps", to=TensorProto.FLOAT)
        unit = sheet.shared(f"unit_{self.levels}", np.asarray(step_unit(self.levels)))
        scale = sheet.node("Div", [unit, step], f"{name}_scale")
        offset = sheet.constant(f"{name}_offset", joined(np.asarray(forms[each].offsets) for each in pieces))
        rounded = sheet.node("QuantizeLinear", [rows, scale, offset], f"{name}_codes", axis=0)
        return spread(sheet, rounded, pieces)

    def unfolded(self, sheet: Sheet, name: str, digits: Array) -> tuple[Tensor, int]:
        """Codes, and how many of them: float32 where the sheet wants that or they have blocks, or int8."""
        floats = sheet.floats or bool(self.block)
        if self.native:
            codes = (digits.astype(np.int8) + np.int8(lowest_digit(self.levels))).astype(ml_dtypes.int4)
            made, total = sheet.constant(f"{name}_packed", codes), digits.size
        elif self.levels in PLANES:
            made, total = two_digits(sheet, name, digits, self.levels)
        else:
            made, zero = separated(sheet, name, digits, self.levels)
            total = -(-digits.size // WORDS[self.levels][1]) * WORDS[self.levels][1]
            if zero == lowest_digit(self.levels) and not floats:
                return made, total
            made = raised(sheet, name, made, lowest_digit(self.levels) - zero)
        if floats:
            return sheet.cast(made, f"{name}_floats"), total
        return sheet.node("Cast", [made], f"{name}_all", to=TensorProto.INT8), total


def raised(sheet: Sheet, name: str, codes: Tensor, difference: int) -> Tensor:
    """``codes`` of int32 and a number, which is nothing where they are int8."""
    return sheet.node("Add", [codes, sheet.number(difference)], f"{name}_raised") if difference else codes


def two_digits(sheet: Sheet, name: str, digits: Array, levels: int) -> tuple[Tensor, int]:
    """Codes of more levels than a word has room for, high * base + low, and how many of them: int32."""
    high, low = PLANES[levels]
    together = lcm(WORDS[high][1], WORDS[low][1])
    padded = np.zeros(-(-digits.size // together) * together, np.uint8)
    padded[: digits.size] = digits.reshape(-1)
    parts, zeros = [], []
    for label, base, part in (("high", high, padded // low), ("low", low, padded % low)):
        found, zero = separated(sheet, f"{name}_{label}", part, base)
        if zero:
            found = sheet.node("Cast", [found], f"{name}_{label}_whole", to=TensorProto.INT32)
        parts.append(sheet.reshaped(found, (-1,), f"{name}_{label}_flat"))
        zeros.append(zero)
    lowest = lowest_digit(levels) - low * zeros[0] - zeros[1]
    scaled = sheet.node("Mul", [parts[0], sheet.number(low)], f"{name}_scaled")
    return raised(sheet, name, sheet.node("Add", [scaled, parts[1]], f"{name}_sum"), lowest), padded.size


@dataclass(frozen=True)
class PackedWords:
    """One byte for a vector of neighbouring outputs, looked up in the weight's own codebook.

    Attributes:
        words: [G, K, N / d] uint8; table: [256, d] int8.
    """

    words: Array
    table: Array
    layout: Layout

    @property
    def kind(self) -> Hashable:
        return "words", self.layout, self.table.shape

    @property
    def size(self) -> int:
        return prod(self.layout.shape)

    @property
    def bytes(self) -> int:
        return self.words.nbytes + self.table.nbytes + OVERHEAD

    def emit(self, sheet: Sheet, forms: Mapping[str, PackedWords]) -> dict[str, Tensor]:
        """Write the nodes that unfold ``forms``, weights of one shape: their codebooks lie one behind the other."""
        name, layout, count = next(iter(forms)), self.layout, len(forms)
        words = np.stack([form.words.reshape(-1) for form in forms.values()])
        index = sheet.node("Cast", [sheet.constant(f"{name}_words", words)], f"{name}_index", to=TensorProto.INT32)
        if count > 1:
            starts = np.cumsum([0, *(len(form.table) for form in forms.values())][:-1], dtype=np.int32)
            index = sheet.node("Add", [index, sheet.constant(f"{name}_starts", starts[:, None])], f"{name}_places")
        table = sheet.constant(f"{name}_codebook", np.concatenate([form.table for form in forms.values()]))
        vectors = sheet.node("Gather", [table, index], f"{name}_vectors")
        if layout.last:
            return spread(sheet, vectors, dict.fromkeys(forms, Piece.of(layout.shape)))
        outputs = layout.outputs // layout.groups
        matrix = sheet.reshaped(vectors, (count * layout.groups, layout.depth, outputs), f"{name}_matrix")
        turned = sheet.transposed(matrix, (0, 2, 1), f"{name}_turned")
        return spread(sheet, turned, dict.fromkeys(forms, Piece.of(layout.shape, layout.axis)))


def packed(chosen: Format, grid: Grid, digits: Array, layout: Layout, *, native: bool) -> Packed:
    """The stored form of ``digits`` [G, K, N or words of N] of a grid."""
    if isinstance(grid, CodebookGrid):
        if chosen.dimension == 1:
            return PackedPalette(layout.filed(digits), grid.table.reshape(-1))
        return PackedWords(digits.astype(np.uint8), grid.table, layout)
    if isinstance(grid, TrellisGrid):
        return PackedTrellis(grid.levels, digits, grid.union, layout)
    native = native and chosen.levels == 16
    if isinstance(grid, BlockGrid):
        steps, offsets = layout.rows(grid.steps), layout.rows(grid.offsets)
        piece = Piece.of(layout.shape, layout.axis)
        return PackedDigits(chosen.levels, layout.rows(digits), piece, steps, offsets, native)
    return PackedDigits(chosen.levels, layout.filed(digits), Piece.of(layout.shape), native=native)


def possible(chosen: Format, layout: Layout, opset: int = BLOCK_OPSET) -> bool:
    """Whether a weight can be stored so: blocks divide its inputs, code words its outputs, paths need some of them."""
    if chosen.trellis:
        return layout.outputs // layout.groups >= FEWEST_OUTPUTS
    if chosen.dimension == 1:
        return chosen.entries != PAIRED or prod(layout.shape) % 2 == 0
    if chosen.dimension:
        return (layout.outputs // layout.groups) % chosen.dimension == 0
    if not chosen.block:
        return True
    return opset >= BLOCK_OPSET and fitting_block(layout.depth, chosen.block) == chosen.block


def packed_bytes(chosen: Format, layout: Layout) -> int:
    """Bytes that the stored form adds to a file, before it is made; without its name."""
    size = prod(layout.shape)
    if chosen.dimension == 1:
        return palette_bytes(size, chosen.entries)
    if chosen.dimension:
        return size // chosen.dimension + chosen.entries * chosen.dimension + OVERHEAD
    if chosen.trellis:
        count, length = trellis_segment(layout.outputs // layout.groups, chosen.levels)
        return trellis_bytes(layout.groups * layout.depth * count * length, chosen.levels) + OVERHEAD
    steps = 2 * size // chosen.block if chosen.block else 0
    return word_bytes(size, chosen.levels) + steps + OVERHEAD
