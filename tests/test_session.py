"""Sessions: errors in one line that name the node, kernel times that add up, ratios on a busy machine."""

import itertools
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxc.errors import DataError, ModelError, OnnxcError, UsageError
from onnxc.loading import load_cost
from onnxc.model import Model
from onnxc.runtime.timing import interleaved_ratio, kernel_times
from onnxc.session import (
    Options,
    Session,
    available_providers,
    basic_simplified,
    check_providers,
    kernels,
    measure_ratio,
)

info = helper.make_tensor_value_info


def build(nodes, inputs, outputs, weights=(), opset=17, domains=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(each, 1) for each in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def matmul(size=4):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, size], np.ones(4 * size, np.float32))
    return build(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        [info("x", TensorProto.FLOAT, ["batch", 4])],
        [info("y", TensorProto.FLOAT, None)],
        [weight],
    )


X = {"x": np.ones((2, 4), np.float32)}


def test_every_kind_of_source(tmp_path):
    proto = matmul()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    for source in (proto, proto.SerializeToString(), path, str(path), Model.load(path)):
        session = Session(source)
        assert session.inputs[0].name == "x"
        assert session.inputs[0].shape == ("batch", 4)
        assert session.inputs[0].numpy == np.float32
        assert np.array_equal(session.run(X)["y"], np.full((2, 4), 4, np.float32))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            build(
                [helper.make_node("Foo", ["x"], ["y"], name="foo", domain="my.dom")],
                [info("x", TensorProto.FLOAT, [1])],
                [info("y", TensorProto.FLOAT, None)],
                domains=["my.dom"],
            ),
            ["'foo'", "Foo", "my.dom", "--custom-ops LIB"],
        ),
        (
            build(
                [helper.make_node("Fool", ["x"], ["y"], name="foo")],
                [info("x", TensorProto.FLOAT, [1])],
                [info("y", TensorProto.FLOAT, None)],
            ),
            ["'foo'", "Fool", "ai.onnx", "opset"],
        ),
        (
            build(
                [helper.make_node("Det", ["x"], ["y"], name="det")],
                [info("x", TensorProto.DOUBLE, [2, 2])],
                [info("y", TensorProto.DOUBLE, None)],
            ),
            ["'det'", "Det", "no kernel"],
        ),
        (b"not a model", ["cannot load"]),
        (Path("nowhere.onnx"), ["nowhere.onnx does not exist"]),
        (Path(), ["folder"]),
    ],
)
def test_models_that_do_not_load_are_one_line(model, words):
    with pytest.raises(ModelError) as caught:
        Session(model)
    message = str(caught.value)
    assert "\n" not in message
    assert "onnxruntime_src" not in message
    for word in words:
        assert word in message


def test_runs_that_fail_are_one_line():
    table = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], np.ones(12, np.float32))
    gather = build(
        [helper.make_node("Gather", ["w", "i"], ["y"], name="look")],
        [info("i", TensorProto.INT64, ["n"])],
        [info("y", TensorProto.FLOAT, None)],
        [table],
    )
    with pytest.raises(ModelError, match=r"node 'look' \(operator Gather\).*idx=99"):
        Session(gather).run({"i": np.array([99])})
    session = Session(matmul())
    with pytest.raises(DataError, match="'x' is missing"):
        session.run({})
    for feeds in ({"x": np.ones((2, 4))}, {"x": np.ones((2, 5), np.float32)}, {**X, "z": np.ones(1)}):
        with pytest.raises(DataError) as caught:
            session.run(feeds)
        assert "\n" not in str(caught.value)


