"""Tree ensembles as arrays. In: a node of ai.onnx.ml before version 5. Out: its splits and leaves, numbered through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.model import Node

ENSEMBLES = {"TreeEnsembleClassifier": "class", "TreeEnsembleRegressor": "target"}  # what their leaves vote for
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Forest:
    """S splits and L leaves of all trees, in the order of the file.

    Attributes:
        roots: [trees], the first split of each.
        features, modes, values, missing: [S], column and comparison of each split; missing: whether a NaN is true.
        true, false: [S], the split or leaf where it goes on; true_leaf, false_leaf: whether that is a leaf.
        targets, weights, trees: [L], what each leaf votes for, and which tree it is of.
    """

    roots: Numbers
    features: Numbers
    modes: NDArray[np.str_]
    values: NDArray[np.float32]
    missing: NDArray[np.bool_]
    true: Numbers
    false: Numbers
    true_leaf: NDArray[np.bool_]
    false_leaf: NDArray[np.bool_]
    targets: Numbers
    weights: NDArray[np.float32]
    trees: Numbers


def read(node: Node) -> Forest | None:
    """The forest of a TreeEnsembleClassifier or TreeEnsembleRegressor.

    Votes of zero are left out where votes are summed. None where a leaf votes twice, a tree is one leaf, numbers are
    float64, or the file contradicts itself.
    """
    kind, given = ENSEMBLES[node.op], node.attrs
    trees, numbers, features = (_ints(given, f"nodes_{name}") for name in ("treeids", "nodeids", "featureids"))
    modes = np.asarray(given.get("nodes_modes", ()), np.str_)
    values = np.asarray(given.get("nodes_values", ()), np.float32)
    count = trees.size
    if not count or {numbers.size, features.size, modes.size, values.size} != {count}:
        return None
    missing = np.asarray(given.get("nodes_missing_value_tracks_true") or np.zeros(count), bool)
    leaf = modes == "LEAF"
    place = np.where(leaf, np.cumsum(leaf), np.cumsum(~leaf)) - 1  # among splits, or among leaves
    keys = _keys(trees, numbers)
    order = np.argsort(keys, kind="stable")
    if missing.size != count or (keys < 0).any() or np.unique(keys).size != count:
        return None
    ways = [_found(keys, order, _keys(trees, _ints(given, f"nodes_{way}nodeids"))[~leaf]) for way in ("true", "false")]
    firsts = np.unique(trees, return_index=True)[1]  # a tree begins with its first node
    leaves = _keys(_ints(given, f"{kind}_treeids"), _ints(given, f"{kind}_nodeids"))
    ids, weights = _ints(given, f"{kind}_ids"), np.asarray(given.get(f"{kind}_weights", ()), np.float32)
    if {leaves.size, ids.size} != {weights.size}:
        return None
    if summed(node):
        leaves, ids, weights = leaves[weights != 0], ids[weights != 0], weights[weights != 0]
    voted = _found(keys, order, leaves)
    if ways[0] is None or ways[1] is None or voted is None or leaf[firsts].any() or not leaf[voted].all():
        return None
    if np.unique(voted).size != voted.size:
        return None
    targets, votes = np.zeros(int(leaf.sum()), np.int64), np.zeros(int(leaf.sum()), np.float32)
    targets[place[voted]], votes[place[voted]] = ids, weights
    roots = place[np.sort(firsts)]
    split = ~leaf
    return Forest(
        *(roots, features[split], modes[split], values[split], missing[split]),
        *(place[ways[0]], place[ways[1]], leaf[ways[0]], leaf[ways[1]]),
        *(targets, votes, trees[leaf]),
    )


def summed(node: Node) -> bool:
    """Whether votes are added up, so that one of zero says nothing."""
    return node.attrs.get("aggregate_function", "SUM") in ("SUM", "AVERAGE")


def own_trees(forest: Forest) -> dict[int, int]:
    """The targets that some tree votes for whatever it is asked, and such a tree for each."""
    mixed = np.unique(forest.trees[forest.targets != first_target(forest)])
    pure = ~np.isin(forest.trees, mixed)
    return dict(zip(forest.targets[pure][::-1].tolist(), forest.trees[pure][::-1].tolist(), strict=True))


def first_target(forest: Forest) -> Numbers:
    """[L]: what the first leaf of the tree of each leaf votes for."""
    _, first, tree = np.unique(forest.trees, return_index=True, return_inverse=True)
    return forest.targets[first][tree.reshape(-1)]


def based(forest: Forest, base: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The weights of leaves with ``base`` [targets] added in a tree of each target's own; None where one has none."""
    weights, own = forest.weights.astype(np.float64), own_trees(forest)
    for target in np.flatnonzero(base).tolist():
        if target not in own:
            return None
        weights[forest.trees == own[target]] += base[target]
    return weights.astype(np.float32)


def _ints(given: dict[str, Any], name: str) -> Numbers:
    return np.asarray(given.get(name, ()), np.int64)


def _keys(trees: Numbers, numbers: Numbers) -> Numbers:
    """One number for a tree and a node of it; -1 where lengths differ."""
    if trees.size != numbers.size or (trees.size and (min(trees.min(), numbers.min()) < 0 or numbers.max() >= 1 << 32)):
        return np.full(trees.size, -1)
    return (trees << 32) + numbers


def _found(keys: Numbers, order: Numbers, wanted: Numbers) -> Numbers | None:
    """Where ``wanted`` stand among ``keys``, None where one does not."""
    at = np.searchsorted(keys[order], wanted)
    found = order[np.minimum(at, keys.size - 1)]
    return found if (keys[found] == wanted).all() else None
