"""Embedding tables in int8, one scale per row, gathered before they are scaled.

    Gather(table [V, D], ids)    becomes    Cast(Gather(table_q, ids)) * Gather(table_scale [V, 1], ids)

In: a Gather site on axis 0. Out: one candidate. Only the gathered rows are ever turned into float.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from onnxc.contract.candidates import Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.passes import LossyPass
from onnxc.rewriting.rewriter import Rewriter
from onnxc.sites import Site


@dataclass(frozen=True)
class QuantizeEmbedding(LossyPass):
    """Rows of codes and a scale per row; the whole table is never unfolded.

    1. Gather on axis 0 of a constant table of rank 2 or more.
    2. A table that a linear also reads (tied weights) keeps one copy of its codes.
    3. It must not write DequantizeLinear before Gather: the whole table would be restored at every run.
    """

    name: ClassVar[str] = "quantize-embedding"

    def propose(self, site: Site, context: Context) -> Iterable[Candidate | Refusal]:
        """One candidate for an embedding table."""
        if site.kind != "embedding":
            return
        assert site.weight is not None
        rank = len(site.weight.shape)
        if rank < 2 or int(site.node.attrs.get("axis", 0)) % rank != 0:
            yield Refusal(self.name, site.name, "gathers along another axis than the rows")
            return
        if site.weight.channel_axis != 0:
            yield Refusal(self.name, site.name, "another reader needs the scales of its table along another axis")
            return
        yield Candidate(
            self.name,
            "compute",
            site.name,
            "rows",
            "int8 rows",
            apply=lambda rewriter: apply(rewriter, site),
        )


def apply(rewriter: Rewriter, site: Site) -> None:
    """Gather codes and row scales with the same indices, then multiply."""
    assert site.weight is not None
    model, node, weight = rewriter.model, rewriter.nodes[site.name], site.weight.name
    graph = rewriter.home(node)
    indices, result = node.inputs[1], node.outputs[0]
    node.outputs.clear()
    node.inputs.clear()
    rows = model.insert(
        "Gather",
        [rewriter.weights.coded(weight), indices],
        [f"{result.name}_q"],
        name=f"{site.name}_q",
        graph=graph,
    ).outputs[0]
    floats = model.insert("Cast", [rows], [f"{result.name}_cast"], name=f"{site.name}_cast", graph=graph, to=1)
    scales = model.insert(
        "Gather",
        [rewriter.weights.scale(weight, "broadcast"), indices],
        [f"{result.name}_scale"],
        name=f"{site.name}_scale",
        graph=graph,
    )
    model.insert("Mul", [floats.outputs[0], scales.outputs[0]], [result], name=f"{site.name}_scaled", graph=graph)
