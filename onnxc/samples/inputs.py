"""What a graph demands of its inputs: where they index, what they are compared with, what they decide.

    input_ids --Cast--> Gather(table [30522, 384])       index: -30522 .. 30521
    sr        --------> Equal(16000) --> If              decides: 16000 for one branch, another for the other
    mask      --Cast--> 1 - mask --> Mul(-1e9)           mask

In: a Model. Out: Demand for each input; legal ranges for checking calibration data.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxc.model import Model, Node, Tensor

# operators whose first input comes out with the same values, reordered, repeated or a part of them
_MOVES = frozenset((
    "Cast", "CastLike", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand",
    "Tile", "Slice", "Gather", "GatherND", "GatherElements", "Split", "Dropout", "Compress", "DepthToSpace",
    "SpaceToDepth", "ReverseSequence",
))  # fmt: skip
_COMPARES = frozenset(("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"))
_LOGIC = frozenset((
    "Not", "And", "Or", "Xor", "Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Gather", "ReduceMax",
    "ReduceMin", "ReduceSum",
))  # fmt: skip
_ELEMENTWISE = frozenset((
    "Add", "Sub", "Mul", "Div", "Cast", "Identity", "Clip", "Relu", "Neg", "QuantizeLinear",
    "DequantizeLinear",
))  # fmt: skip

# what an input must look like that is not data but an argument: operator and slot -> rule (see generate.py)
_ARGUMENTS = {
    **{(op, 1): "ones" for op in ("Expand", "Tile", "TopK", "Upsample", "STFT", "CenterCropPad", "DFT")},
    **{(op, 4): "ones" for op in ("LSTM", "GRU", "RNN", "Slice", "BatchNormalization")},
    **{(op, 1): "axes" for op in ("Squeeze", "Unsqueeze", "CumSum", "ReduceSum", "ReduceMean", "ReduceMax")},
    **{(op, 1): "axes" for op in ("ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum")},
    **{(op, 1): "axes" for op in ("ReduceLogSumExp", "ReduceSumSquare")},
    **{(op, 1): "zeros" for op in ("Slice", "Pad", "Trilu", "MaxUnpool", "Resize", "ScatterND")},
    **{(op, 1): "ones" for op in ("QuantizeLinear", "DequantizeLinear", "OneHot")},
    **{(op, 0): "few" for op in ("HannWindow", "HammingWindow", "BlackmanWindow", "Loop")},
    ("Reshape", 1): "reshape",
    ("ConstantOfShape", 0): "ones",
    ("Slice", 2): "ones",
    ("Slice", 3): "axes",
    ("Pad", 3): "axes",
    ("OneHot", 1): "few",
    ("Range", 0): "zeros",
    ("Range", 1): "few",
    ("Range", 2): "ones",
    ("Resize", 2): "ones",
    ("NonMaxSuppression", 2): "ones",
    ("NonMaxSuppression", 3): "zeros",
    ("Dropout", 1): "zeros",
    ("Dropout", 2): "zeros",  # training mode: results would be random
    ("SplitToSequence", 1): "split",
    ("Split", 1): "split",
    ("TensorScatter", 2): "zeros",
}


@dataclass
class Demand:
    """What one input must or should be.

    Attributes:
        index: lowest and highest legal value, where it indexes something of known size.
        bounded: as index, also where only the first entry is sure to be there.
        compared: constants that it is compared with, with the comparison.
        decides: whether such a comparison, or the value itself, chooses the branch of an If.
        vocabulary: the keys of a table that it is looked up in.
        argument: a rule from the table above when it is no data but an argument of an operator.
        total: for the rule "split", the size of the axis that is split.
        mask: whether it is an attention mask, 1 for what counts.
        sizes: axis -> the size that a constant weight demands.
    """

    index: tuple[int, int] | None = None
    bounded: tuple[int, int] | None = None
    compared: set[tuple[str, float]] = field(default_factory=set)
    decides: bool = False
    vocabulary: tuple[Any, ...] = ()
    argument: str | None = None
    total: int | None = None
    mask: bool = False
    sizes: dict[int, int] = field(default_factory=dict)

    def limit(self, size: int | None, offset: int) -> None:
        """It indexes an axis of ``size`` (None: unknown) after ``offset`` was added to it."""
        low, high = (-size - offset, size - 1 - offset) if size else (-offset, -offset)
        if size:
            self.index = _both(self.index, (low, high))
        self.bounded = _both(self.bounded, (low, high))


def index_limits(model: Model) -> dict[str, tuple[int, int]]:
    """Integer inputs that index a table -> lowest and highest legal value (-1 is the last entry)."""
    return {name: demand.index for name, demand in demands(model).items() if demand.index is not None}


def demands(model: Model) -> dict[str, Demand]:
    """The Demand of each input of the main graph, by name."""
    tracer = _Tracer(model)
    return {tensor.name: tracer.trace(tensor) for tensor in model.graph.inputs}


class _Tracer:
    """Follows values forwards through a model and its bodies."""

    def __init__(self, model: Model) -> None:
        self._readers: defaultdict[Tensor, list[tuple[Node, int]]] = defaultdict(list)
        self._makers: dict[Tensor, Node] = {}
        for node in model.nodes():
            for slot, tensor in enumerate(node.inputs):
                self._readers[tensor].append((node, slot))
            for tensor in node.outputs:
                self._makers[tensor] = node

    def trace(self, tensor: Tensor) -> Demand:
        demand = Demand()
        seen: set[tuple[Tensor, int]] = set()
        waiting = [(tensor, 0, True)]  # tensor, what was added to it, whether it is still the input itself
        while waiting:
            current, offset, itself = waiting.pop()
            if (current, offset) in seen or len(seen) > 2000:
                continue
            seen.add((current, offset))
            for node, slot in self._readers[current]:
                for tensor_, offset_ in self._step(demand, node, slot, offset, itself):
                    waiting.append((tensor_, offset_, itself and node.op in {"Cast", "Identity"}))
        self._sizes(demand, tensor)
        return demand

    def _step(self, demand: Demand, node: Node, slot: int, offset: int, itself: bool) -> list[tuple[Tensor, int]]:
        """What one reader demands, and the tensors in which the value goes on."""
        self._indexing(demand, node, slot, offset)
        op = node.op
        if itself and (op, slot) in _ARGUMENTS and demand.argument is None:
            demand.argument = _ARGUMENTS[op, slot]
            if demand.argument == "split":
                demand.total = self._size(node.inputs[0], node.attrs.get("axis", 0))
        if op in {"If", "Loop"} and slot == (0 if op == "If" else 1):
            demand.decides = True
            demand.compared |= {("If", 0.0), ("If", 1.0)}
        if op in _COMPARES:
            constant = self._constant(node.inputs[1 - slot])
            if constant is not None and constant.size == 1 and constant.dtype.kind in "iufb":
                demand.compared.add((op, float(constant.ravel()[0]) - offset))
                demand.decides |= self._reaches_if(node.outputs[0])
            elif (
                constant is not None and constant.size > 1 and constant.dtype.kind in "iu"
            ):  # as one-hot codes are made
                low, high = int(constant.min()) - offset, int(constant.max()) - offset
                demand.bounded = _both(demand.bounded, (low, high))
        if op in {"LabelEncoder", "OneHotEncoder", "CategoryMapper"} and not demand.vocabulary:
            lists = [value for key, value in sorted(node.attrs.items()) if re.match("keys_|cats_", key)]
            demand.vocabulary = tuple(lists[0]) if lists and isinstance(lists[0], list) else ()
        if op in {"Add", "Sub"}:
            constant = self._constant(node.inputs[1 - slot]) if len(node.inputs) == 2 else None
            if constant is not None and constant.size == 1 and float(constant.ravel()[0]).is_integer():
                value = int(constant.ravel()[0])
                if op == "Add" or slot == 0:
                    return [(node.outputs[0], offset + (value if op == "Add" else -value))]
                demand.mask |= value == 1 and self._suppresses(node.outputs[0])
            return []
        if op in {"Loop", "Scan"}:
            body = node.attrs.get("body")
            return [(body.inputs[slot], offset)] if body is not None and slot < len(body.inputs) else []
        if op == "Concat" or (op in _MOVES and slot == 0) or (op == "Where" and slot > 0):
            return [(each, offset) for each in node.outputs]
        return []

    def _indexing(self, demand: Demand, node: Node, slot: int, offset: int) -> None:
        op, inputs = node.op, node.inputs
        axis = node.attrs.get("axis", 0)
        if op in {"Gather", "GatherElements", "ScatterElements", "Scatter", "GatherBlockQuantized"} and slot == 1:
            axis = node.attrs.get("gather_axis", 0) if op == "GatherBlockQuantized" else axis
            demand.limit(self._size(inputs[0], axis), offset)
        elif op == "GatherND" and slot == 1:
            sizes = [self._size(inputs[0], each) for each in range(len(inputs[0].shape or ()))]
            demand.limit(min((size for size in sizes if size), default=None), offset)
        elif op == "OneHot" and slot == 0:  # others are legal, and give zeros
            depth = self._constant(inputs[1])
            if depth is not None and depth.size == 1 and int(depth.ravel()[0]) > 0:
                demand.bounded = _both(demand.bounded, (-offset, int(depth.ravel()[0]) - 1 - offset))
        elif op == "EmbedLayerNormalization" and slot < 2 and len(inputs) > 4:
            demand.limit(self._size(inputs[2 if slot == 0 else 4], 0), offset)
        elif op in {"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"} and slot == 1:
            demand.limit(self._size(inputs[0], 1), offset)
            demand.bounded = _both(demand.bounded, (0, 1 << 30))
        elif op == "RotaryEmbedding" and slot in {1, 3} and node.domain in {None, ""} and len(inputs) > 3 and slot == 3:
            demand.limit(self._size(inputs[1], 0), offset)

    def _size(self, tensor: Tensor, axis: int) -> int | None:
        """The size of an axis, also of tables that are decoded before they are read."""
        for _ in range(8):
            shape = tensor.shape
            if shape is not None and -len(shape) <= axis < len(shape) and isinstance(shape[axis], int):
                size = shape[axis]
                return size if isinstance(size, int) and size > 0 else None
            maker = self._makers.get(tensor)
            if maker is None:
                return None
            if maker.op == "Constant":
                values = self._constant(tensor)
                return None if values is None or axis >= values.ndim else int(values.shape[axis])
            if maker.op == "Transpose" and "perm" in maker.attrs:
                axis = maker.attrs["perm"][axis]
            elif maker.op not in {"Cast", "Identity", "DequantizeLinear", "Mul", "Add", "Sub", "Dropout"}:
                return None
            tensor = maker.inputs[0]
        return None

    def _constant(self, tensor: Tensor) -> np.ndarray | None:
        """The array of a constant, also of a Constant node and behind a Cast; None for anything else."""
        for _ in range(4):
            if tensor.is_constant():
                return np.asarray(tensor.values)
            maker = self._makers.get(tensor)
            if maker is None:
                return None
            if maker.op == "Constant":
                for key, value in maker.attrs.items():
                    if key == "value":
                        return np.asarray(value.values)
                    if key.startswith("value_"):
                        return np.asarray(value)
                return None
            if maker.op not in {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Tile"}:
                return None
            tensor = maker.inputs[0]
        return None

    def _reaches_if(self, tensor: Tensor) -> bool:
        waiting, seen = [tensor], {tensor}
        while waiting:
            for node, slot in self._readers[waiting.pop()]:
                if node.op == "If" and slot == 0:
                    return True
                new = [each for each in node.outputs if node.op in _LOGIC and each not in seen]
                seen.update(new)
                waiting += new
        return False

    def _suppresses(self, tensor: Tensor) -> bool:
        """Whether 1 - mask goes on to be multiplied by, or replaced with, a large negative number."""
        for node, _ in self._readers[tensor]:
            if node.op in {"Cast", "Unsqueeze", "Identity"}:
                return self._suppresses(node.outputs[0])
            if node.op in {"Mul", "Where"}:
                constants = [self._constant(each) for each in node.inputs if each is not tensor]
                return any(each is not None and each.size == 1 and float(each.min()) <= -1000 for each in constants)
        return False

    def _sizes(self, demand: Demand, tensor: Tensor) -> None:
        """Sizes of axes that the first Conv, MatMul, Gemm or LSTM demands of an input."""
        waiting, seen = [tensor], {tensor}
        while waiting and len(seen) < 64:
            for node, slot in self._readers[waiting.pop()]:
                if node.op in _ELEMENTWISE:
                    new = [each for each in node.outputs if each not in seen]
                    seen.update(new)
                    waiting += new
                if slot != 0 or len(node.inputs) < 2 or (shape := node.inputs[1].shape) is None:
                    continue
                weight = [each if isinstance(each, int) else None for each in shape]
                if node.op == "Conv" and len(weight) > 2 and weight[1]:
                    demand.sizes.setdefault(1, weight[1] * int(node.attrs.get("group", 1)))
                elif node.op in {"LSTM", "GRU", "RNN"} and len(weight) == 3 and weight[2]:
                    demand.sizes.setdefault(2, weight[2])
                elif node.op == "MatMul" and len(weight) >= 2 and weight[-2]:
                    demand.sizes.setdefault(-1, weight[-2])
                elif node.op == "Gemm" and len(weight) == 2 and not node.attrs.get("transA"):
                    size = weight[1 if node.attrs.get("transB") else 0]
                    if size:
                        demand.sizes.setdefault(-1, size)


def _both(a: tuple[int, int] | None, b: tuple[int, int]) -> tuple[int, int]:
    return b if a is None else (max(a[0], b[0]), min(a[1], b[1]))
