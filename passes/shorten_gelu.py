"""GELU by tanh, spelled out in nine operators, gets six; one from opset 20 on.

before: 0.5 x (1 + Tanh(0.798 (x + 0.0447 x x x)))         after: x Sigmoid(x (1.596 + 0.0714 x x))
                                                            or Gelu(x, approximate="tanh") where the opset has it

ONNX Runtime fuses the form with Erf by itself, and this one on GPUs only: exported by JAX or from GPT-2 it is a fifth
of what is left to compute once the matrix products run in int8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.model import Graph, Model, Node, Tensor

from .facts import Borders, number, producer, remove, standard
from .polynomials import RULES, Expansion, close, letters

GELU_OPSET = 20
SLOPE, CUBE = np.sqrt(2 / np.pi), np.sqrt(2 / np.pi) * 0.044715  # Hendrycks and Gimpel, 2016
SHORT = 6  # operators of the form with Sigmoid
STEPS = 5  # from Tanh to the last product


@dataclass(frozen=True)
class ShortenGelu(ExactPass):
    """Rewrite x (0.5 + 0.5 Tanh(a x + b x^3)), however its sums and products are written.

    1. In the main graph and in bodies, with constants of one element.
    2. 0.5 (1 + Tanh(z)) is Sigmoid(2 z): exact up to rounding.
    3. Not where something else reads a value in between, and not where the form is as short already.
    """

    name: ClassVar[str] = "shorten-gelu"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        borders, changed = Borders.of(model), 0
        for graph in list(model.graphs()):
            for node in list(graph.nodes):
                if standard(node, "Tanh"):
                    changed += _shortened(model, borders, graph, node)
        if changed:
            model.tidy()
        return Outcome(changed)


def _shortened(model: Model, borders: Borders, graph: Graph, node: Node) -> bool:
    found = _found(model, borders, node)
    if found is None:
        return False
    x, y, slope, cube, inside = found
    own = {id(each) for each in inside}
    held = {id(each) for each in graph.nodes}
    between = [each.outputs[0] for each in inside if each.outputs[0] is not y]
    if not all(each in held for each in own) or not all(
        borders.private(tensor) and all(id(reader) in own for reader in tensor.outputs) for tensor in between
    ):
        return False
    gelu = model.opset >= GELU_OPSET and np.allclose((slope, cube), (SLOPE, CUBE), rtol=1e-4)
    if not gelu and len(inside) <= SHORT:
        return False
    dtype = next(t.dtype for each in inside for t in each.inputs if number(model, borders, t) is not None)
    name = next(each.name for each in inside if y in each.outputs)
    remove(graph, inside)
    if gelu:
        model.insert("Gelu", [x], [y], name=name, graph=graph, approximate="tanh")
        return True

    def made(operator: str, inputs: list[Tensor], result: str | Tensor) -> Tensor:
        label = name if result is y else ""
        return model.insert(operator, inputs, [result], name=label, graph=graph).outputs[0]

    first, third = (
        model.constant(f"{y.name}_{what}", np.asarray(2 * k, dtype)) for what, k in (("slope", slope), ("cube", cube))
    )
    scaled = made("Mul", [made("Mul", [x, x], f"{y.name}_square"), third], f"{y.name}_scaled")
    slopes = made("Add", [scaled, first], f"{y.name}_slopes")
    gate = made("Sigmoid", [made("Mul", [x, slopes], f"{y.name}_bent")], f"{y.name}_gate")
    made("Mul", [x, gate], y)
    return True


def _found(model: Model, borders: Borders, node: Node) -> tuple[Tensor, Tensor, float, float, list[Node]] | None:
    """x, the result, the factors of x and of its cube inside the Tanh, and the nodes in between."""
    tanh = node.outputs[0]
    for x in _sources(node.inputs[0]):
        inner = Expansion(model, borders, letters(x=x))
        bent = inner.of(node.inputs[0])
        if bent is None or bent.keys() != {(("x", 1),), (("x", 3),)}:
            continue
        reader, steps = borders.only_reader(tanh), 0
        while reader is not None and len(reader.outputs) == 1 and steps < STEPS:
            outer = Expansion(model, borders, letters(x=x, t=tanh))
            if close(outer.of(reader.outputs[0]), {(("x", 1),): 0.5, (("t", 1), ("x", 1)): 0.5}):
                inside = {id(each): each for each in (node, *inner.nodes.values(), *outer.nodes.values())}
                return x, reader.outputs[0], bent[("x", 1),], bent[("x", 3),], list(inside.values())
            reader, steps = borders.only_reader(reader.outputs[0]), steps + 1
    return None


def _sources(tensor: Tensor) -> Iterable[Tensor]:
    """What ``tensor`` is computed from by sums and products, nearest first."""
    seen, row = {id(tensor)}, [tensor]
    for _ in range(STEPS):
        row = [t for each in row if (node := producer(each)) and standard(node, *RULES) for t in node.inputs]
        row = [t for t in {id(t): t for t in row}.values() if id(t) not in seen]
        seen.update(id(t) for t in row)
        yield from row
