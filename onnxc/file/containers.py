"""What sequences and optionals hold. In: what the file says of a tensor. Out: words, element type and shape.

optional(sequence(tensor(float) [n, 64]))  ->  "optional sequence of ", float32, [n, 64]
"""

from __future__ import annotations

import numpy as np
from onnx import ValueInfoProto

from onnxc.file.tensors import numpy_type

WORDS = {"sequence_type": "sequence of ", "optional_type": "optional "}

Shape = list[int | str | None]


def contained(info: ValueInfoProto) -> tuple[str, np.dtype[np.generic] | None, Shape | None]:
    """The containers in words, "" for a tensor; type and shape of the tensors inside, None where they are not told."""
    words, kind = "", info.type
    while (field := kind.WhichOneof("value")) in WORDS:
        words += WORDS[field]
        kind = getattr(kind, field).elem_type
    if field not in ("tensor_type", "sparse_tensor_type"):
        return words + ("map" if field == "map_type" else ""), None, None
    details = getattr(kind, field)
    dtype = numpy_type(details.elem_type) if details.elem_type else None
    if not details.HasField("shape"):
        return words, dtype, None
    axes = [(axis, axis.WhichOneof("value")) for axis in details.shape.dim]
    return words, dtype, [getattr(axis, name) if name else None for axis, name in axes]
