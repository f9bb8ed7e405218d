"""Linears in another form get the plain one, which has int8 kernels.

before: Einsum("bsk,khd->bshd", x, W [K, H, D])            after: Reshape(MatMul(x, W [K, H D]))
before: Gemm(x, W, b, alpha=0.5, beta=2)                   after: Gemm(x, 0.5 W, 2 b)
before: MatMul(x, Cast(W (float16)))                       after: MatMul(x, W (float32)), stored small again later
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.model import Graph, Model, Node, Tensor

from .facts import Borders, given, producer, standard

WEIGHTS = {
    "MatMul": (1,),
    "Gemm": (1,),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
FLOAT = 1


@dataclass(frozen=True)
class PlainLinears(ExactPass):
    """Rewrite Einsum, factors of Gemm, and weights behind a Cast.

    1. Einsum of an activation and a constant that share the activation's last letters, and nothing else: batch letters
       first, then what the constant adds, in its order.
    2. alpha and beta of a Gemm whose weight and bias are constants that nothing else reads.
    3. A float16 or bfloat16 weight that is cast to float32 for MatMul, Gemm, convolutions and recurrent operators.
    4. It must not act on other products: traces, repeated letters, ellipses, batched weights.
    """

    name: ClassVar[str] = "plain-linears"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        borders, changed = Borders.of(model), 0
        for graph in list(model.graphs()):
            for node in list(graph.nodes):
                if standard(node, "Einsum"):
                    changed += _einsum(model, borders, graph, node)
                elif standard(node, "Gemm"):
                    changed += _factors(model, borders, node)
                if standard(node, *WEIGHTS):
                    changed += sum(_widened(model, borders, node, place) for place in WEIGHTS[node.op])
        if changed:
            model.tidy()
        return Outcome(changed)


def _einsum(model: Model, borders: Borders, graph: Graph, node: Node) -> bool:
    equation = str(node.attrs.get("equation", "")).replace(" ", "")
    terms = equation.replace("->", ",").split(",")
    if "." in equation or "->" not in equation or len(terms) != 3 or len(node.inputs) != 2:
        return False
    if any(len(set(term)) != len(term) for term in terms):
        return False
    weight = node.inputs[1]
    if not borders.fixed(weight) or weight.dtype != np.dtype(np.float32):
        return False
    source, stored, result = terms
    shared = "".join(letter for letter in source if letter in stored)
    added = "".join(letter for letter in stored if letter not in shared)
    batch = source[: len(source) - len(shared)]
    if not shared or not added or not batch or source != batch + shared or result != batch + added:
        return False
    sizes = dict(zip(stored, weight.shape, strict=True))
    order = [stored.index(letter) for letter in shared + added]
    wide, narrow = prod(sizes[letter] for letter in shared), prod(sizes[letter] for letter in added)
    values = np.ascontiguousarray(np.transpose(model.values(weight), order).reshape(wide, narrow))
    matrix, x, y = model.constant(f"{weight.name}_matrix", values), node.inputs[0], node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    rest: Tensor = x
    if len(shared) > 1:
        rest = _reshaped(model, graph, x, [0] * len(batch) + [wide], f"{y.name}_rows")
    made: str | Tensor = y if len(added) == 1 else f"{y.name}_flat"
    product = model.insert("MatMul", [rest, matrix], [made], name=node.name, graph=graph).outputs[0]
    if len(added) > 1:
        shape = model.constant(f"{y.name}_shape", np.asarray([0] * len(batch) + [sizes[n] for n in added], np.int64))
        model.insert("Reshape", [product, shape], [y], graph=graph)
    return True


def _reshaped(model: Model, graph: Graph, tensor: Tensor, shape: list[int], name: str) -> Tensor:
    sizes = model.constant(f"{name}_shape", np.asarray(shape, np.int64))
    made: Tensor = model.insert("Reshape", [tensor, sizes], [name], graph=graph).outputs[0]
    return made


def _factors(model: Model, borders: Borders, node: Node) -> bool:
    factors = {1: float(node.attrs.get("alpha", 1.0)), 2: float(node.attrs.get("beta", 1.0))}
    places = [place for place, factor in factors.items() if factor != 1.0 and given(node, place) is not None]
    if factors == {1: 1.0, 2: 1.0}:
        return False
    for place in places:
        tensor = node.inputs[place]
        if not borders.fixed(tensor) or tensor.dtype != np.dtype(np.float32) or borders.only_reader(tensor) is not node:
            return False
    for place in places:
        tensor = node.inputs[place]
        values = np.asarray(model.values(tensor), np.float32) * np.float32(factors[place])
        node.inputs[place] = model.constant(f"{tensor.name}_scaled", values)
    node.attrs.pop("alpha", None)
    node.attrs.pop("beta", None)
    return True


def _widened(model: Model, borders: Borders, node: Node, place: int) -> bool:
    tensor = given(node, place)
    cast = producer(tensor) if tensor is not None else None
    if tensor is None or cast is None or not standard(cast, "Cast") or int(cast.attrs.get("to", 0)) != FLOAT:
        return False
    weight = cast.inputs[0]
    if not borders.fixed(weight) or weight.dtype.name not in {"float16", "bfloat16"}:
        return False
    if not borders.private(tensor) or any(not standard(reader, *WEIGHTS) for reader in tensor.outputs):
        return False
    model.redirect(tensor, model.constant(f"{weight.name}_whole", np.asarray(model.values(weight)).astype(np.float32)))
    return True
