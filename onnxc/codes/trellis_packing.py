"""Codes along a trellis, as standard operators that unfold them to int8. In: codes of paths. Out: nodes, bytes.

    words (uint8) ──┬───────────── Cast ────────────── Add ── Gather(table) ── W_q
                    └─ shift ── Cast ── Div ── Mul ─────┘

The highest digits of a word are the path bits of its codes, so that its first two bits are the state in which the next
one starts, and a table with a row for every state and word holds the values of all codes of a word. ``shift`` is a
Split and a Concat: before the first word of a segment comes its last. Where codes take more than a byte together, the
path bits of eight have a byte of their own, which is such a word, and stands for the rows of the table that the others
are counted from:

    path bits ── ... ── Add ── Gather(starts) ── Add ── Gather(table) ── W_q
    words (uint8) ───────────────────── Cast ─────┘

(A Gather takes 9 nanoseconds for a row of the table, with ONNX Runtime 1.32; what arithmetic gives is not looked up.)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.formats import DOUBLED, TRELLISES, bits_apart, trellis_bytes, trellis_segment
from onnxc.codes.layouts import Layout
from onnxc.codes.sheets import OVERHEAD, Piece, Sheet, by_kind, joined, spread
from onnxc.codes.trellis import STATES, SUBSETS
from onnxc.model import Tensor

BYTE = 8  # path bits in one
MANY = 1 << 20  # codes from which on a table by words of two bytes, up to 2 MB, takes less time than it saves

Array = NDArray[Any]


@dataclass(frozen=True)
class PackedTrellis:
    """Paths along neighbouring outputs.

    Attributes:
        levels: of a code: the path bit counts levels / 2, the member of a subset 1.
        digits: [G, K, codes], whole segments.
        union: [2 levels] int8, what codes stand for.
    """

    levels: int
    digits: Array
    union: NDArray[np.int8]
    layout: Layout

    @property
    def outputs(self) -> int:
        """Of a group."""
        return self.layout.outputs // self.layout.groups

    @property
    def segment(self) -> int:
        """Codes of one."""
        return trellis_segment(self.outputs, self.levels)[1]

    @property
    def kind(self) -> Hashable:
        return "trellis", self.levels, int(self.union[-1]), self.segment

    @property
    def size(self) -> int:
        return int(self.digits.size)

    @property
    def bytes(self) -> int:
        return trellis_bytes(self.size, self.levels) + OVERHEAD

    @property
    def whole(self) -> bool:
        """Whether codes lie as the weight does."""
        return self.layout.last and self.digits.shape[2] == self.outputs

    def emit(self, sheet: Sheet, forms: Mapping[str, PackedTrellis]) -> dict[str, Tensor]:
        """Write the nodes that unfold ``forms``: together, but for what turns and cuts those of one shape."""
        groups: dict[Layout | None, list[str]] = {}
        for name, form in forms.items():
            groups.setdefault(None if form.whole else form.layout, []).append(name)
        if None in groups:
            groups[None] = by_kind({name: Piece.of(forms[name].layout.shape) for name in groups[None]})
        names = [name for each in groups.values() for name in each]
        digits = joined(forms[name].digits for name in names)
        parts = [unfolded(sheet, names[0], digits, self)]
        if len(groups) > 1:
            flat = sheet.reshaped(parts[0], (-1,), f"{names[0]}_flat")
            sizes = [sum(forms[name].size for name in each) for each in groups.values()]
            parts = sheet.split(flat, sizes, [f"{each[0]}_paths" for each in groups.values()])
        found: dict[str, Tensor] = {}
        for part, (layout, each) in zip(parts, groups.items(), strict=True):
            if layout is None:
                found |= spread(sheet, part, {name: Piece.of(forms[name].layout.shape) for name in each})
            else:
                found |= turned(sheet, part, each, forms[each[0]])
        return found


def turned(sheet: Sheet, values: Tensor, names: list[str], form: PackedTrellis) -> dict[str, Tensor]:
    """Weights of one shape, out of values [weights, G, K, codes] with the outputs last."""
    layout, codes, label = form.layout, form.digits.shape[2], names[0]
    made, axis = sheet.reshaped(values, (len(names) * layout.groups, layout.depth, codes), f"{label}_matrix"), 2
    if not layout.last:
        made, axis = sheet.transposed(made, (0, 2, 1), f"{label}_turned"), 1
    if codes > form.outputs:
        sizes = (form.outputs, codes - form.outputs)
        made = sheet.split(made, sizes, (f"{label}_codes", f"{label}_beyond"), axis)[0]
    return spread(sheet, made, {name: Piece.of(layout.shape, 0 if layout.last else layout.axis) for name in names})


def unfolded(sheet: Sheet, name: str, digits: Array, form: PackedTrellis) -> Tensor:
    """The values of all codes, [segments, words of one, codes of a word]."""
    count, half = codes_together(form.levels, digits.size), form.levels // 2
    segments = digits.reshape(-1, form.segment)
    together = segments.reshape(len(segments), -1, count)
    words = (together % half * half ** np.arange(count)).sum(-1)
    if bits_apart(form.levels):
        paths = np.packbits(segments >= half, axis=1, bitorder="little")
        byte = after_states(sheet, f"{name}_paths", paths, 2**BYTE)
        start = sheet.node("Gather", [start_table(sheet, form.levels), byte], f"{name}_starts")
        start = sheet.reshaped(start, (-1, words.shape[1]), f"{name}_rows_of_paths")
        stored = sheet.constant(f"{name}_packed", words.astype(np.uint8))
        word = sheet.node("Cast", [stored], f"{name}_words", to=TensorProto.INT32)
        rows = sheet.node("Add", [start, word], f"{name}_rows")
    else:
        words += (together // half * 2 ** np.arange(count)).sum(-1) * half**count
        kind = np.uint8 if form.levels**count <= 256 else np.uint16
        rows = after_states(sheet, f"{name}_packed", words.astype(kind), form.levels**count)
    return sheet.node("Gather", [path_table(sheet, form.levels, count, form.union), rows], f"{name}_values")


def after_states(sheet: Sheet, name: str, words: Array, size: int) -> Tensor:
    """[segments, words of one], where each of ``words`` lies in a table that has ``size`` rows for every state: in the
    part of the state that the word before ends in, for the first one in a segment that of the last.
    """
    stored = sheet.constant(name, words)
    first, last = sheet.split(stored, (words.shape[1] - 1, 1), (f"{name}_earlier", f"{name}_last"), 1)
    before = sheet.node("Concat", [last, first], f"{name}_before", axis=1)
    before = sheet.node("Cast", [before], f"{name}_before_index", to=TensorProto.INT32)
    state = sheet.node("Div", [before, sheet.number(size // STATES)], f"{name}_states")
    start = sheet.node("Mul", [state, sheet.number(size)], f"{name}_of_states")
    word = sheet.node("Cast", [stored], f"{name}_index", to=TensorProto.INT32)
    return sheet.node("Add", [start, word], f"{name}_after")


def codes_together(levels: int, size: int) -> int:
    """How many of ``size`` codes are looked up together: of many, as many as two bytes hold."""
    return TRELLISES[levels] * (1 + (size >= MANY and levels in DOUBLED))


def path_table(sheet: Sheet, levels: int, count: int, union: Array) -> Tensor:
    """[states * path bits * words, codes of a word], what all codes stand for after every state, made at load from what
    one code stands for after two path bits.

    Args:
        count: codes of a word; union: [2 levels], the values by subset and member.
    """
    half = levels // 2
    near, far, bit = np.ogrid[:2, :2, :2]  # path bits of the code before, of the one before that, of its own
    values = union[(2 * (bit ^ far) + near)[..., None] + SUBSETS * np.arange(half)]
    columns = []
    for place in range(count):
        axes = [bit_axis(place - 1, count), bit_axis(place - 2, count), bit_axis(place, count), 1 + 2 * count - place]
        columns.append((values, axes) if half > 1 else (values[..., 0], axes[:3]))
    sizes = [2] * (2 + count) + [half] * (count if half > 1 else 0)  # members of the last code first
    return columns_table(sheet, f"trellis_{levels}_{union[-1]}_{count}", columns, sizes)


def start_table(sheet: Sheet, levels: int) -> Tensor:
    """[states * bytes, words to a byte of path bits] int32, where each word's part of the table of paths begins."""
    count, half = TRELLISES[levels], levels // 2
    # The two path bits before a word, then its own from the last one to the first: as a state and they count.
    values = (half**count * np.arange(STATES * 2**count, dtype=np.int32)).reshape([2] * (2 + count))
    columns = []
    for start in range(0, BYTE, count):
        own = [bit_axis(place, BYTE) for place in range(start + count - 1, start - 1, -1)]
        columns.append((values, [bit_axis(start - 1, BYTE), bit_axis(start - 2, BYTE), *own]))
    return columns_table(sheet, f"trellis_starts_{levels}", columns, [2] * (2 + BYTE))


