"""The table of operators: name -> a function on torch tensors. In: a decorator on a function. Out: OPERATORS.

A function gets a Call and one argument per input (None where an optional one is left out) and returns one value
or a tuple of them. Integers that carry a gradient are float tensors that hold whole numbers: codes of
quantized weights and activations. What reads an index takes ``long()`` of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch

from onnxc.errors import ModelError
from onnxc.file.shell import is_constant
from onnxc.model import Graph, Node

Value = Any  # a torch tensor, a list of them (a sequence), or None
Function = Callable[..., Any]

OPERATORS: dict[tuple[str, str], Function] = {}

TYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.int32,  # uint16: torch computes little with it
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.int64,  # uint32
    13: torch.int64,  # uint64
    16: torch.bfloat16,
    21: torch.uint8,  # uint4
    22: torch.int8,  # int4
    25: torch.uint8,  # uint2
    26: torch.int8,  # int2
}
"""ONNX's element types, as what torch computes with."""

LIMITS: dict[int, tuple[int, int]] = {
    2: (0, 255),
    3: (-128, 127),
    4: (0, 65535),
    5: (-32768, 32767),
    6: (-(2**31), 2**31 - 1),
    21: (0, 15),
    22: (-8, 7),
    25: (0, 3),
    26: (-2, 1),
}
"""Smallest and largest value of the integer types that codes have."""


@dataclass
class Call:
    """One node that is being computed.

    Attributes:
        node: the node. opset: version of its domain. device: where new tensors are made.
        body: runs a graph of the node's attributes: (graph, values of its inputs) -> values of its outputs.
    """

    node: Node
    opset: int
    device: torch.device
    body: Callable[[Graph, Sequence[Value]], list[Value]]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or ``default``; a tensor comes as a torch tensor."""
        value = self.node.attrs.get(name, default)
        return from_numpy(value.values, self.device) if is_constant(value) else value

    def refuse(self, what: str) -> ModelError:
        """The error for a case of an operator that is not covered."""
        return ModelError(f"node {self.node.name!r} ({self.node.op}): {what} cannot be trained through")


def operator(*names: str, domain: str = "") -> Callable[[Function], Function]:
    """Register a function for operators of ``domain``."""

    def register(function: Function) -> Function:
        for name in names:
            OPERATORS[domain, name] = function
        return function

    return register


def from_numpy(array: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """A torch tensor of an array of any ONNX type that torch computes with.

    Raises:
        ModelError: text, or a type without meaning here.
    """
    array = np.asarray(array)
    if array.dtype == object or array.dtype.kind in "SU":
        raise ModelError("text cannot be trained through")
    name = array.dtype.name
    if name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(device, torch.bfloat16)
    if name in {"int4", "int2"}:
        array = array.astype(np.int8)
    elif name in {"uint4", "uint2"}:
        array = array.astype(np.uint8)
    elif name.startswith("float") and array.dtype not in {np.dtype(f"float{bits}") for bits in (16, 32, 64)}:
        array = array.astype(np.float32)  # 8 and 4 bit floats
    elif name == "uint16":
        array = array.astype(np.int32)
    elif name in {"uint32", "uint64"}:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C")).to(device)


def to_numpy(value: torch.Tensor) -> np.ndarray:
    """The array of a tensor; bfloat16 as ml_dtypes has it."""
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:
        array: np.ndarray = value.float().numpy().astype(ml_dtypes.bfloat16)
        return array
    made: np.ndarray = value.numpy()
    return made


def ints(value: Any) -> list[int]:
    """Whole numbers out of a tensor or an attribute."""
    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [int(each) for each in value.reshape(-1).tolist()]
    return [int(each) for each in (value if isinstance(value, list | tuple) else [value])]


class _Straight(torch.autograd.Function):  # type: ignore[misc]  # torch is an extra and has no types here
    """Gives the first argument and passes the gradient to the second."""

    @staticmethod
    def forward(context: Any, rounded: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        return rounded

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, gradient


def straight(rounded: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """``rounded`` with the gradient of ``exact``: the straight-through estimator (Bengio et al., 2013)."""
    if not exact.requires_grad:
        return rounded
    made: torch.Tensor = _Straight.apply(rounded.detach(), exact)
    return made


def filled(values: Sequence[Any], count: int) -> list[Any]:
    """``values`` with None for what is left out at the end."""
    return [*values, *[None] * (count - len(values))]


def is_float(value: torch.Tensor) -> bool:
    """Whether the tensor has a floating type; codes that carry a gradient do."""
    return bool(value.dtype.is_floating_point)