def test_providers_never_fall_back():
    assert "CPUExecutionProvider" in available_providers()
    check_providers(["CPUExecutionProvider"])
    for names in (["NoSuchProvider"], []):
        with pytest.raises(UsageError, match="CPUExecutionProvider"):
            check_providers(names)
    with pytest.raises(UsageError, match="NoSuchProvider"):
        Session(matmul(), Options(providers=("NoSuchProvider", "CPUExecutionProvider")))
    with pytest.raises(UsageError, match=r"missing\.so"):
        Session(matmul(), Options(custom_ops=("missing.so",)))
    with pytest.raises(UsageError, match="level"):
        Session(matmul(), Options(level="most"))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("BFLOAT16", ml_dtypes.bfloat16),
        ("FLOAT8E4M3FN", ml_dtypes.float8_e4m3fn),
        ("FLOAT8E5M2", ml_dtypes.float8_e5m2),
        ("INT4", ml_dtypes.int4),
        ("UINT4", ml_dtypes.uint4),
        ("FLOAT16", np.float16),
    ],
)
def test_types_that_numpy_lacks_go_in_and_come_out(name, dtype):
    kind = getattr(TensorProto, name)
    values = np.array([0, 1, 3, 2, 1]).astype(dtype)
    if name == "INT4":
        values = np.array([0, 1, -8, 7, -1]).astype(dtype)
    widen = build(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
        [info("x", kind, [5])],
        [info("y", TensorProto.FLOAT, [5])],
        opset=21,
    )
    assert np.array_equal(Session(widen).run({"x": values})["y"], values.astype(np.float32))
    narrow = build(
        [helper.make_node("Cast", ["x"], ["y"], to=kind)],
        [info("x", TensorProto.FLOAT, [5])],
        [info("y", kind, [5])],
        opset=21,
    )
    result = Session(narrow).run({"x": values.astype(np.float32)})["y"]
    assert result.dtype == values.dtype
    assert np.array_equal(result.astype(np.float32), values.astype(np.float32))


def test_a_large_model_goes_through_a_file(tmp_path, monkeypatch):
    model = Model.load(matmul(512))
    expected = Session(model).run(X)["y"]
    monkeypatch.setattr("onnxc.session._INLINE_LIMIT", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = Session(model)
    assert not list(tmp_path.rglob("*.onnx"))
    assert np.array_equal(session.run(X)["y"], expected)


def test_optimized_graph_and_kernels():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Identity", ["r"], ["y"]),
    ]
    proto = matmul()
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert kernels(proto) == {"MatMul": 1, "Relu": 1}
    optimized = Session(proto, dump=True).optimized()
    assert [node.op_type for node in optimized.graph.node] == ["MatMul", "Relu"]
    assert len(basic_simplified(proto).graph.node) == 2
    with pytest.raises(OnnxcError, match="dump"):
        Session(proto).optimized()
    with pytest.raises(ModelError):
        basic_simplified(onnx.ModelProto())


def branching():
    """If(sr == 3): y = x + x, else x * x."""
    bodies = []
    for op in ("Add", "Mul"):
        node = helper.make_node(op, ["x", "x"], [f"out_{op}"], name=f"in_{op}")
        bodies.append(helper.make_graph([node], op, [], [info(f"out_{op}", TensorProto.FLOAT, None)]))
    three = helper.make_tensor("three", TensorProto.INT64, [], [3])
    return build(
        [
            helper.make_node("Equal", ["sr", "three"], ["same"], name="same"),
            helper.make_node("If", ["same"], ["y"], name="if", then_branch=bodies[0], else_branch=bodies[1]),
        ],
        [info("x", TensorProto.FLOAT, ["n"]), info("sr", TensorProto.INT64, [])],
        [info("y", TensorProto.FLOAT, None)],
        [three],
    )


def test_profile_counts_bodies_once():
    session = Session(branching(), profile=True)
    feeds = {"x": np.ones(1 << 20, np.float32)}
    spent = []
    for sr in (3, 3, 3, 4):
        start = time.perf_counter()
        session.run({**feeds, "sr": np.array(sr)})
        spent.append(time.perf_counter() - start)
    times = {each.node: each for each in session.end_profile(warmup=1)}
    assert times["in_Add"].calls == 2
    assert times["in_Mul"].calls == 1
    assert times["if"].calls == 3
    assert times["if"].seconds < 0.5 * times["in_Add"].seconds  # without what its bodies did
    assert sum(each.seconds for each in times.values()) < 1.5 * max(spent[1:])
    with pytest.raises(OnnxcError, match="profile"):
        session.end_profile()


