"""Weights and sites. In: a simplified Model. Out: float weights with their readers, places that may be replaced.

A *weight* is a float initializer with every place that reads it; its bytes count once. A *site* is a node whose
operator may be replaced. A linear site is a matrix W [K, N] whatever operator holds it: a convolution is one after
im2col, per group. *Joints* are nodes without weights that can run in int8 between sites.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from onnxc.bodies import run_once
from onnxc.codes.sheets import Piece
from onnxc.codes.waves import Waves
from onnxc.model import Constant, Graph, Model, Node, Tensor, Variable
from onnxc.shapes import TensorType, infer
from onnxc.targets import Target

KINDS = {
    "MatMul": "linear",
    "Gemm": "linear",
    "Conv": "convolution",
    "ConvTranspose": "convolution",
    "Gather": "embedding",
    "LSTM": "recurrent",
    "GRU": "recurrent",
    "RNN": "recurrent",
}
RECURRENT_INPUTS = (1, 2)
SPARSE = 0.25  # share of zeros from which on a weight was pruned: by 30 %, in rounded shares of its blocks, and more
SEVERAL = ("Add", "Concat")  # joints of which every input is an activation
FLOAT32 = np.dtype(np.float32)
STORED = frozenset({FLOAT32, np.dtype(np.float16), np.dtype(np.float64)})  # types of weights that may become codes


@dataclass(eq=False)
class Weight:
    """A float initializer and its readers.

    Attributes:
        tensor: the initializer, any rank.
        graph: the graph that holds it (the main graph or a body).
        readers: (node, input index) of every direct reader, in file order.
        channel_axis: the axis along which a scale may vary for every reader that can run in int8, None for one scale.
        frequent: of a table: the rows that samples ask for again and again, None where nothing is known of that.
    """

    tensor: Constant
    graph: Graph
    readers: list[tuple[Node, int]] = field(default_factory=list)
    channel_axis: int | None = None
    frequent: NDArray[np.int64] | None = None

    @property
    def name(self) -> str:
        return str(self.tensor.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.tensor.shape)

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @cached_property
    def zeros(self) -> int:
        """How many of its entries are zero."""
        return self.elements - int(np.count_nonzero(self.tensor.values))

    @property
    def sparse(self) -> bool:
        """Whether it was pruned: its zeros are to stay."""
        return pruned(np.asarray(self.tensor.values))

    @cached_property
    def waves(self) -> Waves | None:
        """What computes it, where it is sampled waves."""
        return Waves.of(np.asarray(self.tensor.values), self.channel_axis)

    @property
    def bytes(self) -> int:
        return self.elements * int(np.dtype(self.tensor.dtype).itemsize)

    @property
    def cast(self) -> bool:
        """Whether what its codes unfold to is cast to its own type in the end: it is no float32."""
        return np.dtype(self.tensor.dtype) != FLOAT32


@dataclass(eq=False)
class Site:
    """A node that may be replaced, with the names and sizes that passes need.

    Attributes:
        node: the operator.
        kind: linear, convolution, embedding, recurrent, or joint (no weight).
        weight: the weight it reads, None for joints.
        graph: where the node lives, the main graph or a body.
        output: the tensor that carries its result once absorbed activations and a constant bias are included.
        tail: the nodes between ``node`` and ``output``, in order: a bias Add of a linear, or an absorbed activation.
        bias: the constant bias [N], None if there is none or it is not constant.
        transposed: a MatMul reads the weight [N, K] through a Transpose, as the head of a language model its embedding.
    """

    node: Node
    kind: str
    graph: Graph
    weight: Weight | None = None
    output: Tensor | None = None
    tail: list[Node] = field(default_factory=list)
    bias: Tensor | None = None
    transposed: bool = False

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def operator(self) -> str:
        return str(self.node.op)

    @property
    def input(self) -> Tensor:
        """The activation that it reads (the first one of a joint)."""
        return self.node.inputs[0]

    @property
    def inputs(self) -> list[Tensor]:
        """Every float activation that it reads, each once."""
        if self.weight is not None:
            return [self.input]
        return list({id(t): t for t in self.node.inputs if isinstance(t, Variable) and t.name}.values())

    @property
    def result(self) -> Tensor:
        return self.output if self.output is not None else self.node.outputs[0]


@dataclass(eq=False)
class Sites:
    """Everything that can be compressed in one model.

    Attributes:
        once: nodes that a run takes at most once.
    """

    weights: list[Weight]
    sites: list[Site]
    types: dict[str, TensorType] = field(default_factory=dict)
    once: set[Node] = field(default_factory=set)

    @cached_property
    def elements(self) -> dict[str, int]:
        """Of every weight."""
        return {weight.name: weight.elements for weight in self.weights}

    @cached_property
    def waves(self) -> dict[str, float]:
        """Seconds that computing a weight takes at load, where its int8 codes are sampled waves."""
        return {weight.name: weight.waves.load_seconds for weight in self.weights if weight.waves is not None}

    @cached_property
    def alike(self) -> dict[str, tuple[int, int]]:
        """Numbers that are equal for weights whose codes can lie in one tensor, as they have one shape but for their
        channels; the same for their floats, whose rows lie behind each other.
        """
        kinds, found = dict[Hashable, int](), dict[str, tuple[int, int]]()
        for weight in self.weights:
            shape, axis = weight.shape, weight.channel_axis
            codes = weight.name if axis is None else Piece(shape, axis).kind
            found[weight.name] = kinds.setdefault(codes, len(kinds)), kinds.setdefault(shape[1:], len(kinds))
        return found

    @cached_property
    def read_by(self) -> dict[str, str]:
        """Name of a site -> that of its weight."""
        return {site.name: site.weight.name for site in self.sites if site.weight is not None}

    def is_float(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is known to hold floats of a type that weights may have."""
        known = self.types.get(tensor.name)
        return known is not None and known.dtype in STORED

    def in_float32(self) -> Sites:
        """Without weights of other types and the sites that read them: those can be stored smaller, and no more."""
        weights = [weight for weight in self.weights if not weight.cast]
        if len(weights) == len(self.weights):
            return self
        sites = [site for site in self.sites if site.weight is None or not site.weight.cast]
        return Sites(weights, sites, self.types, self.once)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)


