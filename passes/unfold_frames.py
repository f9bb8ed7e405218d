"""A convolution over frames of one channel becomes a MatMul: the short-time Fourier transform of audio models.

before: x [B, 1, L] -> Conv(W [N, 1, K], stride s) -> y [B, N, T], K a multiple of s
after:  x [-> Slice] -> Reshape [B, L / s, s] -> K / s Slices -> Concat [B, T, K]
          -> MatMul(W transposed) [-> Add] -> Transpose -> y
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.data import Sample
from onnxc.model import Constant, Model, Node, Tensor
from onnxc.session import Options
from onnxc.shapes import infer

from .facts import Borders, given, standard
from .trying import where_faster

SHORTEST = 16  # a kernel below has no use for a matrix product
MOST_SLICES = 8


@dataclass(frozen=True)
class UnfoldFrames(ExactPass):
    """Turn convolutions over frames into matrix products. What ONNX Runtime's convolution does badly, they do well:
    measured 2.3 times as fast in float, and a MatMul may run in int8 with a float result, where a convolution would
    have to round its result too.

    1. Conv of one spatial axis and one input channel, whose kernel is 1 to 8 strides long, without padding or dilation.
    2. Only where the length of the input is known: what no frame reaches is cut off first.
    3. Only where the outputs stay equal and the model gets faster.
    4. It must not act on weights that others read too, or that are inputs.
    """

    name: ClassVar[str] = "unfold-frames"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        borders, types = Borders.of(model), infer(model)
        changed = 0
        for node in list(model.graph.nodes):
            if not standard(node, "Conv"):
                continue
            known = types.get(node.inputs[0].name)
            shape = known.shape if known is not None else None
            weight = node.inputs[1]
            if shape is None or len(shape) != 3 or not borders.fixed(weight) or len(weight.outputs) != 1:
                continue
            if shape[1] == 1 and shape[2] is not None and fits(node, tuple(weight.shape)):
                unfold(model, node, weight, int(shape[2]))
                changed += 1
        if changed:
            model.tidy()
        return Outcome(changed, (f"{changed} convolutions over frames became matrix products",) if changed else ())

    def run_checked(
        self, model: Model, samples: Sequence[Sample], options: Options, original: Model | None = None
    ) -> Outcome:
        """``run`` if it pays."""
        return where_faster(self, model, samples, options, "frames were left in convolutions")


def fits(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether a convolution with weights of ``shape`` cuts its input into frames of whole strides."""
    attributes = node.attrs
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(attributes.get("pads", ())):
        return False
    stride, kernel = int(next(iter(attributes.get("strides", ())), 1)), shape[2]
    if any(step != 1 for step in attributes.get("dilations", ())) or attributes.get("group", 1) != 1 or shape[1] != 1:
        return False
    return kernel >= SHORTEST and kernel % stride == 0 and kernel // stride <= MOST_SLICES


def unfold(model: Model, node: Node, weight: Constant, length: int) -> None:
    """Replace ``node``, whose input is so long; its result keeps its name."""
    kernel, stride = int(weight.shape[2]), int(next(iter(node.attrs.get("strides", ())), 1))
    result, name, count = node.outputs[0], node.outputs[0].name, kernel // stride

    def sizes(part: str, *values: int) -> Tensor:
        return model.constant(f"{name}_{part}", np.asarray(values, np.int64))

    def made(operator: str, inputs: Sequence[Tensor], part: str, **attributes: Any) -> Tensor:
        return model.insert(operator, inputs, [f"{name}_{part}"], **attributes).outputs[0]

    frames, reached = node.inputs[0], (length - kernel) // stride * stride + kernel
    if reached < length:
        frames = made("Slice", [frames, sizes("start", 0), sizes("end", reached), sizes("last_axis", 2)], "reached")
    frames = made("Reshape", [frames, sizes("steps_shape", 0, -1, stride)], "steps")
    if count > 1:
        axis = sizes("axis", 1)
        pieces = [
            made(
                "Slice",
                [frames, sizes(f"from_{k}", k), sizes(f"to_{k}", k + 1 - count if k + 1 < count else 2**31 - 1), axis],
                f"part_{k}",
            )
            for k in range(count)
        ]
        frames = made("Concat", pieces, "frames", axis=2)
    matrix = model.constant(weight.name, np.ascontiguousarray(model.values(weight)[:, 0].T))
    product = made("MatMul", [frames, matrix], "product")
    bias = given(node, 2)
    if bias is not None:
        product = made("Add", [product, bias], "sum")
    node.inputs.clear()
    node.outputs.clear()
    model.graph.nodes.remove(node)
    model.insert("Transpose", [product], [result], name=node.name, perm=[0, 2, 1])
