"""Boxes and scores in one output: the scores are heard beside the boxes, judged, and hold the floor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

import onnxc
from onnxc.contract.candidates import Activation
from onnxc.model import Model
from onnxc.parts import Parts, quiet
from onnxc.reference import ReferenceOutputs
from onnxc.sensitivity import Meter, activation_key, build_probe
from onnxc.session import Options, Session
from tests.emission import Sample, model, node, samples, weight
from tests.unpriced import pretend_everything_pays

PLACES = 48


def detector() -> ModelProto:
    """Of each of P places: four coordinates of hundreds, and 60 small probabilities; [1, P, 64]."""
    weights = {
        "trunk": weight(64, 128),
        "w_boxes": weight(128, 4) * 24,
        "w_scores": weight(128, 60) * 12,
        "low": np.float32(-4),
        "size": np.float32(300),
    }
    nodes = [
        node("MatMul", "x trunk", "hidden"),
        node("Relu", "hidden", "h"),
        node("MatMul", "h w_boxes", "raw"),
        node("Mul", "raw size", "boxes"),
        node("MatMul", "h w_scores", "logits"),
        node("Add", "logits low", "lower"),
        node("Sigmoid", "lower", "scores"),
        node("Transpose", "boxes", "boxes_t", perm=[0, 2, 1]),
        node("Transpose", "scores", "scores_t", perm=[0, 2, 1]),
        node("Concat", "boxes_t scores_t", "both", axis=1),
        node("Transpose", "both", "y", perm=[0, 2, 1]),
    ]
    return model(nodes, {"x": [1, "places", 64]}, {"y": None}, weights)


def data(count: int = 8) -> list[Sample]:
    return samples(count, x=[1, PLACES, 64])


def test_labels_follow_what_is_joined_and_moved() -> None:
    parts = Parts(Model.load(detector()))
    assert [leaf.name for leaf in parts.leaves["y"]] == ["boxes", "scores"]
    for places in (PLACES, 7):
        labels = parts.labels({"x": np.zeros((1, places, 64), np.float32)})["y"]
        assert np.array_equal(labels, np.broadcast_to([0] * 4 + [1] * 60, (1, places, 64)))


@pytest.mark.parametrize(
    ("power", "entries", "expected"),
    [
        ([400.0, 4.0], [4, 4], [[1]]),
        ([4.0, 400.0, 3.0], [4, 4, 4], [[0, 2]]),  # two that are alike are one part
        ([400.0, 4.0, 0.0], [4, 4, 4], [[1]]),  # what is zero throughout tells nothing
        ([400.0, 100.0], [4, 4], []),  # as loud
        ([4e6, 4e3, 4.0], [4, 4, 4], [[1], [2]]),
    ],
)
def test_what_is_quiet(power: list[float], entries: list[float], expected: list[list[int]]) -> None:
    assert quiet(np.array(power), np.array(entries)) == expected


def test_scores_are_judged_beside_boxes() -> None:
    proto, given = detector(), data()
    original = Model.load(proto)
    broken = Model.load(proto)
    boxes = next(each for each in broken.graph.nodes if each.op == "Sigmoid")
    half = broken.constant("half", np.float32(0.5))
    broken.redirect(boxes.outputs[0], broken.insert("Mul", [boxes.outputs[0], half], ["halved"]).outputs[0])
    broken.tidy()
    reference = ReferenceOutputs(Session(original), given, apart={3, 7}, parts=Parts(original))
    found = reference.judge(Session(broken))
    assert found.sqnr_db == pytest.approx(6.02, abs=0.01)
    assert found.worst == "y, part scores"
    assert [each.name for each in found.outputs] == ["y", "y, part scores"]
    assert found.outputs[0].sqnr_db is not None
    assert found.outputs[0].sqnr_db > 40
    assert reference.judge(Session(original)).sqnr_db == 200


def test_rounding_all_in_one_range_is_heard() -> None:
    """A step of the coordinates is larger than every score."""
    made, given = Model.load(detector()), data()
    loud = max(float(np.abs(Session(made).run(sample)["y"]).max()) for sample in given)
    both = Activation("both", low=-loud, high=loud)
    meter = Meter(build_probe(made, [both], {}, Parts(made)), given, Options())
    change = meter.on(activation_key(both)) | meter.at(both)
    assert meter.noise(change) > 0.5
    assert meter.errors(change).shape == (len(given), 2)
    assert meter.errors(change).sum(0)[0] < 1e-3


def test_the_floor_holds_for_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_everything_pays(monkeypatch)
    proto, given = detector(), data(16)
    report = onnxc.optimize(proto, tmp_path / "out.onnx", calib=given, prices=tmp_path / "prices.json")
    assert report.bytes_after < 0.5 * report.bytes_before
    before, after = Session(Model.load(proto)), Session(tmp_path / "out.onnx")
    pairs = [(before.run(each)["y"][..., 4:], after.run(each)["y"][..., 4:]) for each in given]
    noise = sum(float(np.square(a - b).sum()) for a, b in pairs)
    assert 10 * np.log10(sum(float(np.square(a).sum()) for a, _ in pairs) / noise) > 19.99
