"""Float weights in 16 or 8 bits. In: a float32 weight, a type. Out: nodes that unfold it, bytes.

    W_half (float16) ── Cast ── Split ── W, W, ...          W_eighth (float8) ── Cast ── Split ──┬─ Mul ── W
                                                                                   W_scale ──────┘

Micikevicius et al., "FP8 Formats for Deep Learning" (2022): e4m3 has 3 bits of fraction and reaches to 448, e5m2 has 2
and reaches to 57344; a scale brings the largest value of a weight there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxc.codes.formats import FLOATS
from onnxc.codes.sheets import Sheet
from onnxc.model import Tensor

TYPES: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e5m2": ml_dtypes.float8_e5m2,
}
OVERHEAD = 12  # bytes of a weight among others in a file, beside its name

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
        scaled, kinds, found = self.scale is not None, dict[Hashable, list[str]](), dict[str, Tensor]()
        for name, form in forms.items():
            kinds.setdefault(form.values.shape[1:], []).append(name)
        for alike in kinds.values():  # a Cast each, since a Reshape each out of one Cast for all takes as many nodes
            labels = [f"{name}_raw" if scaled else name for name in alike]
            first = alike[0].removesuffix("_unfolded")
            stored = sheet.constant(f"{first}_short", np.concatenate([forms[name].values for name in alike]))
            cast = sheet.cast(stored, labels[0] if len(alike) == 1 else f"{first}_cast")
            rows = [len(forms[name].values) for name in alike]
            parts = [cast] if len(alike) == 1 else sheet.split(cast, rows, labels)
            for name, part in zip(alike, parts, strict=True):
                part.dtype, part.shape = np.dtype(np.float32), list(forms[name].values.shape)
                found[name] = part
        if not scaled:
            return found
        scales = {name: sheet.constant(f"{name}_scale", np.asarray(form.scale)) for name, form in forms.items()}
        return {name: sheet.node("Mul", [found[name], scales[name]], name) for name in forms}


def fits_bfloat16(values: Array) -> bool:
    """Whether bfloat16 holds these float32 values exactly."""
    return bool(np.array_equal(values, values.astype(ml_dtypes.bfloat16).astype(np.float32)))
