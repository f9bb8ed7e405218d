"""Matrices become pairs of thin ones, where the inputs that they meet allow it.

    x ── MatMul(W [K, N]) ── Add(b) ──    becomes    x ── MatMul(U [K, r]) ── MatMul(V [r, N]) ── Add(b) ──

In: a model, and data. Out: smaller models. The pair is the one with the least error in the original's outputs, given
what the model factored so far feeds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from onnxc.contract.context import Context
from onnxc.contract.fields import Between
from onnxc.contract.passes import Level, Offers, StructuralPass
from onnxc.factors.factoring import Factoring
from onnxc.factors.goals import Goal, several
from onnxc.factors.matrices import Matrix, together, understood
from onnxc.factors.matrix_units import Group
from onnxc.factors.units import Unit


@dataclass(frozen=True)
class FactorMatmul(StructuralPass):
    """Low-rank factors of MatMul, Gemm and embedding tables.

    1. MatMul with a constant matrix, or a stack of them, on the right; Gemm with any alpha, beta, transA, transB;
       Gather along the rows of a table. Biases are kept. In loops as if inputs were white.
    2. A weight with several readers, also a table tied to a head, is factored once.
    3. Several matrices that read one input share their left factor where that is better at equal numbers.
    4. Told nothing, a site is factored only below 65 % of its numbers, and the whole must not be slower.
    5. It must not act on a weight that something else needs whole, or that is an output.

    Attributes:
        energy: keep this share of each output's energy: 0.9 is damage 0.1. A site where that takes more numbers than
            its weight has is left alone.
        rank: this rank everywhere.
        parameters: the rank whose pair holds this share of the weight's numbers.
        method: "plain" is the SVD of the weight alone, without data.
        refit: solve each pair on what the factored model feeds it.
        share: whether left factors may be shared.
        smallest: weights with fewer numbers are left alone: a classifier of ten classes has little to give.
        only: "linears" leaves embedding tables alone, "tables" everything else.
    """

    name: ClassVar[str] = "factor-matmul"
    unasked: ClassVar[bool] = True

    energy: Annotated[float, Between(0, 1, open_low=True)] = 0.0
    rank: Annotated[int, Between(1)] = 0
    parameters: Annotated[float, Between(0, 1, open_low=True)] = 0.0
    method: Literal["whitened", "plain"] = "whitened"
    refit: bool = True
    share: bool = True
    smallest: Annotated[int, Between(0)] = 0
    only: Literal["all", "linears", "tables"] = "all"

    def contradiction(self) -> str:
        """More than one amount."""
        return several(self.rank, self.energy, self.parameters)

    def levels(self, context: Context) -> Iterator[Level]:
        """Factored models, least cut first; exactly one where rank, energy or parameters are given."""
        goal = Goal.told(self.rank, self.energy, self.parameters)
        found = self.factoring(context, max(self.smallest, context.target.smallest_linear if goal is None else 0))
        if found.units:
            yield from found.levels(goal)

    def offers(self, context: Context) -> Offers:
        """Pairs where they win something at a plan's prices."""
        assert context.stakes is not None
        return self.factoring(context, max(self.smallest, context.target.smallest_linear)).offers(context.stakes)

    def factoring(self, context: Context, smallest: int) -> Factoring:
        """The matrices of at least so many numbers, and why others are left alone."""
        matrices, refused = list[Matrix](), list[str]()
        for weight in context.sites.weights:
            found = understood(weight, context)
            if isinstance(found, Matrix):
                if self.only == "all" or (self.only == "tables") == ("rows" in found.forms):
                    matrices.append(found)
            elif found:
                refused.append(found)
        for matrix in [matrix for matrix in matrices if matrix.weight.elements < smallest]:
            refused.append(f"{matrix.name}: not factored, too small to pay")
            matrices.remove(matrix)
        units: list[Unit] = [Group(members, context.target) for members in together(matrices, share=self.share)]
        return Factoring(self.name, "MatMul", context, units, refused, self.refit, self.method == "whitened")