def bit_axis(place: int, count: int) -> int:
    """The axis, in a table by states and words of ``count`` path bits, of one code's bit: the last one comes first,
    -1 and -2 are those of the state.
    """
    return 1 + count - place if place >= 0 else -1 - place


def columns_table(sheet: Sheet, name: str, columns: list[tuple[Array, list[int]]], sizes: list[int]) -> Tensor:
    """A table [all of ``sizes``, columns], made at load from columns that depend on some of its axes each."""
    if name in sheet.known:
        return sheet.known[name]
    whole, made = sheet.shared(f"{name}_shape", np.asarray([1, *sizes], np.int64)), []
    for number, (values, axes) in enumerate(columns):
        order = sorted(range(len(axes)), key=axes.__getitem__)
        shape = [1, *(size if axis in axes else 1 for axis, size in enumerate(sizes))]
        column = sheet.shared(f"{name}_{number}", np.ascontiguousarray(values.transpose(order)).reshape(shape))
        made.append(sheet.node("Expand", [column, whole], f"{name}_at_{number}"))
    together = sheet.reshaped(sheet.node("Concat", made, f"{name}_all", axis=0), (len(columns), -1), f"{name}_lines")
    sheet.known[name] = sheet.node("Transpose", [together], name, perm=[1, 0])  # faster than to interleave bytes
    return sheet.known[name]
