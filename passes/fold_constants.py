"""Nodes that read only constants are computed once, here: ONNX Runtime would do it at every load.

before: W -> Slice -> Concat -> LSTM           after: W' -> LSTM
        W -> Slice -^

onnxsim does this for small tensors of the main graph; this pass does it for weights and inside bodies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.errors import OnnxcError
from onnxc.model import Constant, Graph, Model, Node, Tensor

from .computing import RANDOM, compute
from .facts import Borders, remove, rewire, standard

NODE_BYTES = 100  # what a node and the names of its tensors take in a file, about
TIED_BYTES = 1024  # constants above this bind their readers together: they vanish for all or for none
LARGEST = 1 << 30  # bytes that may be computed at once
_KEPT = {"Constant", "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "NonZero", "ImageDecoder", *RANDOM}


@dataclass
class _Cluster:
    """Nodes that are folded together or not at all."""

    nodes: list[tuple[Graph, Node]] = field(default_factory=list)


@dataclass(frozen=True)
class FoldConstants(ExactPass):
    """Replace clusters of nodes that read only constants by what they compute.

    1. A cluster is folded when the file does not grow by it: a weight that is only cut up and put together
       again is, a weight that unfolds from int8 is not, and neither is a transposed weight that something
       else reads as it is (tied). Equal results of a cluster are one constant: two branches that each put the same
       weight together share it.
    2. Not random operators, quantization, strings and sequences, operators with bodies or of other domains,
       and not what is an output.
    """

    name: ClassVar[str] = "fold-constants"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        borders = Borders.of(model)
        clusters = [cluster for cluster in _clusters(model, borders) if _shrinks(cluster)]
        folded = _fold(model, clusters)
        if folded:
            model.tidy()
        return Outcome(folded, (f"{folded} nodes that read only constants computed",) if folded else ())


def _clusters(model: Model, borders: Borders) -> list[_Cluster]:
    """Nodes that can be computed now, those that share a result or a large constant together."""
    parent: dict[int, int] = {}
    found: dict[int, tuple[Graph, Node]] = {}

    def root(key: int) -> int:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    known: set[int] = set()  # results of the nodes found
    binding: dict[int, int] = {}  # tensor -> a node of its cluster
    for graph in model.graphs():
        for node in graph.nodes:
            if not _computable(borders, node, known):
                continue
            key = id(node)
            parent[key], found[key] = key, (graph, node)
            for tensor in (*node.inputs, *node.outputs):
                if tensor.name and (not isinstance(tensor, Constant) or tensor.nbytes > TIED_BYTES):
                    other = binding.setdefault(id(tensor), key)
                    parent[root(key)] = root(other)
            known.update(id(tensor) for tensor in node.outputs)
    clusters: dict[int, _Cluster] = {}
    for key, item in found.items():
        clusters.setdefault(root(key), _Cluster()).nodes.append(item)
    return list(clusters.values())


def _computable(borders: Borders, node: Node, known: set[int]) -> bool:
    if not standard(node) or node.op in _KEPT or node.bodies() or not node.outputs:
        return False
    if any(id(tensor) in borders.outputs for tensor in node.outputs):
        return False
    if not all(_plain(value) for value in node.attrs.values()):
        return False
    return any(tensor.name for tensor in node.inputs) and all(
        not tensor.name or id(tensor) in known or (borders.fixed(tensor) and tensor.dtype.kind not in "OSU")
        for tensor in node.inputs
    )


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, int | float | str) for item in value)
    return isinstance(value, int | float | str | Constant)


def _results(cluster: _Cluster) -> list[tuple[Graph, Tensor]]:
    """The tensors that nodes outside the cluster read."""
    inside = {id(node) for _, node in cluster.nodes}
    return [
        (graph, tensor)
        for graph, node in cluster.nodes
        for tensor in node.outputs
        if tensor.name and any(id(reader) not in inside for reader in tensor.outputs)
    ]


def _saved(cluster: _Cluster) -> int:
    """Bytes of the file that go with the cluster: its nodes, and the constants that nothing else reads."""
    inside = {id(node) for _, node in cluster.nodes}
    read = {id(t): t for _, node in cluster.nodes for t in node.inputs if isinstance(t, Constant)}
    dying = (t.nbytes for t in read.values() if all(id(reader) in inside for reader in t.outputs))
    return sum(dying) + NODE_BYTES * len(cluster.nodes)


def _shrinks(cluster: _Cluster) -> bool:
    """Whether it may pay, as far as can be said before it is computed."""
    return bool(_results(cluster)) and _saved(cluster) <= LARGEST


def _fold(model: Model, clusters: list[_Cluster]) -> int:
    """Compute clusters and put their results in their place; how many nodes went."""
    if not clusters:
        return 0
    try:
        values = _compute(model, clusters)
    except OnnxcError:
        if len(clusters) == 1:
            return 0  # an operator that ONNX Runtime cannot run on its own stays where it is
        half = len(clusters) // 2
        return _fold(model, clusters[:half]) + _fold(model, clusters[half:])
    gone: list[tuple[Graph, Node]] = []
    for cluster in clusters:
        results = _results(cluster)
        arrays = [values[tensor.name] for _, tensor in results]
        if not all(isinstance(array, np.ndarray) and array.dtype.kind not in "OSU" for array in arrays):
            continue
        made: dict[tuple[Any, ...], Constant] = {}
        keys = [(array.dtype.name, array.shape, array.tobytes()) for array in arrays]
        if sum(array.nbytes for array in dict(zip(keys, arrays, strict=True)).values()) > _saved(cluster):
            continue
        for (graph, tensor), array, key in zip(results, arrays, keys, strict=True):
            if key not in made:
                made[key] = Constant(tensor.name, array)
                graph.weights.append(made[key])
            rewire(tensor, made[key])  # tidy() moves one that other graphs read to where all see it
        gone += cluster.nodes
    for graph in {id(graph): graph for graph, _ in gone}.values():
        remove(graph, [node for home, node in gone if home is graph])
    return len(gone)


def _compute(model: Model, clusters: list[_Cluster]) -> dict[str, Any]:
    """Results of the clusters by name."""
    nodes = [node for cluster in clusters for _, node in cluster.nodes]
    return compute(model, nodes, [tensor for cluster in clusters for _, tensor in _results(cluster)])
