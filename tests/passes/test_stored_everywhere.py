"""A weight is stored small whatever operator reads it, wherever it lies, and int8 kernels run where there are any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxc
from onnxc.kernels import fused, leftover_weights, operators
from onnxc.session import Session
from tests.emission import model, node, weight
from tests.unpriced import pretend_everything_pays

ROWS = (6, 96)
PASSES = "quantize-static,quantize-dynamic,quantize-lstm,quantize-embedding,store-int8"


@dataclass(frozen=True)
class Case:
    """A graph from x to y, and how many of its operators run in int8.

    Attributes:
        nodes, weights: of the graph; x: shape of its input; opset: the lowest that has the operators.
        kernels: int8 kernels expected in the optimized graph; ops: of which domains operators may be.
    """

    nodes: list[onnx.NodeProto]
    weights: dict[str, np.ndarray]
    x: tuple[int, ...] = ROWS
    kernels: int = 0
    opset: int = 17
    ops: str = "standard"

    def proto(self) -> onnx.ModelProto:
        return model(self.nodes, {"x": self.x}, {"y": None}, self.weights, opset=self.opset)


def body(name: str, nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> onnx.GraphProto:
    """A graph that reads what lies around it; what is called "condition" is a bool, "count" an integer."""

    def info(tensor: str) -> onnx.ValueInfoProto:
        kinds = {"condition": TensorProto.BOOL, "going": TensorProto.BOOL, "count": TensorProto.INT64}
        return helper.make_tensor_value_info(
            tensor, kinds.get(tensor, TensorProto.FLOAT), [] if tensor in kinds else None
        )

    return helper.make_graph(nodes, name, [info(each) for each in inputs], [info(each) for each in outputs])


def one_linear() -> dict[str, np.ndarray]:
    return {"w": weight(96, 128)}


def in_branch() -> Case:
    then = body("then", [node("MatMul", "x w", "then_y")], [], ["then_y"])
    other = body("other", [node("MatMul", "x w", "other_raw"), node("Neg", "other_raw", "other_y")], [], ["other_y"])
    total = [node("ReduceSum", "x", "total", keepdims=0), node("Greater", "total zero", "positive")]
    choice = helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=other)
    return Case([*total, choice], one_linear() | {"zero": np.zeros((), np.float32)}, kernels=2)


def in_loop() -> Case:
    step = [node("MatMul", "state w", "raw"), node("Tanh", "raw", "next"), node("Identity", "condition", "going")]
    turns = body("turns", step, ["count", "condition", "state"], ["going", "next"])
    loop = helper.make_node("Loop", ["times", "", "x"], ["y"], body=turns)
    return Case([loop], {"w": weight(96, 96), "times": np.asarray(3, np.int64)}, kernels=1)


def in_scan() -> Case:
    turns = body("turns", [node("MatMul", "row w", "out")], ["row"], ["out"])
    scan = helper.make_node("Scan", ["x"], ["y"], body=turns, num_scan_inputs=1)
    return Case([scan], one_linear(), x=(3, *ROWS), kernels=1)


def attention() -> Case:
    linears = [node("MatMul", f"x w{each}", each) for each in "qkv"]
    heads = node("Attention", "q k v", "a", q_num_heads=4, kv_num_heads=4)
    weights = {f"w{each}": weight(96, 96) for each in "qkv"} | {"wo": weight(96, 96)}
    return Case([*linears, heads, node("MatMul", "a wo", "y")], weights, x=(1, *ROWS), kernels=4, opset=23)


def recurrent(operator: str, gates: int, ops: str = "standard") -> Case:
    shapes = {"w": (1, gates * 64, 96), "r": (1, gates * 64, 64)}
    layer = node(operator, "x w r", "y", hidden_size=64)
    weights = {name: weight(*shape) for name, shape in shapes.items()}
    return Case([layer], weights, x=(5, 1, 96), kernels=int(ops == "ort"), ops=ops)


CASES: dict[str, Callable[[], Case]] = {
    "matmul": lambda: Case([node("MatMul", "x w", "y")], one_linear(), kernels=1),
    "gemm": lambda: Case([node("Gemm", "x w b", "y")], one_linear() | {"b": weight(128)}, kernels=1),
    "gemm transB": lambda: Case([node("Gemm", "x w", "y", transB=1)], {"w": weight(128, 96)}, kernels=1),
    "gemm alpha beta": lambda: Case(
        [node("Gemm", "x w b", "y", alpha=0.5, beta=2.0)], one_linear() | {"b": weight(128)}, kernels=1
    ),
    "gemm transA": lambda: Case([node("Gemm", "x w", "y", transA=1)], one_linear(), x=(96, 6)),
    "einsum": lambda: Case([node("Einsum", "x w", "y", equation="bsk,kn->bsn")], one_linear(), x=(1, *ROWS), kernels=1),
    "einsum turned": lambda: Case(
        [node("Einsum", "x w", "y", equation="bsk,nk->bsn")], {"w": weight(128, 96)}, x=(1, *ROWS), kernels=1
    ),
    "einsum heads": lambda: Case(
        [node("Einsum", "x w", "y", equation="bsk,khd->bshd")], {"w": weight(96, 4, 32)}, x=(1, *ROWS), kernels=1
    ),
    "einsum of heads": lambda: Case(
        [node("Einsum", "x w", "y", equation="bshd,hdk->bsk")], {"w": weight(4, 24, 128)}, x=(1, 6, 4, 24), kernels=1
    ),
    "einsum batched": lambda: Case(
        [node("Einsum", "x w", "y", equation="bhsk,hkn->bhsn")], {"w": weight(4, 96, 32)}, x=(1, 4, *ROWS)
    ),
    "transpose": lambda: Case(
        [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t", "y")], {"w": weight(128, 96)}, kernels=1
    ),
    "reshape": lambda: Case(
        [node("Reshape", "w s", "t"), node("MatMul", "x t", "y")],
        {"w": weight(96 * 128), "s": np.asarray([96, 128], np.int64)},
        kernels=1,
    ),
    "identity": lambda: Case([node("Identity", "w", "t"), node("MatMul", "x t", "y")], one_linear(), kernels=1),
    "cast": lambda: Case(
        [node("Cast", "w", "t", to=1), node("MatMul", "x t", "y")],
        {"w": weight(96, 128).astype(np.float16)},
        kernels=1,
    ),
    "if": in_branch,
    "loop": in_loop,
    "scan": in_scan,
    "conv transpose": lambda: Case([node("ConvTranspose", "x w", "y")], {"w": weight(96, 32, 3, 3)}, x=(1, 96, 5, 5)),
    "gru": lambda: recurrent("GRU", 3),
    "rnn": lambda: recurrent("RNN", 1),
    "lstm": lambda: recurrent("LSTM", 4),
    "lstm ort": lambda: recurrent("LSTM", 4, "ort"),
    "embedding": lambda: Case(
        [node("ReduceSum", "x", "t", keepdims=0), node("Cast", "t", "i", to=7), node("Clip", "i lo hi", "c"),
         node("Gather", "w c", "y")],
        {"w": weight(200, 64), "lo": np.asarray(0, np.int64), "hi": np.asarray(199, np.int64)},
    ),
    "attention": attention,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_stored_small_and_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    case = CASES[name]()
    onnx.save(case.proto(), tmp_path / "in.onnx")
    random = np.random.default_rng(1)
    samples = [{"x": random.standard_normal(case.x).astype(np.float32)} for _ in range(4)]
    report = onnxc.optimize(
        tmp_path / "in.onnx", tmp_path / "out.onnx", calib=samples, ops=case.ops, passes=PASSES,
        prices=tmp_path / "prices.json", budget=onnxc.Budget(min_sqnr=25, min_agreement=0.0, max_load_time=1000),
    )  # fmt: skip
    made = onnx.load(tmp_path / "out.onnx")
    words = [numpy_helper.to_array(each) for each in made.graph.initializer]
    assert sum(each.nbytes for each in words) < 1.5 * sum(np.asarray(v).size for v in case.weights.values()), name
    assert report.bytes_after < report.bytes_before
    assert report.comparison is not None
    assert report.comparison.sqnr_db >= 25
    optimized = Session(tmp_path / "out.onnx", dump=True).optimized()
    assert not leftover_weights(optimized)
    kernels = fused(operators(optimized))
    found = sum(kernels.values()) - kernels["DynamicQuantizeLinear"]
    assert found >= case.kernels, dict(operators(optimized))
