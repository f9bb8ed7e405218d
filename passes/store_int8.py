"""Weights of operators that stay float are stored in int8 and unfold at load: the file shrinks, the speed stays.

    W (float32)    becomes    Cast(W_q (int8)) * W_scale, which ONNX Runtime folds into a float weight at load

In: a weight. Out: one storage candidate, or the reason why not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from onnxc.contract.candidates import Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.passes import SolvingPass
from onnxc.encoding import stored_bytes
from onnxc.sites import Weight


@dataclass(frozen=True)
class StoreInt8(SolvingPass):
    """int8 codes with one scale per channel, or one scale where the readers know no channels.

    1. Every float weight whose codes, scales and unfolding nodes are smaller than itself.
    2. Also in the bodies of If/Loop/Scan.
    3. It must not act on small vectors (biases, normalization): they hold no bytes and much accuracy.

    Attributes:
        rounding, feedback, bias: how the codes are found; see "SolvingPass".
    """

    name: ClassVar[str] = "store-int8"

    def store(self, weight: Weight, context: Context) -> Iterable[Candidate | Refusal]:
        """One candidate for a weight."""
        plain = bool(context.target.plain)
        stored = stored_bytes(weight, plain=plain)
        if max(weight.shape, default=0) == weight.elements:
            yield Refusal(self.name, weight.name, "a vector: few bytes, much accuracy")
        elif stored >= weight.bytes and not context.told:
            yield Refusal(self.name, weight.name, "too small: the unfolding nodes would take more bytes")
        else:
            how = "sampled waves, computed at load" if weight.waves is not None else "int8 codes, unfolded at load"
            how = "int8 codes behind DequantizeLinear" if plain else how
            yield Candidate(self.name, "storage", weight.name, "int8", how, bytes=stored)
