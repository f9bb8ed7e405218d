"""First-order importance foretells what noise on the weights does to the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import onnxc
from onnxc.data import Calibration
from onnxc.errors import RecipeError
from onnxc.model import Model
from onnxc.reference import ReferenceOutputs
from onnxc.session import Options, Session
from onnxc.training.importance import first_order
from onnxc.training.students import level_of

MODELS = Path(__file__).parents[2] / "models"


def test_it_foretells_the_damage_of_noise() -> None:
    model = Model.load(MODELS / "residual_cnn.onnx")
    with np.load(MODELS / "data" / "residual_cnn_calib.npz") as file:
        (name,) = file.files
        samples = [{name: file[name][place : place + 1]} for place in range(8)]
    found = first_order(model, samples)
    reference = Session(model)
    before = [next(iter(reference.run(sample).values())) for sample in samples]
    random = np.random.default_rng(0)
    weights = [name for name, array in found.items() if array.ndim == 4]
    assert len(weights) == 13
    for weight in (weights[3], weights[-1]):
        measured = []
        for _ in range(6):
            noisy = model.copy()
            tensor = next(each for each in noisy.graph.weights if each.name == weight)
            values = np.asarray(tensor.values)
            tensor.values = (values * (1 + 0.02 * random.standard_normal(values.shape))).astype(np.float32)
            session = Session(noisy)
            after = [next(iter(session.run(sample).values())) for sample in samples]
            measured += [float(np.square(a - b).sum() / np.square(b).sum()) for a, b in zip(after, before, strict=True)]
        assert 0.02**2 * found[weight].sum() == pytest.approx(np.mean(measured), rel=0.4)
    again = first_order(model, samples)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def kept(name: str, **fields: Any) -> float:
    """The signal to noise ratio that a pruned network keeps, in dB."""
    model = Model.load(MODELS / "residual_cnn.onnx")
    session = Session(model)
    data = Calibration.open(MODELS / "data" / "residual_cnn_calib.npz", session.inputs)
    samples = Calibration.open(list(data.take(24)), session.inputs)
    level = level_of(name, fields, model, samples, Options(), 0)
    assert level is not None
    return ReferenceOutputs(session, samples, {}).judge(Session(level.model)).sqnr_db


def test_gradients_choose_which_weights_go() -> None:
    """Of seven in ten of all weights together they keep more than magnitude does."""
    by_gradients, by_size = (
        kept("prune-weights", fraction=0.7, scope="model", importance=word) for word in ("gradient", "magnitude")
    )
    assert by_gradients > by_size + 1


def test_gradients_choose_which_channels_go() -> None:
    """Half of all channels, the others refitted."""
    assert kept("prune-channels", fraction=0.5, importance="gradient") > 12


@pytest.mark.parametrize("name", ["prune-weights", "prune-channels"])
def test_gradients_need_data(name: str) -> None:
    with pytest.raises(RecipeError, match="importance=gradient needs calibration data"):
        onnxc.optimize(MODELS / "residual_cnn.onnx", passes=f"{name}:fraction=0.5:importance=gradient")
