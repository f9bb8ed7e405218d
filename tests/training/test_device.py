"""Whatever trains stays on its device: every operator, every model, and recovery, on a device kept apart."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxc.codes.formats import Format
from onnxc.model import Model
from onnxc.training import importance, trainer
from onnxc.training.importance import first_order
from onnxc.training.interpreter import Program
from onnxc.training.latents import write
from onnxc.training.losses import Classes, Loss, Output
from onnxc.training.operators import OPERATORS
from onnxc.training.tuning import snapshot, tune
from tests.training.elsewhere import ELSEWHERE, elsewhere
from tests.training.fake_cuda import FakeCuda
from tests.training.families import FAMILIES, family
from tests.training.graphs import CASES, Case, build
from tests.training.students import MODELS, paired, pruned, rounded, samples, stored
from tests.training.trainings import FEW, learned, made

WITHOUT_VALUES = {  # what torch cannot tell of without values; here they are there
    "aten::_local_scalar_dense": "a number of the device as Python's: limits of Clip, the loss, conditions of If",
    "aten::nonzero": "how many there are: NonZero, Compress",
    "aten::index.Tensor": "how many a mask chooses: the size of a weight, over what is not zero",
    "aten::_unique2": "how many there are: the levels in a table of words",
    "aten::allclose": "whether it is so: the levels in a table of words",
    "aten::grid_sampler_2d": "nothing: torch asks CUDA itself of it",
    "aten::im2col": "nothing: torch asks CUDA itself of it",
}


def test_tensors_of_two_devices_do_not_meet() -> None:
    with elsewhere() as there:
        x = torch.arange(3, device=there)
        assert x.device == ELSEWHERE
        assert (x + 1).tolist() == [1, 2, 3]
        assert (x + torch.tensor(1)).tolist() == [1, 2, 3], "a number may come from the processor"
        with pytest.raises(RuntimeError, match="on the processor and elsewhere"):
            x + torch.arange(3)
        with pytest.raises(RuntimeError, match="on the processor and elsewhere"):
            torch.stack([x[0], torch.tensor(1)])  # not into what is no arithmetic


def test_torch_is_asked_what_cuda_would_say() -> None:
    judge = FakeCuda()
    with elsewhere(judge) as there:
        x = torch.ones(2, 3, device=there)
        with pytest.raises(RuntimeError, match="same reduction dim"):
            x @ x
        with pytest.raises(RuntimeError, match=r"not implemented for torch\.int64 on CUDA"):
            x.long() @ x.long().T
        learned = torch.ones(2, 3, device=there, requires_grad=True)
        (learned * x).sum().backward()
        assert learned.grad is not None
        weights = [torch.ones(4, 3, device=there), torch.ones(4, 1, device=there)]
        state = torch.zeros(1, 3, 1, device=there)
        with pytest.raises(RuntimeError, match="cudnn RNN backward"):
            torch.lstm(learned[:, None].expand(2, 3, 3), (state, state), weights, False, 1, 0.0, False, False, False)
    assert {"aten::mul.Tensor", "aten::sum", "aten::expand"} <= judge.asked


def values_and_gradients(model: Model, feeds: dict[str, np.ndarray], device: torch.device) -> list[np.ndarray]:
    """The outputs, and the gradients of the sum of squares of all that are real."""
    point = {
        name: torch.tensor(array, device=device, requires_grad=array.dtype.kind == "f") for name, array in feeds.items()
    }
    made = list(Program(model, device=device)(point).values())
    real = [each for each in made if each.requires_grad]
    if real:
        torch.stack([(each * each).sum().double() for each in real]).sum().backward()
    found = [*made, *(each.grad for each in point.values() if each.grad is not None)]
    assert all(each.device == device for each in found)
    return [each.detach().cpu().numpy() for each in found]


def same_elsewhere(model: Model, feeds: dict[str, np.ndarray]) -> None:
    expected, judge = values_and_gradients(model, feeds, torch.device("cpu")), FakeCuda()
    with elsewhere(judge) as there:
        got = values_and_gradients(model, feeds, there)
    assert judge.unknown <= set(WITHOUT_VALUES)
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9 if one.dtype == np.float64 else 1e-5, atol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_operators_compute_where_they_are_told_to(case: Case) -> None:
    same_elsewhere(*build(case))


@pytest.mark.parametrize("name", FAMILIES)
def test_operators_without_a_case_compute_there_too(name: str) -> None:
    same_elsewhere(*family(name))


def test_every_operator_is_tried_elsewhere() -> None:
    tried = {("", case.op) for case in CASES}
    for name in FAMILIES:
        model, _ = family(name)
        tried |= {("" if node.domain in {None, "", "ai.onnx"} else str(node.domain), node.op) for node in model.nodes()}
    assert set(OPERATORS) <= tried


def whole(teacher: Model, student: Model, name: str) -> list[np.ndarray]:
    """After a training by blocks and as a whole."""
    found = made(teacher, student, name, 24, FEW)
    assert found.run(blockwise=True).steps == FEW.steps
    return learned(found)


def mixed(teacher: Model, student: Model, name: str) -> list[np.ndarray]:
    """After a training as a whole with every sample mixed into another."""
    found = made(teacher, student, name, 24, replace(FEW, mix=1.0))
    assert found.mixer.on
    assert found.run(blockwise=False).steps == FEW.steps
    return learned(found)


def one_step(teacher: Model, student: Model, name: str) -> list[np.ndarray]:
    """After one step, better or not."""
    found, better = made(teacher, student, name, 2, FEW), iter([1.0, 0.0])
    start = snapshot(found.latents)
    tune(
        found.latents, found.batch_loss, found.order, lambda: next(better), FEW, steps=1, seconds=1e4, label="training"
    )
    assert any(bool((one != each.parameter).any()) for one, each in zip(start, found.latents, strict=True))
    assert np.isfinite(found.held_back())
    write(found.latents)
    return learned(found)


def same_training(
    training: Callable[[Model, Model, str], list[np.ndarray]],
    teacher: Model,
    student: Model,
    name: str,
    patch: pytest.MonkeyPatch,
    judge: FakeCuda | None,
) -> None:
    """A training learns the same here and elsewhere."""
    here = training(teacher, student, name)
    with elsewhere(judge) as there:
        patch.setattr(trainer, "device", lambda: there)
        fused = ["cpu", there.type]
        patch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: fused)
        away = training(teacher, student, name)
    for one, other in zip(here, away, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sklearn_mlp", "residual_cnn"])
def test_recovery_on_another_device_gives_the_same_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "BLOCK_STEPS", 8)
    teacher = Model.load(MODELS / f"{name}.onnx")
    same_training(whole, teacher, rounded(teacher), name, monkeypatch, None)


def test_samples_are_mixed_for_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Model.load(MODELS / "sklearn_mlp.onnx")
    same_training(mixed, teacher, rounded(teacher), "sklearn_mlp", monkeypatch, None)


@pytest.mark.parametrize("name", ["depthwise_cnn", "vision_transformer", "lstm", "text_gru", "mixer"])
def test_every_kind_of_model_takes_a_step_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Model.load(MODELS / f"{name}.onnx")
    judge = FakeCuda()
    same_training(one_step, teacher, rounded(teacher), name, monkeypatch, judge)
    assert judge.unknown <= set(WITHOUT_VALUES)
    assert "aten::_fused_adam_" in judge.asked


STUDENTS: dict[str, Callable[[Model], Model]] = {
    "masks": pruned,
    "pairs of thin matrices": paired,
    "words": lambda teacher: stored(teacher, Format(4), native=False),
    "blocks": lambda teacher: stored(teacher, Format(16, 32), native=False),
    "trellis": lambda teacher: stored(teacher, Format(16, trellis=True), native=False),
}


@pytest.mark.parametrize("form", STUDENTS)
def test_whatever_a_file_holds_takes_a_step_there(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Model.load(MODELS / "sklearn_mlp.onnx")
    judge = FakeCuda()
    same_training(one_step, teacher, STUDENTS[form](teacher), "sklearn_mlp", monkeypatch, judge)
    assert judge.unknown <= set(WITHOUT_VALUES)


def test_first_order_importance_is_the_same_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = Model.load(MODELS / "residual_cnn.onnx"), samples("residual_cnn", 4)
    here = first_order(model, given)
    with elsewhere(FakeCuda()) as there:
        monkeypatch.setattr(importance, "device", lambda: there)
        away = first_order(model, given)
    assert here.keys() == away.keys()
    for name, array in here.items():
        np.testing.assert_allclose(array, away[name], rtol=1e-6)


@pytest.mark.parametrize("measure", ["auto", "kl", "mse", "cosine"])
@pytest.mark.parametrize("kind", ["logits", "probabilities", "sigmoid", "values"])
def test_losses_take_what_the_teacher_and_the_labels_say_from_the_processor(measure: str, kind: str) -> None:
    """The student's outputs lie elsewhere; answers and class numbers are read from the disk."""
    random = np.random.default_rng(0)
    mine, theirs = (torch.tensor(random.dirichlet(np.ones(5), 3), dtype=torch.float32) for _ in range(2))
    loss, classes = Loss([Output("y", "y", kind)], measure, 2.0), Classes.certain([0, 4, 2])
    here = loss({"y": mine}, {"y": theirs}, classes)
    with elsewhere(FakeCuda()) as there:
        student = mine.to(there).requires_grad_()
        away = loss({"y": student}, {"y": theirs}, classes)
        away.backward()
        assert student.grad is not None
        assert student.grad.device == there
        assert float(away.detach()) == pytest.approx(float(here), rel=1e-6)
