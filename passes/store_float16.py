"""Weights that int8 would hurt too much are stored as smaller floats that unfold at load: half the bytes, 70 dB.

    W (float32)    becomes    Cast(W_half (float16)), which ONNX Runtime folds into a float weight at load

In: a weight. Out: one storage candidate, or the reason why not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxc.codes.formats import FLOATS
from onnxc.contract.candidates import Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.passes import LossyPass
from onnxc.encoding import float_bytes
from onnxc.sites import Weight

# Operator -> the first input at which it reads a vector as a bias or a normalization's parameters. Others may hold
# anything: positions, bounds, constants of a formula.
VECTORS = {
    **dict.fromkeys(("Add", "Sub", "Mul"), 0),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"), 1),
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), 2),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), 3),
    "PRelu": 1,
}


@dataclass(frozen=True)
class StoreFloat16(LossyPass):
    """What a weight falls back to where its int8 codes are put back, and what biases and normalization are stored in.

    1. Every float weight whose halves are smaller than itself, also in the bodies of If, Loop and Scan.
    2. It must not act on values beyond the type's largest, or below its smallest where that would lose the weight.
    3. Of vectors only biases and the parameters of normalization.

    Attributes:
        type: bfloat16 has the range of float32 and 3 bits of fraction less than float16: nothing is smaller for it. The
            8-bit floats have a scale each and are less exact than int8 with a scale per channel, which is as small.
    """

    name: ClassVar[str] = "store-float16"

    type: Literal["float16", "bfloat16", "float8e4m3fn", "float8e5m2"] = "float16"

    def needed_opset(self) -> int:
        """The first that can cast the type."""
        return FLOATS[self.type][1]

    def store(self, weight: Weight, context: Context) -> Iterable[Candidate | Refusal]:
        """One candidate for a weight."""
        reason, stored = self.refused(weight, context), float_bytes(weight, self.type)
        if reason is None and stored >= weight.bytes and not context.told:
            reason = "too small: what unfolds it would take more bytes"
        if reason is not None:
            yield Refusal(self.name, weight.name, reason)
            return
        yield Candidate(self.name, "storage", weight.name, self.type, f"{self.type}, unfolded at load", bytes=stored)

    def refused(self, weight: Weight, context: Context) -> str | None:
        """Why a weight is not stored so, None where it may be."""
        bits, _, largest = FLOATS[self.type]
        if not weight.shape:
            return "a single number"
        if weight.tensor.dtype is not None and np.dtype(weight.tensor.dtype).name == self.type:
            return f"it is {self.type} already"
        vector = max(weight.shape, default=0) == weight.elements
        if vector and not all(place >= VECTORS.get(node.op, place + 1) for node, place in weight.readers):
            return "a vector that is no bias: few bytes, much accuracy"
        values = np.abs(context.model.values(weight.tensor))
        peak = float(values.max(initial=0.0))
        smallest = float(np.finfo(np.float16).tiny) if self.type == "float16" else 1e-30
        if bits > 8 and (not peak < largest or peak < smallest):
            return f"values outside the range of {self.type}"
        return None
