"""Tree ensembles as ai.onnx.ml 5 writes them: splits in tensors, leaves apart, no names of comparisons.

before: TreeEnsembleClassifier ── label, scores         after: TreeEnsemble ─┬─ ArgMax ── label
                                                                             └─ Softmax ── scores

The older operators repeat "BRANCH_LEQ" and the number of its tree for every node: a third of the bytes is what is left.
The kernel that walks the trees is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.data import Sample
from onnxc.exactness import Exactness
from onnxc.model import Model, Node, Tensor
from onnxc.session import Options

from .facts import Borders
from .forests import ENSEMBLES, based, own_trees, read
from .trying import tried

OPSET = 5
MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
SUMS = {"AVERAGE": 0, "SUM": 1, "MIN": 2, "MAX": 3}
TRANSFORMS = {"NONE": None, "SOFTMAX": "Softmax", "LOGISTIC": "Sigmoid"}  # operators of their own: see the class
FEWEST = 3  # classes
Made = tuple[dict[str, Any], list[int] | None, str | None]
SINCE_FIRST = {  # operators of ai.onnx.ml that are in version 5 what they were in version 1
    *("ArrayFeatureExtractor", "Binarizer", "FeatureVectorizer", "Imputer", "LinearClassifier", "LinearRegressor"),
    *("Normalizer", "OneHotEncoder", "Scaler", "SVMClassifier", "SVMRegressor", "ZipMap"),
}


@dataclass(frozen=True)
class TreesAsTensors(ExactPass):
    """Write TreeEnsembleClassifier and TreeEnsembleRegressor as TreeEnsemble.

    1. Inputs and weights of float32; each leaf votes for one class or target, and every tree has a split.
    2. Classifiers of three classes and more, which are whole numbers: labels of two classes follow rules of their own.
    3. Scores as summed, and those of classifiers by Softmax or Sigmoid, which become operators: ONNX Runtime 1.32 reads
       the post_transform SOFTMAX of TreeEnsemble as LOGISTIC, and the other way round.
    4. Base values go into the leaves of a tree that votes for their class alone.
    5. All ensembles of a model or none, and no other operator that version 5 of ai.onnx.ml changes.
    6. Only where outputs stay equal, and it is smaller and not slower than the user's model.
    """

    name: ClassVar[str] = "trees-as-tensors"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        nodes = [node for node in model.nodes() if node.domain == "ai.onnx.ml"]
        found = [node for node in nodes if node.op in ENSEMBLES]
        if not found or any(node.op not in SINCE_FIRST for node in nodes if node not in found):
            return Outcome()
        if any(all(node is not each for each in model.graph.nodes) for node in found):
            return Outcome()
        borders = Borders.of(model)
        plans = [_ensemble(node) for node in found]
        made = [plan for plan in plans if plan is not None]
        if len(made) < len(plans):
            return Outcome()
        model.set_opset(max(OPSET, model.opsets.get("ai.onnx.ml", 1)), "ai.onnx.ml")
        for node, plan in zip(found, made, strict=True):
            _write(model, borders, node, plan)
        model.tidy()
        return Outcome(len(found), (f"tree ensembles written as tensors (ai.onnx.ml 5): {len(found)}",))

    def run_checked(
        self, model: Model, samples: Sequence[Sample], options: Options, original: Model | None = None
    ) -> Outcome:
        """``run`` if it pays."""
        given = original or model
        return tried(
            self, model, "trees were left as they are", lambda copy: Exactness(given, samples, options).refuses(copy)
        )


def _ensemble(node: Node) -> Made | None:
    """Attributes of a TreeEnsemble, labels of its classes (None for a regressor), the operator that makes scores of its
    sums; None where it has no such form.
    """
    given = node.attrs
    if node.inputs[0].dtype != np.dtype(np.float32) or any(name.endswith("_as_tensor") for name in given):
        return None
    labels = given.get("classlabels_int64s") if node.op == "TreeEnsembleClassifier" else None
    targets = len(labels) if labels is not None else int(given.get("n_targets", 1))
    transform, sums = str(given.get("post_transform", "NONE")), str(given.get("aggregate_function", "SUM"))
    if node.op == "TreeEnsembleClassifier" and (labels is None or targets < FEWEST):
        return None
    if node.op == "TreeEnsembleRegressor" and transform != "NONE":
        return None
    base = np.asarray(given.get("base_values", ()), np.float32)
    if transform not in TRANSFORMS or sums not in SUMS or (base.any() and (sums != "SUM" or base.size != targets)):
        return None
    forest = read(node)
    if forest is None or not set(forest.modes.tolist()) <= set(MODES) or forest.targets.max() >= targets:
        return None
    if labels is not None and forest.weights.min() < 0 and len(own_trees(forest)) < targets:
        return None  # a class that no tree votes for is never the label, but 0 would be more than what others have
    weights = based(forest, base) if base.any() else forest.weights
    if weights is None:
        return None
    attributes: dict[str, Any] = {
        "n_targets": targets,
        "aggregate_function": SUMS[sums],
        "tree_roots": forest.roots.tolist(),
        "nodes_featureids": forest.features.tolist(),
        "nodes_splits": forest.values,
        "nodes_modes": np.asarray([MODES.index(mode) for mode in forest.modes], np.uint8),
        "nodes_truenodeids": forest.true.tolist(),
        "nodes_trueleafs": forest.true_leaf.astype(int).tolist(),
        "nodes_falsenodeids": forest.false.tolist(),
        "nodes_falseleafs": forest.false_leaf.astype(int).tolist(),
        "leaf_targetids": forest.targets.tolist(),
        "leaf_weights": weights,
    }
    if forest.missing.any():
        attributes["nodes_missing_value_tracks_true"] = forest.missing.astype(int).tolist()
    return attributes, labels, TRANSFORMS[transform]


def _write(model: Model, borders: Borders, node: Node, made: Made) -> None:
    """Put a TreeEnsemble in the place of ``node``, and what finds the label."""
    (attributes, labels, transform), source, ends = made, node.inputs[0], list(node.outputs)
    node.inputs.clear()
    node.outputs.clear()
    scores, domain = ends[-1], "ai.onnx.ml"
    sums: str | Tensor = f"{scores.name}_sums" if transform else scores
    result = model.insert("TreeEnsemble", [source], [sums], name=node.name, domain=domain, **attributes).outputs[0]
    if transform is not None:
        model.insert(transform, [result], [scores], axis=1 if transform == "Softmax" else None)
    if labels is None or not (ends[0].outputs or not borders.private(ends[0])):
        return
    plain = labels == list(range(len(labels)))
    name: str | Tensor = ends[0] if plain else f"{ends[0].name}_place"
    place = model.insert("ArgMax", [result], [name], axis=1, keepdims=0).outputs[0]
    if not plain:
        classes = model.constant(f"{ends[0].name}_classes", np.asarray(labels, np.int64))
        model.insert("Gather", [classes, place], [ends[0]])
