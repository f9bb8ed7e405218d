"""The recipe for a device with little memory does what it says, on a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxc
from onnxc.loading import load_cost
from onnxc.recipe import load_recipe
from onnxc.session import kernels
from tests.unpriced import pretend_everything_pays

ROOT = Path(__file__).parents[1]
CNN = "depthwise_cnn"


def stored(name: str) -> Path:
    """One of the models that come with onnxc."""
    return ROOT / "models" / f"{name}.onnx"


def made(name: str, recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a recipe makes of a model."""
    pretend_everything_pays(monkeypatch)
    calib, output = ROOT / "models" / "data" / f"{name}_calib.npz", folder / f"{recipe}.onnx"
    onnxc.optimize(stored(name), output, calib=calib, recipe=load_recipe(recipe), prices=folder / "prices.json")
    return output


def test_edge_takes_no_more_memory_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are computed with as they are stored: nothing is unfolded to float32 beside them."""
    output = made(CNN, "edge", tmp_path, monkeypatch)
    before, after = load_cost(stored(CNN)), load_cost(output)
    if before.peak_bytes is not None and after.peak_bytes is not None:
        assert after.peak_bytes <= before.peak_bytes
    assert output.stat().st_size < 0.5 * stored(CNN).stat().st_size
    assert kernels(output)["QLinearConv"] > 10
