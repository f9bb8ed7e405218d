"""What nodes that read only constants give. In: such nodes, or a tensor. Out: arrays, computed by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxc.errors import OnnxcError
from onnxc.model import Constant, Model, Node, Tensor
from onnxc.session import Options, Session

from .facts import Borders, producer, standard

RANDOM = frozenset(
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"]
)  # what they give differs from run to run


def compute(model: Model, nodes: Sequence[Node], results: Sequence[Tensor]) -> dict[str, Any]:
    """``results`` of ``nodes``, which are in order and read constants and one another alone, by name.

    Raises:
        OnnxcError: ONNX Runtime cannot run one of them on its own.
    """
    made, constants = [], {}
    for node in nodes:
        attributes = {
            name: _tensor(value.values, "") if isinstance(value, Constant) else value
            for name, value in node.attrs.items()
        }
        inputs, outputs = ([tensor.name for tensor in side] for side in (node.inputs, node.outputs))
        made.append(helper.make_node(node.op, inputs, outputs, **attributes))
        constants.update({tensor.name: tensor for tensor in node.inputs if isinstance(tensor, Constant)})
    weights = [_tensor(model.values(tensor), name) for name, tensor in constants.items()]
    ends = [onnx.ValueInfoProto(name=tensor.name) for tensor in results]
    graph = helper.make_graph(made, "constants", [], ends, weights)
    opset = helper.make_opsetid("", model.opset)
    proto = helper.make_model(graph, opset_imports=[opset], ir_version=max(model.ir_version, 4))
    return Session(proto, Options(level="off")).run({})


def computed(model: Model, borders: Borders, tensor: Tensor) -> np.ndarray | None:
    """The values of a tensor that is constant, or that nodes make of constants alone; None for any other, and
    where ONNX Runtime cannot run them on their own.
    """
    if borders.fixed(tensor):
        return np.asarray(model.values(tensor))
    behind: dict[int, Node] = {}
    waiting = [tensor]
    while waiting:
        each = waiting.pop()
        node = producer(each)
        if not each.name or borders.fixed(each) or (node is not None and id(node) in behind):
            continue
        if node is None or not standard(node) or node.op in RANDOM or not node.inputs or node.bodies():
            return None
        behind[id(node)] = node
        waiting.extend(node.inputs)
    order = [node for graph in model.graphs() for node in graph.nodes if id(node) in behind]
    try:
        return np.asarray(compute(model, order, [tensor])[tensor.name])
    except OnnxcError:
        return None


def _tensor(values: Any, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), name)
