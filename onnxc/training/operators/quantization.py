"""Quantized operators with straight-through gradients.

Codes are float tensors that hold whole numbers, so that a gradient goes through them. Rounding passes it on as it
is; clipping passes none outside the range. With a scale that is learned, QuantizeLinear and DequantizeLinear
together have the gradient of learned step sizes (Esser et al., LSQ, 2020).
"""

from __future__ import annotations

from typing import Any

import torch

from onnxc.training.operators.linear import convolve
from onnxc.training.operators.recurrent import lstm_cell, recurrent
from onnxc.training.operators.table import LIMITS, TYPES, Call, filled, is_float, operator, straight


def carried(x: torch.Tensor) -> torch.Tensor:
    """Codes as a float tensor."""
    return x if is_float(x) else x.to(torch.float32)


def spread(parameter: torch.Tensor, like: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """A scale or zero point in a shape that broadcasts with ``like``: of the tensor, an axis, or blocks of one."""
    if parameter.ndim == 0 or (parameter.numel() == 1 and not block):
        return parameter.reshape(())
    axis %= like.ndim
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, like.shape[axis])
    if parameter.ndim == 1:
        return parameter.reshape([-1 if each == axis else 1 for each in range(like.ndim)])
    return parameter


def rounded(x: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Whole numbers within limits."""
    return straight(torch.round(x), x).clamp(low, high)


@operator("QuantizeLinear")
@operator("QuantizeLinear", domain="com.microsoft")
def quantize_linear(call: Call, x: torch.Tensor, scale: torch.Tensor, zero: Any = None) -> torch.Tensor:
    """round(x / scale) + zero, within the type of the zero point."""
    axis, block = int(call.get("axis", 1)), int(call.get("block_size", 0))
    to = int(call.get("output_dtype", 0)) or code_type(call, zero)
    if to not in LIMITS:
        raise call.refuse("quantization to this type")
    low, high = LIMITS[to]
    codes = straight_quotient(carried(x), spread(scale, x, axis, block))
    codes = codes if zero is None else codes + spread(carried(zero), x, axis, block)
    codes = codes.clamp(low, high)
    return codes if codes.requires_grad else codes.to(TYPES[to])


def straight_quotient(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """round(x / scale), the gradient of the quotient."""
    exact = x / scale
    return straight(torch.round(exact), exact)


def code_type(call: Call, zero: Any) -> int:
    """ONNX's type of the codes: that of the zero point in the file, uint8 without one."""
    if zero is None:
        return 2
    from onnxc.file.tensors import data_type_of

    tensor = call.node.inputs[2]
    if tensor.dtype is not None:
        return data_type_of(tensor.dtype)
    return next((number for number, dtype in TYPES.items() if dtype == zero.dtype), 2)


@operator("DequantizeLinear")
@operator("DequantizeLinear", domain="com.microsoft")
def dequantize_linear(call: Call, x: torch.Tensor, scale: torch.Tensor, zero: Any = None) -> torch.Tensor:
    """(x - zero) scale."""
    axis, block = int(call.get("axis", 1)), int(call.get("block_size", 0))
    codes = x.to(torch.float64) if x.dtype == torch.int32 else carried(x)
    codes = codes if zero is None else codes - spread(carried(zero), x, axis, block)
    return (codes * spread(scale, x, axis, block)).to(scale.dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Codes, scale and zero point by the smallest and largest entry; the range itself is taken as given."""
    seen = x.detach()
    low, high = seen.amin().clamp(max=0.0), seen.amax().clamp(min=0.0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / scale).clamp(0, 255)
    codes = (straight_quotient(x, scale) + zero).clamp(0, 255)
    return codes, scale, zero


def centred(x: torch.Tensor, zero: Any, axis: int) -> torch.Tensor:
    """Codes minus their zero point, one or one along ``axis``."""
    x = carried(x)
    if zero is None:
        return x
    zero = carried(zero)
    if zero.ndim == 1 and zero.numel() > 1:
        zero = zero.reshape([-1 if each == axis % x.ndim else 1 for each in range(x.ndim)])
    return x - (zero.reshape(()) if zero.numel() == 1 else zero)


@operator("MatMulInteger")
def matmul_integer(call: Call, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> torch.Tensor:
    """The product of codes; a zero point per row of a, per column of b."""
    return torch.matmul(centred(a, a_zero, -2), centred(b, b_zero, -1))


@operator("ConvInteger")
def convolution_integer(call: Call, x: Any, w: Any, x_zero: Any = None, w_zero: Any = None) -> torch.Tensor:
    """The convolution of codes; the border is zero."""
    return convolve(call, centred(x, x_zero, 1), centred(w, w_zero, 0), None)


@operator("QLinearMatMul")
def qlinear_matmul(call: Call, a: Any, a_scale: Any, a_zero: Any, b: Any, *rest: Any) -> torch.Tensor:
    """A product of codes as codes."""
    b_scale, b_zero, y_scale, y_zero = rest
    product = torch.matmul(centred(a, a_zero, -2), centred(b, b_zero, -1))
    return _requantized(call, product * (a_scale * b_scale), y_scale, y_zero, 7)


@operator("QLinearConv")
def qlinear_convolution(call: Call, x: Any, x_scale: Any, x_zero: Any, w: Any, *rest: Any) -> torch.Tensor:
    """A convolution of codes as codes; the bias is in units of x_scale times w_scale."""
    w_scale, w_zero, y_scale, y_zero, *bias = rest
    product = convolve(call, centred(x, x_zero, 1), centred(w, w_zero, 0), None)
    if bias and bias[0] is not None:
        product = product + carried(bias[0]).reshape(-1, *[1] * (product.ndim - 2))
    scale = x_scale * w_scale
    scale = scale.reshape(-1, *[1] * (product.ndim - 2)) if scale.numel() > 1 else scale.reshape(())
    return _requantized(call, product * scale, y_scale, y_zero, 7)


def _requantized(call: Call, x: torch.Tensor, scale: Any, zero: Any, place: int) -> torch.Tensor:
    """Real values as codes of the type of the zero point at input ``place``."""
    from onnxc.file.tensors import data_type_of

    dtype = call.node.inputs[place].dtype
    to = 2 if dtype is None else data_type_of(dtype)
    low, high = LIMITS[to]
    codes = (straight_quotient(x, scale) + carried(zero)).clamp(low, high)
    return codes if codes.requires_grad else codes.to(TYPES[to])


@operator("MatMulIntegerToFloat", domain="com.microsoft")
def matmul_integer_to_float(call: Call, a: Any, b: Any, a_scale: Any, b_scale: Any, *rest: Any) -> torch.Tensor:
    """The product of codes, in real units, plus a bias."""
    a_zero, b_zero, bias = filled(rest, 3)
    made = torch.matmul(centred(a, a_zero, -2), centred(b, b_zero, -1)) * a_scale * b_scale
    return made if bias is None else made + bias


@operator("DynamicQuantizeMatMul", domain="com.microsoft")
def dynamic_quantize_matmul(call: Call, a: Any, b: Any, b_scale: Any, *rest: Any) -> torch.Tensor:
    """DynamicQuantizeLinear and the product of codes, in real units, plus a bias."""
    b_zero, bias = filled(rest, 2)
    codes, scale, zero = dynamic_quantize_linear(call, a)
    made = torch.matmul(codes - zero, centred(b, b_zero, -1)) * scale * b_scale
    return made if bias is None else made + bias


@operator("DynamicQuantizeLSTM", domain="com.microsoft")
def dynamic_quantize_lstm(call: Call, x: Any, w: Any, r: Any, *rest: Any) -> tuple[torch.Tensor, ...]:
    """An LSTM with int8 weights [D, I, 4 H]; the rounding of its activations is left out."""
    b, lengths, h, c, peepholes, w_scale, w_zero, r_scale, r_zero = filled(rest, 9)

    def real(codes: Any, scale: Any, zero: Any) -> torch.Tensor:
        directions = codes.shape[0]
        scale = scale.reshape(directions, 1, -1)
        codes = carried(codes) if zero is None else carried(codes) - carried(zero).reshape(directions, 1, -1)
        return (codes * scale).transpose(1, 2)

    weights = real(w, w_scale, w_zero), real(r, r_scale, r_zero)
    return recurrent(call, 4, lstm_cell, x, *weights, b, lengths, [h, c], peepholes)
