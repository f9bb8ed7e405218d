"""Weights that meet channels, as matrices, with the rows that they multiply. In: readers and activations. Out: moments.

Whatever the operator, a reader is y = x W with W [G, K, N] for G groups of inputs, and x rows [R, G, K]: a convolution
after im2col, a transposed one after its input is spread by the stride, the recurrent weight of an LSTM per direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.coupling.graph import Indices, Reader
from onnxc.model import Constant, Model, Node
from onnxc.session import Options, Session
from onnxc.windows import Windows, im2col, places

Array = NDArray[np.float32]
Wide = NDArray[np.float64]
MOST_ROWS = 32768
FEWEST_ROWS = 4096
ROWS_PER_INPUT = 8  # sampled rows for every input of a weight, within the two limits
ROW_ELEMENTS = 1 << 25  # of the rows of one sample
WIDEST = 6144  # inputs of a weight above which its second moment takes too much memory
LARGEST = 1e15  # of a value: the squares of as many as are looked at, added up, stay far below what float32 holds


@dataclass(eq=False)
class Consumer:
    """A reader's weight as a matrix.

    Attributes:
        reader: where it is; node: its operator; source: the name of the tensor that it reads.
        matrix: W [G, K, N].
        channels: which index of the reader's axis each of the K rows belongs to, [K].
    """

    reader: Reader
    node: Node
    source: str
    matrix: Array
    channels: Indices

    @property
    def weight(self) -> Constant:
        """The initializer."""
        return next(t for t in self.node.inputs if isinstance(t, Constant) and t.name == self.reader.weight)

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel of a convolution."""
        return tuple(int(size) for size in self.weight.shape[2:])

    @property
    def stream(self) -> tuple[str, str] | None:
        """The tensor that the result is added to, and their sum; None where the result goes elsewhere as well."""
        if self.node.op not in {"Conv", "MatMul", "Gemm"}:
            return None
        result = self.node.outputs[0]
        for _ in range(2):
            if len(result.outputs) != 1 or result.outputs[0].op != "Add":
                return None
            add = result.outputs[0]
            other = next((tensor for tensor in add.inputs if tensor is not result), None)
            if other is None:
                return None
            if not isinstance(other, Constant):
                return str(other.name), str(add.outputs[0].name)
            result = add.outputs[0]
        return None

    @property
    def bias(self) -> tuple[Node, int] | None:
        """The node and input of a constant bias [N], None if there is none."""
        node, width = self.node, self.matrix.shape[0] * self.matrix.shape[2]
        if node.op in {"Conv", "ConvTranspose", "Gemm"}:
            places = [(node, 2)] if len(node.inputs) > 2 else []
            if node.op == "Gemm" and float(node.attrs.get("beta", 1.0)) != 1.0:
                return None
        elif node.op == "MatMul" and len(node.outputs[0].outputs) == 1 and node.outputs[0].outputs[0].op == "Add":
            add = node.outputs[0].outputs[0]
            places = [(add, position) for position in (0, 1) if add.inputs[position] is not node.outputs[0]]
        else:
            return None
        for place, position in places:
            tensor = place.inputs[position]
            if isinstance(tensor, Constant) and tuple(tensor.shape) == (width,):
                return place, position
        return None


def consumers(model: Model, readers: Iterable[Reader]) -> list[Consumer]:
    """The readers whose weights are matrices of float32 initializers, in the order of the nodes."""
    nodes = {node.name: node for node in model.graph.nodes}
    found = []
    for reader in dict.fromkeys(readers):
        node = nodes.get(reader.node)
        weight = next((t for t in node.inputs if t.name == reader.weight), None) if node is not None else None
        if node is None or not isinstance(weight, Constant) or weight.dtype != np.float32:
            continue
        position = next(i for i, tensor in enumerate(node.inputs) if tensor is weight)
        if len(weight.outputs) > 1 or reader.axis >= len(weight.shape):
            continue  # tied weights are not refitted
        if node.op == "Gemm" and (float(node.attrs.get("alpha", 1.0)) != 1.0 or node.attrs.get("transA", 0)):
            continue
        source = node.outputs[0] if reader.role == "hidden" else node.inputs[0]
        if position == 0 or not source.name:
            continue
        matrix, channels = as_matrix(node, np.asarray(weight.values, np.float32), reader.role)
        found.append(Consumer(reader, node, source.name, matrix, channels))
    order = {node.name: number for number, node in enumerate(model.graph.nodes)}
    return sorted(found, key=lambda consumer: (order[consumer.reader.node], consumer.reader.role))


