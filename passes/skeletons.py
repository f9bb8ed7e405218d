"""Libraries that want a ModelProto get a small one. In: a Model and a library's function. Out: a new Model.

The large weights are lifted out before and put back after by name, untouched and still mapped from the file;
what libraries drop on the way (documentation, metadata, what the file says of inputs) is put back too.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto

from onnxc.errors import ModelError
from onnxc.model import Constant, Model, Node, Variable

LIFTED_BYTES = 4096  # initializers above this stay out: what is folded into them, our own passes fold


def through_skeleton(model: Model, rewrite: Callable[[ModelProto], ModelProto], limit: int = LIFTED_BYTES) -> Model:
    """What ``rewrite`` makes of ``model``; ``model`` itself is not changed.

    Raises:
        ModelError: the result is not a model with the same inputs and outputs.
    """
    skeleton, lifted = model.skeleton(limit)
    new = Model.load(rewrite(skeleton))
    fed = {tensor.name: tensor for tensor in new.graph.inputs}
    for weight in model.graph.weights:
        variable = fed.get(weight.name)
        if weight.name in lifted and isinstance(variable, Variable):
            _put_back(new, variable, weight.copy())
    for old, now in ((model.graph.inputs, new.graph.inputs), (model.graph.outputs, new.graph.outputs)):
        if [tensor.name for tensor in old] != [tensor.name for tensor in now]:
            raise ModelError("its inputs or outputs changed")
    _remember(model, new)
    result = model.copy()
    adopt(result, new)
    return result


def _put_back(model: Model, variable: Variable, weight: Constant) -> None:
    graph = model.graph
    graph.inputs = [tensor for tensor in graph.inputs if tensor is not variable]
    graph.listed = [tensor for tensor in graph.listed if tensor is not variable]
    graph.input_info.pop(variable, None)
    model.redirect(variable, weight)
    graph.weights.append(weight)


def _remember(old: Model, new: Model) -> None:
    """What the file says of inputs, outputs, tensors inside and nodes, wherever they are still there."""
    before, after = old.graph, new.graph
    for tensor, twin in zip(before.inputs, after.inputs, strict=True):
        if tensor in before.input_info:
            after.input_info[twin] = before.input_info[tensor]
            twin.describe_as(tensor)
    for tensor, twin in zip(before.outputs, after.outputs, strict=True):
        if tensor in before.output_info and isinstance(twin, Variable) and isinstance(tensor, Variable):
            after.output_info[twin] = before.output_info[tensor]
            twin.describe_as(tensor)
    after.name, after.doc_string, after.origin = before.name, before.doc_string, before.origin
    nodes = {node.outputs[0].name: node for node in old.nodes() if node.outputs}
    said = {tensor.name: info for graph in old.graphs() for tensor, info in graph.value_info if tensor}
    for graph in new.graphs():
        graph.value_info = [(tensor, info) for tensor, info in graph.value_info if tensor and tensor.name in said]
        described = {id(tensor) for tensor, _ in graph.value_info} | {id(tensor) for tensor in graph.outputs}
        for node in graph.nodes:
            _remember_node(nodes.get(node.outputs[0].name) if node.outputs else None, node)
            for tensor in node.outputs:
                if id(tensor) not in described and isinstance(tensor, Variable):
                    tensor.dtype, tensor.shape = None, None  # inferred; whoever needs it infers it again


def _remember_node(old: Node | None, node: Node) -> None:
    if old is None or old.op != node.op or old.domain != node.domain:
        if node.origin is not None:
            node.name = ""  # a name that the library made up
        return
    node.name, node.kept = old.name, old.kept
    if node.origin is not None and old.origin is not None and not node.bodies():
        node.origin = old.origin


def adopt(model: Model, new: Model) -> None:
    """Make ``model`` what ``new`` is, path and metadata apart; ``new`` is used up."""
    model.graph, model.functions, model.ir_version = new.graph, new.functions, new.ir_version
    for domain, version in new.opsets.items():
        if model.opsets.get(domain) != version:
            model.set_opset(version, domain)
    model.tidy()
