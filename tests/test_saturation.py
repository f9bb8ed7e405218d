"""16-bit pair sums: what the machine does, which sites would overflow, and that 7 bits never do."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxc import coder
from onnxc.coder import Coder
from onnxc.codes.saturation import as_matrix, machine_saturates, may_overflow, overflows
from onnxc.encoding import Codes, round_to_nearest
from onnxc.passes.quantize_dynamic import QuantizeDynamic
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.problem import Plan
from onnxc.session import Session
from onnxc.sites import Site
from onnxc.summary import saturation_note
from onnxc.targets import TARGETS, target
from tests.emission import emitted, model, node, proposed, random, samples, weight


def integer_product(x: NDArray[np.uint8], w: NDArray[np.int8]) -> NDArray[np.int32]:
    """MatMulInteger of ``x`` and a constant ``w`` as ONNX Runtime computes it."""
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "g",
        [make.make_tensor_value_info("x", onnx.TensorProto.UINT8, list(x.shape))],
        [make.make_tensor_value_info("y", onnx.TensorProto.INT32, None)],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    return np.asarray(Session(proto).run({"x": x})["y"])


def pair_sums(x: NDArray[np.uint8], w: NDArray[np.int8]) -> NDArray[np.int32]:
    """All sums [M, K / 2, N] of two neighbouring products."""
    products = x.astype(np.int32)[:, :, None] * w.astype(np.int32)[None]
    return np.asarray(products[:, 0::2] + products[:, 1::2])


def one_site(values: NDArray[np.float32], operator: str = "MatMul") -> Site:
    shape = values.shape
    if operator == "Conv":
        proto = model([node("Conv", "x w", "y")], {"x": [1, shape[1], 6, 6]}, {"y": None}, {"w": values})
    elif operator == "Gemm":
        proto = model([node("Gemm", "x w", "y", transB=1)], {"x": [2, shape[1]]}, {"y": None}, {"w": values})
    else:
        proto = model([node("MatMul", "x w", "y")], {"x": [2, shape[0]]}, {"y": None}, {"w": values})
    context, _ = proposed(proto, [])
    (site,) = context.sites
    return site


def test_the_machine_is_asked_and_says_what_its_kernels_do() -> None:
    x = random.integers(0, 256, (16, 128)).astype(np.uint8)
    w = random.integers(-127, 128, (128, 32)).astype(np.int8)
    x[:, ::5], w[::3] = 255, 127
    exact = bool((integer_product(x, w) == x.astype(np.int32) @ w.astype(np.int32)).all())
    assert machine_saturates() == (not exact)


def test_seven_bits_are_exact_on_every_machine() -> None:
    levels = TARGETS["cpu"].safe_weight_levels
    assert 255 * levels * 2 <= 32767 < 255 * 127 * 2
    x = np.full((4, 64), 255, np.uint8)
    for sign in (-1, 1):
        w = np.full((64, 16), sign * levels, np.int8)
        assert (integer_product(x, w) == 255 * levels * 64 * sign).all()


@given(st.integers(0, 10_000), st.integers(20, 127), st.integers(0, 255), st.sampled_from([4, 7, 16]))
@settings(max_examples=60, deadline=None)
def test_overflows_is_the_direct_computation(seed: int, peak: int, zero: int, depth: int) -> None:
    generator = np.random.default_rng(seed)
    codes = generator.integers(-peak, peak + 1, (depth, 5)).astype(np.int8)
    rows = generator.integers(0, 256, (6, depth))
    site = one_site(weight(depth, 5))
    even = depth // 2 * 2
    sums = pair_sums(rows[:, :even].astype(np.uint8), codes[:even])
    found = overflows(site, Codes(codes, np.ones(5, np.float32), 1, 127), (rows - zero).astype(np.float32), 1.0, zero)
    assert found == bool((sums > 32767).any() or (sums < -32768).any())
    if found:
        assert may_overflow(codes)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_seven_bit_codes_never_overflow(seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((12, 5)).astype(np.float32)
    codes = round_to_nearest(values, 1, TARGETS["cpu"].safe_weight_levels)
    assert 61 <= np.abs(codes.values.astype(int)).max() <= 63  # scales are rounded up
    assert not may_overflow(codes.values)
    assert not overflows(one_site(values), codes, np.full((3, 12), 1e9, np.float32), 1.0, 0)


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Conv"])
def test_neighbours_in_the_kernels_order_are_paired(operator: str) -> None:
    """Two large codes overflow side by side along K (of a convolution: neighbouring channels), not apart."""
    matrix = np.zeros((16, 2), np.int8)  # [K, N]; a convolution's K is 2 x 2 positions of 4 channels
    matrix[4:6, 1] = 127
    apart = np.zeros((16, 2), np.int8)
    apart[[5, 6], 1] = 127
    for codes, expected in ((matrix, True), (apart, False)):
        stored = codes.T if operator == "Gemm" else codes
        if operator == "Conv":
            stored = np.ascontiguousarray(np.moveaxis(codes.T.reshape(2, 2, 2, 4), -1, 1))
        site = one_site(stored.astype(np.float32), operator)
        made = Codes(np.ascontiguousarray(stored), np.ones(2, np.float32), None, 127)
        assert np.array_equal(as_matrix(site, made), codes)
        assert overflows(site, made, np.full((2, 16), 255, np.float32), 1.0, 0) is expected


def test_a_crafted_site_gets_seven_bits_only_where_that_helps() -> None:
    """Weights and inputs of one sign overflow; a second linear on small values does not."""
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("MatMul", "r v", "y")]
    large = np.full((32, 24), 0.5, np.float32) + weight(32, 24, scale=0.01)
    small = np.zeros((24, 16), np.float32)
    small[0] = 1.0  # one code of 127 per column: no pair to overflow
    data = [{"x": np.abs(each["x"])} for each in samples(x=[8, 32])]
    proto = model(nodes, {"x": [8, 32]}, {"y": None}, {"w": large, "v": small})
    context, found = proposed(proto, data, QuantizeStatic())
    book = Coder(context, found)
    made = book.of({"w": "int8", "v": "int8"}, found.compute)
    assert book.overflowing == {("w", "int8")}
    assert made["w"].levels == (63 if machine_saturates() else 127)
    assert made["v"].levels == 127
    assert emitted(proto, data, QuantizeStatic()).sqnr_db > 30


def test_without_rows_the_worst_case_decides() -> None:
    """No data was seen: codes that can overflow get 7 bits where the machine saturates."""
    proto = model([node("MatMul", "x w", "y")], {"x": ["n", 96]}, {"y": None}, {"w": weight(96, 128)})
    found = emitted(proto, samples(x=[64, 96]), QuantizeDynamic())
    assert found.codes.overflowing == {("w", "int8")}
    assert found.sqnr_db > 33


@pytest.mark.parametrize(
    ("name", "here", "says"),
    [
        ("cpu", True, "written with 7 bits, at most 63"),
        ("cpu", False, "on processors without int8 dot products, which this one is not"),
        ("cpu-avx2", False, "written with 7 bits, at most 63"),
        ("tensorrt", True, None),
    ],
)
def test_the_report_says_what_was_done_about_it(
    name: str, here: bool, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven bits, a warning, or nothing where the target's kernels do not saturate; only of codes that are written."""
    monkeypatch.setattr(coder, "machine_saturates", lambda: here)
    proto = model([node("MatMul", "x w", "y")], {"x": ["n", 96]}, {"y": None}, {"w": weight(96, 128)})
    context, found = proposed(proto, samples(x=[64, 96]), QuantizeDynamic())
    book = Coder(replace(context, target=target(name)), found)
    planning: Any = SimpleNamespace(coder=book, context=book.context)
    chosen = Plan({"y_node": found.compute["y_node"][0]}, {"w": "int8"})
    assert saturation_note(planning, chosen) is None  # no codes were made
    made = book.of(chosen.stored, chosen.compute)["w"]
    said = saturation_note(planning, chosen)
    assert (said is None) if says is None else (said is not None and said.startswith("1 weight (w) ") and says in said)
    assert np.abs(made.values).max() == (63 if says is not None and "63" in says else 127)
    assert saturation_note(planning, Plan({}, {"w": "int8"})) is None  # computed in float
