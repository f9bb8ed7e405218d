"""Weights as matrices. In: a weight with its readers. Out: a Matrix, or why it is none.

Whatever operators read a weight, it is one matrix S [A, B] (or a stack of them) that becomes P [A, r] Q [r, B]:
x S = (x P) Q; x ST = (x QT) PT; a row of S is a row of P times Q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.contract.context import Context
from onnxc.factors.common import own_bias, quota, unfit
from onnxc.model import Constant, Model, Node
from onnxc.sequential import Reading
from onnxc.sites import Site, Weight

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reader:
    """A node that reads a matrix.

    Attributes:
        node: its name; tensor: what meets the matrix.
        form: "right" (x S), "transposed" (x ST), "rows" (rows of S).
        reading: how it is observed, None in loops.
        bias: name of a constant bias [N] that no other node reads.
    """

    node: str
    tensor: str
    form: str
    reading: Reading | None
    bias: str | None = None


@dataclass(eq=False)
class Matrix:
    """A weight whose readers all understand factors.

    Attributes:
        weight: stored [A, B] or a stack [G, A, B].
        readers: at least one.
        values: reads the stored array.
        flip: every reader multiplies by the transpose: W = ST is what counts, and the factors are stored that way.
    """

    weight: Weight
    readers: list[Reader]
    model: Model
    flip: bool = False

    @property
    def name(self) -> str:
        return self.readers[0].node

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        rows, columns = self.weight.shape[-2:]
        return (columns, rows) if self.flip else (rows, columns)

    @property
    def stack(self) -> int:
        """How many matrices are stacked."""
        return prod(self.weight.shape[:-2])

    @property
    def forms(self) -> set[str]:
        return {reader.form for reader in self.readers}

    @property
    def readings(self) -> list[Reading]:
        return [reader.reading for reader in self.readers if reader.reading is not None]

    def values(self) -> Array:
        """W [G, K, N]."""
        return np.asarray(self.stored(), np.float64)

    def stored(self) -> NDArray[np.floating[Any]]:
        """W [G, K, N] in the type of the file: a table of words is large."""
        held: Any = self.model.values(self.weight.tensor)
        array: NDArray[np.floating[Any]] = np.asarray(held).reshape(-1, *self.weight.shape[-2:])
        return array.swapaxes(1, 2) if self.flip else array


def understood(weight: Weight, context: Context) -> Matrix | str | None:
    """The matrix that ``weight`` is to all its readers; why it is none; None where no reader is a linear or a table."""
    model = context.model
    nodes = [node for node, _ in weight.readers]
    linear = [node for node in nodes if node.op in ("MatMul", "Gemm", "Gather", "Transpose")]
    if not linear or len(weight.shape) < 2:
        return None
    sites = {id(site.node): site for site in context.sites}
    once = context.sites.once
    readers: list[Reader] = []
    for node, position in weight.readers:
        found = readers_of(node, position, weight, sites.get(id(node)), context, observed=node in once)
        if not found:
            if not readers and node.op == "Transpose":
                return None
            return f"{linear[0].name}: not factored, {node.name} ({node.op}) needs its weight '{weight.name}' whole"
        readers += found
    refused = unfit(readers[0].node, weight, model)
    if refused is not None:
        return refused
    stacked = len(weight.shape) > 2
    if stacked and len(weight.shape) > 3:
        return f"{readers[0].node}: not factored, its weight has rank {len(weight.shape)}"
    flip = all(reader.form == "transposed" for reader in readers) and all(node.op == "Gemm" for node in nodes)
    if flip:
        readers = [Reader(r.node, r.tensor, "right", r.reading, r.bias) for r in readers]
    return Matrix(weight, readers, model, flip)


def readers_of(
    node: Node, position: int, weight: Weight, site: Site | None, context: Context, *, observed: bool
) -> list[Reader]:
    """The readers that ``node`` stands for: itself, or those behind a Transpose; none where it is not understood."""
    rank = len(weight.shape)
    if node.domain not in {None, "", "ai.onnx"}:
        return []
    bias = own_bias(site, context)
    if node.op == "MatMul" and position == 1:
        return [linear_reader(node, weight.shape, "right", context, bias, observed=observed)]
    if node.op == "Gemm" and position == 1 and rank == 2:
        form = "transposed" if node.attrs.get("transB", 0) else "right"
        return [linear_reader(node, weight.shape, form, context, bias, observed=observed)]
    if node.op == "Gather" and position == 0 and rank == 2 and int(node.attrs.get("axis", 0)) % rank == 0:
        tensor = node.inputs[1]
        seen = observed and not isinstance(tensor, Constant)
        reading = Reading(tensor.name, f"{tensor.name} in {weight.name}", table=weight.shape[0]) if seen else None
        return [Reader(node.name, tensor.name, "rows", reading)]
    if node.op == "Transpose" and rank == 2 and list(node.attrs.get("perm", [1, 0])) == [1, 0]:
        turned = node.outputs[0]
        behind = list(turned.outputs)
        outputs = {id(t) for graph in context.model.graphs() for t in graph.outputs}
        if id(turned) in outputs or any(n.op != "MatMul" or n.inputs[1] is not turned for n in behind):
            return []
        once = context.sites.once
        return [linear_reader(n, weight.shape, "transposed", context, None, observed=n in once) for n in behind]
    return []


def linear_reader(
    node: Node, shape: tuple[int, ...], form: str, context: Context, bias: str | None, *, observed: bool
) -> Reader:
    """A MatMul or Gemm as a reader; its rows are sampled evenly over the samples."""
    tensor, turned = node.inputs[0], bool(node.attrs.get("transA", 0)) and node.op == "Gemm"
    depth, stack = shape[-1] if form == "transposed" else shape[-2], prod(shape[:-2])
    most = quota(context)

    def rows(values: NDArray[Any], seed: int) -> NDArray[np.float32] | None:
        matrix = np.asarray(values, np.float32)
        matrix = matrix.T if turned else matrix
        if stack > 1 and matrix.ndim > 2 and matrix.shape[-3] == stack:
            found = np.moveaxis(matrix, -3, -2).reshape(-1, stack, depth)
        else:
            found = matrix.reshape(-1, 1, depth)
        pick = np.sort(np.random.default_rng(seed).permutation(len(found))[:most])
        return np.ascontiguousarray(found[pick])

    seen = observed and not isinstance(tensor, Constant)
    key = f"{tensor.name}{' transposed' if turned else ''}{f' in {stack}' if stack > 1 else ''}"
    return Reader(node.name, tensor.name, form, Reading(tensor.name, key, rows) if seen else None, bias)


def together(matrices: Sequence[Matrix], *, share: bool) -> list[list[Matrix]]:
    """Matrices in groups that may share a left factor: single readers of one input in one graph, not stacked."""
    groups: dict[object, list[Matrix]] = {}
    graphs = list(matrices[0].model.graphs()) if matrices else []
    homes = {node.name: number for number, graph in enumerate(graphs) for node in graph.nodes}
    for matrix in matrices:
        reader = matrix.readers[0]
        single = share and len(matrix.readers) == 1 and reader.form == "right" and len(matrix.weight.shape) == 2
        reading = reader.reading
        key = (reading.key, matrix.shape[0], homes[reader.node]) if single and reading is not None else id(matrix)
        groups.setdefault(key, []).append(matrix)
    return list(groups.values())
