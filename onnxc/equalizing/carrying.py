"""Factors on their way backward through the graph. In: a Seam's tensor and the channel of each of its entries. Out: the
constants that take the factors, noted in the Seam; or the name of the node in the way.

The factors are carried as an array that broadcasts against the tensor's last axes, so that Transpose, Reshape and
attention's product with the values are followed like any other operator. A root or a power changes the exponent of the
factors: the magnitude sqrt(re^2 + im^2) of a spectrum takes those of re and im.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.equalizing.scaling import Seam
from onnxc.model import Constant, Node, Tensor
from onnxc.shapes import TensorType
from onnxc.sites import clip_range

# Positive factors pass through these unchanged, per channel.
HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Abs"})
POOLING = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool"})
READS_SHAPE = frozenset({"Shape", "Size"})
GELU = frozenset({"Erf", "Tanh", "Sigmoid"})
FARTHEST = 32  # nodes walked back from a site


class BlockedError(Exception):
    """A factor cannot move through here; the message names the node. seams() catches it."""


def alone(tensor: Tensor, readers: Iterable[Node]) -> None:
    """BlockedError unless only ``readers``, and nodes that look at the shape, read ``tensor``."""
    allowed = set(readers)
    for reader in tensor.outputs:
        if reader not in allowed and reader.op not in READS_SHAPE:
            raise BlockedError(f"'{reader.name}' ({reader.op}) reads it too")


@dataclass
class Walk:
    """Carries channels backward from a seam's tensor until constants take their factors."""

    seam: Seam
    inputs: set[int]
    outputs: set[int]
    types: dict[str, TensorType]
    steps: int = 0
    power: float = 1.0
    waiting: dict[int, dict[Node, NDArray[np.intp]]] = field(default_factory=dict)

    def from_seam(self, order: NDArray[np.intp]) -> None:
        """Find what takes the factors of the seam's tensor; BlockedError where something in the way does not."""
        self.back(self.seam.tensor, order)
        for parts in self.waiting.values():
            node = next(iter(parts))
            raise BlockedError(f"'{node.name}' (Slice) leaves other channels of '{node.inputs[0].name}' as they are")

    def back(self, tensor: Tensor, order: NDArray[np.intp]) -> None:
        """Find what in the making of ``tensor`` takes the factors.

        Args:
            order: the channel of every entry, broadcast against the last axes of ``tensor``.
        """
        self.steps += 1
        while order.ndim > 1 and order.shape[0] == 1:
            order = order[0]
        node = tensor.inputs[0] if not isinstance(tensor, Constant) and tensor.inputs else None
        if node is None or id(tensor) in self.inputs:
            raise BlockedError(f"nothing before '{tensor.name}' takes a factor")
        if node.domain not in {None, "", "ai.onnx"} or self.steps > FARTHEST:
            raise BlockedError(f"'{node.name}' ({node.op}) does not pass a factor on")
        self.seam.passed.append(node)
        step = getattr(self, f"through_{node.op.lower()}", None)
        if node.op in HOMOGENEOUS:
            self.into(node, 0, order)
        elif node.op in POOLING:
            if order.ndim < 2 or any(size > 1 for size in order.shape[1:]):
                raise BlockedError(f"'{node.name}' ({node.op}) mixes channels")
            self.into(node, 0, order)
        elif step is None:
            raise BlockedError(f"'{node.name}' ({node.op}) does not pass a factor on")
        else:
            step(node, order)

    def into(self, node: Node, position: int, order: NDArray[np.intp], exponent: float = 1.0) -> None:
        """Go on at an input of ``node``, to whose power ``exponent`` its result is proportional; a constant takes the
        factors itself.
        """
        tensor, power = node.inputs[position], self.power
        self.power = power / exponent
        try:
            self.enter(tensor, node, order, squared=exponent == 2.0)
        finally:
            self.power = power

    def enter(self, tensor: Tensor, node: Node, order: NDArray[np.intp], *, squared: bool) -> None:
        """Go on at ``tensor``, which ``node`` alone reads: once, or twice where it squares it."""
        if isinstance(tensor, Constant):
            self.take(tensor, order, node)
            return
        if id(tensor) in self.outputs:
            raise BlockedError(f"'{tensor.name}' is an output of the model")
        alone(tensor, [node])
        if sum(each is tensor for each in node.inputs) > 1 + squared:
            raise BlockedError(f"'{node.name}' ({node.op}) reads '{tensor.name}' twice")
        self.back(tensor, order)

    def take(self, constant: Constant, order: NDArray[np.intp], node: Node) -> None:
        """``constant`` is divided by the factors; where it is smaller than ``order`` it grows."""
        if id(constant) in self.inputs or len(constant.outputs) != 1:
            raise BlockedError(f"'{constant.name}' is an input, or has other readers than '{node.name}'")
        if constant.dtype is None or np.dtype(constant.dtype) != np.float32:
            raise BlockedError(f"'{constant.name}' is not float32")
        rank = max(len(constant.shape), order.ndim)
        wide = order.reshape([1] * (rank - order.ndim) + list(order.shape))
        self.seam.before.append((constant, wide, self.power))

    def weight(self, node: Node, order: NDArray[np.intp], bias: Tensor | None, channels: NDArray[np.intp]) -> None:
        """A linear or convolution takes the factors with weight (order) and bias [N] (channels)."""
        if not isinstance(node.inputs[1], Constant):
            raise BlockedError(f"'{node.name}' ({node.op}) has a computed weight")
        self.take(node.inputs[1], order, node)
        if bias is not None:
            if not isinstance(bias, Constant):
                raise BlockedError(f"'{node.name}' ({node.op}) has a computed bias")
            self.take(bias, channels, node)
        self.seam.makers.append(node)

    def through_conv(self, node: Node, order: NDArray[np.intp]) -> None:
        rank = len(self.shape(node.inputs[1]))
        flat = per_channel(order, rank - 2, node)
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        self.weight(node, flat.reshape(-1, *[1] * (rank - 1)), bias, flat)

    def through_gemm(self, node: Node, order: NDArray[np.intp]) -> None:
        flat = per_channel(order, 0, node)
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        if isinstance(bias, Constant) and bias.values.ndim != 1:
            raise BlockedError(f"the bias of '{node.name}' (Gemm) is not a vector")
        transposed = node.attrs.get("transB", 0)
        self.weight(node, flat.reshape(-1, 1) if transposed else flat.reshape(1, -1), bias, flat)

    def through_matmul(self, node: Node, order: NDArray[np.intp]) -> None:
        left, right = node.inputs
        if isinstance(right, Constant):
            flat = per_channel(order, 0, node)
            if right.values.ndim != 2:
                raise BlockedError(f"the weight of '{node.name}' (MatMul) is not a matrix")
            self.weight(node, flat.reshape(1, -1), None, flat)
            return
        if isinstance(left, Constant) or (order.ndim > 1 and order.shape[-2] != 1):
            raise BlockedError(f"'{node.name}' (MatMul) mixes channels")
        self.into(node, 1, order)  # probabilities times values: the columns are the values'

    def through_add(self, node: Node, order: NDArray[np.intp]) -> None:
        for position in range(2):
            self.into(node, position, order)

    through_sub = through_add

    def through_sqrt(self, node: Node, order: NDArray[np.intp]) -> None:
        self.into(node, 0, order, exponent=0.5)

    def through_pow(self, node: Node, order: NDArray[np.intp]) -> None:
        exponent = node.inputs[1]
        if not isinstance(exponent, Constant) or exponent.values.size != 1 or float(exponent.values.item()) <= 0:
            raise BlockedError(f"'{node.name}' (Pow) has no single positive exponent")
        self.into(node, 0, order, exponent=float(exponent.values.item()))

    def through_mul(self, node: Node, order: NDArray[np.intp]) -> None:
        if node.inputs[0] is node.inputs[1]:
            self.into(node, 0, order, exponent=2.0)
            return
        constant = next((i for i, t in enumerate(node.inputs) if isinstance(t, Constant)), None)
        if constant is not None:
            if node.inputs[constant].values.size == 1 and order.size > 1 and near(node, GELU):
                raise BlockedError(f"'{node.name}' (Mul) is part of a GELU, which would lose its kernel")
            self.take(node.inputs[constant], order, node)
            return
        reasons = []
        for position in range(2):
            lists: tuple[list[Any], ...] = (self.seam.before, self.seam.makers, self.seam.passed, self.seam.clips)
            kept, waiting = [len(each) for each in lists], {key: dict(parts) for key, parts in self.waiting.items()}
            try:
                self.into(node, position, order)
            except BlockedError as reason:
                reasons.append(str(reason))
                self.waiting = waiting
                for each, length in zip(lists, kept, strict=True):
                    del each[length:]
            else:
                return
        raise BlockedError(reasons[0])

    def through_div(self, node: Node, order: NDArray[np.intp]) -> None:
        self.into(node, 0, order)

    def through_layernormalization(self, node: Node, order: NDArray[np.intp]) -> None:
        if order.ndim != 1 or int(node.attrs.get("axis", -1)) not in (-1, len(self.shape(node.inputs[0])) - 1):
            raise BlockedError(f"'{node.name}' (LayerNormalization) normalizes other axes")
        for position in range(1, len(node.inputs)):
            if not isinstance(node.inputs[position], Constant):
                raise BlockedError(f"'{node.name}' (LayerNormalization) has a computed scale")
            self.take(node.inputs[position], order, node)

    def through_batchnormalization(self, node: Node, order: NDArray[np.intp]) -> None:
        flat = per_channel(order, max(order.ndim - 1, 0), node)
        for position in (1, 2):
            if not isinstance(node.inputs[position], Constant):
                raise BlockedError(f"'{node.name}' (BatchNormalization) has a computed scale")
            self.take(node.inputs[position], flat, node)

    def through_clip(self, node: Node, order: NDArray[np.intp]) -> None:
        low, high = clip_range(node)
        if low != 0.0:
            raise BlockedError(f"'{node.name}' (Clip) cuts below at {low:g}, not at 0")
        if high != inf:
            self.seam.clips.append((node, order))
        self.into(node, 0, order)

    def through_transpose(self, node: Node, order: NDArray[np.intp]) -> None:
        shape = self.shape(node.inputs[0])
        if not shape:
            raise BlockedError(f"the rank before '{node.name}' (Transpose) is not known")
        permutation = list(node.attrs.get("perm", reversed(range(len(shape)))))
        full = order.reshape([1] * (len(permutation) - order.ndim) + list(order.shape))
        self.into(node, 0, np.transpose(full, np.argsort(permutation)))

    def through_reshape(self, node: Node, order: NDArray[np.intp]) -> None:
        after, before = self.shape(node.outputs[0]), self.shape(node.inputs[0])
        sizes = after[len(after) - order.ndim :]
        if len(after) < order.ndim or not all(sizes):
            raise BlockedError(f"the shape after '{node.name}' ({node.op}) is not known")
        flat = np.broadcast_to(order, [int(size or 1) for size in sizes]).reshape(-1)
        for axes in range(1, len(before) + 1):
            last = before[len(before) - axes :]
            if not all(last):
                break
            if prod(int(size or 1) for size in last) == flat.size:
                self.into(node, 0, squeezed(flat.reshape([int(size or 1) for size in last])))
                return
        raise BlockedError(f"'{node.name}' ({node.op}) mixes channels with other axes")

    through_flatten = through_squeeze = through_unsqueeze = through_reshape

    def through_reducemean(self, node: Node, order: NDArray[np.intp]) -> None:
        before, after = self.shape(node.inputs[0]), self.shape(node.outputs[0])
        if node.attrs.get("keepdims", 1):
            full = order
        elif len(before) == 4 and len(after) == 2 and order.ndim == 1 and after[1] == before[1]:
            full = order.reshape(-1, 1, 1)
        else:
            raise BlockedError(f"'{node.name}' (ReduceMean) drops axes")
        axes = reduced_axes(node, len(before))
        if axes is None or any(
            full.ndim + axis - len(before) >= 0 and full.shape[axis - len(before)] > 1 for axis in axes
        ):
            raise BlockedError(f"'{node.name}' (ReduceMean) mixes channels")
        self.into(node, 0, full)

    def through_concat(self, node: Node, order: NDArray[np.intp]) -> None:
        shape = self.shape(node.outputs[0])
        axis = int(node.attrs["axis"]) - (len(shape) if int(node.attrs["axis"]) >= 0 else 0)
        if not shape:
            raise BlockedError(f"the rank after '{node.name}' (Concat) is not known")
        at = 0
        for position, tensor in enumerate(node.inputs):
            part = order
            if -axis <= order.ndim and order.shape[axis] > 1:
                size = (self.shape(tensor) or (None,))[axis] if len(self.shape(tensor)) >= -axis else None
                if size is None:
                    raise BlockedError(f"the parts of '{node.name}' (Concat) have unknown sizes")
                part = np.take(order, range(at, at + size), axis)
                at += size
            self.into(node, position, part)

    def through_slice(self, node: Node, order: NDArray[np.intp]) -> None:
        """Part of the channels: the factors go on once those of all other parts have arrived here too."""
        tensor = node.inputs[0]
        shape = self.shape(tensor)
        full = order.reshape([1] * (len(shape) - order.ndim) + list(order.shape))
        varying = [axis for axis, size in enumerate(full.shape) if size > 1]
        if isinstance(tensor, Constant) or id(tensor) in self.outputs or not shape or len(varying) != 1:
            raise BlockedError(f"'{node.name}' (Slice) does not cut along the channels")
        axis = varying[0]
        ranges = [(sliced(reader, axis, shape[axis]), reader) for reader in tensor.outputs]
        parts = sorted(((found, reader) for found, reader in ranges if found is not None), key=lambda pair: pair[0])
        ends = [0, *(found[1] for found, _ in parts)]
        if len(parts) < len(ranges) or ends[-1] != shape[axis] or ends[:-1] != [found[0] for found, _ in parts]:
            raise BlockedError(f"'{tensor.name}' is not cut into parts that have all channels between them")
        arrived = self.waiting.setdefault(id(tensor), {})
        arrived[node] = full
        if len(arrived) == len(parts):
            del self.waiting[id(tensor)]
            pieces = [arrived[reader] for _, reader in parts]
            if any(piece.shape[axis] != end - start for piece, ((start, end), _) in zip(pieces, parts, strict=True)):
                raise BlockedError(f"the parts of '{tensor.name}' have their channels along different axes")
            self.back(tensor, np.concatenate(pieces, axis))

    def shape(self, tensor: Tensor) -> tuple[int | None, ...]:
        """What is known of a tensor's shape; empty where not even its rank is."""
        if isinstance(tensor, Constant):
            return tuple(int(size) for size in tensor.shape)
        known = self.types.get(tensor.name)
        return () if known is None or known.shape is None else known.shape


