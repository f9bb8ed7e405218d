"""An If whose condition is known becomes the branch that it always takes.

before: If(true) { then: x -> Relu -> y; else: x -> Neg -> y } -> z        after: x -> Relu -> z
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.model import Graph, Model, Node

from .facts import Borders, number, standard


@dataclass(frozen=True)
class InlineBranches(ExactPass):
    """Move the nodes of the branch taken to where the If is.

    1. The condition is a constant that no caller may override.
    2. A branch output that is a constant or comes from outside the branch is handed on by an Identity.
    3. Names that the branch shares with its new surroundings get a new ending.
    """

    name: ClassVar[str] = "inline-branches"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        changed = 0
        borders = Borders.of(model)
        for graph in model.graphs():
            place = 0
            while place < len(graph.nodes):
                node = graph.nodes[place]
                condition = number(model, borders, node.inputs[0]) if standard(node, "If") else None
                if condition is None:
                    place += 1
                    continue
                _inline(model, graph, place, node, node.attrs["then_branch" if condition else "else_branch"])
                changed += 1
        if changed:
            model.tidy()
        return Outcome(changed, (f"{changed} branches that are always taken put in place",) if changed else ())


def _inline(model: Model, graph: Graph, place: int, node: Node, branch: Graph) -> None:
    results = list(node.outputs)
    node.outputs.clear()
    node.inputs.clear()
    made = {id(tensor): inner for inner in branch.nodes for tensor in inner.outputs}
    moved = list(branch.nodes)
    _rename(model, branch)
    for result, tensor in zip(results, list(branch.outputs), strict=True):
        writer = made.pop(id(tensor), None)
        if writer is None:  # a constant, from outside, or handed out twice
            moved.append(Node("Identity", model.unique(f"{result.name}_node"), {}, [tensor], [result]))
            continue
        position = next(index for index, each in enumerate(writer.outputs) if each is tensor)
        writer.outputs[position] = result
        for reader in dict.fromkeys(tensor.outputs):
            for index, each in enumerate(reader.inputs):
                if each is tensor:
                    reader.inputs[index] = result
        for inner in [body for each in moved for body in each.bodies()]:
            inner.outputs[:] = [result if each is tensor else each for each in inner.outputs]
    branch.nodes, branch.outputs = [], []
    graph.weights += branch.weights
    graph.nodes[place : place + 1] = moved


def _rename(model: Model, branch: Graph) -> None:
    """Free names for what the branch brings where another graph has the same one: sister branches may."""
    taken = {tensor.name for other in model.graphs() if other is not branch for tensor in other.tensors_inside()}
    for tensor in branch.tensors_inside():
        if tensor.name in taken:
            tensor.name = model.unique(tensor.name)
