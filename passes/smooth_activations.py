"""Factors per channel move from an activation into the weights that read it; the outputs stay equal.

      LayerNorm(g, b) ── x ── MatMul(W)         becomes    LayerNorm(g / s, b / s) ── x / s ── MatMul(W * s)
      Conv(V, c) ── Relu ── x ── Conv(W)        becomes    Conv(V / s, c / s) ── Relu ── x / s ── Conv(W * s)

In: a simplified model and calibration data. Out: the same function, easier to round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from onnxc.contract.context import Context
from onnxc.contract.fields import Between, Implies
from onnxc.contract.passes import Level, StructuralPass
from onnxc.equalizing.inserting import inserted
from onnxc.equalizing.smoothing import smoothed
from onnxc.sites import find


@dataclass(frozen=True)
class SmoothActivations(StructuralPass):
    """SmoothQuant (Xiao et al. 2022), or with aim=weights the scale search of AWQ (Lin et al. 2023).

    1. Every tensor that linears and convolutions alone read, in bodies too; they share its factors.
    2. The factors go into what makes the tensor: scale and bias of a LayerNormalization, weight and bias of a linear or
       convolution, a Mul or Add by a constant; through Relu, pooling, Reshape, Transpose, attention's values.
    3. Where nothing takes them it is left as it is, and the reason is told by name; with ``insert`` a Mul in front
       of the readers takes them. The scalar of a GELU never does: the operator would lose its kernel.
    4. Where nobody asked for it by name, too: with a few alphas, where activations gain much on samples that the
       factors do not come from, and weights of 4 bits lose nothing; and then a Mul in front of linears where the
       quality floor leaves more room to weights with it (onnxc/equalizing/inserting.py).
    5. It must not act without calibration data.

    Attributes:
        alpha: how much of the outliers goes into the weights, 0 to 1, for every tensor; -1: chosen by its effect on
            outputs of samples that the factors do not come from, no change being one of the choices.
        aim: what is to be rounded with less error, activations or weights.
        bits, block: of the weights for aim=weights, which they imply; block 0 is one scale per output.
        insert: multiply in front of the readers where nothing before takes the factors.
    """

    name: ClassVar[str] = "smooth-activations"
    automatic: ClassVar[bool] = True

    alpha: Annotated[float, Between(0, 1, beside=-1)] = -1.0
    aim: Literal["activations", "weights"] = "activations"
    bits: Annotated[int, Between(2, 8), Implies("aim", "weights")] = 4
    block: Annotated[int, Between(0), Implies("aim", "weights")] = 64
    insert: bool = False

    def levels(self, context: Context) -> Iterable[Level]:
        """The smoothed model, none where no factor helps."""
        quick = context.recipe.passes is None
        level = smoothed(
            context,
            alpha=self.alpha if self.alpha >= 0 else None,
            aim=self.aim,
            bits=self.bits,
            block=self.block,
            insert=self.insert,
            quick=quick,
        )
        if quick and not context.told:
            level = with_products(context, level)
        if level is not None:
            yield level


def with_products(context: Context, level: Level | None) -> Level | None:
    """``level``, or where there is none the model as it is, with multiplications where those pay."""
    if level is not None:
        context = replace(context, model=level.model, sites=find(level.model, context.target).in_float32())
    found = inserted(context)
    if found is None:
        return level
    said = found[1] if level is None else f"{level.specification}; {found[1]}"
    return Level(found[0], said, () if level is None else level.notes)
