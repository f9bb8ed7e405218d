"""BatchNormalization, and Mul and Add by constants, go into the weights of the linear operator before them.

before: x -> Conv(W, b) -> BatchNormalization(s, t, mean, var) -> y
after:  x -> Conv(W * f, (b - mean) * f + t) -> y
        with f = s / sqrt(var + epsilon), per output channel
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.model import Constant, Model, Node, Tensor

from .facts import Borders, given, producer, remove, standard

Vector = npt.NDArray[np.float64]
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (np.float32, np.float64)


@dataclass(frozen=True)
class FoldBatchNorm(ExactPass):
    """Fold a per-channel scale and shift into the weight and bias of Conv, ConvTranspose, Gemm or MatMul.

    1. BatchNormalization at inference after any of them; after a MatMul only where its result has two axes,
       and there is no shift.
    2. Mul, Div, Add and Sub by a constant of one value per channel or one for all, after Conv and
       ConvTranspose.
    3. Not when the result before is read by anything else or is an output, when the weight is read twice (it
       is tied), when weight or statistics are computed or are inputs, in training mode, or when the result is
       not finite.
    """

    name: ClassVar[str] = "fold-batchnorm"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        borders = Borders.of(model)
        changed = 0
        for graph in model.graphs():
            folded: list[Node] = []
            for node in list(graph.nodes):
                if not standard(node, *_LINEAR) or len(node.outputs) != 1:
                    continue
                while (after := borders.only_reader(node.outputs[0])) is not None:
                    if not _fold(model, borders, node, after):
                        break
                    folded.append(after)
            remove(graph, folded)
            changed += len(folded)
        if changed:
            model.tidy()
        return Outcome(changed, (f"{changed} scales and shifts folded into weights",) if changed else ())


def _fold(model: Model, borders: Borders, node: Node, after: Node) -> bool:
    """Fold ``after`` into ``node`` if it may be; whether it was."""
    if not after.outputs or any(tensor.name for tensor in after.outputs[1:]):
        return False
    weight = given(node, 1)
    if weight is None or not borders.fixed(weight) or borders.only_reader(weight) is not node:
        return False
    if weight.dtype not in _FLOATS:
        return False
    channels = _channels(node, weight)
    affine = _affine(model, borders, node, after, channels) if channels else None
    if affine is None:
        return False
    scale, shift = affine
    old = given(node, 2)
    if node.op == "Gemm" and (float(node.attrs.get("beta", 1.0)) != 1.0 or node.attrs.get("transA", 0)):
        return False
    bias = np.zeros(channels)
    if old is not None:
        if not borders.fixed(old) or prod(old.shape) not in {1, channels}:
            return False
        if node.op == "Gemm" and len(old.shape) == 2 and old.shape[0] != 1:
            return False
        bias = bias + np.asarray(model.values(old), np.float64).reshape(-1)
    if node.op == "MatMul" and np.any(shift):
        return False
    values = model.values(weight)
    scaled = np.asarray(values * _along(node, weight, scale).astype(values.dtype), values.dtype)
    moved = np.asarray(bias * scale + shift, values.dtype)
    if not np.isfinite(scaled).all() or not np.isfinite(moved).all():
        return False
    weight.values = scaled
    if node.op != "MatMul" and (old is not None or np.any(moved)):
        _set_bias(model, node, old, borders, moved)
    result = after.outputs[0]
    after.outputs.clear()
    after.inputs.clear()
    node.outputs[0] = result
    return True


def _set_bias(model: Model, node: Node, old: Tensor | None, borders: Borders, values: npt.NDArray[Any]) -> None:
    if isinstance(old, Constant) and borders.only_reader(old) is node:
        old.values = values
        return
    bias = model.constant(f"{node.inputs[1].name}_bias", values)
    if len(node.inputs) > 2:
        node.inputs[2] = bias
    else:
        node.inputs.append(bias)


def _channels(node: Node, weight: Constant) -> int:
    """Output channels of a linear operator, 0 where its weight has an unexpected shape."""
    shape = tuple(int(size) for size in weight.shape)
    if node.op == "Conv":
        return shape[0] if len(shape) >= 3 else 0
    if node.op == "ConvTranspose":
        return shape[1] * int(node.attrs.get("group", 1)) if len(shape) >= 3 else 0
    if len(shape) != 2:
        return 0
    return shape[0] if node.op == "Gemm" and node.attrs.get("transB", 0) else shape[1]


def _along(node: Node, weight: Constant, scale: Vector) -> Vector:
    """``scale`` [channels] shaped so that it multiplies the weight's output channels."""
    rank = len(weight.shape)
    if node.op == "Conv":
        return scale.reshape(-1, *[1] * (rank - 1))
    if node.op == "ConvTranspose":  # [C_in, C_out / group, ...]: the groups lie along the first axis
        group = int(node.attrs.get("group", 1))
        repeated = np.repeat(scale.reshape(group, -1), int(weight.shape[0]) // group, axis=0)
        return repeated.reshape(*repeated.shape, *[1] * (rank - 2))
    return scale.reshape(-1, 1) if node.op == "Gemm" and node.attrs.get("transB", 0) else scale


def _affine(model: Model, borders: Borders, node: Node, after: Node, channels: int) -> tuple[Vector, Vector] | None:
    """(scale, shift), each [channels], that ``after`` applies to ``node``'s result; None for other nodes."""
    if standard(after, "BatchNormalization"):
        return _statistics(model, borders, node, after, channels)
    if not standard(after, "Mul", "Div", "Add", "Sub") or node.op not in {"Conv", "ConvTranspose"}:
        return None
    first = after.inputs[0] is node.outputs[0]
    other = after.inputs[1 if first else 0]
    if not borders.fixed(other) or (not first and after.op == "Div"):
        return None
    rank, shape = len(node.inputs[1].shape or ()), tuple(int(size) for size in other.shape)
    per_channel = shape[-(rank - 1) :] == (channels, *[1] * (rank - 2)) and prod(shape) == channels
    if len(shape) > rank or not (prod(shape) == 1 or per_channel):
        return None
    values = np.broadcast_to(np.asarray(model.values(other), np.float64).reshape(-1), channels)
    one, zero = np.ones(channels), np.zeros(channels)
    if after.op == "Mul":
        return values.copy(), zero
    if after.op == "Div":
        return (one / values, zero) if np.all(values) else None
    if after.op == "Add":
        return one, values.copy()
    return (one, -values) if first else (-one, values.copy())


def _statistics(model: Model, borders: Borders, node: Node, after: Node, channels: int) -> tuple[Vector, Vector] | None:
    if after.attrs.get("training_mode", 0) or not after.attrs.get("spatial", 1) or after.attrs.get("is_test", 1) != 1:
        return None
    if after.inputs[0] is not node.outputs[0] or len(after.inputs) != 5:
        return None
    if node.op == "MatMul" and not _two_axes(node):
        return None
    if not all(borders.fixed(t) and tuple(t.shape) == (channels,) for t in after.inputs[1:]):
        return None
    scale, shift, mean, variance = (np.asarray(model.values(t), np.float64) for t in after.inputs[1:])
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale / np.sqrt(variance + float(after.attrs.get("epsilon", 1e-5)))
    return factor, shift - mean * factor


def _two_axes(node: Node) -> bool:
    """Whether the result of a MatMul by a matrix is known to have two axes."""
    source = node.inputs[0]
    if source.shape is not None:
        return len(source.shape) == 2
    before = producer(source)
    return before is not None and standard(before, "Gemm", "Flatten")
