"""GELU spelled out becomes one operator; where the opset has none, its tanh form gets six operators instead of nine.

before: 0.5 x (1 + Erf(x / 1.414))                         after: Gelu(x), opset 20
before: 0.5 x (1 + Tanh(0.798 (x + 0.0447 x x x)))         after: Gelu(x, approximate="tanh"), opset 20
                                                            or x Sigmoid(x (1.596 + 0.0714 x x))

ONNX Runtime fuses the form with Erf by itself, but not behind a convolution in int8: its two readers dequantize the
result each for itself. The form with Tanh it fuses on GPUs only: exported by JAX or from GPT-2 it is a fifth of what is
left to compute once the matrix products run in int8.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.data import Sample
from onnxc.exactness import Exactness
from onnxc.model import Graph, Model, Node, Tensor
from onnxc.session import Options

from .facts import Borders, number, producer, remove, standard
from .polynomials import RULES, Expansion, Polynomial, close, letters
from .raise_opset import RaiseOpset
from .skeletons import adopt

GELU_OPSET = 20
SLOPE, CUBE = np.sqrt(2 / np.pi), np.sqrt(2 / np.pi) * 0.044715  # Hendrycks and Gimpel, 2016
INNER: dict[str, Polynomial] = {
    "Erf": {(("x", 1),): np.sqrt(0.5)},
    "Tanh": {(("x", 1),): SLOPE, (("x", 3),): CUBE},
}
SHORT = 6  # operators of the form with Sigmoid
STEPS = 5  # from Erf or Tanh to the last product
NO_SLOWER = 0.97


@dataclass(frozen=True)
class PlainGelu(ExactPass):
    """Rewrite x (0.5 + 0.5 Erf(a x)) and x (0.5 + 0.5 Tanh(a x + b x^3)), however their sums and products are written.

    1. In the main graph and in bodies, with constants of one element.
    2. A model of an older opset is raised to 20 where that brings anything: for a form with Tanh, or with Erf behind a
       convolution; outputs must stay equal and the model must not get slower.
    3. Where it cannot be raised: 0.5 (1 + Tanh(z)) is Sigmoid(2 z), exact up to rounding; Erf stays.
    4. Not where something else reads a value in between.
    """

    name: ClassVar[str] = "plain-gelu"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place; the opset stays."""
        borders, changed = Borders.of(model), 0
        for graph in list(model.graphs()):
            for node in list(graph.nodes):
                if standard(node, *INNER):
                    changed += _rewritten(model, borders, graph, node)
        if changed:
            model.tidy()
        return Outcome(changed)

    def run_checked(
        self, model: Model, samples: Sequence[Sample], options: Options, original: Model | None = None
    ) -> Outcome:
        """``run``, in opset 20 where that pays."""
        if model.opset >= GELU_OPSET or not _gains(model):
            return self.run(model)
        raised = model.copy()
        notes = RaiseOpset(version=GELU_OPSET, gaining="").run_checked(raised, samples, options).notes
        if raised.opset >= GELU_OPSET and (outcome := self.run(raised)).changed:
            reason = Exactness(model, samples, options).unpaid(raised, NO_SLOWER)
            if reason is None:
                adopt(model, raised)
                return Outcome(outcome.changed, tuple(f"{note}, for Gelu" for note in notes))
            notes = (f"opset {model.opset} was kept: with Gelu {reason}",)
        return Outcome(self.run(model).changed, tuple(notes))


def _gains(model: Model) -> bool:
    """Whether there is a GELU that no session would fuse."""
    borders = Borders.of(model)
    found = [(node, _found(model, borders, node)) for node in model.nodes() if standard(node, *INNER)]
    return any(each is not None and (node.op == "Tanh" or _convolved(each[0])) for node, each in found)


def _convolved(tensor: Tensor) -> bool:
    """Whether a convolution makes ``tensor``, with a sum or product behind it at most."""
    node = producer(tensor)
    if node is not None and standard(node, "Add", "Mul"):
        made = [producer(each) for each in node.inputs]
        return any(each is not None and standard(each, "Conv", "ConvTranspose") for each in made)
    return node is not None and standard(node, "Conv", "ConvTranspose")


def _rewritten(model: Model, borders: Borders, graph: Graph, node: Node) -> bool:
    found = _found(model, borders, node)
    if found is None:
        return False
    x, y, bent, inside = found
    if not borders.closed(inside, y, graph):
        return False
    exact = all(np.isclose(bent[power], value, rtol=1e-4) for power, value in INNER[node.op].items())
    gelu = model.opset >= GELU_OPSET and exact
    if not gelu and (node.op == "Erf" or len(inside) <= SHORT):
        return False
    dtype = next(t.dtype for each in inside for t in each.inputs if number(model, borders, t) is not None)
    name, tanh = y.inputs[0].name, node.op == "Tanh"
    remove(graph, inside)
    if gelu:
        model.insert("Gelu", [x], [y], name=name, graph=graph, **({"approximate": "tanh"} if tanh else {}))
        return True

    def made(operator: str, inputs: list[Tensor], result: str | Tensor) -> Tensor:
        label = name if result is y else ""
        return model.insert(operator, inputs, [result], name=label, graph=graph).outputs[0]

    first, third = (
        model.constant(f"{y.name}_{what}", np.asarray(2 * bent[power], dtype))
        for what, power in (("slope", (("x", 1),)), ("cube", (("x", 3),)))
    )
    scaled = made("Mul", [made("Mul", [x, x], f"{y.name}_square"), third], f"{y.name}_scaled")
    slopes = made("Add", [scaled, first], f"{y.name}_slopes")
    gate = made("Sigmoid", [made("Mul", [x, slopes], f"{y.name}_bent")], f"{y.name}_gate")
    made("Mul", [x, gate], y)
    return True


def _found(model: Model, borders: Borders, node: Node) -> tuple[Tensor, Tensor, Polynomial, list[Node]] | None:
    """x, the result, what Erf or Tanh is taken of, and the nodes in between."""
    middle = node.outputs[0]
    for x in _sources(node.inputs[0]):
        inner = Expansion(model, borders, letters(x=x))
        bent = inner.of(node.inputs[0])
        if bent is None or bent.keys() != INNER[node.op].keys():
            continue
        reader, steps = borders.only_reader(middle), 0
        while reader is not None and len(reader.outputs) == 1 and steps < STEPS:
            outer = Expansion(model, borders, letters(x=x, t=middle))
            if close(outer.of(reader.outputs[0]), {(("x", 1),): 0.5, (("t", 1), ("x", 1)): 0.5}):
                inside = {id(each): each for each in (node, *inner.nodes.values(), *outer.nodes.values())}
                return x, reader.outputs[0], bent, list(inside.values())
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
