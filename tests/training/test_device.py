"""Whatever trains stays on its device: every operator, and recovery from end to end, on a device kept apart."""

from __future__ import annotations

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxc.model import Model
from onnxc.training import importance, trainer
from onnxc.training.importance import first_order
from onnxc.training.interpreter import Program
from onnxc.training.recover import recover
from onnxc.training.tuning import Settings
from tests.training.elsewhere import ELSEWHERE, elsewhere
from tests.training.graphs import CASES, Case, build
from tests.training.students import MODELS, rounded, samples

FEW = Settings(minutes=30, steps=12, batch=8, threads=1)


def test_tensors_of_two_devices_do_not_meet() -> None:
    with elsewhere() as there:
        x = torch.arange(3, device=there)
        assert x.device == ELSEWHERE
        assert (x + 1).tolist() == [1, 2, 3]
        with pytest.raises(RuntimeError, match="on the processor and elsewhere"):
            x + torch.arange(3)


def gradients(case: Case, device: torch.device) -> list[np.ndarray]:
    """The output of a case, and the gradients of the sum of its squares."""
    model, feeds = build(case)
    point = {name: torch.tensor(array, device=device, requires_grad=True) for name, array in feeds.items()}
    y = Program(model, device=device)(point)["y0"]
    assert y.device == device
    (y * y).sum().backward()
    found = [y, *(each.grad for each in point.values())]
    assert all(each.device == device for each in found)
    return [each.detach().cpu().numpy() for each in found]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_operators_compute_where_they_are_told_to(case: Case) -> None:
    expected = gradients(case, torch.device("cpu"))
    with elsewhere() as there:
        got = gradients(case, there)
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sklearn_mlp", "residual_cnn"])
def test_recovery_on_another_device_gives_the_same_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "BLOCK_STEPS", 8)
    teacher = Model.load(MODELS / f"{name}.onnx")
    student = rounded(teacher)
    here = recover(teacher, student, samples(name), FEW)
    assert here.improved
    with elsewhere() as there:
        monkeypatch.setattr(trainer, "device", lambda: there)
        fused = ["cpu", there.type]
        monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: fused)
        away = recover(teacher, student, samples(name), FEW)
    assert away.steps == here.steps
    assert away.after == pytest.approx(here.after, rel=1e-6)
    for one, other in zip(here.model.graph.weights, away.model.graph.weights, strict=True):
        np.testing.assert_allclose(np.asarray(one.values), np.asarray(other.values), rtol=1e-5, atol=1e-7)


def test_first_order_importance_is_the_same_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = Model.load(MODELS / "residual_cnn.onnx"), samples("residual_cnn", 4)
    here = first_order(model, given)
    with elsewhere() as there:
        monkeypatch.setattr(importance, "device", lambda: there)
        away = first_order(model, given)
    assert here.keys() == away.keys()
    for name, array in here.items():
        np.testing.assert_allclose(array, away[name], rtol=1e-6)
