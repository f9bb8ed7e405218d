"""Weights in float16 and float64: stored as codes like others, computed in their own type, never as larger floats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

import onnxc
from onnxc.culprits.local_damage import site_damage
from onnxc.kernels import operators
from onnxc.model import Model
from onnxc.recipe import Budget, parse_passes
from onnxc.session import Options, Session
from onnxc.sites import find
from onnxc.targets import target
from tests import trained
from tests.emission import Sample, model, node, random, weight
from tests.unpriced import pretend_everything_pays

TYPES = {"float16": (TensorProto.FLOAT16, np.float16), "float64": (TensorProto.DOUBLE, np.float64)}


@pytest.fixture(autouse=True)
def _without_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)


def converted(proto: ModelProto, kind: str) -> ModelProto:
    """``proto`` with every float32 tensor in another type."""
    number, dtype = TYPES[kind]
    made = ModelProto.FromString(proto.SerializeToString())
    for tensor in made.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for info in (*made.graph.input, *made.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = number
    del made.graph.value_info[:]
    return made


def saved(proto: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return path


def mlp(scale: Mapping[str, float] | None = None) -> ModelProto:
    """Two linears with biases."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Add", "a b", "c"),
        node("Relu", "c", "d"),
        node("Gemm", "d v e", "y", transB=1),
    ]
    weights = {"w": weight(96, 128), "b": weight(128), "v": weight(48, 128), "e": weight(48)}
    weights = {name: values * np.float32((scale or {}).get(name, 1)) for name, values in weights.items()}
    return model(nodes, {"x": ["n", 96]}, {"y": None}, weights)


