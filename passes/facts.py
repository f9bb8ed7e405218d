"""What exact passes ask about a graph. In: a Model. Out: which tensors may be touched, and what they hold."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from onnxc.model import Constant, Graph, Model, Node, Tensor


@dataclass(frozen=True)
class Borders:
    """The tensors that a graph or body takes in or hands out, by identity: others know them by name."""

    inputs: frozenset[int]
    outputs: frozenset[int]

    @classmethod
    def of(cls, model: Model) -> Borders:
        """The borders of the main graph and of every body."""
        graphs = list(model.graphs())
        return cls(
            frozenset(id(tensor) for graph in graphs for tensor in graph.inputs),
            frozenset(id(tensor) for graph in graphs for tensor in graph.outputs),
        )

    def fixed(self, tensor: Tensor) -> TypeGuard[Constant]:
        """Whether ``tensor`` is a constant that no caller may override."""
        return isinstance(tensor, Constant) and id(tensor) not in self.inputs

    def private(self, tensor: Tensor) -> bool:
        """Whether only the readers of ``tensor`` know it: it may vanish when they no longer need it."""
        return id(tensor) not in self.inputs and id(tensor) not in self.outputs

    def only_reader(self, tensor: Tensor) -> Node | None:
        """The one node that reads ``tensor``, once, where nothing else does."""
        readers = list(tensor.outputs)
        if len(readers) != 1 or not self.private(tensor):
            return None
        return readers[0] if sum(each is tensor for each in readers[0].inputs) == 1 else None

    def closed(self, inside: Collection[Node], result: Tensor, graph: Graph) -> bool:
        """Whether all of ``inside`` lies in ``graph``, and nothing else reads what it makes but for ``result``."""
        own, held = {id(node) for node in inside}, {id(node) for node in graph.nodes}
        between = [tensor for node in inside for tensor in node.outputs if tensor is not result]
        return own <= held and all(
            self.private(tensor) and all(id(reader) in own for reader in tensor.outputs) for tensor in between
        )


def standard(node: Node, *operators: str) -> bool:
    """Whether ``node`` is one of ONNX's own ``operators`` (any, when none are named)."""
    return node.domain in {None, "", "ai.onnx"} and (not operators or node.op in operators)


def given(node: Node, position: int) -> Tensor | None:
    """Input ``position`` of ``node``, None where it is left out."""
    if position >= len(node.inputs) or not node.inputs[position].name:
        return None
    return node.inputs[position]


def producer(tensor: Tensor) -> Node | None:
    """The node that computes ``tensor``, None for inputs and constants."""
    return tensor.inputs[0] if not isinstance(tensor, Constant) and tensor.inputs else None


def rewire(old: Tensor, new: Tensor) -> None:
    """Let all readers of a private tensor read ``new``: Model.redirect without its search for outputs."""
    for reader in dict.fromkeys(old.outputs):
        for index, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[index] = new


def remove(graph: Graph, gone: Collection[Node]) -> None:
    """Take nodes out of their graph; their results must have no readers left, or another producer."""
    ids = {id(node) for node in gone}
    for node in gone:
        node.inputs.clear()
        node.outputs.clear()
    if ids:
        graph.nodes[:] = [node for node in graph.nodes if id(node) not in ids]


def axes_of(model: Model, borders: Borders, node: Node) -> list[int] | None:
    """The axes of a ReduceSum and the like, an attribute or an input; None where they are computed, or all."""
    place = given(node, 1)
    if "axes" in node.attrs or place is None:
        return [int(axis) for axis in node.attrs["axes"]] if "axes" in node.attrs else None
    return [int(axis) for axis in model.values(place).reshape(-1)] if borders.fixed(place) else None


def number(model: Model, borders: Borders, tensor: Tensor | None) -> Any:
    """The one value of a fixed tensor of one element, None for anything else."""
    if tensor is None or not borders.fixed(tensor) or int(np.prod(tensor.shape)) != 1:
        return None
    return model.values(tensor).reshape(-1)[0]
