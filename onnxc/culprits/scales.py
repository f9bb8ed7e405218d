"""Tensors that one model holds in other units than the other. In: two models, names, samples. Out: factors by name.

Equalization and smoothing multiply the channels of an activation and divide the weights that read it (Nagel et al.
2019; Xiao et al. 2022): it keeps its name, but not its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxc.culprits.matching import Pair, showing, tensors
from onnxc.model import Constant, Model, Tensor
from onnxc.session import Options, Session

Factors = Mapping[str, np.ndarray]
AXES = (1, -1)  # of convolutions, of matrix products
SAMPLES, TENSORS_AT_ONCE = 8, 64  # of both models at one time: bounds the memory
EXPLAINED = 0.25  # of the squared difference remains at most: rounding alone is no change of units
COMMUTING = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "Identity", "Dropout"}  # with factors above zero
NEAR = 0.5  # of the tensor's energy, at most, is not explained: else the two have nothing in common


def factors_between(
    reference: Model, new: Model, names: Sequence[str], samples: Sequence[Mapping[str, np.ndarray]], options: Options
) -> dict[str, np.ndarray]:
    """Name -> factor per channel, in the shape that broadcasts, of the tensors that ``new`` holds in other units."""
    old_inputs = {t.name for t in reference.graph.inputs}
    names = [name for name in dict.fromkeys(names) if name not in old_inputs]
    places = tensors(new)
    places = {name: places[name] for name in names if name in places and places[name].inputs}
    sums = {name: {axis: np.zeros((0, 0)) for axis in AXES} for name in places}
    sessions = [Session(showing(model, list(places)), options) for model in (reference, unrounded(new))]
    for sample in samples[:SAMPLES]:
        before, after = (session.run(sample, list(places)) for session in sessions)
        for name in list(sums):
            x, y = np.asarray(before[name]), np.asarray(after[name])
            floats = x.dtype.kind == "f" == y.dtype.kind and np.isfinite(x).all() and np.isfinite(y).all()
            if x.shape != y.shape or x.ndim < 2 or not floats:
                del sums[name]
                continue
            for axis in list(sums[name]):
                products = channel_products(x, np.where(x == 0, 0, y), axis)  # below a Relu that has become a rounding
                total = sums[name][axis]
                if total.size and total.shape != products.shape:  # a length that varies: no channels lie along it
                    del sums[name][axis]
                else:
                    sums[name][axis] = total + products if total.size else products
    found = {name: chosen(products, np.ndim(before[name])) for name, products in sums.items()} if sums else {}
    return {name: factor for name, factor in found.items() if factor is not None}


def units(
    reference: Model, new: Model, pairs: Sequence[Pair], samples: Sequence[Mapping[str, np.ndarray]], options: Options
) -> dict[str, np.ndarray]:
    """The factors of all tensors between the nodes of ``pairs`` and the rest of the model."""
    names = [t.name for pair in pairs for node in pair.nodes for t in (*node.inputs, *node.outputs)]
    there = tensors(new)
    known = {t.name for node in reference.graph.nodes for t in node.outputs}
    names = [name for name in dict.fromkeys(names) if name in known and name in there]
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(names), TENSORS_AT_ONCE):
        found |= factors_between(reference, new, names[start : start + TENSORS_AT_ONCE], samples, options)
    made = tensors(reference)
    origins = {name: origin(made[name]).name for name in found}
    return {name: found.get(origins[name], factor) for name, factor in found.items()}


def origin(tensor: Tensor) -> Tensor:
    """The tensor whose units ``tensor`` has: two guesses at one factor would not cancel out."""
    while tensor.inputs and tensor.inputs[0].op in COMMUTING:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def channel_products(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    """Sums over all but ``axis`` of x x, x y and y y: [3, C]."""
    x, y = (np.moveaxis(each, axis, -1).reshape(-1, each.shape[axis]).astype(np.float64) for each in (x, y))
    return np.stack([(x * x).sum(0), (x * y).sum(0), (y * y).sum(0)])


def chosen(products: Mapping[int, np.ndarray], dimensions: int) -> np.ndarray | None:
    """The factors along the axis that explains most, None where the tensor is in the same units."""
    best: tuple[float, int, np.ndarray] | None = None
    for axis, (old, both, fresh) in products.items():
        factors = np.where((old > 0) & (both > 0), both / np.where(old > 0, old, 1.0), 1.0)
        left = float((fresh - 2 * factors * both + factors**2 * old).sum())
        plain, energy = float((fresh - 2 * both + old).sum()), float(fresh.sum())
        if left <= EXPLAINED * plain and left <= NEAR * energy and (best is None or left < best[0]):
            best = (left, axis, factors)
    if best is None:
        return None
    shape = [1] * dimensions
    shape[best[1]] = -1
    return np.asarray(best[2].reshape(shape), np.float32)


def unrounded(model: Model) -> Model:
    """A copy in which activations are clipped where a Q and its DQ saturate, and not rounded."""
    copy = model.copy()
    for node in [each for each in copy.graph.nodes if each.op == "DequantizeLinear"]:
        entry = node.inputs[0]
        if not entry.inputs or entry.inputs[0].op != "QuantizeLinear":
            continue
        tensor, *parameters = entry.inputs[0].inputs
        if len(parameters) < 2 or not all(isinstance(each, Constant) and each.values.size == 1 for each in parameters):
            continue
        scale, zero = (each.values.reshape(()) for each in parameters)
        if zero.dtype.kind not in "iu":
            continue
        limits = [(end - int(zero)) * scale for end in (np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max)]
        for operator, limit in zip(("Max", "Min"), limits, strict=True):
            bound = copy.constant(f"{node.outputs[0].name}_{operator.lower()}", np.asarray(limit, scale.dtype))
            tensor = copy.insert(operator, [tensor, bound], [f"{node.outputs[0].name}_unrounded"]).outputs[0]
        copy.redirect(node.outputs[0], tensor)
    copy.tidy()
    return copy


def scaled(values: Any, factors: Factors, name: str) -> Any:
    """``values`` of the tensor ``name`` in the units of the other model."""
    return np.asarray(values * factors[name], values.dtype) if name in factors else values
