"""Codes along a trellis, as standard operators that unfold them to int8. In: codes of paths. Out: nodes, bytes.

    words (uint8) ──┬───────────── Cast ────────────── Add ── Gather(table) ── W_q
                    └─ shift ── Cast ── Div ── Mul ─────┘

The highest digits of a word are the path bits of its codes, so that its first two bits are the state in which the next
one starts, and a table with a row for every state and word holds the values of all codes of a word. ``shift`` is a
Split and a Concat: before the first word of a segment comes its last. Where codes take more than a byte together, their
path bits have words of their own; state, path bits and word then are the three digits of a row. (A Gather takes 9
nanoseconds for a row of the table, with ONNX Runtime 1.32; what arithmetic gives is not looked up.)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.formats import TRELLISES, WORDS, bits_apart, trellis_bytes, trellis_segment
from onnxc.codes.layouts import Layout
from onnxc.codes.sheets import OVERHEAD, Piece, Sheet, by_kind, joined, spread
from onnxc.codes.trellis import SUBSETS
from onnxc.codes.words import digit_table, packed_words
from onnxc.model import Tensor

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
    made = sheet.reshaped(values, (len(names) * layout.groups, layout.depth, codes), f"{label}_matrix")
    if codes > form.outputs:
        made = sheet.split(made, (form.outputs, codes - form.outputs), (f"{label}_codes", f"{label}_beyond"), 2)[0]
    if layout.last:
        return spread(sheet, made, {name: Piece.of(layout.shape) for name in names})
    made = sheet.node("Transpose", [made], f"{label}_turned", perm=[0, 2, 1])
    return spread(sheet, made, {name: Piece.of(layout.shape, layout.axis) for name in names})


def unfolded(sheet: Sheet, name: str, digits: Array, form: PackedTrellis) -> Tensor:
    """The values of all codes, [segments, words of one, codes of a word]."""
    count, half = TRELLISES[form.levels], form.levels // 2
    together = digits.reshape(-1, form.segment // count, count)
    powers = np.arange(count)
    bits = (together // half * 2**powers).sum(-1)
    words = (together % half * half**powers).sum(-1)
    if bits_apart(form.levels):
        path = path_words(sheet, name, bits, 2**count)
        rest = sheet.constant(f"{name}_packed", words.astype(np.uint8))
        word = sheet.node("Cast", [rest], f"{name}_words", to=TensorProto.INT32)
        state = sheet.node(
            "Div", [shifted(sheet, name, path, words.shape[1]), number(sheet, 2**count // 4)], f"{name}_states"
        )
        state = sheet.node("Mul", [state, number(sheet, 2**count)], f"{name}_state_rows")
        path = sheet.node("Add", [state, path], f"{name}_ways")
        start = sheet.node("Mul", [path, number(sheet, half**count)], f"{name}_starts")
    else:
        whole = sheet.constant(f"{name}_packed", (bits * half**count + words).astype(np.uint8))
        word = sheet.node("Cast", [whole], f"{name}_words", to=TensorProto.INT32)
        before = shifted(sheet, name, whole, words.shape[1])
        before = sheet.node("Cast", [before], f"{name}_words_before", to=TensorProto.INT32)
        state = sheet.node("Div", [before, number(sheet, form.levels**count // 4)], f"{name}_states")
        start = sheet.node("Mul", [state, number(sheet, form.levels**count)], f"{name}_starts")
    rows = sheet.node("Add", [start, word], f"{name}_rows")
    return sheet.node("Gather", [path_table(sheet, form.levels, form.union), rows], f"{name}_values")


def shifted(sheet: Sheet, name: str, words: Tensor, each: int) -> Tensor:
    """What comes before each of ``words`` [segments, each] in a segment that bites its tail."""
    first, last = sheet.split(words, (each - 1, 1), (f"{name}_earlier", f"{name}_last"), 1)
    return sheet.node("Concat", [last, first], f"{name}_before", axis=1)


def path_words(sheet: Sheet, name: str, bits: Array, levels: int) -> Tensor:
    """Path bits [segments, words of one] of ``levels``, int32, out of words of their own."""
    words = packed_words(bits.astype(np.uint8), levels)
    index = sheet.node("Cast", [sheet.constant(f"{name}_paths", words)], f"{name}_index", to=TensorProto.INT32)
    label = f"path_bits_{levels}"
    if label not in sheet.known:
        table = digit_table(sheet, levels, signed=False)
        sheet.known[label] = sheet.node("Cast", [table], label, to=TensorProto.INT32)
    found = sheet.node("Gather", [sheet.known[label], index], f"{name}_found")
    beyond = words.size * WORDS[levels][1] - bits.size
    if beyond:
        found = sheet.reshaped(found, (-1,), f"{name}_flat_bits")
        found = sheet.split(found, (bits.size, beyond), (f"{name}_kept", f"{name}_filled"))[0]
    return sheet.reshaped(found, (-1, bits.shape[1]), f"{name}_bits")


def number(sheet: Sheet, value: int) -> Tensor:
    """An int32 that nodes share."""
    return sheet.shared(f"number_{value}", np.asarray(value, np.int32))


def path_table(sheet: Sheet, levels: int, union: Array) -> Tensor:
    """[states * path bits * words, codes of a word], what all codes stand for after every state, made at load from what
    one code stands for after two path bits.

    Args:
        union: [2 levels], the values by subset and member.
    """
    count, half, name = TRELLISES[levels], levels // 2, f"trellis_{levels}_{union[-1]}"
    if name in sheet.known:
        return sheet.known[name]
    near, far, bit = np.ogrid[:2, :2, :2]  # path bits of the code before, of the one before that, of its own
    values = union[(2 * (bit ^ far) + near)[..., None] + SUBSETS * np.arange(half)]
    # The axes of the table before it is flat: the state's two bits, then bits and members of the codes, last one first.
    sizes = [*([2] * (2 + count)), *([half] * count if half > 1 else []), 1]
    whole = sheet.shared(f"{name}_shape", np.asarray(sizes, np.int64))
    columns = []
    for place in range(count):
        bits = [1, 0, *(1 + count - each for each in range(count))]  # the axis of each path bit, the state's before
        axes = [bits[place + 1], bits[place], bits[place + 2], *([1 + 2 * count - place] if half > 1 else [])]
        each = values if half > 1 else values[..., 0]
        order = sorted(range(len(axes)), key=axes.__getitem__)
        shape = [sizes[axis] if axis in axes else 1 for axis in range(len(sizes))]
        column = sheet.shared(f"{name}_{place}", np.ascontiguousarray(each.transpose(order)).reshape(shape))
        columns.append(sheet.node("Expand", [column, whole], f"{name}_at_{place}"))
    together = sheet.node("Concat", columns, f"{name}_grid", axis=len(sizes) - 1)
    sheet.known[name] = sheet.reshaped(together, (-1, count), name)
    return sheet.known[name]
