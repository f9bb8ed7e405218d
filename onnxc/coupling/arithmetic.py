"""Rules of operators that compute per entry, normalize, pool, reduce. In: a Coupling and a node. Out: edges, pins."""

from __future__ import annotations

import numpy as np

from onnxc.coupling.common import constant, fixed, given, is_constant
from onnxc.coupling.graph import Axis, Coupling
from onnxc.model import Node

AVERAGES = ("ReduceMean", "ReduceL2", "ReduceSumSquare")  # what normalization is made of


def elementwise(coupling: Coupling, node: Node) -> None:
    """Axes of equal size go together, aligned at the last one; an axis of size 1 is stretched."""
    for result in node.outputs:
        if result.name and result.name in coupling.shapes:
            rank = len(coupling.shape(result))
            summed: list[Axis] = []
            for tensor in node.inputs:
                if not tensor.name:
                    continue
                size = len(coupling.shape(tensor))
                for axis in range(size):
                    mine, other = coupling.node(tensor, axis), coupling.node(result, axis - size + rank)
                    if mine is not None:
                        coupling.link(mine, other)
                        if other is not None and not is_constant(tensor):
                            summed.append(other)
            if node.op in {"Add", "Sum", "Sub", "SkipLayerNormalization"}:
                coupling.sums |= {axis for axis in summed if summed.count(axis) > 1}


def channelwise(coupling: Coupling, node: Node) -> None:
    """BatchNormalization and InstanceNormalization: axis 1 goes with every parameter."""
    source, result = node.inputs[0], node.outputs[0]
    for axis in range(len(coupling.shape(source))):
        coupling.link(coupling.node(source, axis), coupling.node(result, axis))
    for tensor in node.inputs[1:]:
        if len(coupling.shape(source)) > 1:
            coupling.link(coupling.node(source, 1), coupling.node(tensor, 0))


def group_normalization(coupling: Coupling, node: Node) -> None:
    """Channels are groups x channels; the parameters are per channel, before opset 21 per group."""
    source, result = node.inputs[0], node.outputs[0]
    channels, count = coupling.shape(source)[1], int(node.attrs["num_groups"])
    group = coupling.factor(f"{node.name} as factors", 0, count)
    inner = coupling.factor(f"{node.name} as factors", 1, channels // count)
    for axis in range(len(coupling.shape(source))):
        coupling.link(coupling.node(source, axis), coupling.node(result, axis))
    coupling.product(coupling.node(source, 1), [group, inner])
    for tensor in node.inputs[1:3]:
        per_channel = coupling.shape(tensor)[0] == channels
        coupling.product(coupling.node(tensor, 0), [group, inner] if per_channel else [group])


def layer_normalization(coupling: Coupling, node: Node) -> None:
    """Every axis goes on; scale and bias belong to the last ones."""
    source, result = node.inputs[0], node.outputs[0]
    rank = len(coupling.shape(source))
    for axis in range(rank):
        coupling.link(coupling.node(source, axis), coupling.node(result, axis))
    for tensor in node.inputs[1:]:
        if tensor.name:
            size = len(coupling.shape(tensor))
            for axis in range(size):
                mine = coupling.node(tensor, axis)
                if mine is not None:
                    coupling.link(coupling.node(source, axis - size + rank), mine)


def mixing(coupling: Coupling, node: Node) -> None:
    """Softmax: the axis that it normalizes is pinned; before opset 13 every axis from there on."""
    source, result = node.inputs[0], node.outputs[0]
    rank = len(coupling.shape(source))
    old = coupling.model.opset < 13
    start = int(node.attrs.get("axis", 1 if old else -1)) % max(rank, 1)
    for axis in range(rank):
        coupling.link(coupling.node(source, axis), coupling.node(result, axis))
        if axis == start or (old and axis > start):
            coupling.pin(coupling.node(source, axis), f"{node.op} '{node.name}' normalizes over them")


def spatial(coupling: Coupling, node: Node) -> None:
    """Pooling: batch and channels go on, positions are pinned."""
    for result in node.outputs:
        if result.name and result.name in coupling.shapes:
            for axis in (0, 1):
                coupling.link(coupling.node(node.inputs[0], axis), coupling.node(result, axis))
            fixed(coupling, (node.inputs[0], result), 2, f"they are positions of {node.op}")


def reduction(coupling: Coupling, node: Node) -> None:
    """Axes that stay go on; over channels only averages may be taken, which are about the same of fewer of them."""
    source, result = node.inputs[0], node.outputs[0]
    rank = len(coupling.shape(source))
    axes = node.attrs.get("axes", node.attrs.get("axis", 0) if node.op.startswith("Arg") else None)
    if given(node, 1) is not None:
        axes = constant(node, 1)
        if axes is None:
            for tensor in (source, result):
                coupling.pin_all(tensor, f"{node.op} '{node.name}' computes its axes")
            return
    empty = axes is None or not np.size(axes)
    if empty and int(node.attrs.get("noop_with_empty_axes", 0)):
        elementwise(coupling, node)
        return
    gone = set(range(rank)) if axes is None or empty else {int(axis) % rank for axis in np.reshape(axes, -1)}
    kept = int(node.attrs.get("keepdims", 1))
    position = 0
    for axis in range(rank):
        mine = coupling.node(source, axis)
        if axis not in gone:
            coupling.link(mine, coupling.node(result, position))
        elif node.op not in AVERAGES:
            coupling.pin(mine, f"{node.op} '{node.name}' is taken over them")
        position += 1 if axis not in gone or kept else 0
