"""What every rule needs: a node's inputs, and marks on axes. In: a Coupling and a node. Out: readers, makers, pins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxc.coupling.graph import Axis, Coupling, Reader
from onnxc.model import Constant, Node, Tensor


def given(node: Node, position: int) -> Tensor | None:
    """The tensor at an input, None where it is left out."""
    return node.inputs[position] if len(node.inputs) > position and node.inputs[position].name else None


def constant(node: Node, position: int) -> Any:
    """The array at an input, None where there is none or it is computed."""
    tensor = given(node, position)
    return np.asarray(tensor.values) if isinstance(tensor, Constant) else None


def is_constant(tensor: Tensor) -> bool:
    """Whether ``tensor`` is an initializer, or filled with one value at run time."""
    return isinstance(tensor, Constant) or bool(tensor.inputs and tensor.inputs[0].op == "ConstantOfShape")


def made(coupling: Coupling, axis: Axis | None, node: Node) -> None:
    """``axis`` of a weight makes channels."""
    if axis is not None:
        coupling.made.setdefault(axis, node.name)


def read(coupling: Coupling, axis: Axis | None, node: Node, source: Tensor, role: str = "weight") -> None:
    """``axis`` of a weight meets the channels of ``source``."""
    if axis is not None:
        coupling.readers.setdefault(axis, []).append(Reader(node.name, axis[0], axis[1], source.name, role))


def fixed(coupling: Coupling, tensors: Sequence[Tensor], first: int, reason: str) -> None:
    """Pin the axes from ``first`` on."""
    for tensor in tensors:
        for axis in range(first, len(coupling.shape(tensor))):
            coupling.pin(coupling.node(tensor, axis), reason)
