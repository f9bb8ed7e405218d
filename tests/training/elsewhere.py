"""A second device for machines that have none: its tensors lie in the processor's memory, kept apart from others.

In: a program that is told to compute on ``ELSEWHERE``. Out: its results, or the error that an accelerator would raise
where a tensor of the one device meets one of the other. A number (a tensor without axes) may come from the processor,
as on every device of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")  # a label: the one device besides the processor that every build of torch has
MOVES = ("aten::_to_copy", "aten::copy_")


class Remote(torch.Tensor):
    """A tensor that says it is elsewhere, and holds one that is not."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Remote:
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), **shape, device=ELSEWHERE)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator of torch: on the processor, its result elsewhere where its arguments are or it is asked to be."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    remote = {id(each.held): each for each in tensors if isinstance(each, Remote)}
    name, target = function.name(), kwargs.get("device")
    if remote and not name.startswith(MOVES) and any(each.dim() for each in tensors if not isinstance(each, Remote)):
        raise RuntimeError(f"{name}: tensors on the processor and elsewhere")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}

    def inner(value: Any) -> Any:
        return value.held if isinstance(value, Remote) else value

    def outer(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return remote[id(value)] if id(value) in remote else Remote(value)
        return value

    made = function(*tree_map(inner, args), **tree_map(inner, kwargs))
    if name.startswith("aten::copy_"):
        return args[0]
    goes = bool(remote) if target is None else torch.device(target).type == ELSEWHERE.type
    return tree_map(outer, made) if goes else made


class Operators(TorchDispatchMode):
    """Operators whose arguments are all on the processor: they may be asked to make something elsewhere."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What torch computes without operators."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == ELSEWHERE.type:
            learned = kwargs.pop("requires_grad", False)
            return function(*args, **{**kwargs, "device": "cpu"}).to(ELSEWHERE).requires_grad_(learned)
        if function is torch.Tensor.tolist:
            args = (args[0].cpu(),)
        return function(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """A second device, while it lasts."""
    with Operators(), Functions():
        yield ELSEWHERE
