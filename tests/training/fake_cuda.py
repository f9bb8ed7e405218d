"""What torch says of an operator on CUDA, without CUDA. In: a call, where its tensors lie. Out: nothing, or its error.

Torch's fake tensors have a device and no values: they raise what CUDA would of devices, types and shapes. They cannot
go backward in a torch without CUDA (its autograd asks for a stream), so single operators are asked, below autograd.
What they do not know of CUDA is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

CUDA, PROCESSOR = torch.device("cuda", 0), torch.device("cpu")
PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::dot", "aten::mv", "aten::convolution")


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with the function on everything in it."""
    if isinstance(value, list | tuple):
        return type(value)([mapped(function, each) for each in value])
    return function(value)


class FakeCuda:
    """Asks torch of every operator.

    Attributes:
        asked, unknown: names of operators that torch was asked of, and that it cannot tell of without values.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode()
        self.asked: set[str] = set()
        self.unknown: set[str] = set()
        self._calls: set[object] = set()  # of one kind only the first is asked

    def fake(self, tensor: torch.Tensor, where: torch.device) -> torch.Tensor:
        """A tensor like ``tensor`` without values."""
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(self.mode, meta, where)

    def ask(self, function: Any, args: Any, kwargs: dict[str, Any], away: Callable[[torch.Tensor], bool]) -> None:
        """Raise what CUDA would raise, where ``away`` tells which tensors lie on it."""
        tensors: list[torch.Tensor] = []

        def described(value: Any) -> object:
            if isinstance(value, torch.Tensor):
                tensors.append(value)
                return value.shape, value.dtype, away(value)
            return tuple(map(described, value)) if isinstance(value, list | tuple) else value

        def other(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return self.fake(value, CUDA if away(value) else PROCESSOR)
            return CUDA if isinstance(value, torch.device) and value.type == "meta" else value

        def checked(value: Any) -> None:
            assert not isinstance(value, torch.Tensor) or value.device == CUDA, name

        call = (function, described(args), described(list(kwargs.items())))
        if call in self._calls:
            return
        self._calls.add(call)
        name = function.name()
        if name.startswith(PRODUCTS) and not tensors[0].dtype.is_floating_point:
            raise RuntimeError(f"{name} not implemented for {tensors[0].dtype} on CUDA")
        with torch.no_grad(), self.mode:
            try:
                made = function(*mapped(other, args), **{key: mapped(other, value) for key, value in kwargs.items()})
            except (DataDependentOutputException, DynamicOutputShapeException):
                self.unknown.add(name)
                return
            except RuntimeError as error:
                if "not linked with support for cuda" not in str(error):  # a mask as an index: how many are there?
                    raise
                self.unknown.add(name)
                return
        self.asked.add(name)
        if not name.startswith(("aten::_to_copy", "aten::copy_")) and any(map(away, tensors)):
            mapped(checked, made)