def pruned(values: NDArray[np.floating]) -> bool:
    """Whether so many entries are zero that somebody made them so."""
    return bool(values.size and values.size - np.count_nonzero(values) >= max(SPARSE * values.size, 1))


def may_be_stored(tensor: Constant) -> bool:
    """Whether a constant may be a weight: float32 of any rank; float16 and float64 from two axes on, unless a Cast
    reads it. Then it is a smaller form of something already, and `plain-linears` widens what may get smaller still.
    """
    if tensor.dtype is None or np.dtype(tensor.dtype) not in STORED:
        return False
    if np.dtype(tensor.dtype) == FLOAT32:
        return True
    return len(tensor.shape) > 1 and all(reader.op != "Cast" for reader in tensor.outputs)


def matrix_axes(site: Site) -> tuple[int, int] | None:
    """(K axis, N axis) of a linear's or convolution's stored weight; None where it is not a plain matrix."""
    assert site.weight is not None
    shape = site.weight.shape
    if site.operator == "MatMul":
        if site.transposed:
            return 1, 0
        return (0, 1) if len(shape) == 2 and site.node.inputs[1] is site.weight.tensor else None
    if site.operator == "Gemm":
        if len(shape) != 2 or site.node.inputs[1] is not site.weight.tensor:
            return None
        return (1, 0) if site.node.attrs.get("transB", 0) else (0, 1)
    if site.operator == "Conv":
        return (1, 0)
    return None


def channel_axis(node: Node, position: int, rank: int) -> int | None:
    """The axis of the weight at input ``position`` along which this reader allows one scale per channel."""
    if node.op == "MatMul" and rank == 2:
        return 1 if position == 1 else 0
    if node.op == "Gemm":
        if position == 1:
            return 0 if node.attrs.get("transB", 0) else 1
        return 1 if position == 0 and node.attrs.get("transA", 0) else 0
    if node.op == "Conv" and position == 1:
        return 0
    if node.op == "ConvTranspose" and position == 1:
        return 1
    if node.op == "Gather" and position == 0:
        return int(node.attrs.get("axis", 0)) % rank
    if (
        turns(node)
        and rank == 2
        and all(r.op == "MatMul" and r.inputs[1] is t for t in node.outputs for r in t.outputs)
    ):
        return 0
    if node.op in ("LSTM", "GRU", "RNN") and position in RECURRENT_INPUTS:
        return 1
    return None


def find(model: Model, target: Target) -> Sites:
    """Every float weight and every site of the model, in file order."""
    weights: dict[int, Weight] = {}
    sites: list[Site] = []
    outputs = {id(t) for graph in model.graphs() for t in graph.outputs}
    graph_inputs = {t.name for graph in model.graphs() for t in graph.inputs}
    homes = {id(node): graph for graph in model.graphs() for node in graph.nodes}
    for graph in model.graphs():
        for node in graph.nodes:
            for position, tensor in enumerate(node.inputs):
                if not isinstance(tensor, Constant) or tensor.name in graph_inputs or not may_be_stored(tensor):
                    continue
                if 0 in tensor.shape:
                    continue
                weight = weights.get(id(tensor))
                if weight is None:
                    weight = weights[id(tensor)] = Weight(tensor, home_of(model, tensor, graph))
                weight.readers.append((node, position))
    for weight in weights.values():
        axes = [channel_axis(node, position, len(weight.shape)) for node, position in weight.readers]
        votes = [axis for axis in axes if axis is not None]
        weight.channel_axis = max(set(votes), key=lambda axis: (votes.count(axis), -axis)) if votes else None
    for graph in model.graphs():
        for node in graph.nodes:
            site = site_of(node, homes[id(node)], weights, target, outputs)
            if site is not None:
                sites.append(site)
    types = infer(model)
    return Sites(list(weights.values()), islanded(sites, types), types, run_once(model))


