"""Normalizations, as at inference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from onnxc.training.operators.table import TYPES, Call, from_numpy, ints, operator


def _channels(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return vector.reshape(-1, *[1] * (like.ndim - 2))


@operator("BatchNormalization")
def batch_normalization(
    call: Call, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    """By the stored statistics."""
    if call.get("training_mode", 0) or (call.opset < 7 and not call.get("is_test", 0)):
        raise call.refuse("batch normalization in training mode")
    factor = scale / torch.sqrt(variance + call.get("epsilon", 1e-5))
    return (x - _channels(mean, x)) * _channels(factor, x) + _channels(bias, x)


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Each channel of each sample by its own mean and variance."""
    axes = tuple(range(2, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + call.get("epsilon", 1e-5)) * _channels(scale, x) + _channels(bias, x)


@operator("GroupNormalization")
def group_normalization(call: Call, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Groups of channels together; before opset 21 one scale per group."""
    groups = int(call.get("num_groups"))
    made = functional.group_norm(x, groups, None, None, call.get("epsilon", 1e-5))
    if scale.numel() == groups != x.shape[1]:
        scale, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (scale, bias))
    return made * _channels(scale, x) + _channels(bias, x)


@operator("LayerNormalization")
def layer_normalization(call: Call, x: torch.Tensor, scale: torch.Tensor, bias: Any = None) -> tuple[torch.Tensor, ...]:
    """Over all axes from ``axis`` on; also the mean and the inverse deviation."""
    axes = tuple(range(int(call.get("axis", -1)) % x.ndim, x.ndim))
    wide = x.to(TYPES[int(call.get("stash_type", 1))]) if x.dtype != torch.float64 else x
    if not any(each.name for each in call.node.outputs[1:]):  # only what is normalized is read: one step
        made = functional.layer_norm(wide, [x.shape[axis] for axis in axes], eps=call.get("epsilon", 1e-5))
        made = made.to(x.dtype) * scale
        return ((made if bias is None else made + bias),)
    variance, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + call.get("epsilon", 1e-5))
    made = ((wide - mean) * inverse).to(x.dtype) * scale
    return (made if bias is None else made + bias), mean, inverse


@operator("SimplifiedLayerNormalization")
@operator("RMSNormalization")
def rms_normalization(call: Call, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """By the root mean square over all axes from ``axis`` on."""
    axes = tuple(range(int(call.get("axis", -1)) % x.ndim, x.ndim))
    wide = x.to(TYPES[int(call.get("stash_type", 1))]) if x.dtype != torch.float64 else x
    inverse = torch.rsqrt((wide * wide).mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
    return (wide * inverse).to(x.dtype) * scale


@operator("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: torch.Tensor) -> torch.Tensor:
    """(x - mean) / deviation over ``axes``."""
    axes = tuple(ints(call.get("axes", [0, 2, 3])))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (torch.sqrt(variance) + 1e-9)


@operator("LpNormalization")
def lp_normalization(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Divided by its p-norm along an axis; zeros stay zeros."""
    axis, power = int(call.get("axis", -1)), int(call.get("p", 2))
    norm = torch.linalg.vector_norm(x, power, dim=axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@operator("LRN")
def local_response_normalization(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Divided by a power of the squares of neighbouring channels (Krizhevsky et al., 2012)."""
    size, alpha = int(call.get("size")), call.get("alpha", 1e-4)
    squares = (x * x).movedim(1, -1)
    near = functional.pad(squares, ((size - 1) // 2, size // 2)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (call.get("bias", 1.0) + alpha / size * near) ** call.get("beta", 0.75)


@operator("Scaler", domain="ai.onnx.ml")
def scaler(call: Call, x: torch.Tensor) -> torch.Tensor:
    """(x - offset) * scale."""
    offset, scale = (from_numpy(np.asarray(call.get(name), np.float32), call.device) for name in ("offset", "scale"))
    return (x.float() - offset) * scale


@operator("Normalizer", domain="ai.onnx.ml")
def normalizer(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Rows divided by their largest entry, or their 1- or 2-norm."""
    kind = call.get("norm", "MAX")
    x = x.float()
    if kind == "MAX":
        return x / x.amax(-1, keepdim=True)
    return x / torch.linalg.vector_norm(x, 1 if kind == "L1" else 2, dim=-1, keepdim=True)