def test_kernel_times_of_a_made_up_profile():
    def event(name, start, duration, op="", kind="Node"):
        return {"cat": kind, "name": name, "ts": start, "dur": duration, "args": {"op_name": op}}

    events = []
    for run in range(3):
        start = 1000 * run
        events += [
            event("model_run", start, 500, kind="Session"),
            event("if_kernel_time", start + 10, 200, "If"),
            event("inner_kernel_time", start + 20, 150, "Conv"),
            event("conv_kernel_time", start + 300, 100 if run else 900, "Conv"),
        ]
    found = {each.node: each for each in kernel_times(events, warmup=1)}
    assert found["if"].seconds == pytest.approx(50e-6)
    assert found["inner"].seconds == pytest.approx(150e-6)
    assert found["conv"].seconds == pytest.approx(100e-6)
    assert found["conv"].calls == 2


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = []
        monkeypatch.setattr("onnxc.runtime.timing.perf_counter", lambda: self.now)

    def work(self, name, *seconds):
        """A call that takes these seconds in turn."""
        turns = itertools.cycle(seconds)

        def call():
            self.calls.append(name)
            self.now += next(turns)

        return call


def test_ratio_of_known_work(monkeypatch):
    clock = Clock(monkeypatch)
    ratio = interleaved_ratio([(clock.work("a", 0.02), clock.work("b", 0.01))] * 3, rounds=5, seconds=1)
    assert ratio.low == pytest.approx(2)
    assert ratio.high == pytest.approx(2)
    assert ratio.median == pytest.approx(2)
    assert (ratio.seconds_a, ratio.seconds_b) == (pytest.approx(0.02), pytest.approx(0.01))
    measured = "".join(clock.calls[8:])  # after the warm-up
    assert {measured[i : i + 4] for i in range(0, len(measured) - 3, 4)} <= {"abba", "baab"}


def test_ratio_survives_a_machine_that_stalls(monkeypatch):
    clock = Clock(monkeypatch)
    stalls = [0.01] * 50 + [1.0]
    ratio = interleaved_ratio([(clock.work("a", 0.02), clock.work("b", *stalls))], rounds=9, seconds=3)
    assert ratio.median == pytest.approx(2)


def test_ratio_stops_when_it_is_clear_or_time_is_up(monkeypatch):
    clock = Clock(monkeypatch)
    pair = (clock.work("a", 0.02), clock.work("b", 0.01))
    interleaved_ratio([pair] * 4, rounds=30, seconds=60, decide=1.0)
    assert clock.now < 1
    clock.now = 0.0
    interleaved_ratio([(clock.work("a", 1), clock.work("b", 1))] * 64, rounds=7, seconds=10)
    assert clock.now < 40  # four samples and three rounds at least


def test_ratio_of_samples_of_very_different_sizes_takes_no_longer(monkeypatch):
    """Of a first sample that takes microseconds many make a round, of one that takes a twentieth of a second few."""
    clock = Clock(monkeypatch)
    quick = (clock.work("a", 2e-5), clock.work("b", 1e-5))
    slow = (clock.work("a", 0.06), clock.work("b", 0.03))
    ratio = interleaved_ratio([quick, slow, slow, slow], rounds=7, seconds=3)
    assert ratio.median == pytest.approx(2)
    assert clock.now < 6


def test_ratio_and_load_cost_of_sessions(tmp_path):
    small, large = Session(matmul(8)), Session(matmul(1 << 16))
    ratio = measure_ratio(large, small, [X, X], rounds=3, seconds=0.1)
    assert ratio.median > 1.2
    path = tmp_path / "m.onnx"
    onnx.save(matmul(1 << 18), path)  # 4 MB
    cost = load_cost(path)
    assert 0 < cost.seconds < 30
    assert cost.peak_bytes is None or 2 << 20 < cost.peak_bytes < 200 << 20
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load_cost(path)


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = Session(branching(), profile=True, dump=True)
    session.run({"x": np.ones(2, np.float32), "sr": np.array(3)})
    session.end_profile()
    assert list(tmp_path.iterdir())
    del session
    assert not list(tmp_path.iterdir())


def test_what_other_programs_take_is_not_a_runs_time():
    """A thread that waits computes nothing: the clock of one-threaded sessions stands still, the wall's does not."""
    session = Session(matmul(1 << 16))
    busy = session.call(X)

    def alone():
        for _ in range(200):
            busy()

    started = time.perf_counter()
    alone()
    pause = 8 * (time.perf_counter() - started)

    def interrupted():
        time.sleep(pause)
        alone()

    assert session.clock is time.thread_time
    ratio = interleaved_ratio([(interrupted, alone)], seconds=1.0, clock=session.clock)
    assert 0.5 < ratio.median < 3, "caches cool while the thread waits; by the wall's clock it is 9"
    assert ratio.seconds_a < pause
    assert Session(matmul(8), Options(threads=2)).clock is time.perf_counter
