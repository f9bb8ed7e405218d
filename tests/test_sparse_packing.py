"""Sparse codes unfold bit for bit when ONNX Runtime loads them, in the bytes that they say, for its int8 kernels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnxc
from onnxc.codes.packing import PackedDigits
from onnxc.codes.sheets import OVERHEAD, Piece, Sheet, emit_together, spread
from onnxc.codes.sparse_forms import Gaps, Mask, Places, SparseCodes, forms
from onnxc.codes.sparse_packing import LARGEST, PackedSparse, expected_bytes, smaller, smallest_sparse
from onnxc.kernels import leftover_weights, operators
from onnxc.model import Model
from onnxc.session import Session
from tests.unpriced import pretend_everything_pays

random = np.random.default_rng(0)
FOUR_BITS = np.array([value for value in range(-7, 8) if value], np.int8)
EIGHT_BITS = np.array([value for value in range(-127, 128) if value], np.int8)


def sparse(zeros: float, values: np.ndarray, *shape: int) -> np.ndarray:
    """Codes of which a share is zero, the others drawn from ``values``."""
    return np.where(random.random(shape) < zeros, 0, random.choice(values, shape)).astype(np.int8)


def unfolded(codes: np.ndarray, form: Gaps | Places | Mask, opset: int = 13) -> np.ndarray:
    """What a session makes of ``form``."""
    output = helper.make_tensor_value_info("y", TensorProto.INT8, codes.shape)
    stored = [numpy_helper.from_array(np.zeros_like(codes), "w")]
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [output], stored)
    model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))
    sheet = Sheet(model)
    whole, total = form.unfolded(sheet, "w_q")
    model.redirect(model.graph.weights[0], spread(sheet, whole, {"w_q": Piece.of(codes.shape)}, total)["w_q"])
    model.tidy()
    return np.asarray(Session(model).run({})["y"])


def linear(codes: np.ndarray, form: PackedSparse | None) -> Model:
    """x [n, K] times a weight of these codes, in int8."""
    depth, outputs = codes.shape
    constants = {
        "s": np.asarray(0.02, np.float32),
        "z": np.asarray(128, np.uint8),
        "ws": np.full(outputs, 0.01, np.float32),
        "wz": np.zeros(outputs, np.int8),
        "w": codes,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=1),
        helper.make_node("MatMul", ["d", "dw"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", depth), ("y", outputs))]
    stored = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], stored),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    model = Model.load(proto)
    if form is not None:
        weight = next(t for t in model.graph.weights if t.name == "w")
        model.redirect(weight, emit_together(Sheet(model), {"w_q": form})["w_q"])
        model.tidy()
    return model


def initializers(optimized: onnx.ModelProto) -> Iterable[tuple[int, ...]]:
    return [tuple(each.dims) for each in optimized.graph.initializer if each.data_type == TensorProto.INT8]


@pytest.mark.parametrize(
    ("zeros", "values", "largest"),
    [(0.9, FOUR_BITS, 0.035), (0.9, EIGHT_BITS, 0.052), (0.95, FOUR_BITS, 0.027), (0.95, EIGHT_BITS, 0.027)],
    ids=["90, 4 bits", "90, 8 bits", "95, 4 bits", "95, 8 bits"],
)
def test_sparse_weights_are_small_and_run_in_int8(zeros: float, values: np.ndarray, largest: float) -> None:
    codes = sparse(zeros, values, 768, 1536)
    form = smallest_sparse(codes)
    assert form is not None
    packed, dense = linear(codes, form), linear(codes, None)
    rest = len(dense.serialized()) - codes.size
    assert len(packed.serialized()) - rest <= largest * 4 * codes.size, "nodes, words and tables"
    session = Session(packed, dump=True)
    kernels = operators(session.optimized())
    assert kernels == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}, kernels
    assert not leftover_weights(session.optimized())
    assert (768, 1536) in initializers(session.optimized()), "one int8 weight in memory"
    x = random.standard_normal((4, 768)).astype(np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], Session(dense).run({"x": x})["y"])


@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.6, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("values", [FOUR_BITS, EIGHT_BITS, np.array([-1, 1], np.int8)], ids=["4", "8", "ternary"])
def test_every_form_unfolds_bit_for_bit(zeros: float, values: np.ndarray) -> None:
    codes = sparse(zeros, values, 5, 7, 3, 3)
    for form in forms(SparseCodes.of(codes)):
        np.testing.assert_array_equal(unfolded(codes, form), codes, err_msg=repr(form)[-60:])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(-127, 127)), max_size=12), st.integers(0, 20))
def test_any_gaps(runs: list[tuple[int, int]], tail: int) -> None:
    codes = np.concatenate(
        [np.array([0] * gap + [value], np.int8) for gap, value in runs] + [np.zeros(tail + 1, np.int8)]
    )
    for form in forms(SparseCodes.of(codes)):
        np.testing.assert_array_equal(unfolded(codes, form), codes)


@pytest.mark.parametrize("values", [FOUR_BITS, EIGHT_BITS], ids=["4", "8"])
@pytest.mark.parametrize("zeros", [0.3, 0.9, 0.99])
def test_the_words_of_every_form_take_what_it_says(zeros: float, values: np.ndarray) -> None:
    codes = sparse(zeros, values, 96, 256)
    for form in forms(SparseCodes.of(codes)):
        model = linear(FOUR_BITS[:, None], None)
        form.unfolded(Sheet(model), "w_q")
        stored = {each.name: each.values for each in model.graph.weights if each.name.startswith("w_q_")}
        words = [name for name in stored if not name.endswith(("_palette", "_total"))]
        more = sum(np.asarray(stored[name]).nbytes for name in words) - (form.bytes - OVERHEAD)
        assert 0 <= more <= 2, "an entry behind the last, in one stream or in two"


@pytest.mark.parametrize("values", [FOUR_BITS, EIGHT_BITS], ids=["4", "8"])
@pytest.mark.parametrize("zeros", [0.7, 0.9, 0.97])
def test_estimates_are_the_bytes_of_the_file(zeros: float, values: np.ndarray) -> None:
    sizes, announced = [], 0
    for count in (0, 6):  # weights share their nodes and tables
        model = linear(FOUR_BITS[:, None], None)
        made = [smallest_sparse(sparse(zeros, values, 96, 256)) for _ in range(count)]
        packed = {f"weight{position}_q": form for position, form in enumerate(made) if form is not None}
        for name, tensor in emit_together(Sheet(model), packed).items():
            model.insert("Cast", [tensor], [f"out_{name}"], to=TensorProto.INT8).kept = True
        model.tidy()
        announced = sum(form.bytes for form in packed.values())
        sizes.append(len(model.serialized()))
    assert 0.9 * announced < sizes[1] - sizes[0] < announced + 4000, "nodes and tables"


def test_small_weights_share_what_is_best_for_all() -> None:
    weights = [smallest_sparse(sparse(0.95, EIGHT_BITS, 96, 288)) for _ in range(20)]
    packed = {f"weight{position}_q": form for position, form in enumerate(weights) if form is not None}
    model = linear(sparse(0.9, EIGHT_BITS, 16, 16), None)
    before = len(model.serialized())
    for name, tensor in emit_together(Sheet(model), packed).items():
        model.insert("Cast", [tensor], [f"out_{name}"], to=TensorProto.INT8).kept = True
    model.tidy()
    added = len(model.serialized()) - before - 20 * len("weight10_qCastout_weight10_q" * 2)
    assert added < 0.0245 * 4 * 20 * 96 * 288
    assert added < sum(form.bytes for form in packed.values()) + 3000, "nodes and tables of one form"


def test_the_smallest_is_taken_and_dense_codes_stay() -> None:
    assert smallest_sparse(sparse(0.0, EIGHT_BITS, 64, 64)) is None
    assert smallest_sparse(np.zeros((0, 4), np.int8)) is None
    assert LARGEST * 4 <= 1 << 30, "ONNX Runtime folds what is up to 1 GiB"
    codes = sparse(0.9, FOUR_BITS, 256, 256)
    found = smallest_sparse(codes)
    assert found is not None
    assert isinstance(found.form, Gaps), "a mask takes more memory at load"
    assert found.bytes + found.form.shared / 4 == min(f.bytes + f.shared / 4 for f in forms(SparseCodes.of(codes)))
    first, second = (linear(codes, smallest_sparse(codes)).serialized() for _ in range(2))
    assert first == second


def test_nothing_is_stored_for_a_weight_of_zeros() -> None:
    codes = np.zeros((64, 64), np.int8)
    found = smallest_sparse(codes)
    assert found is not None
    assert found.bytes < 1500
    np.testing.assert_array_equal(unfolded(codes, found.form), codes)


@pytest.mark.parametrize("zeros", [0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("values", [FOUR_BITS, EIGHT_BITS], ids=["4", "8"])
def test_the_planner_expects_what_comes(zeros: float, values: np.ndarray) -> None:
    codes = sparse(zeros, values, 512, 512)
    found = smallest_sparse(codes)
    assert found is not None
    expected = expected_bytes(codes.size, codes.size - int(np.count_nonzero(codes)), len(values) + 1)
    assert expected == pytest.approx(found.bytes, rel=0.03, abs=300)


def test_packed_codes_stay_unless_zeros_are_many() -> None:
    for zeros, wins in ((0.1, False), (0.4, False), (0.8, True)):
        codes = sparse(zeros, FOUR_BITS, 128, 256)
        packed = PackedDigits(16, (codes + 8).astype(np.uint8), Piece.of(codes.shape))
        assert isinstance(smaller(codes, packed), PackedSparse) == wins
    assert smaller(sparse(0.1, EIGHT_BITS, 64, 64), None) is None


def test_sparse_codes_beside_dense_ones() -> None:
    """Both look up digits of 16 levels, in tables of their own."""
    few, many = sparse(0.95, EIGHT_BITS, 96, 288), sparse(0.0, FOUR_BITS, 96, 288)
    form = smallest_sparse(few)
    assert form is not None
    assert form.form == Places(form.codes, 16, raw=True)
    dense = PackedDigits(16, (many + 8).astype(np.uint8), Piece.of(many.shape))
    model = linear(FOUR_BITS[:, None], None)
    for name, made in emit_together(Sheet(model), {"few": form, "many": dense}).items():
        output = model.insert("Cast", [made], [f"{name}_out"], to=TensorProto.INT8).outputs[0]
        model.graph.outputs.append(output)
    model.tidy()
    found = Session(model).run({"x": np.zeros((1, 14), np.float32)})
    np.testing.assert_array_equal(found["few_out"], few)
    np.testing.assert_array_equal(found["many_out"].reshape(many.shape), many)


@pytest.mark.parametrize(
    ("passes", "zeros", "says"),
    [
        ("store-int8", 0.97, ", zeros left out"),
        ("store-int8", 0.0, "int8 codes, unfolded at load"),
        ("quantize-dynamic", 0.97, "int8 codes, zeros left out"),
        ("quantize-dynamic", 0.0, "int8, activations quantized at run time"),
    ],
)
def test_the_report_says_that_only_what_is_not_zero_is_stored(
    passes: str, zeros: float, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked for the codes, a pass that stores weights or an operator that reads them."""
    pretend_everything_pays(monkeypatch)
    values = sparse(zeros, EIGHT_BITS, 256, 256).astype(np.float32) / 100
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 256]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(values, "w")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    report = onnxc.optimize(proto, passes=passes, prices=tmp_path / "prices.json")
    (row,) = [row for row in report.rows if row.changed]
    assert row.specification.endswith(says)
    assert (row.bytes_after < 0.15 * 65_536) is (zeros > 0.9)
