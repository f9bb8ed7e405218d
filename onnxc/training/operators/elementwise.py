"""Operators that work entry by entry: arithmetic, activations, comparisons, bits, casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from onnxc.training.operators.table import LIMITS, OPERATORS, TYPES, Call, ints, is_float, operator, straight

Unary = Callable[[torch.Tensor], torch.Tensor]

_UNARY: dict[str, Unary] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "BitwiseNot": torch.bitwise_not,
}


def _plain(function: Unary) -> Any:
    return lambda call, x: function(x)


for _name, _function in _UNARY.items():
    OPERATORS["", _name] = _plain(_function)


@operator("Identity")
def identity(call: Call, x: Any) -> Any:
    """The value itself, a sequence too."""
    return x


@operator("Dropout")
def dropout(call: Call, x: torch.Tensor, *rest: Any) -> Any:
    """As at inference: everything passes."""
    if len(rest) > 1 and rest[1] is not None and bool(rest[1]):
        raise call.refuse("dropout in training mode")
    return x, torch.ones_like(x, dtype=torch.bool)


@operator("Round")
def round_half_even(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Rounds; the gradient goes straight through."""
    return straight(torch.round(x), x)


@operator("Cast")
def cast(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Cast; to an integer, what carries a gradient is cut to whole numbers and keeps carrying it."""
    return as_type(x, int(call.get("to")))


@operator("CastLike")
def cast_like(call: Call, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cast to the type of ``like``."""
    if like.dtype == x.dtype:
        return x
    return as_type(x, next(number for number, dtype in TYPES.items() if dtype == like.dtype))


def as_type(x: torch.Tensor, to: int) -> torch.Tensor:
    """``x`` as the ONNX type ``to``."""
    if 17 <= to <= 20 or to in {23, 24}:  # 8 and 4 bit floats: rounded as ml_dtypes rounds
        from onnx.helper import tensor_dtype_to_np_dtype

        narrow = x.detach().float().cpu().numpy().astype(tensor_dtype_to_np_dtype(to)).astype("float32")
        return straight(torch.from_numpy(narrow).to(x.device), x.float())
    wanted = TYPES[to]
    carries = x.requires_grad and is_float(x)
    if carries and to in LIMITS:
        low, high = LIMITS[to]
        return straight(torch.trunc(x).clamp(low, high), x)
    if is_float(x) and wanted == torch.bool:
        return x != 0
    if to in {2, 4, 12, 13} and is_float(x):
        return x.to(torch.int64).to(wanted)
    if to in {21, 22, 25, 26}:
        low, high = LIMITS[to]
        return torch.round(x.float()).clamp(low, high).to(wanted)
    return x.to(wanted)


def aligned(call: Call, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The second operand, shaped as opsets before 7 want it (broadcast along ``axis``)."""
    if call.opset >= 7 or not call.get("broadcast", 0) or x.ndim == y.ndim:
        return y
    axis = call.get("axis")
    start = x.ndim - y.ndim if axis is None else int(axis) % max(x.ndim, 1)
    return y.reshape(*y.shape, *[1] * (x.ndim - start - y.ndim))


def _divide(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x / y if is_float(x) or is_float(y) else torch.div(x, y, rounding_mode="trunc")


def _power(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.pow(x, y).to(x.dtype) if not is_float(x) else torch.pow(x, y.to(x.dtype))


_BINARY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": _power,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}


def _pair(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    return lambda call, x, y: function(x, aligned(call, x, y))


for _name, _both in _BINARY.items():
    OPERATORS["", _name] = _pair(_both)


@operator("Mod")
def modulo(call: Call, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The remainder with the sign of the divisor, or with ``fmod`` of the dividend."""
    return torch.fmod(x, y) if call.get("fmod", 0) else torch.remainder(x, y)


@operator("BitShift")
def bit_shift(call: Call, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Shift of unsigned integers."""
    wide, steps = x.to(torch.int64), y.to(torch.int64)
    if call.get("direction") == "RIGHT":
        return (wide >> steps).to(x.dtype)
    return (wide << steps).to(x.dtype)


@operator("Max", "Min", "Sum", "Mean")
def many(call: Call, *values: torch.Tensor) -> torch.Tensor:
    """Of any number of tensors, broadcast."""
    pick = {"Max": torch.maximum, "Min": torch.minimum}.get(call.node.op, torch.add)
    result = values[0]
    for each in values[1:]:
        result = pick(result, each)
    return result / len(values) if call.node.op == "Mean" else result


@operator("Where")
def where(call: Call, condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A choice, entry by entry."""
    return torch.where(condition.bool(), x, y)


@operator("IsInf")
def is_inf(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Which entries are infinite, of the signs asked for."""
    positive, negative = bool(call.get("detect_positive", 1)), bool(call.get("detect_negative", 1))
    return (torch.isposinf(x) & positive) | (torch.isneginf(x) & negative)


@operator("Clip")
def clip(call: Call, x: torch.Tensor, low: Any = None, high: Any = None) -> torch.Tensor:
    """Between limits given as attributes (before opset 11) or inputs."""
    low = call.get("min") if low is None else low
    high = call.get("max") if high is None else high
    return torch.clamp(x, _limit(low), _limit(high)) if low is not None or high is not None else x


def _limit(value: Any) -> Any:
    """A limit as a number, which is faster than a tensor."""
    return value.item() if isinstance(value, torch.Tensor) else value


@operator("LeakyRelu")
def leaky_relu(call: Call, x: torch.Tensor) -> torch.Tensor:
    """x, or alpha x below zero."""
    return functional.leaky_relu(x, call.get("alpha", 0.01))


@operator("PRelu")
def parametric_relu(call: Call, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """x, or slope x below zero; before opset 7 a slope per channel."""
    if call.opset < 7 and slope.ndim == 1 and x.ndim > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x < 0, slope * x, x)


@operator("Elu")
def elu(call: Call, x: torch.Tensor) -> torch.Tensor:
    """x, or alpha (e^x - 1) below zero."""
    return functional.elu(x, call.get("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Gamma times elu."""
    alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.05070102214813232421875)
    return gamma * functional.elu(x, alpha)


@operator("Celu")
def celu(call: Call, x: torch.Tensor) -> torch.Tensor:
    """max(0, x) + min(0, alpha (e^(x / alpha) - 1))."""
    return functional.celu(x, call.get("alpha", 1.0))


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: torch.Tensor) -> torch.Tensor:
    """X above alpha, else 0."""
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: torch.Tensor) -> torch.Tensor:
    """max(0, min(1, alpha x + beta))."""
    return (call.get("alpha", 0.2) * x + call.get("beta", 0.5)).clamp(0, 1)


@operator("HardSwish")
def hard_swish(call: Call, x: torch.Tensor) -> torch.Tensor:
    """X max(0, min(1, x / 6 + 0.5))."""
    return x * (x / 6 + 0.5).clamp(0, 1)


@operator("Swish")
def swish(call: Call, x: torch.Tensor) -> torch.Tensor:
    """X sigmoid(alpha x)."""
    return x * torch.sigmoid(call.get("alpha", 1.0) * x)


@operator("Gelu")
@operator("Gelu", domain="com.microsoft")
def gelu(call: Call, x: torch.Tensor) -> torch.Tensor:
    """X times the normal distribution function, exactly or by tanh."""
    return functional.gelu(x, approximate=call.get("approximate", "none"))


@operator("Shrink")
def shrink(call: Call, x: torch.Tensor) -> torch.Tensor:
    """X moved towards zero by ``bias``, zero within ``lambd``."""
    bias, limit = call.get("bias", 0.0), call.get("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Along an axis; before opset 13 over all axes from it on."""
    axis = int(call.get("axis", -1 if call.opset >= 13 else 1))
    shape = x.shape
    if call.opset < 13:
        x = x.reshape(math.prod(shape[: axis % x.ndim]), -1)
        axis = 1
    if call.node.op == "Hardmax":
        best = x.argmax(dim=axis, keepdim=True)
        return torch.zeros_like(x).scatter(axis, best, 1.0).reshape(shape)
    function = torch.softmax if call.node.op == "Softmax" else torch.log_softmax
    return function(x, dim=axis).reshape(shape)


@operator("CumSum")
def cumulative_sum(call: Call, x: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """Sums up to every entry, or before it (``exclusive``), or from the end (``reverse``)."""
    (dim,) = ints(axis)
    x = x.flip(dim) if call.get("reverse", 0) else x
    result = torch.cumsum(x, dim).to(x.dtype)
    result = result - x if call.get("exclusive", 0) else result
    return result.flip(dim) if call.get("reverse", 0) else result
