"""What a smaller model gains before anything is rounded counts in what is predicted, and is measured once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxc
from onnxc import head_start as module
from onnxc.head_start import head_start
from onnxc.model import Model
from onnxc.price_file import PriceFile
from onnxc.session import Options
from tests.emission import model, node, weight

MODELS = Path(__file__).parents[1] / "models"


def linears(width: int, *between: onnx.NodeProto, last: str = "b") -> Model:
    """Two linears of so many channels in between, with nodes that lead from "b" to ``last``."""
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), *between, node("MatMul", f"{last} v", "y")]
    weights = {"w": weight(256, width), "v": weight(width, 256)}
    return Model.load(model(nodes, {"x": [64, 256]}, {"y": None}, weights))


def test_the_same_kernels_are_as_fast(tmp_path: Path) -> None:
    """What ONNX Runtime simplifies itself is no gain, whatever a busy machine measures."""
    prices, sample = PriceFile.open(tmp_path / "prices"), {"x": np.ones((64, 256), np.float32)}
    redundant = linears(256, node("Identity", "b", "c"), last="c")
    assert head_start(redundant, linears(256), sample, Options(), prices) == 1.0


def test_fewer_channels_are_faster_and_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prices, sample = PriceFile.open(tmp_path / "prices"), {"x": np.ones((64, 256), np.float32)}
    whole, cut = linears(1024), linears(64)
    found = head_start(whole, cut, sample, Options(), prices)
    assert found > 1.5
    monkeypatch.setattr(module, "Session", lambda *_, **__: pytest.fail("measured again"))
    assert head_start(whole, cut, sample, Options(), prices) == found


def test_a_cut_model_is_predicted_to_be_faster(tmp_path: Path) -> None:
    report = onnxc.optimize(
        MODELS / "residual_cnn.onnx",
        tmp_path / "out.onnx",
        calib=MODELS / "data" / "residual_cnn_calib.npz",
        passes="prune-channels:macs=0.6,store-int8",
        prices=tmp_path / "prices",
    )
    assert report.predicted_speed is not None
    assert report.predicted_speed > 1.2
