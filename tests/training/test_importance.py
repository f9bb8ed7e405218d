"""First-order importance foretells what noise on the weights does to the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

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


def kept(name: str, model_name: str = "residual_cnn", count: int = 24, **fields: Any) -> float:
    """The signal to noise ratio that a pruned network keeps, in dB."""
    model = Model.load(MODELS / f"{model_name}.onnx")
    session = Session(model)
    data = Calibration.open(MODELS / "data" / f"{model_name}_calib.npz", session.inputs)
    samples = Calibration.open(list(data.take(count)), session.inputs)
    level = level_of(name, fields, model, samples, Options(), 0)
    assert level is not None
    return ReferenceOutputs(session, samples, {}).judge(Session(level.model)).sqnr_db


def test_gradients_choose_which_weights_go() -> None:
    """Of seven in ten of all weights together they keep more than magnitude does."""
    by_gradients, by_size = (
        kept("prune-weights", fraction=0.7, scope="model", importance=word) for word in ("gradient", "magnitude")
    )
    assert by_gradients > by_size + 1


@pytest.mark.parametrize(
    ("model", "count", "least"), [("sklearn_mlp", 128, 22.0), ("residual_cnn", 24, 4.0), ("text_gru", 24, 18.0)]
)
def test_gradients_choose_in_every_weight(model: str, count: int, least: float) -> None:
    """Of half of every weight they keep 1 dB more than magnitude does; two of the three end in a Softmax, whose outputs
    have no slope where it is sure.
    """
    by_gradients, by_size = (
        kept("prune-weights", model, count, fraction=0.5, importance=word) for word in ("gradient", "magnitude")
    )
    assert by_gradients > max(by_size + 1, least)


@pytest.mark.parametrize(("op", "read", "share"), [("Softmax", [30.0, 0.0], 1.0), ("Sigmoid", [30.0, -30.0], 0.5)])
def test_what_a_model_is_sure_of_matters_too(op: str, read: list[float], share: float) -> None:
    """Its outputs have no slope there. Worked out by hand: of what the Softmax reads, from its mean, one weight makes
    everything; of what the Sigmoid reads each makes half.
    """
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node(op, ["z"], ["y"])]
    infos = [helper.make_tensor_value_info(name, 1, [1, size]) for name, size in (("x", 1), ("y", 2))]
    weight = numpy_helper.from_array(np.asarray([read], np.float32), "w")
    graph = helper.make_graph(nodes, "graph", infos[:1], infos[1:], [weight])
    model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    found = first_order(model, [{"x": np.ones((1, 1), np.float32)}] * 32)["w"]
    assert found[0, 0] == pytest.approx(share, rel=0.3)


def test_gradients_choose_which_channels_go() -> None:
    """Half of all channels, the others refitted."""
    assert kept("prune-channels", fraction=0.5, importance="gradient") > 12


def test_gradients_choose_which_hidden_units_go_before_a_softmax() -> None:
    """A quarter of them; judged on the samples that nothing was chosen or solved by."""
    model = Model.load(MODELS / "sklearn_mlp.onnx")
    session = Session(model)
    data = list(Calibration.open(MODELS / "data" / "sklearn_mlp_calib.npz", session.inputs).take(64))
    some, others = (Calibration.open(data[place::2], session.inputs) for place in (0, 1))
    fields = {"fraction": 0.25, "importance": "gradient"}
    level = level_of("prune-channels", fields, model, some, Options(), 0)
    assert level is not None
    assert ReferenceOutputs(session, others, {}).judge(Session(level.model)).sqnr_db > 24


@pytest.mark.parametrize("name", ["prune-weights", "prune-channels"])
def test_gradients_need_data(name: str) -> None:
    with pytest.raises(RecipeError, match="importance=gradient needs calibration data"):
        onnxc.optimize(MODELS / "residual_cnn.onnx", passes=f"{name}:fraction=0.5:importance=gradient")
