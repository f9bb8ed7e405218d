"""A convolution between DequantizeLinear and QuantizeLinear as the one operator that a session makes of them.

before: x_q ── DQ ── Conv ── Relu ── Q ── y_q        after: x_q ── QLinearConv ── y_q
               W_q ── DQ ──┤                                 W_q, b_q and all scales ──┘
     b_q ── DQ(x · W) ─────┘

The kernel is the same, so are the results, bit for bit; six nodes of a small model need not be read, matched and fused
each time it is loaded. Other runtimes know the form before better: it is chosen where models load late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxc.contract.passes import FinishingPass, Outcome
from onnxc.model import Model, Node, Tensor
from onnxc.sites import clip_range

from .facts import Borders, given, producer, standard

CODES: dict[object, tuple[int, int]] = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}


@dataclass(frozen=True)
class IntegerConvolutions(FinishingPass):
    """Write integer convolutions as QLinearConv.

    1. Conv of 8-bit codes per tensor with 8-bit weights, whose scales are one or lie along its outputs, and with a bias
       of int32 codes at the product of both scales, or none; the codes that it makes are of the type of those it reads.
    2. What it makes is read by a QuantizeLinear alone, or by a Relu or Clip before one whose codes stand for nothing
       beyond its bounds.
    3. Unasked only where models load late, and nothing is trained afterwards.
    """

    name: ClassVar[str] = "integer-convolutions"
    hurries: ClassVar[bool] = True

    def finish(self, model: Model, *, told: bool = False) -> Outcome:
        """Edit ``model`` in place."""
        borders = Borders.of(model)
        convolutions = [node for node in model.nodes() if standard(node, "Conv")]
        changed = sum(written(model, borders, node) for node in convolutions)
        if not changed:
            return Outcome(0)
        model.tidy()
        return Outcome(changed, (f"{changed} convolutions on codes are one operator each: they load sooner",))


def written(model: Model, borders: Borders, node: Node) -> bool:
    """Whether a Conv is one on codes, which it then is."""
    data, weight = (dequantized(borders, node.inputs[place]) for place in (0, 1))
    bound = borders.only_reader(node.outputs[0])
    bounded = bound is not None and standard(bound, "Relu", "Clip")
    quantize = borders.only_reader(bound.outputs[0]) if bound is not None and bounded else bound
    if data is None or weight is None or quantize is None or not standard(quantize, "QuantizeLinear"):
        return False
    scale, zero = quantize.inputs[1], given(quantize, 2)
    if zero is None or not borders.fixed(zero) or zero.dtype not in CODES or not one(scale) or not one(data.inputs[1]):
        return False
    types = [str(tensor.dtype) for tensor in (zero, data.inputs[2], weight.inputs[2])]
    if types[0] != types[1] or types[1:] == ["int8", "uint8"]:
        return False  # ONNX Runtime has no such kernel
    if bound is not None and bounded and not (borders.fixed(scale) and inside(model, bound, scale, zero)):
        return False
    if len(np.unique(model.values(weight.inputs[2]))) > 1:
        return False  # one for all outputs is what the kernel takes
    if not one(weight.inputs[1]) and (weight.attrs.get("axis", 1) != 0 or len(weight.inputs[1].shape or ()) != 1):
        return False
    bias, codes = given(node, 2), list[Tensor]()
    if bias is not None:
        coded = producer(bias)
        if coded is None or not standard(coded, "DequantizeLinear") or not of_product(coded.inputs[1], data, weight):
            return False
        codes = [coded.inputs[0]]
    inputs, outputs = [*data.inputs[:3], *weight.inputs[:3], scale, zero, *codes], list(quantize.outputs)
    for old in (quantize.outputs, node.inputs, node.outputs):
        old.clear()
    node.op = "QLinearConv"
    node.inputs.extend(inputs)
    node.outputs.extend(outputs)
    return True


def dequantized(borders: Borders, tensor: Tensor) -> Node | None:
    """The DequantizeLinear of 8-bit codes that makes ``tensor``, with its zero point; None for anything else."""
    node = producer(tensor)
    if node is None or not standard(node, "DequantizeLinear") or node.attrs.get("block_size", 0):
        return None
    zero = given(node, 2)
    return node if zero is not None and borders.fixed(zero) and zero.dtype in CODES else None


def inside(model: Model, bound: Node, scale: Tensor, zero: Tensor) -> bool:
    """Whether no code stands for a number that a Relu or Clip would change."""
    step, offset = (np.asarray(model.values(tensor)).item() for tensor in (scale, zero))
    low, high = ((code - offset) * step for code in CODES[zero.dtype])
    least, most = clip_range(bound)
    return bool(least <= low and high <= most)


def one(scale: Tensor) -> bool:
    """Whether a scale is known to be one number for the whole tensor."""
    return scale.shape is not None and list(scale.shape) in ([], [1])


def of_product(scale: Tensor, data: Node, weight: Node) -> bool:
    """Whether a bias has the scale that an integer convolution takes it to have: its input's times its weight's."""
    node = producer(scale)
    if node is None or not standard(node, "Mul"):
        return False
    return {id(tensor) for tensor in node.inputs} == {id(data.inputs[1]), id(weight.inputs[1])}
