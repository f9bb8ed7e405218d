"""Convolutions become chains of thinner ones, where the inputs that they meet allow it.

    x ── Conv(W [O, C, k, k], b) ──    becomes one of

    tucker    x ── Conv 1x1 (C to p) ── Conv kxk (p to q) ── Conv 1x1 (q to O, b) ──
    spatial   x ── Conv kx1 (C to r) ── Conv 1xk (r to O, b) ──
    channel   x ── Conv kxk (C to r) ── Conv 1x1 (r to O, b) ──

In: a model, and data. Out: smaller models, refitted to the original's outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from onnxc.contract.context import Context
from onnxc.contract.fields import Between
from onnxc.contract.passes import Level, Offers, StructuralPass
from onnxc.factors.convolution_units import ConvUnit
from onnxc.factors.convolutions import Kernel, understood
from onnxc.factors.factoring import Factoring
from onnxc.factors.goals import Goal, several
from onnxc.factors.units import Unit


@dataclass(frozen=True)
class FactorConv(StructuralPass):
    """Low-rank factors of convolutions.

    1. Any number of axes, strides, dilations, groups (each group has factors of its own), pads and auto_pad; the bias
       stays. A 1x1 convolution is a matrix: its only form is "channel".
    2. A kernel that several convolutions read is factored once. In loops as if inputs were white.
    3. Told nothing, a convolution is factored only below 65 % of its products, and the whole must not be slower.
    4. It must not act on transposed convolutions, and untold not on depthwise ones.

    Attributes:
        energy: keep this share of each output's energy: 0.9 is damage 0.1. A site where that takes more numbers than
            its kernel has is left alone.
        rank: this rank everywhere, of "tucker" for both sides.
        parameters: the factors hold this share of the kernel's numbers.
        form: "auto" takes the one with the fewest products, of a share of the numbers that with the least damage.
        method: "plain" decomposes the weight alone, without data.
        refit: solve the factors on what the factored model feeds them.
    """

    name: ClassVar[str] = "factor-conv"
    unasked: ClassVar[bool] = True

    energy: Annotated[float, Between(0, 1, open_low=True)] = 0.0
    rank: Annotated[int, Between(1)] = 0
    parameters: Annotated[float, Between(0, 1, open_low=True)] = 0.0
    form: Literal["auto", "tucker", "spatial", "channel"] = "auto"
    method: Literal["whitened", "plain"] = "whitened"
    refit: bool = True

    def contradiction(self) -> str:
        """More than one amount."""
        return several(self.rank, self.energy, self.parameters)

    def levels(self, context: Context) -> Iterator[Level]:
        """Factored models, least cut first; exactly one where rank, energy or parameters are given."""
        goal = Goal.told(self.rank, self.energy, self.parameters)
        found = self.factoring(context)
        if found.units or found.refused:
            yield from found.levels(goal)

    def offers(self, context: Context) -> Offers:
        """Factors where they win something at a plan's prices."""
        assert context.stakes is not None
        return self.factoring(context).offers(context.stakes)

    def factoring(self, context: Context) -> Factoring:
        """The kernels, and why others are left alone."""
        units, refused = list[Unit](), list[str]()
        for weight in context.sites.weights:
            found = understood(weight, context)
            if isinstance(found, Kernel):
                units.append(ConvUnit(found, context.target, self.form))
            elif found:
                refused.append(found)
        return Factoring(self.name, "convolution", context, units, refused, self.refit, self.method == "whitened")
