"""What matrices and convolutions have in common. In: a weight, and what its readers meet. Out: W and H to decompose, or
why there is nothing to decompose; later its factors in the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxc.contract.context import Context
from onnxc.factors import low_rank
from onnxc.factors.low_rank import regularized
from onnxc.factors.units import ROWS, Stats
from onnxc.model import Constant, Graph, Model, Node
from onnxc.sequential import Reading
from onnxc.sites import Site, Weight

Array = NDArray[np.float64]
Places = dict[str, tuple[Node, Graph]]


@dataclass
class Met:
    """What meets a matrix, per row: E[x' x'T] and E[x' xT] [G, K, K], means of x' and x [G, K], where they count."""

    moment: Array
    cross: Array | None
    mean: Array
    reference: Array

    def centered(self) -> Met:
        """The same about the means: an intercept takes care of those."""
        moment = self.moment - self.mean[:, :, None] * self.mean[:, None, :]
        cross = None if self.cross is None else self.cross - self.mean[:, :, None] * self.reference[:, None, :]
        return Met(moment, cross, self.mean, self.reference)


def met(readings: Sequence[Reading], stats: Stats) -> Met | None:
    """What several readers of one matrix meet, together; None where nothing was seen."""
    found = [stats[reading.key] for reading in readings if reading.key in stats and reading.rows is not None]
    found = [each for each in found if each.rows and each.moment is not None and each.mean is not None]
    if not found:
        return None
    rows = sum(each.rows for each in found)
    moment = sum((each.moment for each in found if each.moment is not None), np.float64(0)) / rows
    mean = sum((each.mean for each in found if each.mean is not None), np.float64(0)) / rows
    if any(each.cross is None for each in found):
        return Met(np.asarray(moment), None, np.asarray(mean), np.asarray(mean))
    cross = sum((each.cross for each in found if each.cross is not None), np.float64(0)) / rows
    reference = sum((each.reference for each in found if each.reference is not None), np.float64(0)) / rows
    return Met(np.asarray(moment), np.asarray(cross), np.asarray(mean), np.asarray(reference))


def posed(weight: Array, seen: Met | None, *, bias: bool) -> tuple[Array, Array | None, Array | None]:
    """W [G, K, N] ready to be decomposed: refitted to what was seen, with H [G, K, K] regularized and E|y|^2 [G].

    Args:
        bias: whether a bias makes good what happens to the mean, which then is no information.

    Where nothing was seen W is as it was, and the other two are None.
    """
    if seen is None:
        return weight, None, None
    moving = seen.centered() if bias else seen
    total = low_rank.output_energy(weight, moving.moment)
    if moving.cross is not None:
        weight = low_rank.regression(weight, moving.moment, moving.cross)
    return weight, regularized(moving.moment), total


def quota(context: Context) -> int:
    """How many rows of each sample are looked at."""
    return -(-ROWS // max(len(context.samples), 1)) if context.samples is not None else 0


def own_bias(site: Site | None, context: Context) -> str | None:
    """The name of a constant bias [N] that only this linear or convolution adds, and that counts in the result."""
    if site is None or site.bias is None or len(site.bias.outputs) != 1 or site.weight is None:
        return None
    first = site.operator == "Conv" or (site.operator == "Gemm" and site.node.attrs.get("transB", 0))
    width = site.weight.shape[0 if first else -1]
    outputs = {id(t) for graph in context.model.graphs() for t in graph.outputs}
    alone = prod(int(size or 0) for size in site.bias.shape or ()) == width and id(site.bias) not in outputs
    return str(site.bias.name) if alone and site.node.attrs.get("beta", 1.0) else None


def unfit(name: str, weight: Weight, model: Model) -> str | None:
    """Why a weight, first read by the node called ``name``, can have no factors whatever reads it; None if it can."""
    if any(weight.tensor is t for graph in model.graphs() for t in graph.outputs):
        return f"{name}: not factored, its weight '{weight.name}' is an output of the model"
    if not np.isfinite(np.asarray(model.values(weight.tensor))).all():
        return f"{name}: not factored, its weight holds NaN or infinite values"
    return None


class Owner(Protocol):
    """What is factored: a weight of ``model`` that the node called ``name`` reads first."""

    @property
    def weight(self) -> Weight: ...

    @property
    def model(self) -> Model: ...

    @property
    def name(self) -> str: ...


def placed(model: Model) -> Places:
    """Every node of ``model`` by its name, with the graph that holds it."""
    return {node.name: (node, graph) for graph in model.graphs() for node in graph.nodes}


def constant(model: Model, owner: Owner, side: str, values: NDArray[np.floating], places: Places) -> Constant:
    """A factor, named after its weight, in the graph that holds that."""
    graph = places[owner.name][1] if owner.weight.graph is not owner.model.graph else None
    return model.constant(f"{owner.weight.name}_{side}", np.ascontiguousarray(values, np.float32), graph)