def sliced(node: Node, along: int, size: int | None) -> tuple[int, int] | None:
    """(start, end) of what a Slice leaves of the axis ``along`` of ``size``, in steps of 1; None where that is not
    known.
    """
    if node.op != "Slice" or size is None or not all(isinstance(t, Constant) for t in node.inputs[1:]):
        return None
    given = [np.asarray(t.values).reshape(-1).tolist() for t in node.inputs[1:] if isinstance(t, Constant)]
    if len(given) < 3 or min(given[2]) < 0:  # counted from the end
        return None
    start, end, step = next(
        (
            cut
            for axis, *cut in zip(given[2], *given[:2], [*given[3:], [1] * len(given[2])][0], strict=True)
            if axis == along
        ),
        (0, size, 1),
    )
    if step != 1:
        return None
    first, last = (min(max(each + size * (each < 0), 0), size) for each in (start, end))
    return first, last


def per_channel(order: NDArray[np.intp], spatial: int, node: Node) -> NDArray[np.intp]:
    """``order`` as one channel per output of ``node``: it must not vary along its ``spatial`` last axes."""
    full = order.reshape([1] * (spatial + 1 - order.ndim) + list(order.shape))
    if full.size != full.shape[-spatial - 1]:
        raise BlockedError(f"'{node.name}' ({node.op}) makes channels of several axes")
    return full.reshape(-1)


def squeezed(order: NDArray[np.intp]) -> NDArray[np.intp]:
    """``order`` with the axes along which it does not vary at size 1."""
    for axis in range(order.ndim):
        first = np.take(order, [0], axis)
        if np.array_equal(np.broadcast_to(first, order.shape), order):
            order = first
    return order


def reduced_axes(node: Node, rank: int) -> list[int] | None:
    """The axes that a ReduceMean averages over, not negative; None where they are computed."""
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        if not isinstance(node.inputs[1], Constant):
            return None
        axes = np.asarray(node.inputs[1].values).reshape(-1).tolist()
    return [int(axis) % rank for axis in axes] if axes is not None and rank else None


def near(node: Node, operators: frozenset[str], steps: int = 4) -> bool:
    """Whether one of ``operators`` is among the nodes that lead to ``node``, or follow it, in a few steps."""
    fringe = {node}
    for _ in range(steps):
        fringe = {
            tensor.inputs[0]
            for each in fringe
            for tensor in each.inputs
            if not isinstance(tensor, Constant) and tensor.inputs and tensor.inputs[0].op in ("Mul", "Add", *operators)
        }
        if any(each.op in operators for each in fringe):
            return True
    return False
