"""Codes with many zeros in less than a bit each, as standard operators that unfold them to int8. In: int8 codes. Out:
the smallest form: nodes, bytes.

Only what is not zero is stored: its value, and how far behind the one before it lies (a gap; where that is too long
for a digit, an explicit zero comes between), or a mask of one bit per code.

    words (uint8) ── Cast ─┬─ Gather(steps) ── Cast ── CumSum ─┐
                           └─ Gather(values) ──────────────────┴─ ScatterElements(zeros) ── Reshape ── W_q
    mask (uint8) ─── Cast ─┬─ Gather(counts) ── CumSum ─┬─ Add ── Gather(values) ─┐
                           ├─ Gather(ranks) ────────────┘                         │
                           └─ Gather(bits) ───────────────────────────────────────┴─ Where ── Reshape ── W_q

All operators have static sizes, so ONNX Runtime folds them at load. Gaps unfold in memory and time that grow with what
is not zero; a mask takes 11 bytes for every code, and must be a tenth smaller to be chosen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.sheets import Packed, Piece, Sheet, by_kind, joined, spread
from onnxc.model import Tensor

GAPS = (256, 16, 6, 4, 3)  # digits of a gap where gaps have words of their own
TOGETHER = (1, 2, 3)  # entries in a word, where gap and value share it
MASK_PRICE = 1.1
GAIN = 1.1  # how much smaller than packed codes a sparse form must be: it takes longer to unfold
FEWEST = 0.3  # share of zeros below which no form is worth trying
SPARSE_OPSET = 11  # the first with ScatterElements and CumSum
OVERHEAD = 150  # bytes of a weight's share of the nodes, about
LARGEST = 1 << 28  # codes whose int32 indices ONNX Runtime still folds

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


def step_table(digits: NDArray[np.int64]) -> Array:
    """The steps that digits stand for."""
    return (digits + 1).astype(np.uint8 if digits.max() < 255 else np.uint16)


def digits_in(radix: int) -> int:
    """How many digits a byte holds."""
    count = 1
    while radix ** (count + 1) <= 256:
        count += 1
    return count


@dataclass(frozen=True)
class Gaps:
    """Entries of gap and value.

    Attributes:
        codes: what is stored; longest: the longest step.
        together: entries in a word that holds gap and value; 0: gaps and values in words of their own.
        raw: values as they are, not as digits of a palette.
    """

    told: ClassVar[str] = "stored by gaps"
    codes: SparseCodes
    longest: int
    together: int = 0
    raw: bool = False

    @property
    def kind(self) -> Hashable:
        """Those of one kind have one table, and are one walk over codes behind each other."""
        return "gaps", self.longest, self.together, self.raw, b"" if self.raw else self.codes.palette.tobytes()

    @property
    def size(self) -> int:
        return int(self.codes.flat.size)

    @property
    def bytes(self) -> int:
        """Of words and tables: what forms are compared by."""
        entries, levels = self.codes.entries(self.longest), len(self.codes.palette)
        if self.together:
            return -(-entries // self.together) + 256 * self.together + OVERHEAD
        gaps = -(-entries // digits_in(self.longest))
        count = digits_in(levels)
        return gaps + (entries if self.raw else -(-entries // count) + 256 * count) + OVERHEAD

    def emit(self, sheet: Sheet, forms: Mapping[str, Gaps]) -> dict[str, Tensor]:
        """Write the nodes that unfold the codes of ``forms``."""
        pieces = {name: Piece.of(forms[name].codes.shape) for name in forms}
        pieces = {name: pieces[name] for name in by_kind(pieces)}
        name, codes = next(iter(pieces)), SparseCodes.of(joined(forms[each].codes.flat for each in pieces))
        return spread(sheet, replace(self, codes=codes).scattered(sheet, name), pieces)

    def scattered(self, sheet: Sheet, name: str) -> Tensor:
        """All codes, flat."""
        steps, values = self.codes.walk(self.longest)
        palette = self.codes.palette
        digits = np.searchsorted(palette, values)
        levels, longest = len(palette), self.longest
        if self.together:
            count, radix = self.together, longest * levels
            words = Words.of(steps + longest * digits, radix, count)
            index = words.index(sheet, f"{name}_words")
            stands = digit_of(radix, count)
            table = sheet.shared(f"steps_{longest}_{levels}_{count}", step_table(stands % longest))
            entries = sheet.constant(f"{name}_palette", palette[np.minimum(stands // longest, levels - 1)])
            found = words.looked_up(sheet, index, table, f"{name}_steps")
            made = words.looked_up(sheet, index, entries, f"{name}_values")
        else:
            count = digits_in(longest)
            words = Words.of(steps, longest, count)
            index = words.index(sheet, f"{name}_gaps")
            table = sheet.shared(f"steps_{longest}", step_table(digit_of(longest, count)))
            found = words.looked_up(sheet, index, table, f"{name}_steps")
            made = value_words(sheet, values, digits, palette, name, raw=self.raw)
        total = sheet.constant(f"{name}_total", np.asarray([self.codes.flat.size], np.int64))
        wide = sheet.node("Cast", [found], f"{name}_wide", to=TensorProto.INT32)
        axis = sheet.shared("axis_0", np.asarray(0, np.int64))
        places = sheet.node("CumSum", [wide, axis], f"{name}_places", exclusive=1)
        zeros = sheet.node("ConstantOfShape", [total], f"{name}_zeros", value=np.zeros(1, np.int8))
        return sheet.node("ScatterElements", [zeros, places, made], f"{name}_flat", axis=0)


@dataclass(frozen=True)
class Mask:
    """A bit for every code, and the values of those that are not zero.

    Attributes:
        codes: what is stored; raw: values as they are, not as digits of a palette.
    """

    told: ClassVar[str] = "stored by a mask"
    codes: SparseCodes
    raw: bool = False

    @property
    def kind(self) -> Hashable:
        return "mask", self.raw, b"" if self.raw else self.codes.palette.tobytes()

    @property
    def size(self) -> int:
        return int(self.codes.flat.size)

    @property
    def bytes(self) -> int:
        """Of words and tables: what forms are compared by."""
        entries, count = len(self.codes.places), digits_in(len(self.codes.palette))
        return -(-self.size // 8) + (entries if self.raw else -(-entries // count) + 256 * count) + OVERHEAD

    def emit(self, sheet: Sheet, forms: Mapping[str, Mask]) -> dict[str, Tensor]:
        """Write the nodes that unfold the codes of ``forms``."""
        pieces = {name: Piece.of(forms[name].codes.shape) for name in forms}
        pieces = {name: pieces[name] for name in by_kind(pieces)}
        name, codes = next(iter(pieces)), SparseCodes.of(joined(forms[each].codes.flat for each in pieces))
        return spread(sheet, *replace(self, codes=codes).chosen(sheet, name, pieces))

    def chosen(self, sheet: Sheet, name: str, pieces: Mapping[str, Piece]) -> tuple[Tensor, Mapping[str, Piece], int]:
        """All codes, with some more behind them; ``pieces``; how many there are."""
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
        axis = sheet.shared("axis_0", np.asarray(0, np.int64))
        before = sheet.reshaped(sheet.node("CumSum", [wide, axis], f"{name}_sums", exclusive=1), (-1, 1), f"{name}_at")
        inside = sheet.node("Gather", [ranks, index], f"{name}_ranks")
        inside = sheet.node("Cast", [inside], f"{name}_inside", to=TensorProto.INT32)
        rank = sheet.node("Add", [inside, before], f"{name}_rank")
        found = sheet.node("Gather", [values, rank], f"{name}_spread")
        bit = sheet.node("Gather", [sheet.shared("mask_bits", bits.astype(np.bool_)), index], f"{name}_bits")
        chosen = sheet.node("Where", [bit, found, sheet.shared("mask_zero", np.zeros(1, np.int8))], f"{name}_chosen")
        return chosen, pieces, 8 * packed.size


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


def forms(codes: SparseCodes) -> Iterator[Gaps | Mask]:
    """Every form that codes can have."""
    levels = len(codes.palette)
    ways = (True,) if levels > 128 else (False, True)
    for together in TOGETHER:
        longest = next(size for size in range(256, -1, -1) if (size * levels) ** together <= 256)
        if longest >= 2:
            yield Gaps(codes, longest, together)
    for raw in ways:
        yield from (Gaps(codes, longest, raw=raw) for longest in GAPS)
        yield Mask(codes, raw=raw)


def smallest_sparse(codes: NDArray[np.int8]) -> Gaps | Mask | None:
    """The smallest sparse form of int8 codes of any shape; None where the codes themselves take no more bytes."""
    if not 0 < codes.size <= LARGEST:
        return None
    found = min(
        forms(SparseCodes.of(codes)), key=lambda form: form.bytes * (MASK_PRICE if isinstance(form, Mask) else 1.0)
    )
    return found if found.bytes < codes.size else None


def smaller(codes: NDArray[np.int8], packed: Packed | None) -> Packed | None:
    """``packed``, or a sparse form of ``codes`` where that takes clearly fewer bytes; None: the codes as they are."""
    if codes.size - np.count_nonzero(codes) < FEWEST * codes.size:
        return packed
    sparse = smallest_sparse(codes)
    if sparse is None or packed is None:
        return sparse or packed
    return sparse if sparse.bytes * GAIN < packed.bytes else packed


def expected_bytes(elements: int, zeros: int, levels: int) -> int:
    """Bytes of the smallest form of codes whose zeros lie anywhere, before they are made; never more than a byte for
    each where there are few zeros.
    """
    share, given = zeros / max(elements, 1), elements - zeros
    if share < FEWEST:
        return elements

    def entries(longest: int) -> float:
        stays = share**longest  # another step of that length is needed
        return given * (1 + stays / max(1 - stays, 1e-6))

    count = digits_in(levels)
    values = {True: 1.0, False: 1 / count}
    sizes = [
        entries(longest) * (1 / digits_in(longest) + each) + (0 if raw else 256 * count)
        for longest in GAPS
        for raw, each in values.items()
    ]
    for together in TOGETHER:
        longest = int(256 ** (1 / together) + 1e-9) // levels
        if longest >= 2:
            sizes.append(entries(longest) / together + 256 * together)
    return int(min(elements, min(sizes) + OVERHEAD))
