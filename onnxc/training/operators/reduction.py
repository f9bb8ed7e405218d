"""Reductions along axes, and choices by size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onnxc.training.operators.table import Call, ints, is_float, operator


def _product(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    for axis in sorted((each % max(x.ndim, 1) for each in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=True).to(x.dtype)
    return x


def _mean(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return x.mean(axes, keepdim=True) if is_float(x) else x.double().mean(axes, keepdim=True).trunc().to(x.dtype)


_REDUCTIONS: dict[str, Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]] = {
    "ReduceSum": lambda x, axes: x.sum(axes, keepdim=True).to(x.dtype),
    "ReduceMean": _mean,
    "ReduceMax": lambda x, axes: x.amax(axes, keepdim=True),
    "ReduceMin": lambda x, axes: x.amin(axes, keepdim=True),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes: x.abs().sum(axes, keepdim=True).to(x.dtype),
    "ReduceL2": lambda x, axes: torch.sqrt((x * x).sum(axes, keepdim=True)).to(x.dtype),
    "ReduceLogSum": lambda x, axes: torch.log(x.sum(axes, keepdim=True)),
    "ReduceLogSumExp": lambda x, axes: torch.logsumexp(x, axes, keepdim=True),
    "ReduceSumSquare": lambda x, axes: (x * x).sum(axes, keepdim=True).to(x.dtype),
}


@operator(*_REDUCTIONS)
def reduce(call: Call, x: torch.Tensor, axes: Any = None) -> torch.Tensor:
    """Along axes given as an attribute or, in later opsets, an input."""
    chosen = ints(call.get("axes")) if axes is None else ints(axes)
    if not chosen:
        if call.get("noop_with_empty_axes", 0):
            return x
        chosen = list(range(x.ndim))
    dims = tuple(each % max(x.ndim, 1) for each in chosen)
    if not x.ndim:
        made = _REDUCTIONS[call.node.op](x.reshape(1), (0,))
        return made.reshape(())
    made = _REDUCTIONS[call.node.op](x, dims)
    if call.get("keepdims", 1):
        return made
    return made.reshape([size for axis, size in enumerate(made.shape) if axis not in dims])


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call, x: torch.Tensor) -> torch.Tensor:
    """The place of the largest or smallest entry, the first or the last of equal ones."""
    axis, keep = int(call.get("axis", 0)), bool(call.get("keepdims", 1))
    best = x.amax(axis, keepdim=True) if call.node.op == "ArgMax" else x.amin(axis, keepdim=True)
    hits = (x == best).to(torch.int8)
    if call.get("select_last_index", 0):
        return x.shape[axis] - 1 - hits.flip(axis).argmax(axis, keepdim=keep)
    return hits.argmax(axis, keepdim=keep)


@operator("TopK")
def top_k(call: Call, x: torch.Tensor, k: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest or smallest entries along an axis; of equal ones the first."""
    count = int(call.get("k")) if k is None else ints(k)[0]
    axis, largest = int(call.get("axis", -1)), bool(call.get("largest", 1))
    places = torch.sort(x, dim=axis, descending=largest, stable=True).indices.narrow(axis, 0, count)
    return torch.gather(x, axis, places), places
