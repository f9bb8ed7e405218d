"""Nodes that hand on what they read are taken out, and Constant nodes become initializers.

before: x -> Identity -> y -> Relu        after: x -> Relu
        Constant -> c -> Add                     initializer c -> Add
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.model import Constant, Graph, Model, Node
from onnxc.shapes import TensorType, infer

from .facts import Borders, given, number, producer, remove, rewire, standard

_PLAIN = {
    "value_float": np.float32,
    "value_int": np.int64,
    "value_floats": np.float32,
    "value_ints": np.int64,
}


@dataclass(frozen=True)
class RemoveIdentities(ExactPass):
    """Take out Identity, Dropout at inference and a Cast to the type that is there; make Constant nodes initializers.

    1. The result is private: its readers read the input instead, whatever graph that lives in.
    2. The result is an output of its graph and the input is a private result of the same graph: the producer
       writes the output directly, so that the output keeps its name.
    3. Constant nodes with dense numbers. Not when the value is itself a graph's output, not strings and
       sparse tensors.
    Dropout counts when its mask is not read and its training_mode is absent or a constant false.
    """

    name: ClassVar[str] = "remove-identities"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        changed = 0
        borders = Borders.of(model)
        types = infer(model) if any(standard(node, "Cast") for node in model.nodes()) else {}
        for graph in list(model.graphs()):
            produced = {id(tensor) for node in graph.nodes for tensor in node.outputs}
            gone = []
            for node in graph.nodes:
                if standard(node, "Constant"):
                    done = _to_initializer(model, borders, graph, node)
                else:
                    done = _hands_on(model, borders, types, node) and _bypass(model, borders, produced, node)
                if done:
                    gone.append(node)
            changed += len(gone)
            remove(graph, gone)
        return Outcome(changed)


def _hands_on(model: Model, borders: Borders, types: Mapping[str, TensorType], node: Node) -> bool:
    if standard(node, "Identity"):
        return len(node.inputs) == 1
    if standard(node, "Cast"):
        known = types.get(node.inputs[0].name)
        return known is not None and known.dtype is not None and _number(known.dtype) == node.attrs.get("to")
    if not standard(node, "Dropout") or any(tensor.name for tensor in node.outputs[1:]):
        return False
    if node.attrs.get("is_test", 1) != 1:
        return False
    training = given(node, 2)
    return training is None or number(model, borders, training) == 0


def _number(dtype: np.dtype[Any]) -> int | None:
    """ONNX's number of a type, None where it has none."""
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))
    except (KeyError, ValueError):
        return None


def _bypass(model: Model, borders: Borders, produced: set[int], node: Node) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    if borders.private(result):
        rewire(result, source)
        return True
    writer = producer(source)
    if writer is None or id(source) not in produced or not borders.private(source):
        return False
    node.outputs.clear()
    node.inputs.clear()
    rewire(source, result)
    position = next(index for index, tensor in enumerate(writer.outputs) if tensor is source)
    writer.outputs[position] = result
    produced.add(id(result))
    return True


def _to_initializer(model: Model, borders: Borders, graph: Graph, node: Node) -> bool:
    result, constant = node.outputs[0], _constant(node)
    if constant is None or id(result) in borders.outputs:
        return False
    constant.name = result.name
    graph.weights.append(constant)
    rewire(result, constant)
    return True


def _constant(node: Node) -> Constant | None:
    """What a Constant node holds as an initializer; None if it is not dense numbers."""
    if len(node.attrs) != 1:
        return None
    [(kind, value)] = node.attrs.items()
    if kind in _PLAIN and isinstance(value, int | float | list):
        return Constant("", np.asarray(value, dtype=_PLAIN[kind]))
    if kind != "value" or not isinstance(value, Constant) or value.dtype.kind in "OSU":
        return None
    return value.copy()
