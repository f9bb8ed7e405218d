"""An embedding that is also the head of a language model, read through a Transpose: one copy of codes, int8 kernels.

ids ── Gather(W) ── body ── MatMul(Transpose(W)) ── logits
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxc
from onnxc.contract.passes import LossyPass
from onnxc.passes.quantize_dynamic import QuantizeDynamic
from onnxc.passes.quantize_embedding import QuantizeEmbedding
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.passes.store_int8 import StoreInt8
from onnxc.sites import matrix_axes
from tests.emission import emitted, model, node, proposed, weight
from tests.unpriced import pretend_everything_pays

ROWS, WIDTH = 300, 96
IDS = [{"ids": np.random.default_rng(seed).integers(0, ROWS, 16)} for seed in range(4)]


def language_model(**attributes: object) -> onnx.ModelProto:
    nodes = [
        node("Gather", "table ids", "x"),
        node("MatMul", "x w", "h"),
        node("Tanh", "h", "t"),
        node("Transpose", "table", "turned", **attributes),
        node("MatMul", "t turned", "y"),
    ]
    weights = {"table": weight(ROWS, WIDTH), "w": weight(WIDTH, WIDTH)}
    return model(nodes, {"ids": [16]}, {"y": None}, weights, integers=["ids"])


@pytest.mark.parametrize("attributes", [{}, {"perm": [1, 0]}])
def test_the_head_is_a_site_of_the_embedding(attributes: dict[str, object]) -> None:
    context, found = proposed(language_model(**attributes), IDS, QuantizeDynamic(), QuantizeEmbedding())
    head = next(site for site in context.sites if site.name == "y_node")
    assert head.weight is not None
    assert (head.weight.name, head.weight.channel_axis, head.transposed) == ("table", 0, True)
    assert matrix_axes(head) == (1, 0)
    assert {name: [c.mode for c in each] for name, each in found.compute.items()} == {
        "x_node": ["rows"],
        "h_node": ["dynamic"],
        "y_node": ["dynamic"],
    }


@pytest.mark.parametrize(("compute", "kernel"), [(QuantizeDynamic(), "Dynamic"), (QuantizeStatic(), "MatMulInteger")])
def test_codes_are_stored_once_and_multiplied_in_int8(compute: LossyPass, kernel: str) -> None:
    found = emitted(language_model(), IDS, compute, QuantizeEmbedding(), StoreInt8())
    stored = {t.name: np.asarray(t.values) for t in found.model.graph.weights}
    assert [name for name, values in stored.items() if values.size == ROWS * WIDTH] == ["table_q"]
    assert stored["table_q"].dtype == np.int8
    assert sum(values.nbytes for values in stored.values()) < 1.1 * (ROWS + WIDTH) * WIDTH
    assert sum(count for name, count in found.kernels.items() if name.startswith(("DynamicQuantizeM", "MatMulI"))) == 2
    assert any(name.startswith(kernel) for name in found.kernels)
    assert found.kernels["MatMul"] == found.kernels["Transpose"] == 0
    assert found.kernels["DequantizeLinear"] == 0
    assert found.sqnr_db > 28


def test_a_head_that_stays_float_reads_what_unfolds() -> None:
    found = emitted(language_model(), IDS, QuantizeEmbedding(), StoreInt8())
    assert [t.name for t in found.model.graph.weights if t.values.size == ROWS * WIDTH] == ["table_q"]
    assert found.kernels["MatMul"] == 2
    assert found.kernels["Transpose"] == 0
    assert found.sqnr_db > 30


def test_other_transposes_are_no_heads() -> None:
    """Three axes, or a matrix on the left."""
    nodes = [node("Transpose", "w", "t", perm=[0, 2, 1]), node("MatMul", "x t", "y")]
    proto = model(nodes, {"x": [2, 8, 96]}, {"y": None}, {"w": weight(2, 96, 96)})
    assert not proposed(proto, [], QuantizeDynamic())[1].compute
    nodes = [node("Transpose", "w", "t"), node("MatMul", "t x", "y")]
    proto = model(nodes, {"x": [96, 8]}, {"y": None}, {"w": weight(96, 128)})
    assert not proposed(proto, [], QuantizeDynamic())[1].compute


def test_the_whole_walk_keeps_them_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simplification does not fold the Transpose of a weight that others read: that would store it twice."""
    pretend_everything_pays(monkeypatch)
    report = onnxc.optimize(language_model(), passes="quantize-dynamic,quantize-embedding,store-int8")
    assert report.model is not None
    assert report.bytes_after < 0.35 * report.bytes_before, report.notes
    tables = [t for t in report.model.graph.initializer if np.prod(t.dims) == ROWS * WIDTH]
    assert len(tables) == 1
