"""A name of its own for every node and tensor. In: a model. Out: the same, named; defaults of inputs keep theirs."""

from __future__ import annotations

from onnxc.model import Constant, Graph, Model, Tensor


def name_nodes(model: Model) -> None:
    """Give every node and every tensor a name of its own, so that plans, reports and profiles can speak of it. Names of
    nodes that had none are marked: files do without them.
    """
    seen: set[str] = set()
    for node in model.nodes():
        wanted = node.name or f"{node.op}_{node.outputs[0].name if node.outputs else ''}"
        name, count = wanted, 0
        while name in seen:
            count += 1
            name = f"{wanted}_{count}"
        node.given = "" if node.name and node.name != node.given else name
        node.name = name
        seen.add(name)
    owners: dict[str, Tensor] = {}
    for graph in model.graphs():  # two branches may use one name for two tensors; ours go by name
        defaults = set(overridable(graph))
        for tensor in (each for each in graph.tensors_inside() if each not in defaults):
            if owners.setdefault(tensor.name, tensor) is not tensor:
                tensor.name = model.unique(tensor.name)


def overridable(graph: Graph) -> list[Constant]:
    """Initializers that are inputs too: a caller may feed others, so they are defaults and stay as they are."""
    inputs = {tensor.name for tensor in graph.inputs}
    return [tensor for tensor in graph.weights if tensor.name in inputs]
