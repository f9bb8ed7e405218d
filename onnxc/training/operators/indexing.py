"""Operators that look entries up, or put them, where indices or conditions say."""

from __future__ import annotations

import math
from typing import Any

import torch

from onnxc.training.operators.table import Call, ints, operator


def wrapped(indices: torch.Tensor, extent: int) -> torch.Tensor:
    """Indices with negative ones counted from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + extent, indices)


@operator("Gather")
def gather(call: Call, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Slices along an axis."""
    axis = int(call.get("axis", 0)) % max(x.ndim, 1)
    flat = wrapped(indices, x.shape[axis])
    made = x.index_select(axis, flat.reshape(-1))
    return made.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def gather_elements(call: Call, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Entries along an axis."""
    axis = int(call.get("axis", 0))
    return torch.gather(x, axis, wrapped(indices, x.shape[axis]))


def _places(indices: torch.Tensor, extents: Any) -> tuple[torch.Tensor, ...]:
    return tuple(wrapped(each, extent) for each, extent in zip(indices.unbind(-1), extents, strict=False))


@operator("GatherND")
def gather_nd(call: Call, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Slices by coordinates, after some batch axes."""
    batch = int(call.get("batch_dims", 0))
    if not batch:
        return x[_places(indices, x.shape)]
    lead = math.prod(x.shape[:batch])
    flat, where = x.reshape(lead, *x.shape[batch:]), indices.reshape(lead, *indices.shape[batch:])
    made = torch.stack([a[_places(b, a.shape)] for a, b in zip(flat, where, strict=True)])
    return made.reshape([*x.shape[:batch], *made.shape[1:]])


@operator("Scatter", "ScatterElements")
def scatter_elements(call: Call, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """``x`` with entries along an axis replaced, or added to."""
    axis, how = int(call.get("axis", 0)), call.get("reduction", "none")
    places = wrapped(indices, x.shape[axis])
    x, updates = _same_type(x, updates)
    if how == "none":
        return x.scatter(axis, places, updates)
    name = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[how]
    return x.scatter_reduce(axis, places, updates, name)


@operator("ScatterND")
def scatter_nd(call: Call, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """``x`` with slices at coordinates replaced, or added to."""
    how = call.get("reduction", "none")
    x, updates = _same_type(x, updates)
    places = _places(indices, x.shape)
    if how in {"none", "add"}:
        return x.index_put(places, updates, accumulate=how == "add")
    depth = indices.shape[-1]
    strides = [math.prod(x.shape[axis + 1 : depth]) for axis in range(depth)]
    rows = sum(place * stride for place, stride in zip(places, strides, strict=True)).reshape(-1)
    flat = x.reshape(math.prod(x.shape[:depth]), -1)
    many = updates.reshape(rows.numel(), -1)
    name = {"mul": "prod", "max": "amax", "min": "amin"}[how]
    return flat.scatter_reduce(0, rows[:, None].expand_as(many), many, name).reshape(x.shape)


def _same_type(x: torch.Tensor, updates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in one type: codes that carry a gradient are float, their background may be int8."""
    common = torch.promote_types(x.dtype, updates.dtype)
    return x.to(common), updates.to(common)


@operator("OneHot")
def one_hot(call: Call, indices: torch.Tensor, depth: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A new axis with the second value at the index and the first elsewhere."""
    (count,) = ints(depth)
    places = torch.arange(count, device=indices.device)
    axis = int(call.get("axis", -1))
    axis += indices.ndim + 1 if axis < 0 else 0
    hit = wrapped(indices, count).unsqueeze(axis) == places.reshape(-1, *[1] * (indices.ndim - axis))
    return torch.where(hit, values[1], values[0])


@operator("NonZero")
def non_zero(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Coordinates of entries that are not zero, one row per axis."""
    return x.nonzero().T


@operator("Compress")
def compress(call: Call, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Slices where a condition holds; without axis of the flat tensor."""
    axis = call.get("axis")
    places = condition.nonzero().reshape(-1)
    return x.reshape(-1)[places] if axis is None else x.index_select(int(axis), places)


@operator("ReverseSequence")
def reverse_sequence(call: Call, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The first entries of every sequence reversed."""
    time, batch = int(call.get("time_axis", 0)), int(call.get("batch_axis", 1))
    steps = torch.arange(x.shape[time], device=x.device)[:, None]
    places = torch.where(steps < lengths[None, :], lengths[None, :] - 1 - steps, steps).long()
    moved = x.movedim((time, batch), (0, 1))
    wide = places.reshape(*places.shape, *[1] * (x.ndim - 2)).expand_as(moved)
    return torch.gather(moved, 0, wide).movedim((0, 1), (time, batch))


@operator("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_features(call: Call, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Columns of the last axis."""
    made = x.index_select(-1, places.long().reshape(-1))
    return made.reshape(1, -1) if x.ndim == 1 else made
