"""Codes in fewer than 8 bits, as standard operators that unfold them to int8. In: digits and a grid. Out: nodes, bytes.

    words (uint8) ── Cast ── Gather(table) ── Reshape ──[ Mul(step) ── Add(offset) ── Round ── Cast ── Reshape ]── W_q

All of it folds to one int8 tensor when ONNX Runtime loads the model (DequantizeLinear would not: it is never folded).
The same functions count bytes and write nodes, so an estimate is never off by an encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.formats import CODE_WORDS, WORDS, Format, fitting_block
from onnxc.codes.grids import BlockGrid, CodebookGrid, Grid, step_unit
from onnxc.model import Model, Tensor

NATIVE_OPSET = 21  # 4-bit integers are a type of their own

Array = NDArray[Any]


class Packed(Protocol):
    """An int8 tensor in a smaller form."""

    def emit(self, sheet: Sheet, name: str) -> Any:
        """Write the nodes that unfold it; returns the int8 tensor, called ``name`` or so."""


class Sheet(Protocol):
    """Where nodes are written: into a model, or onto a bill of bytes."""

    def constant(self, name: str, values: Array) -> Any:
        """An initializer."""

    def shared(self, name: str, values: Array) -> Any:
        """An initializer that all weights of the model share."""

    def node(self, operator: str, inputs: Sequence[Any], name: str, **attributes: Any) -> Any:
        """A node with one output called ``name``; the output."""


@dataclass
class ModelSheet:
    """Writes into a model."""

    model: Model
    known: dict[str, Tensor] = field(default_factory=dict)

    def constant(self, name: str, values: Array) -> Tensor:
        return self.model.constant(name, values)

    def shared(self, name: str, values: Array) -> Tensor:
        if name not in self.known:
            self.known[name] = self.model.constant(name, values)
        return self.known[name]

    def node(self, operator: str, inputs: Sequence[Any], name: str, **attributes: Any) -> Tensor:
        node = self.model.insert(operator, inputs, [name], **attributes)
        node.name = ""  # its output says enough, and names take bytes
        return node.outputs[0]


@dataclass
class Bill:
    """Counts the bytes of what would be written; tensors are their names' lengths."""

    bytes: int = 0

    def constant(self, name: str, values: Array) -> int:
        self.bytes += array_bytes(values) + len(name) + 12 + 3 * values.ndim
        return len(name)

    def shared(self, name: str, values: Array) -> int:
        return len(name)

    def node(self, operator: str, inputs: Sequence[Any], name: str, **attributes: Any) -> int:
        self.bytes += len(operator) + len(name) + 8 + sum(2 + int(each) for each in inputs)
        self.bytes += sum(len(key) + 10 + 2 * np.size(value) for key, value in attributes.items())
        return len(name)


