"""Single columns that are picked, negated and summed become one matrix product.

before: x [N, 45] ─┬─ ArrayFeatureExtractor(3) ─── Neg ─┬─ Sum ─┬─ Concat ─ y [N, 10]      after: MatMul(x, signs) ─ y
                   └─ ArrayFeatureExtractor(17) ────────┘  ...  ┘

The votes of a support vector machine, one class against another, are written so: 280 nodes for ten classes, which take
longer than the support vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.data import Sample
from onnxc.model import Model, Node, Tensor
from onnxc.session import Options
from onnxc.shapes import TensorType, infer

from .facts import Borders, number, producer, standard
from .trying import where_faster

PICKS, FEWEST = 3, 8  # columns that are picked, and nodes that must vanish for each product
WIDEST, LARGEST = 1024, 1 << 16  # columns of a source, and factors
FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Affine:
    """A tensor [N, M] as ``source`` @ factors + shift.

    Attributes:
        source: [N, K], float32.
        factors: [K, M].
        shift: [M].
    """

    source: Tensor
    factors: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class ColumnsAsProducts(ExactPass):
    """Write sums of columns as MatMul, with an Add where constants were added.

    1. In the main graph, float32: ArrayFeatureExtractor, Gather (axis 1), Neg, Sum, Add and Sub of one another or a
       single constant, Mul by one, Concat (axis 1), all of the same source of two axes with so many columns.
    2. A product is written where something else reads what they make, if at least 8 nodes vanish for it.
    3. Only where the outputs stay equal and the model gets faster.
    """

    name: ClassVar[str] = "columns-as-products"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        if sum(_picks(node) for node in model.graph.nodes) < PICKS:
            return Outcome()
        borders = Borders.of(model)
        found = affine(model, borders, infer(model))
        ends = [node for node in model.graph.nodes if id(node) in found and _ends(borders, found, node)]
        ends = [node for node in ends if _behind(found, node) >= FEWEST]
        for node in ends:
            _write(model, node, found[id(node)])
        changed = len(ends)
        if changed:
            model.tidy()
        return Outcome(changed, (f"{changed} sums of single columns became matrix products",) * bool(changed))

    def run_checked(
        self, model: Model, samples: Sequence[Sample], options: Options, original: Model | None = None
    ) -> Outcome:
        """``run`` if it pays."""
        return where_faster(self, model, samples, options, "sums of columns were left as they are")


def affine(model: Model, borders: Borders, types: Mapping[str, TensorType]) -> dict[int, Affine]:
    """The nodes, by identity, whose only output is a sum of columns of one tensor; nodes must be in order."""
    found: dict[int, Affine] = {}
    for node in model.graph.nodes:
        made = _picked(model, borders, types, node) if _picks(node) else _combined(model, borders, found, node)
        if made is not None and made.factors.size <= LARGEST:
            found[id(node)] = made
    return found


def _picks(node: Node) -> bool:
    """Whether a node may pick columns."""
    if node.op == "ArrayFeatureExtractor" and node.domain == "ai.onnx.ml":
        return True
    return standard(node, "Gather") and node.attrs.get("axis", 0) in (1, -1)


def _picked(model: Model, borders: Borders, types: Mapping[str, TensorType], node: Node) -> Affine | None:
    source, places = node.inputs[:2]
    width = columns(types, source)
    if width is None or width > WIDEST or not borders.fixed(places):
        return None
    wanted = model.values(places)
    if node.op == "ArrayFeatureExtractor":
        wanted = wanted.reshape(-1)  # one place or many, the columns stay
    if wanted.ndim != 1 or wanted.size == 0 or wanted.min() < 0 or wanted.max() >= width:
        return None
    return Affine(source, np.eye(width)[:, wanted], np.zeros(wanted.size))


def _combined(model: Model, borders: Borders, found: Mapping[int, Affine], node: Node) -> Affine | None:
    """What a node makes of tensors that are affine already."""
    known = [found.get(id(producer(tensor))) for tensor in node.inputs]
    given = [each for each in known if each is not None]
    if not given or any(each.source is not given[0].source for each in given):
        return None
    source = given[0].source
    if standard(node, "Concat") and len(given) == len(known) and node.attrs.get("axis") in (1, -1):
        return Affine(source, np.hstack([each.factors for each in given]), np.hstack([each.shift for each in given]))
    constants = [number(model, borders, each) for each, made in zip(node.inputs, known, strict=True) if made is None]
    if any(each is None for each in constants) or len({each.factors.shape[1] for each in given}) != 1:
        return None
    if standard(node, "Neg"):
        return Affine(source, -given[0].factors, -given[0].shift)
    if standard(node, "Sum", "Add"):
        shift = np.sum([each.shift for each in given], 0) + sum(constants)
        return Affine(source, np.sum([each.factors for each in given], 0), shift)
    if standard(node, "Sub"):
        first, second = ((each.factors, each.shift) if each else (0, constants[0]) for each in known)
        return Affine(source, np.asarray(first[0] - second[0]), np.asarray(first[1] - second[1]))
    if standard(node, "Mul") and len(constants) == 1:
        return Affine(source, given[0].factors * constants[0], given[0].shift * constants[0])
    return None


def _behind(found: Mapping[int, Affine], node: Node) -> int:
    """How many nodes make a sum of columns."""
    seen, waiting = set[int](), [node]
    while waiting:
        each = waiting.pop()
        if id(each) in found and id(each) not in seen:
            seen.add(id(each))
            waiting += [made for tensor in each.inputs if (made := producer(tensor)) is not None]
    return len(seen)


def columns(types: Mapping[str, TensorType], tensor: Tensor) -> int | None:
    """How many columns a float32 matrix has, None where that is not known or it is none.

    Inference knows nothing of support vector machines: their scores are one for each pair of classes, as are their rho.
    """
    known = types.get(tensor.name)
    if known is not None and known.shape is not None:
        return known.shape[1] if len(known.shape) == 2 and known.dtype == FLOAT else None
    node = producer(tensor)
    if node is None:
        return None
    if node.op == "SVMClassifier" and node.domain == "ai.onnx.ml" and tensor is node.outputs[1]:
        return len(node.attrs.get("rho", ())) if len(node.attrs.get("rho", ())) > 1 else None
    if standard(node, "Neg", "Abs") or (standard(node, "Cast") and node.attrs.get("to") == 1):
        made = producer(node.inputs[0])
        compared = standard(node, "Cast") and made is not None and standard(made, "Less", "Greater")
        return columns(types, made.inputs[0] if compared and made is not None else node.inputs[0])
    return None


def _ends(borders: Borders, found: Mapping[int, Affine], node: Node) -> bool:
    """Whether something else than columns' arithmetic reads what a node makes."""
    tensor = node.outputs[0]
    return not borders.private(tensor) or any(id(reader) not in found for reader in tensor.outputs)


def _write(model: Model, node: Node, known: Affine) -> None:
    """Let a product make what ``node`` made."""
    tensor = node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    matrix = model.constant(f"{tensor.name}_factors", known.factors.astype(np.float32))
    if not known.shift.any():
        model.insert("MatMul", [known.source, matrix], [tensor], name=node.name)
        return
    product = model.insert("MatMul", [known.source, matrix], [f"{tensor.name}_product"], name=node.name)
    shift = model.constant(f"{tensor.name}_shift", known.shift.astype(np.float32))
    model.insert("Add", [product.outputs[0], shift], [tensor])