def unfolded_at_run_time(optimized: ModelProto) -> list[str]:
    """Nodes that read constants alone, one of them no scalar, in what ONNX Runtime runs."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in optimized.graph.initializer}
    return [
        each.name
        for each in optimized.graph.node
        if all(name in sizes for name in each.input) and max(sizes[name] for name in each.input) > 1
    ]


def rows(kind: str, count: int = 24) -> list[Sample]:
    return [{"x": random.standard_normal((8, 96)).astype(TYPES[kind][1])} for _ in range(count)]


def test_a_trained_model_in_halves_shrinks_without_data(tmp_path: Path) -> None:
    path = saved(converted(onnx.load(trained.MODELS / "residual_cnn.onnx"), "float16"), tmp_path)
    prices = tmp_path / "prices.json"
    onnxc.optimize(path, tmp_path / "out.onnx", prices=prices)
    made = Model.load(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size < 0.6 * path.stat().st_size
    data = [
        {name: each.astype(np.float16) for name, each in sample.items()} for sample in trained.samples("residual_cnn")
    ]
    assert trained.sqnr(Model.load(path), made, data) > 40
    session = Session(made, Options(), dump=True)
    assert unfolded_at_run_time(session.optimized()) == []
    assert {info.dtype for info in (*session.inputs, *session.outputs)} == {"tensor(float16)"}
    assert not [t for t in made.graph.weights if t.dtype == np.float32 and t.nbytes > 64]

    onnxc.optimize(path, tmp_path / "same.onnx", prices=prices)
    assert (tmp_path / "same.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    onnxc.optimize(tmp_path / "out.onnx", tmp_path / "again.onnx", prices=prices)
    assert (tmp_path / "again.onnx").stat().st_size <= (tmp_path / "out.onnx").stat().st_size
    assert trained.sqnr(made, Model.load(tmp_path / "again.onnx"), data) > 60


@pytest.mark.parametrize("kind", TYPES)
def test_with_data_fewer_bits_hold_the_floor(kind: str, tmp_path: Path) -> None:
    path, data = saved(converted(mlp(), kind), tmp_path), rows(kind)
    budget, prices = Budget(min_agreement=0.5), tmp_path / "prices.json"  # of random answers many are near another
    report = onnxc.optimize(path, tmp_path / "out.onnx", calib=data, budget=budget, prices=prices)
    made = Model.load(tmp_path / "out.onnx")
    assert not [note for note in report.notes if "could not be observed" in note]
    share = (tmp_path / "out.onnx").stat().st_size / path.stat().st_size
    assert share < {"float16": 0.5, "float64": 0.125}[kind], "less than int8 takes"
    assert trained.sqnr(Model.load(path), made, rows(kind)) > 19
    assert unfolded_at_run_time(Session(made, Options(), dump=True).optimized()) == []
    assert f"it computes in {kind}, and int8 kernels take and give float32" in {r.reason for r in report.refusals}


def test_what_is_told_is_no_larger_float(tmp_path: Path) -> None:
    path = saved(converted(mlp(), "float16"), tmp_path)
    told = parse_passes("store-float16:type=float16")
    report = onnxc.optimize(path, tmp_path / "out.onnx", passes=told, prices=tmp_path / "prices.json")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    assert "it is float16 already" in {r.reason for r in report.refusals}


@pytest.mark.parametrize(("kind", "huge"), [("float16", 6e4), ("float64", 1e39)])
def test_values_that_codes_cannot_give_back_stay(kind: str, huge: float, tmp_path: Path) -> None:
    proto = converted(mlp(), kind)
    (held,) = [t for t in proto.graph.initializer if t.name == "w"]
    values = numpy_helper.to_array(held).copy()
    values[0, 0] = huge * 1.05
    held.CopyFrom(numpy_helper.from_array(values, "w"))
    path = saved(proto, tmp_path)
    onnxc.optimize(path, tmp_path / "out.onnx", prices=tmp_path / "prices.json")
    made = {t.name: t for t in Model.load(tmp_path / "out.onnx").graph.weights}
    assert made["w"].dtype == values.dtype
    assert np.array_equal(made["w"].values, values)


@pytest.mark.parametrize("kind", TYPES)
def test_the_damage_of_their_sites_is_measured(kind: str, tmp_path: Path) -> None:
    path = saved(converted(mlp(), kind), tmp_path)
    onnxc.optimize(path, tmp_path / "out.onnx", prices=tmp_path / "prices.json")
    found, missing = site_damage(Model.load(path), Model.load(tmp_path / "out.onnx"), rows(kind, 4), {})
    assert missing == []
    assert {each.site for each in found} == {"a_node", "y_node"}
    assert all(30 < each.sqnr_db < 60 for each in found)


def test_halves_that_a_cast_reads_are_no_weights_and_others_are() -> None:
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("MatMul", "h w", "a"),
        node("Cast", "a", "b", to=TensorProto.FLOAT),
        node("Cast", "t", "f", to=TensorProto.FLOAT),
        node("Mul", "b f", "c"),
        node("MatMul", "c v", "y"),
    ]
    halves = {"w": weight(96, 96).astype(np.float16), "t": weight(1, 96).astype(np.float16)}
    proto = model(nodes, {"x": [8, 96]}, {"y": None}, {**halves, "v": weight(96, 96)})
    found = find(Model.load(proto), target("cpu"))
    assert {w.name: (w.bytes, w.channel_axis, w.cast) for w in found.weights} == {
        "w": (2 * 96 * 96, 1, True),
        "v": (4 * 96 * 96, 1, False),
    }
    plain = found.in_float32()
    assert [w.name for w in plain.weights] == ["v"]
    assert [s.name for s in plain] == ["y_node"]
    assert plain.in_float32() is plain


def test_a_mixed_model_computes_in_int8_where_it_is_float32(tmp_path: Path) -> None:
    nodes = [
        node("Gather", "table ids", "h"),
        node("MatMul", "h w", "a"),
        node("Cast", "a", "b", to=TensorProto.FLOAT),
        node("MatMul", "b v", "y"),
    ]
    weights = {
        "table": weight(200, 128).astype(np.float16),
        "w": weight(128, 128).astype(np.float16),
        "v": weight(128, 128),
    }
    proto = model(nodes, {"ids": [16]}, {"y": None}, weights, integers=["ids"])
    path = saved(proto, tmp_path)
    report = onnxc.optimize(path, tmp_path / "out.onnx", prices=tmp_path / "prices.json")
    made = Model.load(tmp_path / "out.onnx")
    assert {row.site: row.choice for row in report.rows} == {
        "h_node": "store-int8",
        "a_node": "store-int8",
        "y_node": "quantize-dynamic",
    }
    kernels = operators(Session(made, Options(), dump=True).optimized())
    assert kernels["DynamicQuantizeMatMul"] == 1
    data = [{"ids": random.integers(0, 200, 16)} for _ in range(8)]
    assert trained.sqnr(Model.load(path), made, data) > 25
    assert (tmp_path / "out.onnx").stat().st_size < 0.5 * path.stat().st_size
