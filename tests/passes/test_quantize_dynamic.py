"""Ranges taken at run time: the chain fuses to one kernel, in bodies too; the kernels are counted."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import GraphProto, TensorProto, helper

from onnxc.passes.quantize_dynamic import QuantizeDynamic
from onnxc.passes.quantize_static import QuantizeStatic
from tests.emission import Shape, emitted, model, node, proposed, samples, weight

DYNAMIC = QuantizeDynamic()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dims", "shape"),
    [(["n", 96], [8, 96]), ([8, 96], [8, 96]), (["b", "s", 96], [2, 6, 96]), ([2, 6, 96], [2, 6, 96])],
)
def test_matmul_is_one_kernel(dims: Shape, shape: list[int], *, bias: bool) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "y")] if bias else [node("MatMul", "x w", "y")]
    found = emitted(
        model(nodes, {"x": dims}, {"y": None}, {"w": weight(96, 128), "b": weight(128)}),
        samples(x=shape),
        DYNAMIC,
    )
    assert found.kernels == {"DynamicQuantizeMatMul": 1}
    assert found.sqnr_db > 33


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_is_one_kernel(transposed: int, *, bias: bool) -> None:
    """A transposed weight is transposed once, at load: ONNX Runtime folds the Transpose of the codes."""
    weights = {"w": weight(*([128, 96] if transposed else [96, 128])), "b": weight(128)}
    gemm = node("Gemm", "x w b" if bias else "x w", "y", transB=transposed)
    found = emitted(model([gemm], {"x": ["n", 96]}, {"y": None}, weights), samples(x=[8, 96]), DYNAMIC)
    assert found.kernels == {"DynamicQuantizeMatMul": 1}
    assert found.sqnr_db > 33


def test_linears_that_read_one_tensor_share_its_codes() -> None:
    nodes = [node("MatMul", f"x w{i}", f"m{i}") for i in range(3)] + [node("Sum", "m0 m1 m2", "y")]
    weights = {f"w{i}": weight(96, 128) for i in range(3)}
    found = emitted(model(nodes, {"x": ["b", "s", 96]}, {"y": None}, weights), samples(x=[2, 6, 96]), DYNAMIC)
    assert found.kernels == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 3, "Sum": 1}


def test_inside_the_bodies_of_an_if() -> None:
    """Both branches read codes of the outer graph; nothing is unfolded at a run."""

    def body(name: str, constant: float) -> GraphProto:
        nodes = [node("MatMul", f"x {name}", f"{name}_m"), node("Mul", f"{name}_m {name}_c", f"{name}_y")]
        return helper.make_graph(
            nodes,
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 128])],
            [helper.make_tensor(f"{name}_c", TensorProto.FLOAT, [], [constant])],
        )

    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total limit", "positive"),
        node("If", "positive", "y", then_branch=body("w0", 1.0), else_branch=body("w1", 2.0)),
    ]
    weights = {"w0": weight(96, 128), "w1": weight(96, 128), "limit": np.float32(0)}
    found = emitted(model(nodes, {"x": ["n", 96]}, {"y": None}, weights), samples(8, x=[8, 96]), DYNAMIC)
    assert found.kernels["DynamicQuantizeMatMul"] + found.kernels["MatMulIntegerToFloat"] == 2
    assert found.kernels["MatMul"] == found.kernels["MatMulInteger"] == found.kernels["Cast"] == 0
    assert found.sqnr_db > 30


def test_static_ranges_may_be_chosen_instead() -> None:
    """Two candidates for one site, one per mode."""
    proto = model([node("MatMul", "x w", "y")], {"x": [8, 96]}, {"y": None}, {"w": weight(96, 128)})
    _, found = proposed(proto, samples(x=[8, 96]), QuantizeStatic(), DYNAMIC)
    assert [candidate.mode for candidate in found.compute["y_node"]] == ["static", "dynamic"]


def test_convolutions_are_refused_with_the_reason() -> None:
    proto = model([node("Conv", "x w", "y")], {"x": [1, 16, 8, 8]}, {"y": None}, {"w": weight(16, 16, 3, 3)})
    _, found = proposed(proto, [], DYNAMIC)
    assert not found.compute
    assert found.refusals[0].reason.startswith("ConvInteger is slower")


def test_a_weight_on_the_left_is_no_linear() -> None:
    proto = model([node("MatMul", "w x", "y")], {"x": [96, 8]}, {"y": None}, {"w": weight(128, 96)})
    _, found = proposed(proto, [], DYNAMIC)
    assert not found.compute


def test_zeros_stay_zeros() -> None:
    proto = model([node("MatMul", "x w", "y")], {"x": ["n", 96]}, {"y": None}, {"w": weight(96, 128)})
    found = emitted(proto, samples(x=[8, 96]), DYNAMIC)
    zeros = found.session.run({"x": np.zeros((3, 96), np.float32)})["y"]
    assert zeros.shape == (3, 128)
    assert not zeros.any()
