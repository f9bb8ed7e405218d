"""Sparse tensors in the file: legal, smaller where it is said, and weights again when the file is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxc import optimize
from onnxc.codes.sparse_tensors import break_even, sparse_bytes, sparse_proto, sparse_value, unfold
from onnxc.kernels import leftover_weights, operators
from onnxc.model import Model
from onnxc.passes.fold_sparse import FoldSparse
from onnxc.session import Session
from tests.builders import sparse_weight

MODELS = Path(__file__).parents[2] / "models"
Form = Literal["constant", "initializer"]
random = np.random.default_rng(0)


def sparse(zeros: float, *shape: int, dtype: type = np.float32) -> np.ndarray:
    """Values of which a share is zero."""
    values = random.standard_normal(shape) if dtype == np.float32 else random.integers(1, 100, shape)
    return np.where(random.random(shape) < zeros, 0, values).astype(dtype)


def linear(weight: np.ndarray, opset: int = 17) -> ModelProto:
    """y = x W."""
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in zip("xy", weight.shape, strict=True)
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def finished(proto: ModelProto, *, told: bool = False, form: Form = "constant") -> tuple[Model, tuple[str, ...]]:
    model = Model.load(proto)
    outcome = FoldSparse(form=form).finish(model, told=told)
    return model, outcome.notes


def constants(proto: ModelProto) -> list[onnx.NodeProto]:
    return [n for n in proto.graph.node if n.op_type == "Constant" and n.attribute[0].name == "sparse_value"]


@pytest.mark.parametrize("zeros", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8, np.int64])
def test_the_file_is_legal_and_as_small_as_said(zeros: float, dtype: type) -> None:
    weight = sparse(zeros, 64, 300, dtype=dtype)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), helper.make_node("MatMul", ["x", "f"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 300])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model, _ = finished(proto, told=True)
    made = model.proto()
    onnx.checker.check_model(made, full_check=True)
    assert len(constants(made)) == 1
    assert (
        abs(len(made.SerializeToString()) - len(proto.SerializeToString()) + weight.nbytes - sparse_bytes(weight)) < 40
    )
    x = {"x": random.standard_normal((3, 64)).astype(np.float32)}
    np.testing.assert_array_equal(Session(made).run(x)["y"], Session(proto).run(x)["y"])
    assert operators(Session(made, dump=True).optimized()) == operators(Session(proto, dump=True).optimized())


def test_it_acts_where_it_pays() -> None:
    for shape in ((64, 100), (300, 500), (1500, 1500)):
        limit = break_even(shape, 4)
        for zeros, wins in ((limit - 0.02, False), (limit + 0.02, True)):
            model, notes = finished(linear(sparse(zeros, *shape)))
            assert bool(constants(model.proto())) == wins
            assert f"float32 from {limit:.0%} zeros on" in notes[0]
    assert finished(linear(sparse(0.0, 64, 64)))[1] == (), "nothing to say of a weight without zeros"
    assert break_even((1500, 1500), 1) > break_even((1500, 1500), 4) > break_even((1500, 1500), 8)


def test_places_are_written_in_their_shortest_form() -> None:
    weight = sparse(0.9, 300, 500)
    proto = sparse_proto(weight)
    assert proto.indices.int64_data
    assert not proto.indices.raw_data
    wide = proto.__class__()
    wide.CopyFrom(proto)
    wide.indices.raw_data = np.asarray(proto.indices.int64_data, np.int64).tobytes()
    del wide.indices.int64_data[:]
    assert proto.ByteSize() < 0.62 * wide.ByteSize()


def test_as_initializers_on_request() -> None:
    weight = sparse(0.3, 64, 100)
    model, _ = finished(linear(weight), told=True, form="initializer")
    made = model.proto()
    onnx.checker.check_model(made)
    assert [each.values.name for each in made.graph.sparse_initializer] == ["w"]
    assert not made.graph.initializer
    x = {"x": random.standard_normal((3, 64)).astype(np.float32)}
    np.testing.assert_array_equal(Session(made).run(x)["y"], Session(linear(weight)).run(x)["y"])


def test_in_bodies_and_not_below_its_opset() -> None:
    then, other = (
        helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"])],
            f"branch{i}",
            [],
            [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["n", 80])],
            [numpy_helper.from_array(sparse(0.9, 64, 80), f"w{i}")],
        )
        for i in range(2)
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", 1, ["n", 64])],
        [helper.make_tensor_value_info("y", 1, ["n", 80])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model, _ = finished(proto)
    assert len(model.serialized()) < 0.5 * len(proto.SerializeToString())
    onnx.checker.check_model(model.proto(), full_check=True)
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": random.standard_normal((3, 64)).astype(np.float32)}
        np.testing.assert_array_equal(Session(model).run(feeds)["y"], Session(proto).run(feeds)["y"])
    old = linear(sparse(0.9, 64, 80), opset=10)
    model, notes = finished(old, told=True)
    assert model.serialized() == Model.load(old).serialized()
    assert "opset 11" in notes[0]


def test_int8_codes_stay_on_the_int8_kernel() -> None:
    weight = sparse(0.95, 256, 256)
    codes = numpy_helper.from_array(np.clip(np.rint(weight * 30), -127, 127).astype(np.int8), "w")
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["t"]),
        helper.make_node("Mul", ["f", "t"], ["y"]),
    ]
    scale = numpy_helper.from_array(np.full(256, 1 / 30, np.float32), "ws")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 256]) for n in "xy"]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], [codes, scale]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    model, _ = finished(proto)
    assert len(constants(model.proto())) == 1
    optimized = Session(model, dump=True).optimized()
    assert operators(optimized) == {"DynamicQuantizeMatMul": 1}
    assert not leftover_weights(optimized)


def test_pruned_as_told_and_stored_sparse(tmp_path: Path) -> None:
    """The whole way, on a trained model: exactly the weights below the threshold are zero."""
    source, first, second = MODELS / "residual_cnn.onnx", tmp_path / "a.onnx", tmp_path / "b.onnx"
    report = optimize(source, first, passes="prune-weights:threshold=0.04,fold-sparse")
    optimize(source, second, passes="prune-weights:threshold=1e-12")
    made, plain = onnx.load(first), Model.load(second)
    onnx.checker.check_model(made, full_check=True)
    folded = constants(made)
    assert len(folded) >= 4
    read = Model.load(first)
    unfold(read)
    before = {t.name: np.asarray(t.values) for t in plain.graph.weights}
    after = {t.name: np.asarray(t.values) for t in read.graph.weights}
    matrices = [name for name, values in before.items() if values.ndim > 1 and values.dtype == np.float32]
    assert len(matrices) >= 8
    for name in matrices:
        np.testing.assert_array_equal(after[name], np.where(np.abs(before[name]) < 0.04, 0, before[name]))
    assert first.stat().st_size == report.bytes_after < report.bytes_before
    (note,) = [note for note in report.notes if note.startswith("fold-sparse: ")]
    dense, small = (int(text.replace(",", "")) for text in re.findall(r"([\d,]+) (?:->|bytes)", note))
    assert small < dense
    assert f"fold-sparse: {len(folded)} tensors are stored sparse, " in note
    for node in folded:
        values = after[node.output[0]]
        assert (values == 0).mean() > break_even(values.shape, 4) - 0.02


def test_one_tensor_is_told_as_one() -> None:
    """Whatever it is: weights and zero points are tensors."""
    _, (note,) = finished(linear(sparse(0.9, 64, 300)))
    assert note.startswith("1 tensor is stored sparse, 76,800 -> ")
    _, (note,) = finished(linear(sparse(0.2, 64, 300)))
    assert note.startswith("no tensor is stored sparse, 1 stays dense; ")


@pytest.mark.parametrize("form", ["initializer", "constant"])
def test_a_sparse_model_is_read_like_any_other(form: str) -> None:
    """Its weights are weights: they are quantized, and stay sparse where that is smaller."""
    proto = sparse_weight()
    if form == "constant":
        (stored,) = proto.graph.sparse_initializer
        values = np.zeros(64 * 64, np.float32)
        values[numpy_helper.to_array(stored.indices)] = numpy_helper.to_array(stored.values)
        node = helper.make_node("Constant", [], ["sparse"])
        node.attribute.append(sparse_value(values.reshape(64, 64)))
        proto.graph.node.insert(0, node)
        del proto.graph.sparse_initializer[:]
    before = Session(proto)
    for passes in (None, "store-int8", "fold-sparse", "prune-weights:fraction=0.99", "strip-debug"):
        report = optimize(proto, passes=passes)
        assert report.bytes_after <= report.bytes_before or "prune" in (passes or ""), passes
        assert report.model is not None
        x = {"x": random.standard_normal((4, 64)).astype(np.float32)}
        old, new = before.run(x)["y"], Session(report.model).run(x)["y"]
        if "prune" not in (passes or ""):
            assert 10 * np.log10((old**2).sum() / max(((old - new) ** 2).sum(), 1e-20)) > 25
        if passes == "store-int8":
            assert sum(row.shape == (64, 64) and row.choice == "store-int8" for row in report.rows) == 2
