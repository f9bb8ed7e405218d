"""Linears that see one or two rows: MatMulNBits in the optimized graph, better codes than rounding to nearest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxc
from onnxc import coder
from onnxc.codes.fitting import make_grid
from onnxc.codes.formats import Format, parse_format
from onnxc.codes.grids import ScaledGrid
from onnxc.kernels import leftover_weights, operators
from onnxc.passes.quantize_decode import QuantizeDecode
from onnxc.session import Session
from tests import trained
from tests.emission import emitted, model, node, proposed, weight
from tests.unpriced import pretend_everything_pays

MODELS = Path(__file__).parents[2] / "models"


def optimized(passes: str, target: Path, floor: float = 10.0) -> onnxc.Report:
    return onnxc.optimize(
        MODELS / "sklearn_mlp.onnx", target, calib=list(trained.samples("sklearn_mlp", 48)), passes=passes,
        prices=target.with_name("prices.json"), budget=onnxc.Budget(min_sqnr=floor, min_agreement=0.0),
    )  # fmt: skip


def decibels(report: onnxc.Report) -> float:
    assert report.comparison is not None
    return float(report.comparison.sqnr_db)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_trained_model_runs_it_and_gptq_gains(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    passes = f"quantize-decode:bits={bits}:block=64"
    solved = optimized(passes, tmp_path / "solved.onnx")
    graph = Session(tmp_path / "solved.onnx", dump=True).optimized()
    assert operators(graph)["MatMulNBits"] >= 2
    assert not leftover_weights(graph)
    monkeypatch.setattr(coder.Factors, "of", lambda *_: None)
    nearest = optimized(passes, tmp_path / "nearest.onnx", 1.0)
    assert decibels(solved) > (20 if bits == 4 else 30)
    rows = [row for row in solved.rows if row.choice == "quantize-decode"]
    assert rows
    assert {row.bytes_after < (0.24 if bits == 4 else 0.4) * row.bytes_before for row in rows} == {True}
    if bits == 4:
        assert decibels(solved) > decibels(nearest) + 1.5
        assert solved.bytes_after < 0.3 * solved.bytes_before


@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_becomes_a_matmul(transposed: bool) -> None:
    gemm = node("Gemm", "x w b", "y", transB=int(transposed))
    shape = (64, 256) if transposed else (256, 64)
    proto = model([gemm], {"x": [1, 256]}, {"y": [1, 64]}, {"w": weight(*shape), "b": weight(64)}, opset=21)
    found = emitted(proto, [{"x": np.ones((1, 256), np.float32)}], QuantizeDecode(bits=8))
    assert found.kernels["MatMulNBits"] == 1
    assert not found.kernels["Gemm"]
    assert not found.leftovers
    assert found.sqnr_db > 30


def test_what_it_refuses() -> None:
    """Other opsets, many rows or unknown ones, a second reader."""
    stored = {"w": weight(256, 64)}

    def reasons(rows: object, nodes: list[onnx.NodeProto], opset: int = 21) -> str:
        proto = model(nodes, {"x": [rows, 256]}, {each.output[0]: None for each in nodes}, stored, opset=opset)
        _, proposals = proposed(proto, [], QuantizeDecode(), told=False)
        return "; ".join(refusal.reason for refusal in proposals.refusals)

    once = [node("MatMul", "x w", "y")]
    assert "8 rows" in reasons(8, once)
    assert "not known" in reasons("n", once)
    assert "another reader" in reasons(1, [*once, node("MatMul", "x w", "z")])
    assert "needs opset 21" in reasons(1, once, opset=17)
    assert reasons(1, once) == ""


def test_the_planner_takes_the_fastest_and_stores_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside ranges at run time, both offered: the codes in the file are those of the way that was chosen."""
    pretend_everything_pays(monkeypatch)
    report = optimized(
        "raise-opset:version=21,quantize-decode,quantize-dynamic,store-int8,store-low-bit", tmp_path / "out.onnx", 25
    )
    graph = Session(tmp_path / "out.onnx", dump=True).optimized()
    assert not leftover_weights(graph)
    assert decibels(report) >= 25
    assert report.bytes_after == (tmp_path / "out.onnx").stat().st_size


def test_scales_of_blocks() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((1, 256, 8)).astype(np.float32)
    matrix[:, 128:] *= 10
    grid, scale = make_grid(matrix, parse_format("int4/128"), np.ones((1, 256), np.float32), 127)
    assert isinstance(grid, ScaledGrid)
    assert grid.scales.shape == (1, 2, 8)
    assert (grid.scales[0, 1] > 5 * grid.scales[0, 0]).all()
    assert (scale == 1).all()
    assert Format(16, 128, scaled=True).name == "int4/128"
