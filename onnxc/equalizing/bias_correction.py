"""Empirical bias correction: what quantization adds to the mean of a channel is taken out of its bias.

In: the float model, the model that a plan made of it, and calibration data. Out: the same model with other biases.
Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias Correction"
(2019), appendix D: site after site in topological order, each measured on what the already corrected part feeds it.

Nothing but sums per channel is kept: the mean of the error is the difference of the means, and the float model runs
once. Sites of one depth do not feed each other and are measured together, on the model cut off behind them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxc.model import Constant, Model, Node, Tensor
from onnxc.observe import with_outputs
from onnxc.session import Options, Session

LINEAR = frozenset({"Conv", "Gemm", "ConvTranspose"})
ROUNDS = 64  # at most so many runs over the samples; deeper models have several depths measured together

Samples = Iterable[Mapping[str, NDArray[np.generic]]]
Vector = NDArray[np.float64]


@dataclass(eq=False)
class Place:
    """A linear operator of the rewritten model whose bias can be corrected.

    Attributes:
        name: of the node that adds the bias.
        tensor: name of its result, bias included, in both models.
        axis: of that result's channels.
        bias: the constant that holds it: float32, or the int32 codes.
        scale: of the codes, broadcastable; None for floats.
    """

    name: str
    tensor: str
    axis: int
    bias: Constant
    scale: NDArray[np.float32] | None

    def correct(self, error: Vector) -> None:
        """Take ``error`` [channels] out of the bias."""
        values = np.asarray(self.bias.values)
        if self.scale is None:
            self.bias.values = (values.astype(np.float64) - error.reshape(values.shape)).astype(values.dtype)
            return
        codes = np.rint(values.astype(np.float64) - error.reshape(values.shape) / self.scale.reshape(-1))
        limits = np.iinfo(np.int32)
        self.bias.values = np.clip(codes, limits.min, limits.max).astype(np.int32)


def corrected(
    reference: Model, model: Model, samples: Samples, options: Options, only: Iterable[str] | None = None
) -> tuple[Model, str]:
    """A copy of ``model`` with corrected biases, and a sentence on what was done.

    Args:
        reference: the float model it was made of; tensors and nodes have the same names.
        samples: calibration data, read once per depth.
        only: names of the sites to correct; None: all whose weight or input is quantized.
    """
    copy = model.copy()
    places = places_of(copy, reference, only)
    if not places:
        return copy, "no quantized site has a bias of its own"
    means = channel_means(reference, places, samples, options)
    for group in rounds(copy, places):
        found = channel_means(cut(copy, group), group, samples, options)
        for place in group:
            error = found[place.tensor] - means[place.tensor]
            if np.isfinite(error).all():
                place.correct(error)
    return copy, f"the biases of {len(places)} sites corrected by their mean error"


def places_of(model: Model, reference: Model, only: Iterable[str] | None = None) -> list[Place]:
    """Every quantized linear of the main graph with a bias that no other node reads, in topological order; with
    ``only`` those called so, whatever they read. A MatMul's bias is the constant that an Add puts behind it.
    """
    names = None if only is None else set(only)
    known = {t.name for node in reference.graph.nodes for t in node.outputs}
    added = {
        node.outputs[0].name: maker.name
        for node in reference.graph.nodes
        if node.op == "Add"
        for maker in (tensor.inputs[0] for tensor in node.inputs if not isinstance(tensor, Constant) and tensor.inputs)
        if maker.op == "MatMul" and len(maker.outputs[0].outputs) == 1
    }
    found = []
    for node in model.graph.nodes:
        if not node.outputs or (result := node.outputs[0].name) not in known:
            continue
        if node.op in LINEAR and len(node.inputs) > 2:
            name, held = node.name, node.inputs[2]
            rounded = any(changed(tensor) for tensor in node.inputs[:2])
        elif node.op == "Add" and result in added:
            sides = [(bias_of(tensor)[0] is not None, position) for position, tensor in enumerate(node.inputs)]
            if [side for side, _ in sides] not in ([True, False], [False, True]):
                continue
            position = max(sides)[1]
            name, held, rounded = added[result], node.inputs[position], from_codes(node.inputs[1 - position])
        else:
            continue
        if not (name in names if names is not None else rounded):
            continue
        bias, scale = bias_of(held)
        axis = 1 if node.op in ("Conv", "ConvTranspose") else -1
        if bias is not None and len(bias.shape) == 1 and bias.values.size > 1:
            found.append(Place(node.name, result, axis, bias, scale))
    return found


def from_codes(tensor: Tensor) -> bool:
    """Whether a linear on codes made ``tensor``: a MatMul behind DequantizeLinear, or MatMulInteger and its scales."""
    for _ in range(4):
        node = tensor.inputs[0] if not isinstance(tensor, Constant) and tensor.inputs else None
        if node is None:
            return False
        if node.op in ("MatMul", "MatMulInteger"):
            return node.op == "MatMulInteger" or any(changed(each) for each in node.inputs[:2])
        if node.op not in ("Cast", "Mul"):
            return False
        tensor = node.inputs[0]
    return False


def changed(tensor: Tensor) -> bool:
    """Whether a tensor comes out of codes: through DequantizeLinear, or Cast and Mul as weights unfold."""
    for _ in range(8):
        if isinstance(tensor, Constant):
            return tensor.dtype is not None and np.dtype(tensor.dtype) != np.float32
        if not tensor.inputs:
            return False
        node = tensor.inputs[0]
        if node.op == "DequantizeLinear":
            return True
        if node.op not in ("Cast", "Mul", "Add", "Sub", "Reshape", "Transpose", "Gather", "Slice", "Concat"):
            return False
        if not all(isinstance(t, Constant) or t.inputs for t in node.inputs):
            return False
        tensor = node.inputs[0]
    return False


def bias_of(tensor: Tensor) -> tuple[Constant | None, NDArray[np.float32] | None]:
    """The constant behind a bias and the scale of its codes; None where there is none of its own."""
    if isinstance(tensor, Constant):
        alone = len(tensor.outputs) == 1 and tensor.dtype is not None and np.dtype(tensor.dtype) == np.float32
        return (tensor, None) if alone else (None, None)
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op != "DequantizeLinear" or len(node.inputs) > 2 or len(tensor.outputs) != 1:
        return None, None
    codes, scale = node.inputs
    if not isinstance(codes, Constant) or not isinstance(scale, Constant) or len(codes.outputs) != 1:
        return None, None
    return codes, np.asarray(scale.values, np.float32)


def rounds(model: Model, places: Sequence[Place]) -> list[list[Place]]:
    """``places`` by depth, shallowest first: how many of them lie on the longest path to each."""
    by_node = {place.name: place for place in places}
    depth: dict[int, int] = {}
    groups: dict[int, list[Place]] = {}
    for node in model.graph.nodes:  # sorted: what a node reads was made before
        reached = max((depth.get(id(tensor), 0) for tensor in read_by(node)), default=0)
        if node.name in by_node:
            groups.setdefault(reached, []).append(by_node[node.name])
            reached += 1
        for tensor in node.outputs:
            depth[id(tensor)] = reached
    levels = sorted(groups)
    size = -(-len(levels) // ROUNDS)
    return [
        [place for level in levels[start : start + size] for place in groups[level]]
        for start in range(0, len(levels), size)
    ]


def read_by(node: Node) -> list[Tensor]:
    """What a node reads, and what its bodies capture."""
    found = list(node.inputs)
    for body in node.bodies():
        for inner in body.nodes:
            found += read_by(inner)
    return found


def cut(model: Model, places: Sequence[Place]) -> Model:
    """``model`` as far as it is needed for the results of ``places``."""
    names = [place.tensor for place in places]
    made = with_outputs(model, names)
    made.graph.outputs[:] = [tensor for tensor in made.graph.outputs if tensor.name in set(names)]
    made.tidy()
    return made


def channel_means(model: Model, places: Sequence[Place], samples: Samples, options: Options) -> dict[str, Vector]:
    """The mean of every channel of the places' results, over all samples and positions."""
    names = [place.tensor for place in places]
    session = Session(with_outputs(model, names), options)
    sums: dict[str, Vector] = {}
    counts = dict.fromkeys(names, 0)
    for sample in samples:
        given = {name: value for name, value in sample.items() if name in {each.name for each in session.inputs}}
        for place, values in zip(places, session.run(given, names).values(), strict=True):
            array = np.asarray(values)
            others = tuple(i for i in range(array.ndim) if i != place.axis % array.ndim)
            sums[place.tensor] = sums.get(place.tensor, 0.0) + array.sum(others, dtype=np.float64)
            counts[place.tensor] += array.size // array.shape[place.axis]
    return {name: total / max(counts[name], 1) for name, total in sums.items()}
