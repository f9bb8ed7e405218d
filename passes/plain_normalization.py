"""Layer normalization in another form gets the plain one, which ONNX Runtime fuses into one kernel.

before: r = 1 / Sqrt(Max(ReduceSum(x x) / N - m m, 0) + e), m = ReduceSum(x) / N, y = (x - Expand(m)) (r g) + b
after:  LayerNormalization(x, g, b); before opset 17 d = x - ReduceMean(x), y = d / Sqrt(ReduceMean(d^2) + e) g + b

Written so by Flax and Keras: a dozen kernels, each of which reads and writes all of x.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.model import Constant, Model, Node, Tensor
from onnxc.shapes import infer

from .facts import Borders, producer, remove, standard
from .polynomials import Expansion, Monomial, close
from .row_statistics import FOLLOWED, INVERSE, MEAN, REDUCE, Norm, deviates

OPSET = 17
PLAIN = 9  # operators of the form that is fused
MOST = 24  # operators between x and y


@dataclass(frozen=True)
class PlainNormalization(ExactPass):
    """Rewrite (x - mean) / sqrt(variance + e) g + b over the last axis, however it is written.

    1. In the main graph; the variance as mean of squares or of squared differences, the factors in any order.
    2. Not where something else reads a value in between, and not where the form is as short already.
    Exact up to rounding: outputs are compared before and after, as for every exact pass.
    """

    name: ClassVar[str] = "plain-normalization"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        if not any(standard(node, *REDUCE) for node in model.graph.nodes):
            return Outcome()
        borders, types, changed = Borders.of(model), infer(model), 0
        for node in list(model.graph.nodes):
            if deviates(model, borders, node):
                changed += any(_rewritten(Norm(model, borders, types, x), node) for x in _sources(node))
        if changed:
            model.tidy()
        return Outcome(changed)


def _rewritten(norm: Norm, node: Node) -> bool:
    found = _found(norm, node)
    if found is None:
        return False
    y, first, second, inside = found
    own, model = {id(each) for each in inside}, norm.model
    between = [tensor for each in inside for tensor in each.outputs if tensor is not y]
    if (
        len(inside) <= PLAIN
        or norm.width is None
        or not all(
            norm.borders.private(tensor) and all(id(reader) in own for reader in tensor.outputs) for tensor in between
        )
    ):
        return False
    name = next(each.name for each in inside if y in each.outputs)
    scale, bias = norm.vectors[first], norm.vectors[second]
    remove(model.graph, inside)
    _normalize(norm, _flat(model, scale), _flat(model, bias), y, name)
    return True


def _normalize(norm: Norm, scale: Constant, bias: Constant, y: Tensor, name: str) -> None:
    """``y`` from x, scale and bias along the last axis."""
    model = norm.model
    if model.opset >= OPSET:
        model.insert("LayerNormalization", [norm.x, scale, bias], [y], name=name, axis=-1, epsilon=norm.epsilon)
        return

    def made(operator: str, inputs: list[Tensor], what: str, **attributes: Any) -> Tensor:
        return model.insert(operator, inputs, [f"{y.name}_{what}"], **attributes).outputs[0]

    def single(what: str, value: float) -> Tensor:
        return model.constant(f"{y.name}_{what}", np.asarray(value, scale.dtype))

    away = made("Sub", [norm.x, made("ReduceMean", [norm.x], "mean", axes=[-1], keepdims=1)], "away")
    square = made("Pow", [away, single("two", 2.0)], "square")
    variance = made("ReduceMean", [square], "variance", axes=[-1], keepdims=1)
    deviation = made("Sqrt", [made("Add", [variance, single("epsilon", norm.epsilon)], "above_zero")], "deviation")
    unit = made("Div", [away, deviation], "quotient")
    model.insert("Add", [made("Mul", [unit, scale], "product"), bias], [y], name=name)


def _sources(node: Node) -> list[Tensor]:
    """What may be normalized: everything near that is summed up, and what that is made of."""
    seen: dict[int, Tensor] = {}
    row: list[Tensor] = [node.inputs[0]]
    for _ in range(MOST // 2):
        made = [each for tensor in row if (each := producer(tensor)) and standard(each, *FOLLOWED, *REDUCE)]
        row = [tensor for each in made for tensor in each.inputs if id(tensor) not in seen]
        seen |= {id(tensor): tensor for tensor in row}
    summed = [
        t for t in seen.values() if any(standard(reader, *REDUCE) and reader.inputs[0] is t for reader in t.outputs)
    ]
    return [tensor for tensor in summed if not isinstance(tensor, Constant)]


def _found(norm: Norm, node: Node) -> tuple[Tensor, str, str, list[Node]] | None:
    """The result, the letters of scale and bias, and the nodes in between."""
    for y in _results(norm.borders, node.outputs[0]):
        norm.vectors.clear()
        expansion = Expansion(norm.model, norm.borders, norm.letter, MOST, norm.of)
        whole = expansion.of(y)
        if whole is None or len(norm.vectors) != 2:
            continue
        for scale, bias in (list(norm.vectors), list(norm.vectors)[::-1]):
            wanted = {
                _term((scale, 1), (INVERSE, 1), ("x", 1)): 1.0,
                _term((scale, 1), (INVERSE, 1), (MEAN, 1)): -1.0,
                _term((bias, 1)): 1.0,
            }
            if close(whole, wanted):
                return y, scale, bias, list(expansion.nodes.values())
    return None


def _results(borders: Borders, tensor: Tensor) -> Iterable[Tensor]:
    """What is computed from ``tensor`` by sums, products and moves, and may be the result; nearest first."""
    row, seen = [tensor], {id(tensor)}
    for _ in range(MOST // 3):
        readers = {id(each): each for t in row if borders.private(t) for each in t.outputs if standard(each, *FOLLOWED)}
        row = [each.outputs[0] for each in readers.values() if id(each.outputs[0]) not in seen]
        seen.update(id(each) for each in row)
        yield from row


def _term(*powers: tuple[str, int]) -> Monomial:
    return tuple(sorted(powers))


def _flat(model: Model, vector: Constant) -> Constant:
    if len(vector.shape) == 1:
        return vector
    return model.constant(f"{vector.name}_flat", model.values(vector).reshape(-1))
