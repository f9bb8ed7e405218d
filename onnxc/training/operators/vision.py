"""Resampling of images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from onnxc.training.operators.table import Call, filled, ints, operator


@operator("Upsample")
def upsample(call: Call, x: torch.Tensor, scales: Any = None) -> torch.Tensor:
    """Resize as before opset 10: coordinates are divided by the scale."""
    factors = [float(each) for each in (call.get("scales") if scales is None else scales.tolist())]
    mode = str(call.get("mode", "nearest"))
    return _resampled(
        call, x, dict(enumerate(factors)), {}, "linear" if "linear" in mode else mode, "asymmetric", "floor"
    )


@operator("Resize")
def resize(call: Call, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Nearest, linear or cubic resampling along some axes."""
    if call.opset < 11:
        return _resampled(
            call, x, dict(enumerate(rest[0].tolist())), {}, str(call.get("mode", "nearest")), "asymmetric", "floor"
        )
    _region, scales, sizes = filled(rest, 3)
    axes = [axis % x.ndim for axis in ints(call.get("axes"))] or list(range(x.ndim))
    how = str(call.get("coordinate_transformation_mode", "half_pixel"))
    if how == "tf_crop_and_resize" or call.get("antialias", 0):
        raise call.refuse("cropping or antialiasing while resizing")
    nearest = str(call.get("nearest_mode", "round_prefer_floor"))
    factors: dict[int, float] = {}
    extents: dict[int, int] = {}
    if sizes is not None and sizes.numel():
        extents = dict(zip(axes, ints(sizes), strict=True))
        factors = {axis: extent / x.shape[axis] for axis, extent in extents.items()}
        policy = str(call.get("keep_aspect_ratio_policy", "stretch"))
        if policy != "stretch":
            chosen = (min if policy == "not_larger" else max)(factors.values())
            factors = dict.fromkeys(axes, chosen)
            extents = {axis: math.floor(x.shape[axis] * chosen + 0.5) for axis in axes}
    else:
        factors = dict(zip(axes, scales.tolist(), strict=True))
    return _resampled(call, x, factors, extents, str(call.get("mode", "nearest")), how, nearest)


def _resampled(
    call: Call, x: torch.Tensor, factors: dict[int, float], extents: dict[int, int], mode: str, how: str, nearest: str
) -> torch.Tensor:
    """One axis after the other, each a product with a sparse matrix of weights."""
    for axis, factor in factors.items():
        before = x.shape[axis]
        after = extents.get(axis, math.floor(before * factor))
        if factor == 1 and after == before:
            continue
        places = torch.arange(after, dtype=torch.float64, device=x.device)
        if how == "asymmetric":
            real = places / factor
        elif how == "align_corners":
            real = places * (before - 1) / max(after - 1, 1)
        elif how == "pytorch_half_pixel":
            real = (places + 0.5) / factor - 0.5 if after > 1 else torch.zeros_like(places)
        elif how == "half_pixel_symmetric":
            real = before / 2 * (1 - after / (factor * before)) + (places + 0.5) / factor - 0.5
        else:
            real = (places + 0.5) / factor - 0.5
        if mode == "nearest":
            rounding = {
                "floor": torch.floor,
                "ceil": torch.ceil,
                "round_prefer_ceil": lambda v: torch.floor(v + 0.5),
                "round_prefer_floor": lambda v: torch.ceil(v - 0.5),
            }[nearest]
            x = x.index_select(axis, rounding(real).long().clamp(0, before - 1))
            continue
        base = torch.floor(real)
        part = real - base
        if mode == "linear":
            taps = {0: 1 - part, 1: part}
        else:
            taps = _cubic(part, float(call.get("cubic_coeff_a", -0.75)))
        total = 0.0
        weights = {}
        for offset, weight in taps.items():
            where = base.long() + offset
            inside = (where >= 0) & (where < before)
            weights[offset] = weight * inside if call.get("exclude_outside", 0) else weight
        norm = sum(weights.values()) if call.get("exclude_outside", 0) else 1.0
        for offset, weight in weights.items():
            taken = x.index_select(axis, (base.long() + offset).clamp(0, before - 1))
            column = (weight / norm).to(x.dtype).reshape([-1 if each == axis else 1 for each in range(x.ndim)])
            total = total + taken * column
        x = total
    return x


def _cubic(part: torch.Tensor, a: float) -> dict[int, torch.Tensor]:
    """Weights of four neighbours (Keys, 1981)."""

    def inner(d: torch.Tensor) -> torch.Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def outer(d: torch.Tensor) -> torch.Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return {-1: outer(part + 1), 0: inner(part), 1: inner(1 - part), 2: outer(2 - part)}


@operator("GridSample")
def grid_sample(call: Call, x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Entries at real coordinates."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(call.get("mode", "linear"), call.get("mode", "bilinear"))
    padding = call.get("padding_mode", "zeros")
    return functional.grid_sample(x, grid, mode, padding, bool(call.get("align_corners", 0)))


@operator("Col2Im")
def columns_to_image(call: Call, x: torch.Tensor, image: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Sums of columns at the places they came from."""
    pads = ints(call.get("pads")) or [0] * 4
    if len(pads) != 4 or pads[:2] != pads[2:]:
        raise call.refuse("columns of anything but evenly padded images")
    steps, dilations = (ints(call.get(name)) or [1, 1] for name in ("strides", "dilations"))
    return functional.fold(x, ints(image), ints(block), dilations, pads[:2], steps)
