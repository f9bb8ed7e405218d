"""Types and shapes of a model's tensors. In: a Model. Out: tensor name -> what ONNX's own inference says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from onnxc.model import Model


@dataclass(frozen=True)
class TensorType:
    """Element type, and shape with None for axes that are not fixed; shape None: rank unknown."""

    dtype: np.dtype[np.generic] | None
    shape: tuple[int | None, ...] | None


def infer(model: Model) -> dict[str, TensorType]:
    """What is known of the tensors, those of bodies too where a name stands for one type wherever it is made. Large
    weights play no part, so memory stays small.
    """
    message = model.proto(weights=False)
    try:
        inferred = onnx.shape_inference.infer_shapes(message, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        inferred = message  # what the file itself says is still of use
    graphs = _graphs(inferred.graph)
    inside: dict[str, set[TensorType | None]] = {}
    for graph in graphs[1:]:
        told = _told(graph)
        for name in {*told, *(name for node in graph.node for name in node.output)}:
            inside.setdefault(name, set()).add(told.get(name))
    alike = {name: next(iter(kinds)) for name, kinds in inside.items() if len(kinds) == 1}
    return {name: known for name, known in alike.items() if known is not None} | _told(graphs[0])


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """``graph`` and the bodies inside it."""
    bodies = [body for node in graph.node for each in node.attribute for body in (each.g, *each.graphs) if body.node]
    return [graph, *(inner for body in bodies for inner in _graphs(body))]


def _told(graph: onnx.GraphProto) -> dict[str, TensorType]:
    """What one graph says of its tensors."""
    found: dict[str, TensorType] = {}
    for info in (*graph.input, *graph.value_info, *graph.output):
        if not info.type.HasField("tensor_type"):
            continue
        tensor = info.type.tensor_type
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except (KeyError, TypeError, ValueError):
            dtype = None
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        found[info.name] = TensorType(dtype, shape)
    return found
