"""Codes along a trellis, as standard operators that unfold them to int8. In: codes of paths. Out: nodes, bytes.

    words (uint8) ── Cast ──┬───────────────────────── Add ── Gather(table) ── W_q
                            └─ Gather(states) ─ shift ──┘

The last path bits of a word are the state in which the next one starts, so that a table with a row for every state and
word holds the values of all codes of a word. ``shift`` is a Split and a Concat: before the first word of a segment
comes its last. Where codes fill no word, path bits lie in a plane of their own, whose table gives subsets, and what is
left of the codes in another:

    path bits ── Gather(subsets) ── Add ── Gather(values) ── W_q
         members ── Gather(digits) ──┘
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.formats import PATH_BITS, TRELLISES, WORDS, trellis_bytes, trellis_segment
from onnxc.codes.grids import lowest_digit
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
        make = values_of_words if TRELLISES[self.levels] else values_of_planes
        parts = [make(sheet, names[0], digits, self)]
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


def values_of_words(sheet: Sheet, name: str, digits: Array, form: PackedTrellis) -> Tensor:
    """The values of codes that fill words: [words, codes of one]."""
    levels, count = form.levels, TRELLISES[form.levels]
    index = after_each_state(sheet, name, packed_words(digits, levels, (np.uint8, count)), form, levels, count)
    label = f"trellis_{levels}_{form.union[-1]}"
    return sheet.node("Gather", [path_table(sheet, label, form.union, count), index], f"{name}_values")


def values_of_planes(sheet: Sheet, name: str, digits: Array, form: PackedTrellis) -> Tensor:
    """The values of codes whose path bits have words of their own: [codes]."""
    half = form.levels // 2
    bits = packed_words(digits // half, 2, (np.uint8, PATH_BITS))
    index = after_each_state(sheet, name, bits, form, 2, PATH_BITS)
    subsets = path_table(sheet, "trellis_paths", np.arange(SUBSETS, dtype=np.int32), PATH_BITS)
    subset = sheet.reshaped(
        sheet.node("Gather", [subsets, index], f"{name}_chosen"), (-1,), f"{name}_subsets"
    )
    words = packed_words(digits % half, half)
    index = sheet.node("Cast", [sheet.constant(f"{name}_packed", words)], f"{name}_words", to=TensorProto.INT32)
    member = sheet.node("Gather", [member_table(sheet, half), index], f"{name}_found")
    member = sheet.reshaped(member, (-1,), f"{name}_members")
    beyond = words.size * WORDS[half][1] - digits.size
    if beyond:
        member = sheet.split(member, (digits.size, beyond), (f"{name}_kept", f"{name}_filled"))[0]
    place = sheet.node("Add", [subset, member], f"{name}_places")
    union = sheet.shared(f"trellis_{form.levels}_{form.union[-1]}", form.union)
    return sheet.node("Gather", [union, place], f"{name}_values")


def after_each_state(sheet: Sheet, name: str, words: Array, form: PackedTrellis, levels: int, count: int) -> Tensor:
    """[segments, words of one], the row of every word in the table of paths: by the state before it, then the word."""
    each = form.segment // count
    stored = sheet.constant(f"{name}_paths", words.reshape(-1, each))
    index = sheet.node("Cast", [stored], f"{name}_index", to=TensorProto.INT32)
    states = sheet.node("Gather", [state_table(sheet, levels, count), index], f"{name}_states")
    first, last = sheet.split(states, (each - 1, 1), (f"{name}_earlier", f"{name}_last"), 1)
    before = sheet.node("Concat", [last, first], f"{name}_before", axis=1)
    return sheet.node("Add", [index, before], f"{name}_rows")


def state_table(sheet: Sheet, levels: int, count: int) -> Tensor:
    """[words] int32, the first row of the state that each word ends in, made at load from one value per state."""
    name = f"states_{levels}"
    if name not in sheet.known:
        half, words = levels // 2, levels**count
        # The last code is the highest digit: by its path bit, then by that of the code before it.
        values = (np.array([[0, 2], [1, 3]], np.int32) * np.int32(words)).reshape(2, 1, 2, 1)
        shape = np.asarray([2, half, 2, words // (4 * half)], np.int64)
        each = sheet.shared(f"{name}_each", values)
        wide = sheet.node("Expand", [each, sheet.shared(f"{name}_shape", shape)], f"{name}_wide")
        sheet.known[name] = sheet.reshaped(wide, (-1,), name)
    return sheet.known[name]


def path_table(sheet: Sheet, name: str, union: Array, count: int) -> Tensor:
    """[states * words, codes of a word], what the codes of every word stand for after every state, made at load from
    what one code stands for after two path bits.

    Args:
        union: [2 levels], the values by subset and member.
    """
    if name in sheet.known:
        return sheet.known[name]
    half = len(union) // SUBSETS
    far, near, bit = np.ogrid[:2, :2, :2]  # path bits of the code before the last one, of the last one, of its own
    values = union[(2 * (bit ^ far) + near)[..., None] + SUBSETS * np.arange(half)]  # [2, 2, 2, half]
    code = [2, half] if half > 1 else [2]  # by path bit and member
    values = values.reshape(2, 2, *code)
    # The axes of the table before it is flat: the two bits of a state, then those of the codes, the last code first.
    sizes = [2, 2, *(code * count)]
    whole = sheet.shared(f"{name}_shape", np.asarray([*sizes, 1], np.int64))
    bits = [0, 1, *(2 + len(code) * (count - 1 - place) for place in range(count))]  # the axis of each path bit
    columns = []
    for place in range(count):
        axes = [bits[place], bits[place + 1], *(bits[place + 2] + each for each in range(len(code)))]
        order = sorted(range(len(axes)), key=axes.__getitem__)
        shape = [1] * (len(sizes) + 1)
        for axis in axes:
            shape[axis] = sizes[axis]
        column = sheet.shared(f"{name}_{place}", np.ascontiguousarray(values.transpose(order)).reshape(shape))
        columns.append(sheet.node("Expand", [column, whole], f"{name}_at_{place}"))
    together = sheet.node("Concat", columns, f"{name}_grid", axis=len(sizes))
    sheet.known[name] = sheet.reshaped(together, (-1, count), name)
    return sheet.known[name]


def member_table(sheet: Sheet, half: int) -> Tensor:
    """[words, codes of a word] int32, where the members of the first subset lie that each word stands for."""
    name = f"members_{half}"
    if name not in sheet.known:
        codes = sheet.node("Cast", [digit_table(sheet, half)], f"{name}_codes", to=TensorProto.INT32)
        lowest = sheet.shared(f"{name}_lowest", np.asarray(lowest_digit(half), np.int32))
        numbers = sheet.node("Sub", [codes, lowest], f"{name}_numbers")
        step = sheet.shared("trellis_step", np.asarray(SUBSETS, np.int32))
        sheet.known[name] = sheet.node("Mul", [numbers, step], name)
    return sheet.known[name]
