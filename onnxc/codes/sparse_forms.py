"""What codes with many zeros are stored as. In: int8 codes. Out: nodes that unfold them, bytes.

Only what is not zero is stored: its value, and its place in one of three ways, the first for few, the last for many.

    gaps    words (uint8) ── Cast ─┬─ Gather(steps) ── Cast ── CumSum ─┐
                                   └─ Gather(values) ──────────────────┴─ ScatterElements(zeros) ── Reshape ── W_q
    places  bits (uint8) ── Cast ── Div, Mod ─┬─ Sub, Mul ── CumSum ─┐
                                              ├─ CumSum ── Gather ───┴─ Add ─┐
                                              └─ CumSum ── Gather(values) ───┴─ ScatterElements(zeros) ── Reshape ── W_q
    mask    mask (uint8) ── Cast ─┬─ Gather(counts) ── CumSum ─┬─ Add ── Gather(values) ─┐
                                  ├─ Gather(ranks) ────────────┘                         │
                                  └─ Gather(bits) ───────────────────────────────────────┴─ Where ── Reshape ── W_q

Gaps share a word with their value; where one is too long, an explicit zero comes between. Places are those of Elias
("Efficient storage and retrieval by content and address of static files", 1974) and Fano: low digits in words, and a
bit string with a 1 for every code and a 0 wherever the rest of its place grows. All operators have static sizes, so
ONNX Runtime folds them at load. The first two unfold in memory and time that grow with what is not zero; a mask takes
11 bytes for every code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.sheets import OVERHEAD, Sheet
from onnxc.model import Tensor

LOW = (2, 3, 4, 6, 16, 256)  # levels of a low digit of places, of which a byte holds whole ones
TOGETHER = (1, 2, 3)  # entries in a word, where gap and value share it
GAP_NODES, PLACE_NODES, MASK_NODES = 600, 1100, 900  # bytes that weights share, about

Array = NDArray[Any]


@dataclass(frozen=True)
class SparseCodes:
    """What is stored of codes.

    Attributes:
        flat: the codes, int8, in file order; shape: of the weight.
        places: of those that are not zero, and of the first one: a walk of gaps starts there.
    """

    flat: NDArray[np.int8]
    shape: tuple[int, ...]
    places: NDArray[np.intp]

    @classmethod
    def of(cls, codes: NDArray[np.int8]) -> SparseCodes:
        flat = np.ascontiguousarray(codes, np.int8).reshape(-1)
        places = np.flatnonzero(flat)
        if not places.size or places[0]:
            places = np.concatenate([np.zeros(1, np.intp), places])
        return cls(flat, codes.shape, places)

    @cached_property
    def steps(self) -> NDArray[np.intp]:
        """From every place to the next."""
        return np.diff(self.places)

    def entries(self, longest: int) -> int:
        """How many there are when no step may be longer."""
        return len(self.places) + int(((self.steps - 1) // longest).sum())

    def walk(self, longest: int) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        """The step from every entry to the next, less 1 (0 behind the last), and the values."""
        between = (self.steps - 1) // longest
        first = self.places[:-1].repeat(between)
        rank = np.arange(len(first)) - (np.cumsum(between) - between).repeat(between)
        places = np.sort(np.concatenate([self.places, first + (rank + 1) * longest]))
        return np.append(np.diff(places) - 1, 0).astype(np.int64), self.flat[places]

    @cached_property
    def palette(self) -> NDArray[np.int8]:
        """Every value, and zero; two at least."""
        found = np.unique(np.append(self.flat[self.places], np.int8(0)))
        return found if len(found) > 1 else np.arange(2, dtype=np.int8)


@dataclass(frozen=True)
class Words:
    """Digits in bytes, and what they stand for.

    Attributes:
        packed: uint8, each of ``count`` digits, the first counting least; total: how many digits there are.
    """

    packed: NDArray[np.uint8]
    count: int
    total: int

    @classmethod
    def of(cls, digits: Array, radix: int, count: int) -> Words:
        padded = np.zeros(-(-digits.size // count) * count, np.int64)
        padded[: digits.size] = digits
        return cls((padded.reshape(-1, count) @ radix ** np.arange(count)).astype(np.uint8), count, digits.size)

    def index(self, sheet: Sheet, name: str) -> Tensor:
        """The words as indices."""
        return sheet.node("Cast", [sheet.constant(name, self.packed)], f"{name}_index", to=TensorProto.INT32)

    def looked_up(self, sheet: Sheet, index: Tensor, table: Tensor, name: str) -> Tensor:
        """What every digit stands for, flat; ``table`` is [256, count], [256] where a word is one digit."""
        found = sheet.node("Gather", [table, index], name)
        if self.count == 1:
            return found
        found = sheet.reshaped(found, (-1,), f"{name}_flat")
        rest = -self.total % self.count
        return sheet.split(found, (self.total, rest), (f"{name}_all", f"{name}_rest"))[0] if rest else found


def digit_of(radix: int, count: int) -> NDArray[np.int64]:
    """[256, count], the digits of every word; [256] where it is one."""
    digits = np.arange(256)[:, None] // radix ** np.arange(count) % radix
    return digits[:, 0] if count == 1 else digits


def digits_in(radix: int) -> int:
    """How many digits a byte holds."""
    count = 1
    while radix ** (count + 1) <= 256:
        count += 1
    return count


@dataclass(frozen=True)
class Gaps:
    """Words that each hold a gap and a value, or several.

    Attributes:
        codes: what is stored; longest: the longest step; together: entries in a word.
    """

    codes: SparseCodes
    longest: int
    together: int

    @property
    def bytes(self) -> int:
        """Of words."""
        return -(-self.codes.entries(self.longest) // self.together) + OVERHEAD

    @property
    def shared(self) -> int:
        """Bytes of tables and nodes that those of one kind share."""
        return GAP_NODES + 2 * 256 * self.together

    def unfolded(self, sheet: Sheet, name: str) -> tuple[Tensor, int]:
        """All codes, flat, and how many there are."""
        steps, values = self.codes.walk(self.longest)
        palette, count = self.codes.palette, self.together
        levels, longest = len(palette), self.longest
        words = Words.of(steps + longest * np.searchsorted(palette, values), longest * levels, count)
        index = words.index(sheet, f"{name}_words")
        stands = digit_of(longest * levels, count)
        table = sheet.shared(f"steps_{longest}_{levels}_{count}", (stands % longest + 1).astype(np.uint8))
        entries = sheet.constant(f"{name}_palette", palette[np.minimum(stands // longest, levels - 1)])
        found = words.looked_up(sheet, index, table, f"{name}_steps")
        made = words.looked_up(sheet, index, entries, f"{name}_values")
        wide = sheet.node("Cast", [found], f"{name}_wide", to=TensorProto.INT32)
        places = sheet.node("CumSum", [wide, zero_axis(sheet)], f"{name}_places", exclusive=1)
        return scattered(sheet, made, places, self.codes.flat.size, name), self.codes.flat.size


@dataclass(frozen=True)
class Places:
    """The place of every value, as a low digit and the bits of what is left.

    Attributes:
        codes: what is stored; low: levels of the low digit; raw: values as they are, not as digits of a palette.
    """

    codes: SparseCodes
    low: int
    raw: bool = False

    @property
    def bytes(self) -> int:
        """Of bits and words."""
        count, entries = digits_in(len(self.codes.palette)), len(self.codes.places)
        bits = entries + int(self.codes.places[-1]) // self.low
        return -(-bits // 8) + -(-entries // digits_in(self.low)) + -(-entries // (1 if self.raw else count)) + OVERHEAD

    @property
    def shared(self) -> int:
        """Bytes of tables and nodes that those of one kind share."""
        tables = digits_in(self.low) + (0 if self.raw else digits_in(len(self.codes.palette)))
        return PLACE_NODES + 256 * tables

    def unfolded(self, sheet: Sheet, name: str) -> tuple[Tensor, int]:
        """All codes, flat, with one more behind them, and how many that makes."""
        places, total, palette = self.codes.places, self.codes.flat.size + 1, self.codes.palette
        high, digits = np.append(places // self.low, 0), np.append(places % self.low, 0)
        given = np.append(self.codes.flat[places], np.int8(0))  # one more, where bits end with zeros
        bits = np.zeros(len(places) + int(places[-1]) // self.low, np.bool_)
        bits[np.arange(len(places)) + high[:-1]] = True
        packed = sheet.constant(f"{name}_bits", np.packbits(bits, bitorder="little")[:, None])
        index = sheet.node("Cast", [packed], f"{name}_bytes", to=TensorProto.INT32)
        powers = sheet.shared("powers_of_2", (1 << np.arange(8, dtype=np.int32)))
        each = sheet.node(
            "Mod", [sheet.node("Div", [index, powers], f"{name}_shifted"), sheet.number(2)], f"{name}_bit"
        )
        each = sheet.reshaped(each, (-1,), f"{name}_ones")
        rank = sheet.node("CumSum", [each, zero_axis(sheet)], f"{name}_rank", exclusive=1)
        grows = sheet.node("Sub", [sheet.number(1), each], f"{name}_grows")
        grows = sheet.node("Mul", [grows, sheet.number(self.low)], f"{name}_growth")
        base = sheet.node("CumSum", [grows, zero_axis(sheet)], f"{name}_base", exclusive=1)
        count = digits_in(self.low)
        words = Words.of(digits, self.low, count)
        table = sheet.shared(f"low_digits_{self.low}", digit_of(self.low, count).astype(np.uint8))
        low = words.looked_up(sheet, words.index(sheet, f"{name}_low"), table, f"{name}_lows")
        near = sheet.node("Gather", [low, rank], f"{name}_near")
        near = sheet.node("Cast", [near], f"{name}_far", to=TensorProto.INT32)
        place = sheet.node("Add", [base, near], f"{name}_place")
        values = value_words(sheet, given, np.searchsorted(palette, given), palette, name, raw=self.raw)
        made = sheet.node("Gather", [values, rank], f"{name}_made")
        one = sheet.node("Cast", [each], f"{name}_one", to=TensorProto.BOOL)
        place = sheet.node("Where", [one, place, sheet.number(total - 1)], f"{name}_places")
        return scattered(sheet, made, place, total, name), total


def zero_axis(sheet: Sheet) -> Tensor:
    """The axis of what is flat."""
    return sheet.shared("axis_0", np.asarray(0, np.int64))


def scattered(sheet: Sheet, values: Tensor, places: Tensor, total: int, name: str) -> Tensor:
    """So many zeros with ``values`` at ``places``."""
    size = sheet.constant(f"{name}_total", np.asarray([total], np.int64))
    zeros = sheet.node("ConstantOfShape", [size], f"{name}_zeros", value=np.zeros(1, np.int8))
    return sheet.node("ScatterElements", [zeros, places, values], f"{name}_flat", axis=0)


@dataclass(frozen=True)
class Mask:
    """A bit for every code, and the values of those that are not zero.

    Attributes:
        codes: what is stored; raw: values as they are, not as digits of a palette.
    """

    codes: SparseCodes
    raw: bool = False

    @property
    def bytes(self) -> int:
        """Of mask and words."""
        entries, count = len(self.codes.places), digits_in(len(self.codes.palette))
        return -(-self.codes.flat.size // 8) + (entries if self.raw else -(-entries // count)) + OVERHEAD

    @property
    def shared(self) -> int:
        """Bytes of tables and nodes that those of one kind share."""
        return MASK_NODES + 256 * 17 + (0 if self.raw else 256 * digits_in(len(self.codes.palette)))

    def unfolded(self, sheet: Sheet, name: str) -> tuple[Tensor, int]:
        """All codes, with some more behind them, and how many that makes."""
        flat, palette = self.codes.flat, self.codes.palette
        packed = np.packbits(flat != 0, bitorder="little")
        index = Words(packed, 8, flat.size).index(sheet, f"{name}_mask")
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        counts = sheet.shared("mask_counts", bits.sum(1).astype(np.uint8))
        ranks = sheet.shared("mask_ranks", (np.cumsum(bits, 1) - bits).astype(np.uint8))
        given = np.append(flat[flat != 0], np.int8(0))  # one more, for zeros behind the last
        values = value_words(sheet, given, np.searchsorted(palette, given), palette, name, raw=self.raw)
        count = sheet.node("Gather", [counts, index], f"{name}_counts")
        wide = sheet.node("Cast", [count], f"{name}_wide", to=TensorProto.INT32)
        before = sheet.reshaped(
            sheet.node("CumSum", [wide, zero_axis(sheet)], f"{name}_sums", exclusive=1), (-1, 1), f"{name}_at"
        )
        inside = sheet.node("Gather", [ranks, index], f"{name}_ranks")
        inside = sheet.node("Cast", [inside], f"{name}_inside", to=TensorProto.INT32)
        rank = sheet.node("Add", [inside, before], f"{name}_rank")
        found = sheet.node("Gather", [values, rank], f"{name}_spread")
        bit = sheet.node("Gather", [sheet.shared("mask_bits", bits.astype(np.bool_)), index], f"{name}_bits")
        chosen = sheet.node("Where", [bit, found, sheet.shared("mask_zero", np.zeros(1, np.int8))], f"{name}_chosen")
        return chosen, 8 * packed.size


def value_words(
    sheet: Sheet, values: NDArray[np.int8], digits: Array, palette: NDArray[np.int8], name: str, *, raw: bool
) -> Tensor:
    """Values in words of palette digits, or as they are."""
    if raw:
        return sheet.constant(f"{name}_values", values)
    count = digits_in(len(palette))
    words = Words.of(digits, len(palette), count)
    index = words.index(sheet, f"{name}_digits")
    stands = np.minimum(digit_of(len(palette), count), len(palette) - 1)
    return words.looked_up(sheet, index, sheet.constant(f"{name}_palette", palette[stands]), f"{name}_values")


def forms(codes: SparseCodes) -> Iterator[Gaps | Places | Mask]:
    """Every form that codes can have."""
    levels = len(codes.palette)
    for together in TOGETHER:
        longest = longest_gap(levels, together)
        if longest >= 2:
            yield Gaps(codes, longest, together)
    for raw in (True,) if levels > 128 else (False, True):
        yield from (Places(codes, low, raw) for low in LOW)
        yield Mask(codes, raw=raw)


def longest_gap(levels: int, together: int) -> int:
    """The longest gap, where a word holds so many gaps and values of so many levels."""
    return next(size for size in range(256, -1, -1) if (size * levels) ** together <= 256)
