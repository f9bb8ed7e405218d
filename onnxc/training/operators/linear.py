"""Matrix products and convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from onnxc.training.operators.table import Call, ints, is_float, operator
from onnxc.windows import Windows

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of matrices as numpy's; of whole numbers in doubles where torch has no product of them (CUDA)."""
    if is_float(a) or a.device.type == "cpu":
        return torch.matmul(a, b)
    return torch.matmul(a.double(), b.double()).to(a.dtype)


@operator("MatMul")
def matmul(call: Call, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """As numpy's."""
    return product(a, b)


@operator("FusedMatMul", domain="com.microsoft")
def fused_matmul(call: Call, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Alpha times the product, each operand transposed if asked for."""
    a = a.transpose(-1, -2) if call.get("transA", 0) else a
    b = b.transpose(-1, -2) if call.get("transB", 0) else b
    return call.get("alpha", 1.0) * torch.matmul(a, b)


@operator("Gemm")
def gemm(call: Call, a: torch.Tensor, b: torch.Tensor, c: Any = None) -> torch.Tensor:
    """Alpha A B + beta C."""
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    made = product(a, b)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    made = made if alpha == 1 else alpha * made
    if c is None:
        return made
    return made + (c if beta == 1 else beta * c)


@operator("Einsum")
def einsum(call: Call, *values: torch.Tensor) -> torch.Tensor:
    """A sum over an equation's letters."""
    equation = call.get("equation")
    text = equation.decode() if isinstance(equation, bytes) else equation
    if is_float(values[0]) or values[0].device.type == "cpu":
        return torch.einsum(text, *values)
    return torch.einsum(text, *(each.double() for each in values)).to(values[0].dtype)


@operator("Det")
def determinant(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Of the last two axes."""
    return torch.linalg.det(x)


def padded(x: torch.Tensor, pads: list[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    """``x`` with its spatial axes padded by a constant; negative pads cut."""
    flat = [amount for pair in reversed(pads) for amount in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


@operator("Conv")
def convolution(call: Call, x: torch.Tensor, w: torch.Tensor, b: Any = None) -> torch.Tensor:
    """A convolution over 1, 2 or 3 axes; x [N, C, ...], w [M, C / group, ...], b [M]."""
    return convolve(call, x, w, b)


def convolve(call: Call, x: torch.Tensor, w: torch.Tensor, b: Any, padding: float = 0.0) -> torch.Tensor:
    """A convolution whose border holds ``padding``."""
    rank = w.ndim - 2
    if rank not in CONVOLUTIONS:
        raise call.refuse(f"a convolution over {rank} axes")
    placed = Windows.of(call.node.attrs, x.shape[2:], w.shape[2:])
    strides, dilations, pads = placed.strides, placed.dilations, placed.pads
    group = int(call.get("group", 1))
    if padding == 0 and all(before == after >= 0 for before, after in pads):
        return CONVOLUTIONS[rank](x, w, b, strides, [before for before, _ in pads], dilations, group)
    return CONVOLUTIONS[rank](padded(x, pads, padding), w, b, strides, 0, dilations, group)


@operator("ConvTranspose")
def transposed_convolution(call: Call, x: torch.Tensor, w: torch.Tensor, b: Any = None) -> torch.Tensor:
    """The transpose of a convolution; pads cut what it makes, or follow from ``output_shape``."""
    rank = w.ndim - 2
    if rank not in TRANSPOSED:
        raise call.refuse(f"a transposed convolution over {rank} axes")
    kernel = list(w.shape[2:])
    strides = ints(call.get("strides")) or [1] * rank
    dilations = ints(call.get("dilations")) or [1] * rank
    extra = ints(call.get("output_padding")) or [0] * rank
    shape = ints(call.get("output_shape"))
    flat = ints(call.get("pads")) or [0] * (2 * rank)
    full = [strides[i] * (x.shape[2 + i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 for i in range(rank)]
    mode = call.get("auto_pad", "NOTSET")
    if shape or mode in {"SAME_UPPER", "SAME_LOWER"}:
        wanted = shape[-rank:] if shape else [x.shape[2 + i] * strides[i] for i in range(rank)]
        total = [full[i] - wanted[i] for i in range(rank)]
        half = [each // 2 for each in total]
        other = [each - small for each, small in zip(total, half, strict=True)]
        before, after = (half, other) if mode == "SAME_UPPER" else (other, half)
    else:
        before, after = flat[:rank], flat[rank:]
    made = TRANSPOSED[rank](x, w, None, strides, 0, 0, int(call.get("group", 1)), dilations)
    made = padded(made, [(-before[i], extra[i] - after[i]) for i in range(rank)])
    return made if b is None else made + b.reshape(-1, *[1] * rank)
