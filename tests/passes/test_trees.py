"""Tree ensembles: what they carry for nothing goes, and they are written as tensors, with the same predictions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxc.contract.passes import ExactPass
from onnxc.exactness import Exactness
from onnxc.model import Model
from onnxc.passes.strip_trees import StripTrees
from onnxc.passes.trees_as_tensors import TreesAsTensors
from onnxc.session import Options

ROWS = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
SAMPLES = [{"x": ROWS}, {"x": ROWS[:1]}, {"x": np.where(ROWS > 1, np.nan, ROWS).astype(np.float32)}]
DEPTH = 3


def forest(
    targets: int = 4,
    *,
    kind: str = "Classifier",
    votes: str = "pure",
    trees: int = 8,
    mode: str = "BRANCH_LEQ",
    opset: int = 1,
    seed: int = 1,
    **more: Any,
) -> Model:
    """Full trees of depth 3. ``votes``: "pure": of a leaf, for one target, and zero for the others; "own": a tree votes
    for one target; "mixed": a leaf votes for all.
    """
    random = np.random.default_rng(seed)
    name = "class" if kind == "Classifier" else "target"
    splits, leaves = 2**DEPTH - 1, 2**DEPTH
    columns = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids", "hitrates")
    nodes: dict[str, list[Any]] = {each: [] for each in columns}
    given: dict[str, list[Any]] = {each: [] for each in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(trees):
        for node in range(splits + leaves):
            split = node < splits
            row = (tree, node, int(random.integers(5)) if split else 0, mode if split else "LEAF")
            ways = (2 * node + 1, 2 * node + 2) if split else (0, 0)
            for each, value in zip(nodes, (*row, float(random.normal()) if split else 0.0, *ways, 1.0), strict=True):
                nodes[each].append(value)
            if split:
                continue
            chosen = tree % targets if votes == "own" else int(random.integers(targets))
            weights = random.uniform(0.1, 1, targets) if votes == "mixed" else np.zeros(targets)
            weights[chosen] = random.normal() if votes == "own" else 1 / trees
            for target in [chosen] if votes == "own" else range(targets):
                for each, value in zip(given, (tree, node, target, float(weights[target])), strict=True):
                    given[each].append(value)
    attributes = {f"nodes_{each}": values for each, values in nodes.items()}
    attributes |= {f"{name}_{each}": values for each, values in given.items()}
    attributes["nodes_missing_value_tracks_true"] = [0] * len(nodes["modes"])
    if kind == "Classifier":
        attributes["classlabels_int64s"] = list(range(targets))
    else:
        attributes["n_targets"] = targets
    attributes |= more
    outputs = ["label", "scores"] if kind == "Classifier" else ["scores"]
    node = helper.make_node(f"TreeEnsemble{kind}", ["x"], outputs, domain="ai.onnx.ml", **attributes)
    infos = {
        "label": helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        "scores": helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", targets]),
    }
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5])],
        [infos[each] for each in outputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", opset)]
    return Model.load(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def after(pass_: ExactPass, model: Model, changed: int = 1) -> Counter[str]:
    """Run a pass, check predictions and that a second run finds nothing; operators with their number."""
    before = model.copy()
    assert pass_.run(model).changed == changed
    assert Exactness(before, SAMPLES).differs(model) is None
    assert pass_.run(model).changed == 0
    onnx.checker.check_model(model.proto(), full_check=True)
    return Counter(node.op for node in model.nodes())


def test_votes_of_zero_go() -> None:
    model = forest()
    before = len(model.serialized())
    assert after(StripTrees(), model) == {"TreeEnsembleClassifier": 1}
    (node,) = model.nodes()
    assert len(node.attrs["class_weights"]) == 64  # one for each leaf
    assert not {"nodes_hitrates", "nodes_missing_value_tracks_true"} & set(node.attrs)
    assert len(model.serialized()) < 0.65 * before


def test_a_leaf_and_a_class_keep_one_vote() -> None:
    """Nobody votes for the last class, and a leaf for nobody."""
    model = forest()
    (node,) = model.nodes()
    ids, weights = (np.asarray(node.attrs[f"class_{each}"]) for each in ("ids", "weights"))
    weights[ids == 3] = 0
    weights[:4] = 0
    node.attrs["class_weights"] = weights.tolist()
    after(StripTrees(), model)
    (node,) = model.nodes()
    kept = list(zip(node.attrs["class_ids"], node.attrs["class_weights"], strict=True))
    assert (3, 0.0) in kept
    assert {(0, 7)} <= set(zip(node.attrs["class_treeids"], node.attrs["class_nodeids"], strict=True))


@pytest.mark.parametrize("more", [{"aggregate_function": "MAX"}, {"aggregate_function": "MIN"}])
def test_zeros_stay_where_the_least_or_most_counts(more: dict[str, str]) -> None:
    model = forest(kind="Regressor", **more)
    after(StripTrees(), model)
    (node,) = model.nodes()
    assert len(node.attrs["target_weights"]) == 256


def test_zeros_stay_beside_negative_votes() -> None:
    """A class with a vote of zero may be the label; one without is not."""
    model = forest()
    (node,) = model.nodes()
    node.attrs["class_weights"] = [-weight for weight in node.attrs["class_weights"]]
    after(StripTrees(), model)
    (node,) = model.nodes()
    assert len(node.attrs["class_weights"]) == 256
    assert TreesAsTensors().run(model).changed == 0


def test_missing_values_that_go_the_other_way_stay() -> None:
    model = forest(nodes_missing_value_tracks_true=[1, 0, 1] * 40)
    after(StripTrees(), model)
    (node,) = model.nodes()
    assert sum(node.attrs["nodes_missing_value_tracks_true"]) == 80


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (forest(), {"ArgMax": 1}),
        (forest(3, mode="BRANCH_GT"), {"ArgMax": 1}),
        (forest(mode="BRANCH_LT", nodes_missing_value_tracks_true=[1, 0, 1] * 40), {"ArgMax": 1}),
        (forest(classlabels_int64s=[5, 3, 9, 1]), {"ArgMax": 1, "Gather": 1}),
        (forest(votes="own", post_transform="SOFTMAX"), {"ArgMax": 1, "Softmax": 1}),
        (forest(votes="own", post_transform="LOGISTIC"), {"ArgMax": 1, "Sigmoid": 1}),
        (forest(votes="own", base_values=[0.5, -2.0, 0.25, 1.0]), {"ArgMax": 1}),
        (forest(1, kind="Regressor"), {}),
        (forest(1, kind="Regressor", base_values=[0.7]), {}),
        (forest(3, kind="Regressor", votes="own", aggregate_function="AVERAGE", opset=3), {}),
        (forest(1, kind="Regressor", aggregate_function="MAX"), {}),
    ],
)
def test_trees_become_tensors(model: Model, left: dict[str, int]) -> None:
    before = len(model.serialized())
    assert after(TreesAsTensors(), model) == {"TreeEnsemble": 1} | left
    assert model.opsets["ai.onnx.ml"] == 5
    assert len(model.serialized()) < 0.5 * before


@pytest.mark.parametrize(
    "model",
    [
        forest(2),  # labels of two classes follow rules of their own
        forest(votes="mixed"),  # leaves vote for several classes
        forest(base_values=[0.5, -2.0, 0.25, 1.0]),  # no tree is a class's own
        forest(1, kind="Regressor", aggregate_function="AVERAGE", base_values=[0.7]),
        forest(3, votes="own", post_transform="SOFTMAX_ZERO"),
        forest(1, kind="Regressor", post_transform="LOGISTIC"),  # which ONNX Runtime leaves out for one target
        forest(1, kind="Regressor", nodes_values=[0.0] * 119 + [1.0], nodes_treeids=[*[0] * 119, -1]),
    ],
)
def test_other_trees_stay(model: Model) -> None:
    before = model.serialized()
    assert TreesAsTensors().run(model).changed == 0
    assert model.serialized() == before


def test_tensors_are_checked() -> None:
    """A large forest pays; what it costs is measured against the model as it came."""
    model = forest(10, trees=150)
    outcome = TreesAsTensors().run_checked(model, [{"x": ROWS[:1]}, {"x": ROWS}], Options())
    assert outcome.changed == 1, outcome.notes
