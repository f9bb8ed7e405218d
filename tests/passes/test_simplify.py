"""The pass simplify as a whole: smaller, equal, idempotent, deterministic, safe against its own library."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxc.exactness import Exactness
from onnxc.model import Model
from onnxc.passes import simplify as simplify_module
from onnxc.passes.onnxsim_process import SimplifierError, Worker
from onnxc.passes.simplify import Simplify
from tests.passes.test_exact_passes import IMAGE, ROWS, model_of, random

LINEARS = (
    "g (float[B,4,8] x) => (float[B,4,8] y) { i = Identity(x) a = MatMul(i, w) b = Add(a, k) h = Shape(b) "
    "z = Constant<value = int64[1] {0}>() f = Gather(h, z) r = Constant<value = int64[2] {4, 8}>() "
    "s = Concat<axis: int = 0>(f, r) y = Reshape(b, s) }"
)


def test_linears_stay_linears_and_axes_stay_open() -> None:
    model = model_of(LINEARS, w=random(8, 8), k=random(8))
    model.metadata["labels"] = "a,b"
    before = model.copy()
    assert Simplify().run(model).changed
    counts = Counter(node.op for node in model.nodes())
    assert counts["MatMul"] == counts["Add"] == 1
    assert not counts["Gemm"]
    assert model.graph.inputs[0].shape == ["B", 4, 8]
    assert model.metadata == {"labels": "a,b"}
    for batch in (1, 3):
        assert Exactness(before, [{"x": np.ones((batch, 4, 8), np.float32)}]).differs(model) is None


def test_same_bytes_twice_and_nothing_left_to_do() -> None:
    files = []
    for _ in range(2):
        model = model_of(LINEARS, w=random(8, 8), k=random(8))
        Simplify().run(model)
        files.append(model.serialized())
        assert Simplify().run(model).changed == 0
        assert model.serialized() == files[-1]
    assert files[0] == files[1]


def test_a_tied_weight_stays_one_weight() -> None:
    model = model_of(
        "g (int64[1,4] x) => (float[1,4,600] y) { e = Gather(w, x) i = Identity(w) t = Transpose(i) y = MatMul(e, t) }",
        w=random(600, 8),
    )
    size = len(model.serialized())
    Simplify().run(model)
    assert len(model.serialized()) < size
    assert [tensor.shape for tensor in model.graph.weights] == [(600, 8)]


def test_functions_are_inlined_and_batchnorm_folded() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "my" : 1]> g (float[1,4,8,8] x) => (float[1,4,8,8] y) '
        "{ c = Conv<pads = [1,1,1,1]>(x, w) b = BatchNormalization(c, k, k, k, k) y = my.Block(b) } "
        '<domain: "my", opset_import: ["" : 17]> Block (a) => (r) { s = Sigmoid(a) r = Mul(a, s) }'
    )
    for name, value in (("w", random(4, 4, 3, 3)), ("k", random(4))):
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    model = Model.load(proto)
    before = model.copy()
    Simplify().run(model)
    assert Counter(node.op for node in model.nodes()) == {"Conv": 1, "Sigmoid": 1, "Mul": 1}
    assert not model.functions
    assert Exactness(before, [{"x": IMAGE}]).differs(model) is None


def test_bodies_are_simplified() -> None:
    info = helper.make_tensor_value_info
    inner = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32([2] * 8))),
        helper.make_node("Neg", ["k"], ["n"]),
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Mul", ["i", "n"], ["r"]),
    ]
    other = [helper.make_node("Exp", ["x"], ["r"])]
    then_branch, else_branch = (
        helper.make_graph(nodes, name, [], [info("r", 1, [2, 8])]) for nodes, name in ((inner, "t"), (other, "e"))
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then_branch, else_branch=else_branch),
    ]
    zero = numpy_helper.from_array(np.float32(0), "zero")
    graph = helper.make_graph(nodes, "g", [info("x", 1, [2, 8])], [info("y", 1, [2, 8])], [zero])
    model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    before = model.copy()
    Simplify().run(model)
    assert Counter(node.op for node in model.nodes()) == {
        "ReduceSum": 1,
        "Greater": 1,
        "If": 1,
        "Mul": 1,
        "Exp": 1,
    }
    assert Exactness(before, [{"x": ROWS}, {"x": -ROWS}]).differs(model) is None


def test_a_library_that_changes_outputs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto.graph.node[-1].op_type = "Neg"
        del proto.graph.node[-1].input[1:]
        return proto

    monkeypatch.setattr(simplify_module, "LIBRARIES", (("onnxsim", broken),))
    model = model_of("g (float[2,8] x) => (float[2,8] y) { i = Identity(x) y = Mul(i, k) }", k=random(8))
    outcome = Simplify().run(model)
    assert [node.op for node in model.nodes()] == ["Mul"]
    assert "onnxsim was left out: output y of sample 0: differs by" in " ".join(outcome.notes)


def test_larger_does_not_pay() -> None:
    small = model_of("g (float[2,8] x) => (float[2,8] y) { y = Mul(x, k) }", k=random(8))
    large = model_of("g (float[2,8] x) => (float[2,8] y) { i = Identity(x) y = Mul(i, k) }", k=random(8))
    assert Exactness(large, [{"x": ROWS}]).refuses(small) is None
    assert "bytes larger" in (Exactness(small, [{"x": ROWS}]).refuses(large) or "")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.abort()", "crashed"),
        ("import time; time.sleep(60)", "took more than"),
        ("", "crashed"),
    ],
)
def test_a_child_that_dies_or_hangs_is_replaced(tmp_path: Path, script: str, message: str) -> None:
    child = tmp_path / "child.py"
    child.write_text(script)
    worker = Worker(child)
    try:
        with pytest.raises(SimplifierError, match=message):
            worker.ask(b"x", seconds=0.5 if "sleep" in script else 20)
        answering = "import sys; sys.stdin.buffer.read(9); b = sys.stdout.buffer"
        child.write_text(f"{answering}; b.write((2).to_bytes(8, 'little') + b'=y'); b.flush()")
        assert worker.ask(b"x", seconds=20) == b"y"
    finally:
        worker.close()
