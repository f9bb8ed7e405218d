"""Operators that move whole axes: shapes, slices, borders, blocks, and what makes new tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from onnxc.training.operators.table import TYPES, Call, ints, operator


@operator("Constant")
def constant(call: Call) -> torch.Tensor:
    """The value of an attribute."""
    kind, value = next(iter(call.node.attrs.items()))
    if kind == "value":
        return call.get("value")
    if kind in {"value_float", "value_floats"}:
        return torch.tensor(value, dtype=torch.float32, device=call.device)
    if kind in {"value_int", "value_ints"}:
        return torch.tensor(value, dtype=torch.int64, device=call.device)
    raise call.refuse(f"a constant given as {kind}")


@operator("Shape")
def shape(call: Call, x: torch.Tensor) -> torch.Tensor:
    """The extents, or some of them."""
    sizes = list(x.shape)[slice(call.get("start", 0), call.get("end"))]
    return torch.tensor(sizes, dtype=torch.int64, device=call.device)


@operator("Size")
def size(call: Call, x: torch.Tensor) -> torch.Tensor:
    """The number of entries."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=call.device)


@operator("Reshape")
def reshape(call: Call, x: torch.Tensor, sizes: Any = None) -> torch.Tensor:
    """0 keeps an extent (unless ``allowzero``), -1 is what is left."""
    wanted = ints(call.get("shape")) if sizes is None else ints(sizes)
    if not call.get("allowzero", 0):
        wanted = [x.shape[axis] if each == 0 else each for axis, each in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(call: Call, x: torch.Tensor) -> torch.Tensor:
    """A matrix: axes before ``axis``, axes from it on."""
    axis = int(call.get("axis", 1))
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose")
def transpose(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Axes in another order, reversed by default."""
    return x.permute(ints(call.get("perm")) or list(range(x.ndim))[::-1])


@operator("Squeeze")
def squeeze(call: Call, x: torch.Tensor, axes: Any = None) -> torch.Tensor:
    """Without axes of extent 1: all of them or those named."""
    chosen = ints(call.get("axes")) if axes is None else ints(axes)
    if not chosen:
        return x.squeeze()
    dims = {axis % x.ndim for axis in chosen}
    return x.reshape([extent for axis, extent in enumerate(x.shape) if axis not in dims])


@operator("Unsqueeze")
def unsqueeze(call: Call, x: torch.Tensor, axes: Any = None) -> torch.Tensor:
    """With new axes at the places they have in the result."""
    chosen = ints(call.get("axes")) if axes is None else ints(axes)
    rank = x.ndim + len(chosen)
    for axis in sorted(each % rank for each in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(call: Call, *values: torch.Tensor) -> torch.Tensor:
    """Joined along an axis."""
    return torch.cat(values, int(call.get("axis", 1)))


@operator("Split")
def split(call: Call, x: torch.Tensor, sizes: Any = None) -> tuple[torch.Tensor, ...]:
    """Parts along an axis: of stated sizes, or as many as there are outputs."""
    axis = int(call.get("axis", 0))
    parts = ints(call.get("split")) if sizes is None else ints(sizes)
    if not parts:
        count = int(call.get("num_outputs", len(call.node.outputs)))
        step = -(-x.shape[axis] // count)
        parts = [min(step, max(x.shape[axis] - step * index, 0)) for index in range(count)]
    return tuple(torch.split(x, parts, axis))


@operator("Slice")
def slice_(call: Call, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    """From start to end in steps, along some axes; steps may be negative."""
    starts, ends, axes, steps = (ints(rest[i]) if len(rest) > i else [] for i in range(4))
    if not rest:
        starts, ends, axes = (ints(call.get(name)) for name in ("starts", "ends", "axes"))
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[index] if axes else index
        chosen = range(x.shape[axis])[
            slice(start, _end(end, steps[index] if steps else 1), steps[index] if steps else 1)
        ]
        if chosen.step == 1:
            x = x.narrow(axis, chosen.start if len(chosen) else 0, len(chosen))
        elif chosen.step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(chosen.start, chosen.stop, chosen.step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


def _end(end: int, step: int) -> int | None:
    """ONNX's "before the first" is a very small number; a slice's is None."""
    return None if step < 0 and end < -(1 << 30) else end


@operator("Expand")
def expand(call: Call, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Broadcast together with a shape."""
    return x.expand(torch.broadcast_shapes(x.shape, ints(sizes)))


@operator("Tile")
def tile(call: Call, x: torch.Tensor, repeats: torch.Tensor, axis: Any = None) -> torch.Tensor:
    """Repeated along every axis; in opset 1 along one."""
    counts = ints(repeats)
    if axis is not None:
        counts = [ints(repeats)[0] if each == ints(axis)[0] else 1 for each in range(x.ndim)]
    return x.repeat(counts) if counts else x


@operator("Pad")
def pad(call: Call, x: torch.Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> torch.Tensor:
    """Constant, reflected, edge or wrapped borders; negative pads cut."""
    amounts = ints(call.get("pads", call.get("paddings"))) if pads is None else ints(pads)
    chosen = [axis % x.ndim for axis in ints(axes)] if axes is not None else list(range(x.ndim))
    both = dict(zip(chosen, zip(amounts[: len(chosen)], amounts[len(chosen) :], strict=True), strict=True))
    mode = call.get("mode", "constant")
    if mode == "constant":
        flat = [amount for axis in reversed(range(x.ndim)) for amount in both.get(axis, (0, 0))]
        fill = call.get("value", 0.0) if value is None else value.reshape(-1)[0].item()
        return functional.pad(x, flat, value=fill) if any(flat) else x
    for axis, (before, after) in both.items():
        extent = x.shape[axis]
        places = torch.arange(-before, extent + after, device=x.device)
        if mode == "edge":
            places = places.clamp(0, extent - 1)
        elif mode == "wrap":
            places = places % extent
        else:
            period = max(2 * (extent - 1), 1)
            places = (places % period).clamp(max=period)
            places = torch.where(places >= extent, period - places, places)
        x = x.index_select(axis, places)
    return x


@operator("ConstantOfShape")
def constant_of_shape(call: Call, sizes: torch.Tensor) -> torch.Tensor:
    """One value everywhere."""
    value = call.get("value")
    value = torch.zeros(1, device=call.device) if value is None else value
    return value.reshape(-1)[0].expand(ints(sizes)).clone()


@operator("Range")
def arange(call: Call, start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Numbers from start to limit."""
    first, last, step = (each.reshape(()).item() for each in (start, limit, delta))
    return torch.arange(first, last, step, dtype=start.dtype, device=call.device)


@operator("EyeLike")
def eye_like(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Ones on a diagonal."""
    dtype = TYPES[int(call.get("dtype"))] if call.get("dtype") is not None else x.dtype
    diagonal = int(call.get("k", 0))
    rows, columns = (torch.arange(extent, device=x.device) for extent in x.shape)
    return (columns[None, :] - rows[:, None] == diagonal).to(dtype)


@operator("Trilu")
def triangle(call: Call, x: torch.Tensor, k: Any = None) -> torch.Tensor:
    """The upper or lower triangle."""
    diagonal = ints(k)[0] if k is not None else 0
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


@operator("DepthToSpace")
def depth_to_space(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Channels into blocks of pixels."""
    block = int(call.get("blocksize"))
    n, c, h, w = x.shape
    deep = c // block**2
    if call.get("mode", "DCR") == "DCR":
        parts = x.reshape(n, block, block, deep, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, deep, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, deep, h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Blocks of pixels into channels."""
    block = int(call.get("blocksize"))
    n, c, h, w = x.shape
    order = (0, 3, 5, 1, 2, 4) if call.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(order)
    return parts.reshape(n, c * block**2, h // block, w // block)
