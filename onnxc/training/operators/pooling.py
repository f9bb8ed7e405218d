"""Pooling over windows and over everything."""

from __future__ import annotations

import torch
from torch.nn import functional

from onnxc.training.operators.linear import CONVOLUTIONS, padded
from onnxc.training.operators.table import Call, ints, is_float, operator
from onnxc.windows import Windows

MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def _windows(call: Call, x: torch.Tensor) -> tuple[list[int], list[int], list[int], list[tuple[int, int]], list[int]]:
    """Kernel, strides, dilations, pads, and what ``ceil_mode`` adds behind each axis."""
    kernel = ints(call.get("kernel_shape"))
    placed = Windows.of(call.node.attrs, x.shape[2:], kernel)
    strides, dilations, pads = placed.strides, placed.dilations, placed.pads
    more = [0] * len(kernel)
    if call.get("ceil_mode", 0):
        for axis, size in enumerate(x.shape[2:]):
            before, after = pads[axis]
            span = size + before + after - (kernel[axis] - 1) * dilations[axis] - 1
            steps = -(-span // strides[axis])
            if steps * strides[axis] >= size + before:  # a window must start inside, or in the pad before
                steps -= 1
            more[axis] = max(steps * strides[axis] - span, 0)
    return kernel, strides, dilations, pads, more


@operator("MaxPool")
def max_pool(call: Call, x: torch.Tensor) -> torch.Tensor:
    """The largest entry of each window; indices are not computed."""
    if len(call.node.outputs) > 1 and call.node.outputs[1].outputs:
        raise call.refuse("the indices of a pooling")
    kernel, strides, dilations, pads, more = _windows(call, x)
    if len(kernel) not in MAXIMA:
        raise call.refuse(f"a pooling over {len(kernel)} axes")
    whole = not is_float(x)
    y = x.float() if whole else x
    wide = [(before, after + plus) for (before, after), plus in zip(pads, more, strict=True)]
    made = MAXIMA[len(kernel)](padded(y, wide, float("-inf")), kernel, strides, 0, dilations)
    return made.to(x.dtype) if whole else made


@operator("AveragePool")
def average_pool(call: Call, x: torch.Tensor) -> torch.Tensor:
    """The mean of each window; what lies in the pads counts only if asked for."""
    kernel, strides, dilations, pads, more = _windows(call, x)
    if len(kernel) not in CONVOLUTIONS:
        raise call.refuse(f"a pooling over {len(kernel)} axes")
    ones = torch.ones_like(x[:1, :1])
    if call.get("count_include_pad", 0):
        x, ones = padded(x, pads), padded(ones, pads, 1.0)
        pads = [(0, 0)] * len(kernel)
    wide = [(before, after + plus) for (before, after), plus in zip(pads, more, strict=True)]
    weight = torch.ones([1, 1, *kernel], dtype=x.dtype, device=x.device)
    convolution = CONVOLUTIONS[len(kernel)]
    flat = padded(x, wide).flatten(0, 1).unsqueeze(1)
    total = convolution(flat, weight, None, strides, 0, dilations).unflatten(0, x.shape[:2]).squeeze(2)
    return total / convolution(padded(ones, wide), weight, None, strides, 0, dilations)


@operator("LpPool")
def lp_pool(call: Call, x: torch.Tensor) -> torch.Tensor:
    """The p-norm of each window."""
    power = call.get("p", 2)
    kernel, strides, dilations, pads, more = _windows(call, x)
    wide = [(before, after + plus) for (before, after), plus in zip(pads, more, strict=True)]
    weight = torch.ones([1, 1, *kernel], dtype=x.dtype, device=x.device)
    flat = padded(x.abs() ** power, wide).flatten(0, 1).unsqueeze(1)
    total = CONVOLUTIONS[len(kernel)](flat, weight, None, strides, 0, dilations)
    return total.unflatten(0, x.shape[:2]).squeeze(2) ** (1 / power)


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(call: Call, x: torch.Tensor) -> torch.Tensor:
    """One number per channel, spatial axes kept."""
    axes = tuple(range(2, x.ndim))
    if call.node.op == "GlobalAveragePool":
        return x.mean(axes, keepdim=True)
    if call.node.op == "GlobalMaxPool":
        return x.amax(axes, keepdim=True)
    power = call.get("p", 2)
    return (x.abs() ** power).sum(axes, keepdim=True) ** (1 / power)
