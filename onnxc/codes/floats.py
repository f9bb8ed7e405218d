"""Float weights in 16 or 8 bits. In: a float32 weight, a type. Out: nodes that unfold it, bytes.

    W_half (float16) ── Cast ── Split ── W, W, ...          W_eighth (float8) ── Cast ── Split ──┬─ Mul ── W
                                                                                   W_scale ──────┘
    list (bfloat16) ── Cast ──┬─ Gather ── Split ── scales, scales, ...
    place (uint8) ─── Cast ───┘

Micikevicius et al., "FP8 Formats for Deep Learning" (2022): e4m3 has 3 bits of fraction and reaches to 448, e5m2 has 2
and reaches to 57344; a scale brings the largest value of a weight there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.formats import FLOATS
from onnxc.codes.sheets import Sheet, joined
from onnxc.model import Tensor

TYPES: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e5m2": ml_dtypes.float8_e5m2,
}
OVERHEAD = 12  # bytes of a weight among others in a file, beside its name
LONGEST_LIST = 256
LIST_BYTES = 400  # of the nodes that look up in a list, and of names, about

Array = NDArray[Any]


@dataclass(frozen=True)
class PackedFloats:
    """A weight as smaller floats.

    Attributes:
        values: in the type of the file, any shape; scale: float32, what they are multiplied with, None: 1.
    """

    values: Array
    scale: np.float32 | None = None

    @classmethod
    def of(cls, weight: Array, name: str) -> PackedFloats:
        """``weight`` rounded to the type called ``name``, to even; 8 bits with its largest value at the type's."""
        bits, _, largest = FLOATS[name]
        if bits > 8:
            return cls(weight.astype(TYPES[name]))
        scale = np.float32(max(float(np.abs(weight).max(initial=0.0)), 1e-30) / largest)
        return cls((weight / scale).astype(TYPES[name]), scale)

    @property
    def kind(self) -> Hashable:
        return "floats", self.values.dtype

    @property
    def size(self) -> int:
        return int(self.values.size)

    @property
    def bytes(self) -> int:
        return int(self.values.nbytes) + OVERHEAD

    def emit(self, sheet: Sheet, forms: Mapping[str, PackedFloats]) -> dict[str, Tensor]:
        """Write the nodes that unfold ``forms``."""
        scaled, found = self.scale is not None, dict[str, Tensor]()
        for alike in rows_alike({name: form.values for name, form in forms.items()}):
            labels = [f"{name}_raw" if scaled else name for name in alike]
            first = alike[0].removesuffix("_unfolded")
            stored = sheet.constant(f"{first}_short", np.concatenate([forms[name].values for name in alike]))
            cast = sheet.cast(stored, labels[0] if len(alike) == 1 else f"{first}_cast")
            found |= cut_apart(sheet, cast, {name: forms[name].values.shape for name in alike}, labels)
        if not scaled:
            return found
        scales = {name: sheet.constant(f"{name}_scale", np.asarray(form.scale)) for name, form in forms.items()}
        return {name: sheet.node("Mul", [found[name], scales[name]], name) for name in forms}


@dataclass(frozen=True)
class ListedFloats:
    """Numbers as places in a list of all that occur.

    Attributes:
        values: float32, any shape; bfloat16 holds them. number: of the list.
    """

    values: NDArray[np.float32]
    number: int = 0

    @property
    def kind(self) -> Hashable:
        return "listed", self.number

    @property
    def size(self) -> int:
        return int(self.values.size)

    @property
    def bytes(self) -> int:
        return self.size + OVERHEAD

    def emit(self, sheet: Sheet, forms: Mapping[str, ListedFloats]) -> dict[str, Tensor]:
        """Write the nodes that look ``forms`` up in one list."""
        values = {name: form.values for name, form in forms.items()}
        entries, first = np.unique(joined(values.values())), next(iter(forms))
        listed = sheet.cast(sheet.constant(f"{first}_list", entries.astype(TYPES["bfloat16"])), f"{first}_listed")
        found: dict[str, Tensor] = {}
        for alike in rows_alike(values):
            places = np.searchsorted(entries, np.concatenate([values[name] for name in alike])).astype(np.uint8)
            stored = sheet.constant(f"{alike[0]}_place", places)
            index = sheet.node("Cast", [stored], f"{alike[0]}_index", to=TensorProto.INT32)
            made = sheet.node("Gather", [listed, index], alike[0] if len(alike) == 1 else f"{alike[0]}_found")
            found |= cut_apart(sheet, made, {name: values[name].shape for name in alike}, alike)
        return found


def rows_alike(values: Mapping[str, Array]) -> list[list[str]]:
    """The names of those that can lie behind each other, along their first axis. They have a chain each: a Reshape each
    out of one chain for all takes as many nodes.
    """
    kinds: dict[Hashable, list[str]] = {}
    for name, value in values.items():
        kinds.setdefault(value.shape[1:], []).append(name)
    return list(kinds.values())


def cut_apart(
    sheet: Sheet, whole: Tensor, shapes: Mapping[str, tuple[int, ...]], labels: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of ``shapes``, which lie behind each other in ``whole``, float32, called ``labels``; by name."""
    parts = [whole] if len(shapes) == 1 else sheet.split(whole, [shape[0] for shape in shapes.values()], list(labels))
    for part, shape in zip(parts, shapes.values(), strict=True):
        part.dtype, part.shape = np.dtype(np.float32), list(shape)
    return dict(zip(shapes, parts, strict=True))


def lists_of(values: Mapping[str, NDArray[np.float32]]) -> dict[str, int]:
    """The number of a list for each of these that takes fewer bytes so; bfloat16 holds them.

    Each goes into the first list that has room for what occurs in it; a list that saves nothing is none.
    """
    lists, found = list[set[float]](), dict[str, int]()
    for name, value in values.items():
        entries = set(np.unique(value).tolist())
        number = next((place for place, known in enumerate(lists) if len(known | entries) <= LONGEST_LIST), len(lists))
        if len(entries) > LONGEST_LIST:
            continue
        if number == len(lists):
            lists.append(set())
        lists[number] |= entries
        found[name] = number
    sizes = [sum(values[name].size for name, place in found.items() if place == number) for number in range(len(lists))]
    pays = [size > 2 * len(known) + LIST_BYTES for size, known in zip(sizes, lists, strict=True)]
    return {name: number for name, number in found.items() if pays[number]}


def fits_bfloat16(values: Array) -> bool:
    """Whether bfloat16 holds these float32 values exactly."""
    return bool(np.array_equal(values, values.astype(ml_dtypes.bfloat16).astype(np.float32)))
