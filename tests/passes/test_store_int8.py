"""Weights that unfold at load: nothing of the unfolding is left in the graph that runs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto

from onnxc.encoding import stored_bytes
from onnxc.passes.store_int8 import StoreInt8
from tests.emission import Sample, emitted, model, node, proposed, random, samples, weight

STORE = StoreInt8()


@pytest.mark.parametrize(
    ("operator", "weights", "shape"),
    [
        (node("MatMul", "x w", "y"), {"w": weight(96, 128)}, [8, 96]),
        (node("MatMul", "x w", "y"), {"w": weight(3, 96, 128)}, [3, 8, 96]),
        (node("Gemm", "x w b", "y", transB=1), {"w": weight(128, 96), "b": weight(128)}, [8, 96]),
        (node("Conv", "x w b", "y"), {"w": weight(16, 16, 3, 3), "b": weight(16)}, [1, 16, 8, 8]),
        (node("ConvTranspose", "x w b", "y"), {"w": weight(16, 16, 3, 3), "b": weight(16)}, [1, 16, 8, 8]),
        (
            node("GRU", "x w r", "y _", hidden_size=32),
            {"w": weight(1, 96, 24), "r": weight(1, 96, 32)},
            [5, 2, 24],
        ),
        (
            node("LSTM", "x w r", "y _ _", hidden_size=32),
            {"w": weight(1, 128, 24), "r": weight(1, 128, 32)},
            [5, 2, 24],
        ),
        (node("Mul", "x w", "y"), {"w": weight(96, 128, scale=1)}, [96, 128]),
    ],
)
def test_unfolded_at_load(operator: NodeProto, weights: dict[str, np.ndarray], shape: list[int]) -> None:
    proto = model([operator], {"x": shape}, {"y": None}, weights)
    found = emitted(proto, samples(x=shape), STORE)
    before = emitted(proto, samples(x=shape))
    assert found.kernels == before.kernels  # no Cast, no Mul, no DequantizeLinear
    assert {"w"} <= found.plan.coded
    assert found.sqnr_db > 36
    assert len(found.model.serialized()) < 0.45 * len(before.model.serialized())


def test_the_estimate_of_bytes_is_close() -> None:
    """What is priced is what one more weight takes in the file, to a few bytes; what all share counts once. Over
    several weights: whether their scales are a list depends on how many there are.
    """
    sizes, priced = [], []
    for count in (1, 5):
        names = ["w", "v", "u", "t", "s"][:count]
        nodes = [node("MatMul", f"x {name}", f"y{name}") for name in names]
        weights = {name: weight(96, 128) for name in names}
        proto = model(nodes, {"x": [8, 96]}, {f"y{name}": None for name in names}, weights)
        context, found = proposed(proto, [], STORE)
        made = emitted(proto, samples(x=[8, 96]), STORE)
        whole = sum(each.bytes for each in context.sites.weights)
        sizes.append(len(made.model.serialized()) - (len(context.model.serialized()) - whole))
        priced = [stored_bytes(each) for each in context.sites.weights]
        assert [found.storage[each.name][0].bytes for each in context.sites.weights] == priced
    assert abs((sizes[1] - sizes[0]) / 4 - priced[1]) < 60


def test_a_weight_inside_a_body_and_outside_is_stored_once() -> None:
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [node("MatMul", "x w", "inner")],
        "body",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["n", 96])],
    )
    other = helper.make_graph(
        [node("Identity", "x", "same")],
        "other",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, ["n", 96])],
    )
    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total limit", "positive"),
        node("If", "positive", "z", then_branch=body, else_branch=other),
        node("MatMul", "z w", "y"),
    ]
    proto = model(nodes, {"x": ["n", 96]}, {"y": None}, {"w": weight(96, 96), "limit": np.float32(0)})
    found = emitted(proto, samples(x=[8, 96]), STORE)
    large = [t for t in found.model.proto().graph.initializer if len(t.raw_data) >= 96 * 96]
    assert [t.data_type for t in large] == [3]
    assert found.kernels["Cast"] == 0
    assert found.sqnr_db > 36


def test_vectors_and_tiny_weights_are_refused() -> None:
    nodes = [node("Add", "x bias", "a"), node("MatMul", "a w", "y")]
    proto = model(nodes, {"x": [8, 4]}, {"y": None}, {"bias": weight(4), "w": weight(4, 4)})
    _, found = proposed(proto, [], STORE, told=False)
    assert not found.storage
    reasons = {refusal.place: refusal.reason for refusal in found.refusals}
    assert reasons["bias"].startswith("a vector")
    assert reasons["w"].startswith("too small")


def test_an_embedding_table_unfolds_once() -> None:
    data: list[Sample] = [{"ids": random.integers(0, 500, (6,))}]
    proto = model([node("Gather", "w ids", "y")], {"ids": [6]}, {"y": None}, {"w": weight(500, 32)}, integers=["ids"])
    found = emitted(proto, data, STORE)
    assert found.kernels == {"Gather": 1}
