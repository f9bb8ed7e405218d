"""Types and shapes of tensors inside that shape inference finds anyway are dropped: up to a twentieth of a small file.

before: value_info {a: float [1, 64, 7, 7]}, a = Conv(x, w)        after: a = Conv(x, w)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from onnxc.contract.passes import FinishingPass, Outcome
from onnxc.model import Constant, Model

LONGEST = 4096  # entries of a vector whose values inference may follow


@dataclass(frozen=True)
class StripShapes(FinishingPass):
    """Remove from ``value_info`` what ONNX's own inference says as exactly without it.

    1. Tensors of the main graph; names of axes that nothing else bears go with them.
    2. It must not act on what only the file knows: results of custom operators, and of a Reshape to computed sizes.
    """

    name: ClassVar[str] = "strip-shapes"

    def finish(self, model: Model, *, told: bool = False) -> Outcome:
        """Edit ``model`` in place."""
        message = model.proto(weights=False)
        named = {info.name: info.type for info in message.graph.value_info}
        if not named:
            return Outcome()
        del message.graph.value_info[:]
        # every value of a vector becomes a message of its own: packed weights would take gigabytes
        small = all(len(each.dims) != 1 or each.dims[0] <= LONGEST for each in message.graph.initializer)
        try:
            inferred = onnx.shape_inference.infer_shapes(message, data_prop=small).graph.value_info
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
            return Outcome()
        known = {info.name: info.type for info in inferred}
        gone = {name for name, said in named.items() if name in known and says_as_much(known[name], said)}
        graph = model.graph
        ends = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
        graph.value_info = [(tensor, info) for tensor, info in graph.value_info if info.name not in gone]
        for tensor in graph.tensors_inside():
            if tensor.name in gone and id(tensor) not in ends and not isinstance(tensor, Constant):
                tensor.dtype = tensor.shape = None
        return Outcome(len(gone))


def says_as_much(found: onnx.TypeProto, said: onnx.TypeProto) -> bool:
    """Whether the type ``found`` has every size that ``said`` has."""
    if not said.HasField("tensor_type") or not found.HasField("tensor_type"):
        return False
    ours, theirs = found.tensor_type, said.tensor_type
    if ours.elem_type != theirs.elem_type:
        return False
    if not theirs.HasField("shape"):
        return True
    if not ours.HasField("shape") or len(ours.shape.dim) != len(theirs.shape.dim):
        return False
    pairs = zip(ours.shape.dim, theirs.shape.dim, strict=True)
    return all(
        not b.HasField("dim_value") or (a.HasField("dim_value") and a.dim_value == b.dim_value) for a, b in pairs
    )