def array_bytes(values: Array) -> int:
    """Of an array in a file: 4-bit integers lie two in a byte."""
    return -(-values.size // 2) if values.dtype in (ml_dtypes.uint4, ml_dtypes.int4) else values.nbytes


@dataclass(frozen=True)
class Layout:
    """How a weight's own axes map to the matrix [K, outputs] or [outputs, K] that is stored.

    Attributes:
        shape: of the weight; axis: of its outputs; groups: of a grouped convolution, each with its own outputs.
    """

    shape: tuple[int, ...]
    axis: int
    groups: int = 1

    @property
    def outputs(self) -> int:
        return self.shape[self.axis]

    @property
    def depth(self) -> int:
        return prod(self.shape) // max(self.outputs, 1)

    @property
    def last(self) -> bool:
        """Whether outputs vary fastest, as in a MatMul."""
        return self.axis == len(self.shape) - 1 and self.groups == 1

    def stored(self, matrix: Array) -> Array:
        """[G, K, N] as it is stored: [K, N] or [G * N, K]; further axes behind K (blocks) are kept in place."""
        if self.last:
            return np.asarray(matrix[0])
        return matrix.swapaxes(1, 2).reshape(self.outputs, -1)

    def restored(self, sheet: Sheet, tensor: Any, name: str, *, outputs_first: bool) -> Any:
        """Nodes from [K, N] or [outputs, K] to the weight's own shape."""
        if not outputs_first and not self.last:
            raise ValueError("a matrix whose outputs vary fastest is not stored in rows")
        others = tuple(size for position, size in enumerate(self.shape) if position != self.axis)
        if self.last or prod(self.shape[: self.axis]) == 1:
            return reshaped(sheet, tensor, self.shape, name)
        moved = reshaped(sheet, tensor, (self.outputs, *others), f"{name}_rows")
        order = [*range(1, self.axis + 1), 0, *range(self.axis + 1, len(self.shape))]
        return sheet.node("Transpose", [moved], name, perm=order)


def reshaped(sheet: Sheet, tensor: Any, shape: Sequence[int], name: str) -> Any:
    """A Reshape to ``shape``; weights of one shape share its constant."""
    sizes = np.asarray(shape, np.int64)
    return sheet.node("Reshape", [tensor, sheet.shared("shape_" + "x".join(map(str, shape)), sizes)], name)


def layout_of(shape: tuple[int, ...], axis: int | None, groups: int = 1) -> Layout:
    """Of a weight whose scales vary along ``axis``; all of it is one output where there is none."""
    return Layout(shape, axis, groups) if axis is not None else Layout((*shape, 1), len(shape), 1)


@dataclass(frozen=True)
class PackedDigits:
    """Words of evenly spaced codes, with or without blocks.

    Attributes:
        levels: of a code; lowest: what digit 0 stands for (0 where blocks have offsets).
        digits: in the order in which they are stored, any shape.
        layout: of the weight.
        steps, offsets: [K / block, N] or [outputs, K / block], where there are blocks.
    """

    levels: int
    lowest: int
    digits: Array
    layout: Layout
    steps: Array | None = None
    offsets: Array | None = None
    native: bool = False

    def emit(self, sheet: Sheet, name: str) -> Any:
        blocks = self.steps is not None
        codes = self.unfolded(sheet, name, np.dtype(np.float32 if blocks else np.int8))
        if not blocks:
            return self.layout.restored(sheet, codes, name, outputs_first=not self.layout.last)
        assert self.steps is not None
        assert self.offsets is not None
        count = self.steps.shape[0 if self.layout.last else 1]
        size = self.layout.depth // count
        if self.layout.last:
            whole, few = (count, size, self.layout.outputs), (count, 1, self.layout.outputs)
        else:
            whole, few = (self.layout.outputs, count, size), (self.layout.outputs, count, 1)
        codes = reshaped(sheet, codes, whole, f"{name}_blocks")
        step = sheet.constant(f"{name}_step", self.steps.reshape(few))
        step = sheet.node("Cast", [step], f"{name}_steps", to=TensorProto.FLOAT)
        offset = sheet.constant(f"{name}_offset", self.offsets.reshape(few))
        offset = sheet.node("Cast", [offset], f"{name}_offsets", to=TensorProto.FLOAT)
        if self.native:
            step = sheet.node(
                "Mul", [step, sheet.shared(f"unit_{self.levels}", np.asarray(step_unit(self.levels)))], f"{name}_units"
            )
        scaled = sheet.node("Mul", [codes, step], f"{name}_scaled")
        added = sheet.node("Add", [scaled, offset], f"{name}_sums")
        rounded = sheet.node("Round", [added], f"{name}_rounded")
        whole_codes = sheet.node("Cast", [rounded], f"{name}_codes", to=TensorProto.INT8)
        return self.layout.restored(sheet, whole_codes, name, outputs_first=not self.layout.last)

    def unfolded(self, sheet: Sheet, name: str, kind: np.dtype[Any]) -> Any:
        """Codes (int8), or digits times the unit of steps (float32), flat."""
        total = self.digits.size
        floats = kind == np.float32
        if self.native:
            kind_of = np.dtype(ml_dtypes.uint4 if floats else ml_dtypes.int4)
            codes = self.digits if blank(self.digits) else self.digits.astype(np.int8) + np.int8(self.lowest)
            flat = (
                np.broadcast_to(np.zeros((), kind_of), (total,)) if blank(codes) else codes.reshape(-1).astype(kind_of)
            )
            packed = sheet.constant(f"{name}_packed", flat)
            return sheet.node("Cast", [packed], f"{name}_digits", to=TensorProto.FLOAT if floats else TensorProto.INT8)
        count = WORDS[self.levels][1]
        packed = sheet.constant(f"{name}_packed", packed_words(self.digits, self.levels))
        index = sheet.node("Cast", [packed], f"{name}_words", to=TensorProto.INT32)
        codes = sheet.node("Gather", [digit_table(sheet, self.levels, self.lowest, floats), index], f"{name}_digits")
        if total % count:
            codes = reshaped(sheet, codes, (-1,), f"{name}_padded")
            ends = [sheet.shared(f"slice_{end}", np.asarray([end], np.int64)) for end in (0, total)]
            codes = sheet.node("Slice", [codes, *ends], f"{name}_unpadded")
        return codes


def blank(values: Array) -> bool:
    """Whether only the size of ``values`` counts: they stand for an array that is not made yet."""
    return values.size > 1 and not any(values.strides)


def packed_words(digits: Array, levels: int) -> Array:
    """Words of ``digits``, the first digit of each counting least; the last one is filled up with zeros."""
    word, count = WORDS[levels]
    if blank(digits):
        return np.broadcast_to(np.zeros((), word), (-(-digits.size // count),))
    flat = np.zeros(-(-digits.size // count) * count, np.uint8)
    flat[: digits.size] = digits.reshape(-1)
    words = np.zeros(len(flat) // count, np.uint16)
    for place in range(count):
        words += flat[place::count] * np.uint16(levels**place)
    return words.astype(word)


def digit_table(sheet: Sheet, levels: int, lowest: int, floats: bool) -> Any:
    """The codes that each word stands for: [words, codes in a word], shared by all weights.

    A large one is computed at load from a Range, so that the file does not hold it.
    """
    word, count = WORDS[levels]
    powers = levels ** np.arange(count)
    name = f"digits_{levels}" + ("_steps" if floats else "")
    if isinstance(sheet, ModelSheet) and name in sheet.known:
        return sheet.known[name]
    if np.dtype(word).itemsize == 1:
        digits = np.arange(levels**count)[:, None] // powers % levels
        table = sheet.shared(f"{name}_table" if floats else name, (digits + lowest).astype(np.int8))
        return scaled_table(sheet, table, levels, name) if floats else table
    if not isinstance(sheet, ModelSheet):
        return len(name)
    bounds = [
        sheet.shared(f"{name}_{key}", np.asarray(value, np.int32))
        for key, value in (("first", 0), ("end", levels**count), ("one", 1))
    ]
    words = sheet.node("Range", bounds, f"{name}_words")
    column = reshaped(sheet, words, (-1, 1), f"{name}_column")
    shifted = sheet.node("Div", [column, sheet.shared(f"{name}_powers", powers.astype(np.int32))], f"{name}_shifted")
    base = sheet.shared(f"{name}_base", np.asarray(levels, np.int32))
    each = sheet.node("Mod", [shifted, base], f"{name}_each")
    if floats:
        return scaled_table(sheet, each, levels, name)
    moved = sheet.node("Add", [each, sheet.shared(f"{name}_lowest", np.asarray(lowest, np.int32))], f"{name}_codes")
    sheet.known[name] = sheet.node("Cast", [moved], name, to=TensorProto.INT8)
    return sheet.known[name]


def scaled_table(sheet: Sheet, table: Any, levels: int, name: str) -> Any:
    """A table of digits in units of a block's steps."""
    if not isinstance(sheet, ModelSheet):
        return len(name)
    floats = sheet.node("Cast", [table], f"{name}_floats", to=TensorProto.FLOAT)
    unit = sheet.shared(f"unit_{levels}", np.asarray(step_unit(levels)))
    sheet.known[name] = sheet.node("Mul", [floats, unit], name)
    return sheet.known[name]


@dataclass(frozen=True)
class PackedWords:
    """One byte for a vector of neighbouring outputs, looked up in the weight's own codebook.

    Attributes:
        words: [K, N / d] or [G, K, N / d] uint8; table: [256, d] int8.
    """

    words: Array
    table: Array
    layout: Layout

    def emit(self, sheet: Sheet, name: str) -> Any:
        packed = sheet.constant(f"{name}_words", self.words)
        index = sheet.node("Cast", [packed], f"{name}_index", to=TensorProto.INT32)
        vectors = sheet.node("Gather", [sheet.constant(f"{name}_codebook", self.table), index], f"{name}_vectors")
        if self.layout.last:
            return reshaped(sheet, vectors, self.layout.shape, name)
        groups, depth = self.layout.groups, self.layout.depth
        matrix = reshaped(sheet, vectors, (groups, depth, self.layout.outputs // groups), f"{name}_matrix")
        turned = sheet.node("Transpose", [matrix], f"{name}_turned", perm=[0, 2, 1])
        return self.layout.restored(sheet, turned, name, outputs_first=True)


def packed(chosen: Format, grid: Grid, digits: Array, layout: Layout, *, native: bool) -> Packed:
    """The stored form of ``digits`` [G, K, N or words] of a grid."""
    if isinstance(grid, CodebookGrid):
        words = digits.astype(np.uint8)
        return PackedWords(words[0] if layout.last else words, grid.table, layout)
    stored = layout.stored(digits)
    if isinstance(grid, BlockGrid):
        return PackedDigits(
            chosen.levels, 0, stored, layout, layout.stored(grid.steps), layout.stored(grid.offsets),
            native=native and chosen.levels == 16,
        )  # fmt: skip
    return PackedDigits(chosen.levels, -(chosen.levels // 2), stored, layout, native=native and chosen.levels == 16)


def possible(chosen: Format, layout: Layout) -> bool:
    """Whether a weight can be stored so: blocks divide its inputs, code words its outputs."""
    if chosen.dimension:
        return (layout.outputs // layout.groups) % chosen.dimension == 0
    return not chosen.block or fitting_block(layout.depth, chosen.block) == chosen.block


def packed_bytes(chosen: Format, layout: Layout, name: str, *, native: bool) -> int:
    """Bytes of the stored form, before it is made."""

    def nothing(kind: Any, *shape: int) -> Array:
        return np.broadcast_to(np.zeros((), kind), shape)

    bill, size = Bill(), prod(layout.shape)
    if chosen.dimension:
        each = layout.outputs // layout.groups // chosen.dimension
        words = nothing(np.uint8, layout.groups, layout.depth, each)
        PackedWords(words, nothing(np.int8, CODE_WORDS, chosen.dimension), layout).emit(bill, f"{name}_q")
        return bill.bytes
    steps = offsets = None
    if chosen.block:
        count = layout.depth // chosen.block
        shape = (count, layout.outputs) if layout.last else (layout.outputs, count)
        steps, offsets = nothing(np.uint8, *shape), nothing(np.int8, *shape)
    native = native and chosen.levels == 16
    PackedDigits(chosen.levels, 0, nothing(np.uint8, size), layout, steps, offsets, native).emit(bill, f"{name}_q")
    return bill.bytes
