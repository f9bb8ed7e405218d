"""Labels that are their own places are not looked up: ArgMax has them already.

before: ArgMax ── ArrayFeatureExtractor(classes 0, 1, 2 ...) ── Reshape ── Cast ── label        after: ArgMax ── label

Converters of scikit-learn's classifiers write the look-up for any classes; most are numbered from zero. Three kernels
less are 8 % of the time of a small network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.model import Model, Node, Tensor
from onnxc.shapes import TensorType, infer

from .facts import Borders, given, producer, remove, standard

WHOLE = {np.dtype(np.int32): 6, np.dtype(np.int64): 7}
INT64 = 7


@dataclass(frozen=True)
class PlainLabels(ExactPass):
    """Take out the look-up of classes 0, 1, 2 ... by what ArgMax gives.

    1. ArrayFeatureExtractor or Gather (axis 0) of such classes, int32 or int64, at the places of an ArgMax in the same
       graph, and the Reshape and Cast to a type of whole numbers that alone read it.
    2. One Reshape and one Cast are left where shape or type are not those of ArgMax.
    3. It must not act on strings, other classes, and look-ups whose places are not an ArgMax's: they may be negative.
    """

    name: ClassVar[str] = "plain-labels"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        found = [node for node in model.graph.nodes if _looks_up(node)]
        if not found:
            return Outcome()
        borders, types = Borders.of(model), infer(model)
        changed = sum(_plain(model, borders, types, node) for node in found)
        if changed:
            model.tidy()
        return Outcome(changed, (f"labels that are their own places are not looked up: {changed}",) * bool(changed))


def _looks_up(node: Node) -> bool:
    """Whether a node picks entries of one axis at the places of an ArgMax."""
    gathers = standard(node, "Gather") and node.attrs.get("axis", 0) == 0
    if not gathers and (node.op, node.domain) != ("ArrayFeatureExtractor", "ai.onnx.ml"):
        return False
    argmax = producer(node.inputs[1])
    return argmax is not None and standard(argmax, "ArgMax")


def _plain(model: Model, borders: Borders, types: Mapping[str, TensorType], node: Node) -> bool:
    """Whether a look-up was taken out."""
    classes, places = node.inputs[:2]
    argmax = producer(places)
    if argmax is None or not any(each is argmax for each in model.graph.nodes):
        return False
    if not borders.fixed(classes) or classes.dtype not in WHOLE:
        return False
    values = model.values(classes)
    flat = node.op == "ArrayFeatureExtractor"
    if values.ndim not in ((1, 2) if flat else (1,)) or not np.array_equal(values.reshape(-1), np.arange(values.size)):
        return False
    if values.ndim == 2 and values.shape[0] != 1:
        return False
    gone, to, shape = [node], WHOLE[classes.dtype], [1, -1] if flat else None
    while (reader := borders.only_reader(gone[-1].outputs[0])) is not None:
        if standard(reader, "Cast") and reader.attrs.get("to") in WHOLE.values():
            to = reader.attrs["to"]
        elif standard(reader, "Reshape") and (wanted := _shape(model, borders, reader)) is not None:
            shape = wanted
        else:
            break
        gone.append(reader)
    end = gone[-1].outputs[0]
    remove(model.graph, gone)
    _write(model, borders, types, argmax, end, shape, to)
    return True


def _shape(model: Model, borders: Borders, node: Node) -> list[int] | None:
    """The shape that a Reshape asks for, None where it is computed or takes lengths from its input."""
    shape = given(node, 1)
    if shape is None or not borders.fixed(shape):
        return None
    wanted = [int(length) for length in model.values(shape)]
    return wanted if 0 not in wanted else None


def _write(
    model: Model,
    borders: Borders,
    types: Mapping[str, TensorType],
    argmax: Node,
    end: Tensor,
    shape: list[int] | None,
    to: int,
) -> None:
    """Let ``end`` be the places, in ``shape`` and of the type ``to``."""
    made: Tensor = argmax.outputs[0]
    if shape == [-1] and not made.outputs and borders.private(made) and _of_rows(types, argmax):
        argmax.attrs["keepdims"], shape = 0, None
    if shape is None and to == INT64 and not made.outputs and borders.private(made):
        argmax.outputs[0] = end
    elif shape is None:
        model.insert("Cast", [made], [end], to=to)
    else:
        sizes = model.constant(f"{end.name}_shape", np.asarray(shape, np.int64))
        reshape = model.insert("Reshape", [made, sizes], [end if to == INT64 else f"{end.name}_places"])
        if to != INT64:
            model.insert("Cast", [reshape.outputs[0]], [end], to=to)


def _of_rows(types: Mapping[str, TensorType], argmax: Node) -> bool:
    """Whether ArgMax looks for the largest number in each row of a matrix."""
    known = types.get(argmax.inputs[0].name)
    return known is not None and known.shape is not None and len(known.shape) == 2
