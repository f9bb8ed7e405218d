"""Tensors inside bodies of If, Loop and Scan, handed out. In: a model, names of tensors. Out: outputs that hold them.

If:   a branch returns the tensor as well, the other one an empty tensor: it has nothing where that one runs
Loop: a sequence is carried along, to which every turn adds its tensor
Scan: the tensors of its turns are stacked along a new first axis
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxc.errors import ModelError
from onnxc.model import Constant, Graph, Model, Node, Tensor, Variable

Path = tuple[tuple[Node, Graph], ...]  # the nodes around a tensor and the body of each, the outermost first
# The opset from which branches may have shapes of their own, a Loop carries sequences, a Scan has no batch axis.
SHAPES, SEQUENCES, SCANS = 11, 13, 9


def paths(model: Model) -> dict[str, Path]:
    """Name of a tensor that a body makes or is given -> where it is. Tensors of the main graph are not there."""
    found: dict[str, Path] = {}
    stack: list[tuple[Graph, Path]] = [(model.graph, ())]
    while stack:
        graph, path = stack.pop()
        for tensor in graph.tensors_inside() if path else ():
            if not isinstance(tensor, Constant):
                found.setdefault(tensor.name, path)
        stack += [(body, (*path, (n, body))) for n in graph.nodes if n.attrs for body in n.bodies()]
    return found


def in_branches(path: Path) -> bool:
    """Whether a tensor there has at most one value per run of the model: nothing but Ifs is around it."""
    return all(node.op == "If" for node, _ in path)


def run_once(model: Model) -> set[Node]:
    """The nodes that a run takes at most once, whose values can be followed: all but those in loops."""
    found, stack = set[Node](), list(model.graph.nodes)
    while stack:
        node = stack.pop()
        found.add(node)
        stack += [inner for branch in (node.bodies() if node.op == "If" else ()) for inner in branch.nodes]
    return found


def at_once(graph: Graph, sizes: Mapping[str, int]) -> int:
    """The sum of ``sizes``, by tensor name, over what one run makes at most: of an If that is its larger branch."""
    made = (t.name for node in graph.nodes for t in node.outputs)
    total = sum(sizes.get(name, 0) for name in (*(t.name for t in graph.inputs), *made))
    for node in graph.nodes:
        inside = [at_once(body, sizes) for body in node.bodies()] if node.attrs else []
        total += max(inside, default=0) if node.op == "If" else sum(inside)
    return total


def hidden(path: Path, opset: int) -> str | None:
    """Why the values of a tensor there cannot be handed out, None where they can."""
    above, sequence = "", False
    for node, _ in reversed(path):
        if node.op not in ("If", "Loop", "Scan"):
            return f"its values inside a {node.op} cannot be handed out"
        if node.op == "If" and opset < SHAPES:
            return f"its values inside an If of opset {opset} cannot be handed out"
        if node.op == "Scan" and (above or opset < SCANS):
            return f"its values inside an {above or 'old'} within a Scan cannot be handed out"
        if node.op == "Loop" and (opset < SEQUENCES or (sequence and above != "Loop")):
            return (
                f"its values inside a Loop {'within others' if sequence else f'of opset {opset}'} cannot be handed out"
            )
        sequence |= node.op == "Loop"
        above = "" if node.op == "Scan" else node.op
    return None


@dataclass(frozen=True)
class HandedOut:
    """The outputs of a model that hold tensors of its bodies.

    Attributes:
        outputs: tensor name -> the output that holds its values; stacked: how many Scans are around it.
    """

    outputs: Mapping[str, Tensor]
    stacked: Mapping[str, int]

    def values(self, name: str, results: Mapping[str, Any]) -> list[NDArray[Any]]:
        """The values that a tensor had in a run, in order: none where nothing made it, one per turn of a loop."""
        held, depth = results[self.outputs[name].name], self.stacked[name]
        arrays = [np.asarray(each) for each in (held if isinstance(held, list) else [held])]
        if depth:
            arrays = [part for each in arrays if each.size for part in each.reshape(-1, *each.shape[depth:])]
        return [each for each in arrays if each.size]


def hand_out(model: Model, names: Collection[str], types: Mapping[str, np.dtype[Any]] | None = None) -> HandedOut:
    """Further outputs of ``model``, which is edited, with the values of tensors inside its bodies.

    Args:
        types: of tensors whose type the model does not tell; float32 where this does not either.

    Raises:
        ModelError: the values of one of them cannot be handed out.
    """
    where, found = paths(model), dict[str, Tensor]()
    for name in names:
        if (reason := hidden(where[name], model.opset)) is not None:
            raise ModelError(f"tensor '{name}': {reason}")
        body = where[name][-1][1]
        tensor = next(t for t in (*body.inputs, *(o for n in body.nodes for o in n.outputs)) if t.name == name)
        kind = tensor.dtype or (types or {}).get(name) or np.dtype(np.float32)
        found[name] = _Way(model, name, np.dtype(kind)).out(tensor, where[name])
    depths = {name: sum(node.op == "Scan" for node, _ in where[name]) for name in names}
    return HandedOut(found, depths)


@dataclass
class _Way:
    """A tensor's way to the main graph."""

    model: Model
    name: str
    dtype: np.dtype[Any]
    sequence: bool = False
    loop: Node | None = None  # the one that was just left: its sequence begins with its last carried input

    def out(self, value: Tensor, path: Path) -> Tensor:
        graphs = [self.model.graph, *(body for _, body in path)]
        for around, (node, body) in zip(reversed(graphs[:-1]), reversed(path), strict=True):
            step = {"If": self.through_if, "Loop": self.through_loop, "Scan": self.through_scan}[node.op]
            value = step(value, node, body, around)
            self.loop = node if node.op == "Loop" else None
        self.model.graph.outputs.append(value)
        if self.sequence:
            self.model.graph.output_info[value] = self.info(value)
        return value

    def variable(self, part: str) -> Variable:
        made = Variable(self.model.unique(f"{self.name}_{part}"))
        made.dtype = None if self.sequence else self.dtype
        return made

    def info(self, tensor: Tensor) -> onnx.ValueInfoProto:
        element = onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(self.dtype), None)
        return onnx.helper.make_value_info(tensor.name, onnx.helper.make_sequence_type_proto(element))

    def empty(self, graph: Graph) -> Tensor:
        """A sequence or tensor without anything in it."""
        if self.sequence:
            kind = int(onnx.helper.np_dtype_to_tensor_dtype(self.dtype))
            return self.model.insert("SequenceEmpty", [], [f"{self.name}_none"], graph=graph, dtype=kind).outputs[0]
        nothing = Constant(self.model.unique(f"{self.name}_nothing"), np.zeros(0, self.dtype))
        graph.weights.append(nothing)
        return self.model.insert("Identity", [nothing], [f"{self.name}_none"], graph=graph).outputs[0]

    def through_if(self, value: Tensor, node: Node, body: Graph, around: Graph) -> Tensor:
        for branch in node.bodies():
            given = value if branch is body else self.empty(branch)
            if given in branch.outputs or given in branch.inputs:  # the same tensor twice
                given = self.model.insert("Identity", [given], [f"{self.name}_again"], graph=branch).outputs[0]
            branch.outputs.append(given)
            if self.sequence:
                branch.output_info[given] = self.info(given)
        node.outputs.append(self.variable("out"))
        return node.outputs[-1]

    def through_loop(self, value: Tensor, node: Node, body: Graph, around: Graph) -> Tensor:
        inside, carried = self.sequence, len(body.inputs) - 2
        self.sequence = True
        given = self.variable("before")
        body.inputs.append(given)
        body.input_info[given] = self.info(given)
        if inside:
            assert self.loop is not None
            self.loop.inputs[-1] = given  # what the loop inside adds to
        else:
            value = self.model.insert("SequenceInsert", [given, value], [f"{self.name}_after"], graph=body).outputs[0]
        body.outputs.insert(1 + carried, value)
        body.output_info[value] = self.info(value)
        node.inputs.append(self.empty(around))
        node.outputs.insert(carried, self.variable("out"))
        return node.outputs[carried]

    def through_scan(self, value: Tensor, node: Node, body: Graph, around: Graph) -> Tensor:
        if value in body.outputs or value in body.inputs:
            value = self.model.insert("Identity", [value], [f"{self.name}_again"], graph=body).outputs[0]
        body.outputs.append(value)
        for attribute in ("scan_output_axes", "scan_output_directions"):
            if attribute in node.attrs:
                node.attrs[attribute] = [*node.attrs[attribute], 0]
        node.outputs.append(self.variable("out"))
        return node.outputs[-1]