def as_matrix(node: Node, values: Array, role: str) -> tuple[Array, Indices]:
    """W [G, K, N] of a stored weight, and the channel of each of its K inputs."""
    groups = int(node.attrs.get("group", 1))
    if node.op == "Conv":
        positions = int(np.prod(values.shape[2:]))
        matrix = values.reshape(groups, values.shape[0] // groups, -1).swapaxes(1, 2)
        return np.ascontiguousarray(matrix), np.repeat(np.arange(values.shape[1]), positions)
    if node.op == "ConvTranspose":
        flipped = values[(slice(None), slice(None), *[slice(None, None, -1)] * (values.ndim - 2))]
        matrix = np.moveaxis(flipped, 1, -1).reshape(1, -1, values.shape[1])
        return np.ascontiguousarray(matrix), np.repeat(np.arange(values.shape[0]), int(np.prod(values.shape[2:])))
    if role == "hidden":
        return np.ascontiguousarray(values.swapaxes(1, 2)), np.arange(values.shape[2])
    if values.ndim == 3:
        return np.ascontiguousarray(values.reshape(-1, values.shape[2]).T[None]), np.arange(values.shape[2])
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        values = values.T
    return np.ascontiguousarray(values[None]), np.arange(values.shape[0])


def stored(consumer: Consumer, matrix: Array, shape: Sequence[int]) -> Array:
    """The weight in its stored ``shape``, from ``matrix`` [G, K, N]."""
    node = consumer.node
    if node.op == "Conv":
        return np.ascontiguousarray(matrix.swapaxes(1, 2)).reshape(shape)
    if node.op == "ConvTranspose":
        turned = np.moveaxis(matrix.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
        flipped = turned[(slice(None), slice(None), *[slice(None, None, -1)] * (len(shape) - 2))]
        return np.ascontiguousarray(flipped)
    if consumer.reader.role == "hidden":
        return np.ascontiguousarray(matrix.swapaxes(1, 2))
    if len(shape) == 3:
        return np.ascontiguousarray(matrix[0].T).reshape(shape)
    return np.ascontiguousarray(matrix[0].T if node.op == "Gemm" and node.attrs.get("transB", 0) else matrix[0])


def rows(consumer: Consumer, values: NDArray[np.generic], quota: int, seed: int) -> Array:
    """Up to ``quota`` rows [R, G, K] of what meets the weight, from one sample; the same places for the same seed."""
    node, activations = consumer.node, np.nan_to_num(np.asarray(values, np.float32))
    random = np.random.default_rng(seed)
    if node.op in {"Conv", "ConvTranspose"}:
        return windows(node, activations, consumer, quota, random)
    if consumer.reader.role == "hidden":  # [steps, directions, batch, hidden]
        flat = activations.swapaxes(1, 2).reshape(-1, activations.shape[1], activations.shape[3])
    else:
        flat = activations.reshape(-1, 1, activations.shape[-1])
    return flat[picked_rows(len(flat), quota, random)]


def output_rows(consumer: Consumer, values: NDArray[np.generic], quota: int, seed: int) -> Array:
    """What a tensor like the result holds at the places of ``rows``, [R, G, N]."""
    activations, groups = np.nan_to_num(np.asarray(values, np.float32)), consumer.matrix.shape[0]
    flat = np.moveaxis(activations, 1, -1) if consumer.node.op == "Conv" else activations
    flat = flat.reshape(-1, flat.shape[-1])
    flat = flat[picked_rows(len(flat), quota, np.random.default_rng(seed))]
    return flat.reshape(len(flat), groups, -1)


def picked_rows(total: int, quota: int, random: np.random.Generator) -> NDArray[np.intp]:
    """``quota`` of ``total`` rows, ascending."""
    return np.sort(random.permutation(total)[:quota]) if total > quota else np.arange(total)


def windows(node: Node, values: Array, consumer: Consumer, quota: int, random: np.random.Generator) -> Array:
    """Rows [R, G, K] of im2col at random positions of the output, the same for any number of channels."""
    attributes, spatial = node.attrs, values.ndim - 2
    kernel, groups = consumer.kernel, int(attributes.get("group", 1))
    placed = Windows.of(attributes, values.shape[2:], kernel)
    if node.op == "ConvTranspose":
        sizes = [(n - 1) * s + 1 for n, s in zip(values.shape[2:], placed.strides, strict=True)]
        spread = np.zeros((*values.shape[:2], *sizes), np.float32)
        spread[(slice(None), slice(None), *[slice(None, None, s) for s in placed.strides])] = values
        around = [((k - 1) * d, (k - 1) * d) for k, d in zip(kernel, placed.dilations, strict=True)]
        values, placed = spread, replace(placed, strides=[1] * spatial, pads=around)
    seen = placed.seen(values)
    if seen is None:
        return np.empty((0, *consumer.matrix.shape[:2]), np.float32)
    spots = places(seen)
    return im2col(seen, np.unravel_index(picked_rows(prod(spots), quota, random), spots), groups)


@dataclass
class Moments:
    """Second moments of rows with a one behind them: sums and means come along.

    Attributes:
        own: sum of x xT, [G, K + 1, K + 1]; cross: of x yT with the outputs y that are wanted, [G, K + 1, N].
    """

    own: Wide
    cross: Wide | None = None

    @classmethod
    def like(cls, other: Moments) -> Moments:
        """Zero moments to add to."""
        cross = None if other.cross is None else np.zeros(other.cross.shape)
        return cls(np.zeros(other.own.shape), cross)

    def add(self, other: Moments) -> None:
        """Add moments in place."""
        self.own += other.own
        if self.cross is not None and other.cross is not None:
            self.cross += other.cross

    def __add__(self, other: Moments) -> Moments:
        both = None if self.cross is None or other.cross is None else self.cross + other.cross
        return Moments(self.own + other.own, both)


def second_moments(found: Array, wanted: Array | None = None) -> Moments:
    """Of rows [R, G, K], and with outputs [R, G, N] that are wanted of them; rows that are not finite, or whose squares
    are not, say nothing to a solver and are left out.
    """
    sound = np.abs(found).max((1, 2), initial=0.0) < LARGEST  # not of NaN
    if wanted is not None:
        sound &= np.abs(wanted).max((1, 2), initial=0.0) < LARGEST
    if not sound.all():
        found, wanted = found[sound], None if wanted is None else wanted[sound]
    first = np.concatenate([found, np.ones((*found.shape[:2], 1), np.float32)], 2).transpose(1, 0, 2)
    own: Any = np.matmul(first.swapaxes(1, 2), first)  # float32 until they are added up
    if wanted is None:
        return Moments(own)
    cross: Any = np.matmul(first.swapaxes(1, 2), wanted.transpose(1, 0, 2))
    return Moments(own, cross)


def quota_of(consumer: Consumer, samples: int) -> int:
    """How many rows each of ``samples`` gives."""
    wanted = int(np.clip(ROWS_PER_INPUT * consumer.matrix.shape[1], FEWEST_ROWS, MOST_ROWS))
    return int(np.clip(-(-wanted // max(samples, 1)), 1, max(1, ROW_ELEMENTS // consumer.matrix.shape[1])))


def until(model: Model, names: Sequence[str], options: Options) -> Session:
    """A session of the part of ``model`` that makes the tensors called ``names``."""
    copy = model.copy()
    tensors = {tensor.name: tensor for node in copy.graph.nodes for tensor in node.outputs}
    for name in names:
        tensors[name].dtype = tensors[name].dtype or np.dtype(np.float32)
    copy.graph.outputs[:] = [tensors[name] for name in names]
    for node in copy.graph.nodes:
        node.kept = False
    copy.tidy()
    return Session(copy, options)


def observed_moments(
    model: Model, wanted: Sequence[Consumer], samples: Iterable[Mapping[str, np.ndarray]], count: int, options: Options
) -> dict[Reader, Moments]:
    """The moments of what each of ``wanted`` reads in ``model``, over ``count`` samples."""
    inputs = {tensor.name for tensor in model.graph.inputs}
    names = [name for name in dict.fromkeys(consumer.source for consumer in wanted) if name not in inputs]
    session = until(model, names, options) if names else None
    found: dict[Reader, Moments] = {}
    for number, sample in enumerate(samples):
        values = dict(sample) | (session.run(fed(session, sample), names) if session is not None else {})
        shared: dict[tuple[str, ...], Moments] = {}
        for consumer in wanted:
            key = geometry(consumer)
            if key not in shared:
                shared[key] = second_moments(rows(consumer, values[consumer.source], quota_of(consumer, count), number))
            found.setdefault(consumer.reader, Moments.like(shared[key])).add(shared[key])
    return found


def fed(session: Session, sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The part of ``sample`` that a part of the model needs."""
    there = {info.name for info in (*session.inputs, *session.optional)}
    return {name: value for name, value in sample.items() if name in there}


def geometry(consumer: Consumer) -> tuple[str, ...]:
    """Consumers of equal geometry read equal rows."""
    attributes = consumer.node.attrs
    if consumer.node.op not in {"Conv", "ConvTranspose"}:
        return consumer.source, consumer.reader.role
    words = ("strides", "dilations", "pads", "auto_pad", "group")
    return consumer.source, consumer.node.op, str(consumer.kernel), *[str(attributes.get(w)) for w in words]
