"""Weights as smaller floats: what each type costs on a trained model, and that biases go with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import onnxc
from onnxc.codes.floats import PackedFloats, fits_bfloat16, lists_of
from onnxc.codes.grids import rounded_up
from onnxc.kernels import leftover_weights, operators
from onnxc.session import Session
from tests.unpriced import pretend_everything_pays

MODELS = Path(__file__).parents[2] / "models"
# Type -> (SQNR that is reached in dB, share of the file, opset that it needs).
TYPES = {
    "float16": (60, 0.56, 17),
    "bfloat16": (45, 0.56, 17),
    "float8e4m3fn": (20, 0.36, 19),
    "float8e5m2": (15, 0.36, 19),
}


@pytest.fixture(autouse=True)
def unpriced(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)


def optimized(passes: str, target: Path) -> onnxc.Report:
    return onnxc.optimize(
        MODELS / "residual_cnn.onnx", target, calib=MODELS / "data" / "residual_cnn_calib.npz", passes=passes,
        prices=target.with_name("prices.json"), budget=onnxc.Budget(min_sqnr=10, min_agreement=0.0),
    )  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_types(kind: str, tmp_path: Path) -> None:
    decibels, share, opset = TYPES[kind]
    report = optimized(f"store-float16:type={kind}", tmp_path / "out.onnx")
    assert report.comparison is not None
    assert decibels <= report.comparison.sqnr_db < decibels + 25
    assert report.bytes_after < share * report.bytes_before
    graph = Session(tmp_path / "out.onnx", dump=True).optimized()
    assert not leftover_weights(graph)
    assert "Cast" not in operators(graph), "folded at load"
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version == opset


def test_biases_are_stored_in_halves(tmp_path: Path) -> None:
    """A bias that stays float takes 2 bytes a value; a vector that is none stays as it is."""
    optimized("store-float16", tmp_path / "out.onnx")
    before, after = (onnx.load(path) for path in (MODELS / "residual_cnn.onnx", tmp_path / "out.onnx"))
    floats = [each for each in after.graph.initializer if each.data_type == TensorProto.FLOAT and len(each.dims)]
    assert sum(numpy_helper.to_array(each).size for each in floats) < 200
    assert any(len(each.dims) == 1 and each.dims[0] > 8 for each in before.graph.initializer)


def test_rounding_of_types_and_scales() -> None:
    random = np.random.default_rng(0)
    values = (random.standard_normal((64, 32)) * 1e-6).astype(np.float32)
    made = PackedFloats.of(values, "float8e4m3fn")
    assert made.scale is not None
    found = made.values.astype(np.float32) * made.scale
    assert np.abs(found - values).max() < np.abs(values).max() / 16
    scales = np.abs(random.standard_normal(500)).astype(np.float32) * 1e-3
    up = rounded_up(scales)
    assert fits_bfloat16(up)
    assert (up >= scales).all()
    assert (up < scales * 1.032).all()
    assert len(np.unique(up)) < 256


def test_scales_of_a_wide_range_take_several_lists() -> None:
    """A list has 256 entries: another begins where there are more, and none where it saves nothing."""
    octaves = {name: rounded_up(2.0 ** np.linspace(low, low + 6, 900)) for name, low in (("a", 0), ("b", 6), ("c", 0))}
    assert lists_of(octaves) == {"a": 0, "b": 1, "c": 0}
    wide = rounded_up(2.0 ** np.linspace(0, 20, 2000))
    assert lists_of({"wide": wide, "few": octaves["a"][:50]}) == {}
