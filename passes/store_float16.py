"""Weights that int8 would hurt too much are stored in float16 and unfold at load: half the bytes, 70 dB.

    W (float32)    becomes    Cast(W_half (float16)), which ONNX Runtime folds into a float weight at load

In: a weight. Out: one storage candidate, or the reason why not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxc.encoding import half_bytes
from onnxc.rewrite import Candidate, Context, LossyPass, Refusal
from onnxc.sites import Weight


@dataclass(frozen=True)
class StoreFloat16(LossyPass):
    """What a weight falls back to where its int8 codes are put back.

    1. Every float32 weight whose halves and Cast are smaller than itself, also in the bodies of If, Loop and Scan.
    2. It must not act on values beyond 65504, or below the smallest half where that would lose a channel.
    3. It must not act on vectors (biases, normalization): few bytes.
    """

    name: ClassVar[str] = "store-float16"

    def store(self, weight: Weight, context: Context) -> Iterable[Candidate | Refusal]:
        """One candidate for a weight."""
        if max(weight.shape, default=0) == weight.elements:
            yield Refusal(self.name, weight.name, "a vector: few bytes, much accuracy")
            return
        stored = half_bytes(weight)
        if stored >= weight.bytes and not context.told:
            yield Refusal(self.name, weight.name, "too small: the unfolding node would take more bytes")
            return
        values = np.abs(context.model.values(weight.tensor))
        peak = float(values.max(initial=0.0))
        if not peak < float(np.finfo(np.float16).max) or peak < float(np.finfo(np.float16).tiny):
            yield Refusal(self.name, weight.name, "values outside the range of float16")
            return
        yield Candidate(self.name, "storage", weight.name, "float16", "float16, unfolded at load", bytes=stored)
