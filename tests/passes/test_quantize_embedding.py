"""Embedding tables: rows of codes are gathered, never a table that is unfolded first."""

from __future__ import annotations

import numpy as np
import pytest

from onnxc.passes.quantize_dynamic import QuantizeDynamic
from onnxc.passes.quantize_embedding import QuantizeEmbedding
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.passes.store_int8 import StoreInt8
from tests.emission import Sample, emitted, model, node, proposed, random, weight

ROWS = QuantizeEmbedding()


def ids(*shape: int, count: int = 3) -> list[Sample]:
    return [{"ids": random.integers(0, 500, shape)} for _ in range(count)]


@pytest.mark.parametrize("shape", [[2, 7], [5], []])
def test_rows_are_gathered_before_they_are_scaled(shape: list[int]) -> None:
    proto = model(
        [node("Gather", "table ids", "y")],
        {"ids": shape},
        {"y": None},
        {"table": weight(500, 32)},
        integers=["ids"],
    )
    found = emitted(proto, ids(*shape), ROWS)
    assert found.kernels == {"Gather": 2, "Cast": 1, "Mul": 1}
    assert found.sqnr_db > 40
    (stored,) = [t for t in found.model.proto().graph.initializer if list(t.dims) == [500, 32]]
    assert stored.data_type == 3  # int8


def test_negative_indices_count_from_the_end() -> None:
    proto = model(
        [node("Gather", "table ids", "y")],
        {"ids": [4]},
        {"y": None},
        {"table": weight(500, 32)},
        integers=["ids"],
    )
    found = emitted(proto, [{"ids": np.array([-1, -500, 0, 499])}], ROWS)
    assert found.sqnr_db > 40


def test_each_row_has_its_own_scale() -> None:
    table = weight(500, 32)
    table[7] *= 1e-4
    proto = model([node("Gather", "table ids", "y")], {"ids": [1]}, {"y": None}, {"table": table}, integers=["ids"])
    assert emitted(proto, [{"ids": np.array([7])}], ROWS).sqnr_db > 40


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_a_table_that_is_also_the_head_is_stored_once(mode: str) -> None:
    """Gather(table) and Gemm(table, transB=1) read the same codes: one copy, both in int8."""
    nodes = [node("Gather", "table ids", "e"), node("Gemm", "e table b", "y", transB=1)]
    proto = model(nodes, {"ids": [6]}, {"y": None}, {"table": weight(500, 64), "b": weight(500)}, integers=["ids"])
    linear = QuantizeDynamic() if mode == "dynamic" else QuantizeStatic()
    found = emitted(proto, ids(6), ROWS, linear, StoreInt8())
    large = [t for t in found.model.proto().graph.initializer if len(t.raw_data) >= 500 * 64]
    assert [(list(t.dims), t.data_type) for t in large] == [([500, 64], 3)]
    assert found.kernels["DynamicQuantizeMatMul" if mode == "dynamic" else "QGemm"] == 1
    assert found.kernels["Gather"] == 2
    assert found.leftovers == []
    assert found.sqnr_db > 25


def test_a_head_behind_a_transpose_keeps_one_copy() -> None:
    nodes = [
        node("Gather", "table ids", "e"),
        node("Transpose", "table", "t", perm=[1, 0]),
        node("MatMul", "e t", "y"),
    ]
    proto = model(nodes, {"ids": [6]}, {"y": None}, {"table": weight(500, 64)}, integers=["ids"])
    found = emitted(proto, ids(6), ROWS, QuantizeDynamic(), StoreInt8())
    large = [t for t in found.model.proto().graph.initializer if len(t.raw_data) >= 500 * 64]
    assert [(list(t.dims), t.data_type) for t in large] == [([500, 64], 3)]
    assert found.kernels["DequantizeLinear"] == 0


def test_other_axes_are_refused() -> None:
    proto = model(
        [node("Gather", "table ids", "y", axis=1)],
        {"ids": [2]},
        {"y": None},
        {"table": weight(64, 500)},
        integers=["ids"],
    )
    context, found = proposed(proto, [], ROWS)
    assert not found.compute
    assert found.refusals or not any(site.kind == "embedding" for site in context.sites)