def islanded(sites: list[Site], types: dict[str, TensorType]) -> list[Site]:
    """``sites`` without the joints that no chain of float joints connects to a convolution."""
    chains = nx.Graph()
    for site in sites:
        if site.kind == "joint" or site.operator == "Conv":
            for tensor in (
                *site.inputs[:1],
                *(site.inputs[1:] if site.operator in SEVERAL else ()),
                site.result,
            ):
                known = types.get(tensor.name)
                if known is not None and known.dtype == np.dtype(np.float32):
                    chains.add_edge(("site", site.name), ("tensor", tensor.name))
    anchored: set[tuple[str, str]] = set()
    for group in nx.connected_components(chains):
        if any(("site", site.name) in group for site in sites if site.operator == "Conv"):
            anchored |= group
    return [site for site in sites if site.kind != "joint" or ("site", site.name) in anchored]


def home_of(model: Model, tensor: Constant, default: Graph) -> Graph:
    """The graph whose initializer ``tensor`` is: the outermost one that reads it holds it."""
    for graph in model.graphs():
        if any(tensor is candidate for node in graph.nodes for candidate in node.inputs):
            return graph
    return default


def site_of(node: Node, graph: Graph, weights: dict[int, Weight], target: Target, outputs: set[int]) -> Site | None:
    """The site that ``node`` is, or None."""
    kind = KINDS.get(node.op) if not node.domain or node.domain == "ai.onnx" else None
    if kind is None:
        if node.op in target.joints | target.carriers and node.outputs:
            joint = Site(node, "joint", graph)
            joint.output = absorb(node.outputs[0], target, outputs, joint.tail)
            return joint
        return None
    position = 0 if kind == "embedding" else 1
    if len(node.inputs) <= position:
        return None
    tensor = node.inputs[position]
    transposed = node.op == "MatMul" and bool(tensor.inputs) and turns(tensor.inputs[0])
    if transposed:
        tensor = tensor.inputs[0].inputs[0]
    site_weight = weights.get(id(tensor))
    if site_weight is None or (transposed and len(site_weight.shape) != 2):
        return None
    found = Site(node, kind, graph, site_weight, transposed=transposed)
    if kind == "linear":
        attach_bias(found, outputs)
    elif node.op == "Conv":
        if len(node.inputs) > 2 and isinstance(node.inputs[2], Constant):
            found.bias = node.inputs[2]
        found.output = absorb(node.outputs[0], target, outputs, found.tail)
    return found


def turns(node: Node) -> bool:
    """Whether ``node`` swaps the two axes of a matrix."""
    return node.op == "Transpose" and list(node.attrs.get("perm", (1, 0))) == [1, 0]


def absorb(tensor: Tensor, target: Target, outputs: set[int], tail: list[Node]) -> Tensor:
    """Follow ``tensor`` through an activation that a Q can absorb; the activation is appended to ``tail``."""
    if id(tensor) in outputs or len(tensor.outputs) != 1:
        return tensor
    reader = tensor.outputs[0]
    if reader.op not in target.absorbed or reader.inputs[0] is not tensor:
        return tensor
    if reader.op == "Clip" and clip_range(reader)[0] != 0.0:
        return tensor
    tail.append(reader)
    return reader.outputs[0]


def clip_range(node: Node) -> tuple[float, float]:
    """(lowest, highest) of a Relu or Clip with constant bounds; (nan, nan) where they are computed."""
    if node.op == "Relu":
        return 0.0, float("inf")
    bounds = [float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))]
    for index, tensor in enumerate(node.inputs[1:3]):
        if isinstance(tensor, Constant):
            bounds[index] = float(np.asarray(tensor.values).reshape(-1)[0])
        elif tensor.name:
            return float("nan"), float("nan")
    return bounds[0], bounds[1]


def attach_bias(site: Site, outputs: set[int]) -> None:
    """Find a linear's constant bias [N]: Gemm's third input, or the one Add that reads a MatMul's output."""
    node = site.node
    if node.op == "Gemm":
        if len(node.inputs) > 2 and isinstance(node.inputs[2], Constant):
            site.bias = node.inputs[2]
        return
    result = node.outputs[0]
    if id(result) in outputs or len(result.outputs) != 1 or result.outputs[0].op != "Add":
        return
    add = result.outputs[0]
    other = [t for t in add.inputs if t is not result]
    axes = matrix_axes(site) if site.weight is not None else None
    if len(other) != 1 or not isinstance(other[0], Constant) or axes is None or site.weight is None:
        return
    if tuple(other[0].shape) == (site.weight.shape[axes[1]],):
        site.bias, site.output, site.tail = other[0], add.outputs[0], [add]
