"""Attributes that repeat the default go; whatever says something, or may, stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxc.exactness import Exactness
from onnxc.model import Model
from onnxc.passes.strip_defaults import StripDefaults
from tests.passes.test_exact_passes import IMAGE, model_of, random


def attributes(model: Model) -> dict[str, set[str]]:
    """Operator -> names of its attributes."""
    return {node.op: set(node.attrs) for node in model.nodes()}


def stripped(model: Model, changed: int) -> dict[str, set[str]]:
    """What is left after the pass, the second time it finds nothing."""
    before = model.copy()
    assert StripDefaults().finish(model).changed == changed
    assert Exactness(before, [{"x": IMAGE}]).differs(model) is None
    assert len(model.serialized()) < len(before.serialized()) or not changed
    assert StripDefaults().finish(model).changed == 0
    return attributes(model)


NETWORK = (
    "g (float[1,4,8,8] x) => (float y) { "
    "a = Conv<dilations: ints = [1, 1], group: int = 1, kernel_shape: ints = [3, 3], pads: ints = [0, 0, 0, 0], "
    "strides: ints = [2, 2]>(x, w) "
    "b = MaxPool<ceil_mode: int = 0, kernel_shape: ints = [2, 2], strides: ints = [1, 1], "
    "pads: ints = [1, 1, 1, 1]>(a) "
    "c = LeakyRelu<alpha: float = 0.01>(b) d = Flatten<axis: int = 1>(c) "
    "e = Gemm<alpha: float = 1.0, beta: float = 0.5, transA: int = 0, transB: int = 1>(d, m, n) "
    "y = Softmax<axis: int = -1>(e) }"
)


@pytest.mark.parametrize("opset", [10, 11, 17])
def test_only_what_the_definition_says_anyway_goes(opset: int) -> None:
    model = model_of(NETWORK, opset, w=random(3, 4, 3, 3), m=random(5, 48), n=random(5))
    left = stripped(model, {10: 6, 11: 9, 17: 10}[opset])
    windows = {"dilations", "pads", "strides"} if opset < 11 else {"strides"}
    assert left["Conv"] == {"kernel_shape"} | windows
    assert left["MaxPool"] == {"kernel_shape", "pads"} | ({"strides"} if opset < 11 else set())
    assert left["LeakyRelu"] == left["Flatten"] == set()
    assert left["Gemm"] == {"beta", "transB"}
    assert left["Softmax"] == (set() if opset >= 13 else {"axis"}), "its default was 1 before opset 13"


def test_bodies_are_stripped_too() -> None:
    model = model_of(
        "g (float[1,4,8,8] x) => (float y) { s = ReduceSum<keepdims: int = 0>(x) "
        "z = Constant<value_float: float = 0.0>() c = Less(s, z) "
        "y = If<then_branch: graph = b () => (float p) { p = Elu<alpha: float = 1.0>(x) },"
        " else_branch: graph = b () => (float q) { q = Elu<alpha: float = 2.0>(x) }>(c) }"
    )
    assert StripDefaults().finish(model).changed == 1
    assert sorted(len(node.attrs) for node in model.nodes() if node.op == "Elu") == [0, 1]


def test_custom_operators_and_functions_keep_theirs() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 17, "mine" : 1, "here" : 1]> '
        "g (float[1,4,8,8] x) => (float y, float z) { "
        "y = mine.Elu<alpha: float = 1.0>(x) z = here.Elu<alpha: float = 1.0>(x) } "
        '<opset_import: ["" : 17], domain: "here"> '
        "Elu <alpha: float = 3.0>(a) => (b) { b = Elu<alpha: float = @alpha>(a) }"
    )
    model = Model.load(onnx.parser.parse_model(text))
    before = model.serialized()
    assert StripDefaults().finish(model).changed == 0
    assert model.serialized() == before


def test_trees_lose_defaults_too() -> None:
    node = onnx.helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        post_transform="NONE",
        aggregate_function="AVERAGE",
        nodes_treeids=[0],
        nodes_nodeids=[0],
        nodes_featureids=[0],
        nodes_modes=["LEAF"],
        nodes_values=[0.0],
        nodes_truenodeids=[0],
        nodes_falsenodeids=[0],
        target_treeids=[0],
        target_nodeids=[0],
        target_ids=[0],
        target_weights=[2.0],
    )
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [3, 1]) for name in "xy")
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    model = Model.load(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    before = model.copy()
    assert StripDefaults().finish(model).changed == 1
    assert "post_transform" not in model.graph.nodes[0].attrs
    assert model.graph.nodes[0].attrs["aggregate_function"] == "AVERAGE"
    assert Exactness(before, [{"x": np.ones((3, 1), np.float32)}]).differs(model) is None
