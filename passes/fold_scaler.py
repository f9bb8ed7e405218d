"""A scaler of inputs becomes part of the weights that follow it: (x - offset) * scale @ W + b is x @ W' + b'.

before: x ── Scaler ── Cast ── MatMul(W) ── Add(b)        after: x ── MatMul(scale * W) ── Add(b - offset @ (scale * W))

Pipelines of scikit-learn begin with one; a small network takes a fifth less time without. Weights that unfold are
multiplied at load: their codes stay those of the inputs that were scaled, which are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxc.contract.passes import FinishingPass, Outcome
from onnxc.model import Model, Node, Tensor

from .computing import computed
from .facts import Borders, given, producer, remove, rewire, standard

FLOAT, LINEAR = 1, ("LinearClassifier", "LinearRegressor")
FARTHEST = 64.0  # standard deviations between zero and an offset: beyond, float32 loses two digits of the difference


@dataclass(frozen=True)
class FoldScaler(FinishingPass):
    """Fold Scaler into the one linear that reads it.

    1. Scaler of float32 in the main graph, and a Cast to float32 behind it.
    2. MatMul or Gemm in float with a weight of its own, stored or unfolded, and a constant bias or none.
    3. LinearClassifier and LinearRegressor.
    4. It must not act on offsets far from zero, measured in scales, nor where the inputs are rounded to codes.
    """

    name: ClassVar[str] = "fold-scaler"

    def finish(self, model: Model, *, told: bool = False) -> Outcome:
        """Edit ``model`` in place."""
        scalers = [node for node in model.graph.nodes if node.op == "Scaler" and node.domain == "ai.onnx.ml"]
        if not scalers:
            return Outcome()
        borders = Borders.of(model)
        changed = sum(_folded(model, borders, node) for node in scalers)
        if not changed:
            return Outcome()
        model.tidy()
        return Outcome(changed, (f"{changed} Scaler folded into the weights that follow",))


def _folded(model: Model, borders: Borders, scaler: Node) -> bool:
    source, end, gone = scaler.inputs[0], scaler.outputs[0], [scaler]
    offset, scale = (np.asarray(scaler.attrs.get(name, ()), np.float64) for name in ("offset", "scale"))
    if source.dtype != np.dtype(np.float32) or not offset.size or not scale.size:
        return False
    if np.abs(offset * scale).max() > FARTHEST:
        return False
    reader = borders.only_reader(end)
    if reader is not None and standard(reader, "Cast") and reader.attrs.get("to") == FLOAT:
        gone.append(reader)
        end = reader.outputs[0]
        reader = borders.only_reader(end)
    if reader is None or reader.inputs[0] is not end or not any(reader is node for node in model.graph.nodes):
        return False
    if reader.op in LINEAR and reader.domain == "ai.onnx.ml":
        done = _into_linear(reader, offset, scale)
    elif standard(reader, "MatMul", "Gemm") and not reader.attrs.get("transA", 0):
        done = _into_product(model, borders, reader, offset, scale)
    else:
        return False
    if done:
        rewire(end, source)
        remove(model.graph, gone)
    return done


def _into_linear(reader: Node, offset: np.ndarray, scale: np.ndarray) -> bool:
    """LinearClassifier and LinearRegressor hold coefficients as [targets, features], flat."""
    coefficients = np.asarray(reader.attrs.get("coefficients", ()), np.float64)
    intercepts = np.asarray(reader.attrs.get("intercepts", ()), np.float64)
    features = max(offset.size, scale.size)
    if not intercepts.size or coefficients.size != intercepts.size * features:
        return False
    rows = coefficients.reshape(-1, features) * scale
    reader.attrs["coefficients"] = [float(value) for value in rows.reshape(-1).astype(np.float32)]
    moved = intercepts - rows @ np.broadcast_to(offset, features)
    reader.attrs["intercepts"] = [float(value) for value in moved.astype(np.float32)]
    return True


def _into_product(model: Model, borders: Borders, reader: Node, offset: np.ndarray, scale: np.ndarray) -> bool:
    weight, transposed = reader.inputs[1], bool(reader.attrs.get("transB", 0))
    if reader.attrs.get("alpha", 1.0) != 1.0 or reader.attrs.get("beta", 1.0) != 1.0:
        return False
    values = computed(model, borders, weight) if borders.only_reader(weight) is reader else None
    features = max(offset.size, scale.size)
    if values is None or values.dtype != np.float32 or values.ndim != 2 or values.shape[int(transposed)] != features:
        return False
    adder = reader if reader.op == "Gemm" else borders.only_reader(reader.outputs[0])
    place, bias = _bias(model, borders, adder, reader) if adder is not None else (0, None)
    if offset.any() and bias is None:
        return False
    factors = np.broadcast_to(scale, features).astype(np.float32)
    factors = factors if transposed else factors[:, None]
    scaled = values * factors
    if bias is not None and adder is not None:
        rows = (scaled.T if not transposed else scaled).astype(np.float64)
        moved = bias - (rows @ np.broadcast_to(offset, features)).reshape(bias.shape[-1:])
        adder.inputs[place] = model.constant(f"{reader.outputs[0].name}_bias", moved.astype(np.float32))
    if borders.fixed(weight):
        reader.inputs[1] = model.constant(f"{weight.name}_scaled", scaled)
    else:
        factor = model.constant(f"{weight.name}_factors", factors)
        reader.inputs[1] = model.insert("Mul", [weight, factor], [f"{weight.name}_scaled"]).outputs[0]
    return True


def _bias(model: Model, borders: Borders, adder: Node, product: Node) -> tuple[int, np.ndarray | None]:
    """Where the bias of a product stands, and its values; None for anything but one number for each output."""
    if adder is product:
        place = 2
    elif standard(adder, "Add"):
        place = 1 if producer(adder.inputs[0]) is product else 0
    else:
        return 0, None
    tensor: Tensor | None = given(adder, place)
    values = computed(model, borders, tensor) if tensor is not None else None
    if values is None or values.dtype != np.float32 or values.ndim == 0 or values.size != values.shape[-1]:
        return place, None
    return place, values
