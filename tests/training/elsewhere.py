"""A second device for machines that have none: its tensors lie in the processor's memory, kept apart from others.

In: a program that is told to compute on ``ELSEWHERE``. Out: its results, or the error that an accelerator would raise
where a tensor of the one device meets one of the other. A number (a tensor without axes) may come from the processor
into what is computed entry by entry, as on every device of torch; what CUDA refuses besides is in fake_cuda.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.fake_cuda import FakeCuda, mapped

ELSEWHERE = torch.device("meta")  # a label: the one device besides the processor that every build of torch has
MOVES = ("aten::_to_copy", "aten::copy_")
RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh)
judges: list[FakeCuda] = []  # who is asked of every operator


class Remote(torch.Tensor):
    """A tensor that says it is elsewhere, and holds one that is not."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # all is told by __torch_dispatch__

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
    remote: dict[int, Remote] = {}
    here: list[torch.Tensor] = []

    def inner(value: Any) -> Any:
        if isinstance(value, Remote):
            remote[id(value.held)] = value
            return value.held
        if isinstance(value, torch.Tensor):
            here.append(value)
        return value

    def outer(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return remote[id(value)] if id(value) in remote else Remote(value)
        return value

    plain, named = mapped(inner, args), {key: mapped(inner, value) for key, value in kwargs.items()}
    name, target = function.name(), kwargs.get("device")
    goes = bool(remote) if target is None else torch.device(target).type == ELSEWHERE.type
    if remote and here and not name.startswith(MOVES):
        alike = torch.Tag.pointwise in function.tags
        if any(each.dim() or not alike for each in here):
            raise RuntimeError(f"{name}: tensors on the processor and elsewhere")
    for judge in judges if remote or goes else ():
        judge.ask(function, args, kwargs, lambda each: isinstance(each, Remote))
    if target is not None:
        named["device"] = torch.device("cpu")
    made = function(*plain, **named)
    if name.startswith("aten::copy_"):
        return args[0]
    return mapped(outer, made) if goes else made


class Operators(TorchDispatchMode):
    """Operators whose arguments are all on the processor: they may be asked to make something elsewhere."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What torch computes without operators, or otherwise on CUDA."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == ELSEWHERE.type:
            learned = kwargs.pop("requires_grad", False)
            return function(*args, **{**kwargs, "device": "cpu"}).to(ELSEWHERE).requires_grad_(learned)
        if function in RECURRENT and torch.is_grad_enabled() and isinstance(args[0], Remote) and not args[6]:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        if function is torch.Tensor.tolist:
            args = (args[0].cpu(),)
        return function(*args, **kwargs)


@contextmanager
def elsewhere(judge: FakeCuda | None = None) -> Iterator[torch.device]:
    """A second device, while it lasts; ``judge`` is asked what CUDA would say."""
    judges[:] = [] if judge is None else [judge]
    with Operators(), Functions():
        try:
            yield ELSEWHERE
        finally:
            judges.clear()
