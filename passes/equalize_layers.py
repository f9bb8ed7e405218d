"""Channels that one layer makes large and the next makes small meet in the middle; the outputs stay equal.

      x ── Conv(W1, b1) ── Relu ── Conv(W2) ── y
      x ── Conv(W1 / s, b1 / s) ── Relu ── Conv(W2 * s) ── y        s = sqrt(max |W1| / max |W2|), per channel

In: a simplified model. Out: the same function with weights and activations that are easier to round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from onnxc.contract.context import Context
from onnxc.contract.passes import Level, StructuralPass
from onnxc.equalizing.equalization import equalized


@dataclass(frozen=True)
class EqualizeLayers(StructuralPass):
    """Cross-layer equalization with bias absorption (Nagel et al. 2019).

    1. Pairs of linears and convolutions, depthwise ones too, with only operators between them through which a
       positive factor moves: Relu, LeakyRelu, PRelu, Clip at 0, pooling, Transpose, Reshape, attention's values.
    2. A Clip with an upper bound (Relu6): only by factors that keep every channel away from the bound, as far as
       calibration data tells; a channel that meets the bound keeps its scale. Without data: not at all.
    3. A channel that is never below c > 0 on calibration data is lowered by c, and the next layer's bias makes up
       for it; not before a layer with padding.
    4. It must not act where anything else reads the tensor between the two, where a weight has several readers, and
       on what the model hands out.

    It gains where one scale is shared by channels of different size: weights with one scale per tensor, ranges of
    activations. Weights with one scale per output channel alone gain little.

    Attributes:
        absorb: also absorb high biases.
    """

    name: ClassVar[str] = "equalize-layers"

    absorb: bool = True

    def levels(self, context: Context) -> Iterable[Level]:
        """The equalized model, none where no two layers are a pair."""
        level = equalized(context, absorb=self.absorb)
        if level is not None:
            yield level
