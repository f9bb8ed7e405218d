"""Where training computes is chosen, said, and left again; a state goes on anywhere; memory may be full."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxc.errors import ModelError
from onnxc.model import Model
from onnxc.training import trainer, tuning
from onnxc.training.devices import device, named, orderly, within_memory
from onnxc.training.latents import Latent
from onnxc.training.operators import OPERATORS
from onnxc.training.recover import recover
from onnxc.training.tuning import Diary, Settings
from tests.training.elsewhere import elsewhere
from tests.training.students import MODELS, rounded, samples
from tests.training.trainings import FEW, learned, made


def test_cuda_that_does_not_work_leaves_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for error in (
        RuntimeError("CUDA error: no kernel image is available"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ):
        monkeypatch.setattr(torch, "ones", Mock(side_effect=error))
        assert device() == torch.device("cpu")


def test_cuda_is_taken_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "NVIDIA H200")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    ones = Mock()
    monkeypatch.setattr(torch, "ones", ones)
    assert device() == torch.device("cuda")
    assert ones.call_args.kwargs == {"device": "cuda"}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8", "else no product of matrices is the same twice"
    assert named(device()) == "NVIDIA H200 (CUDA)"


def test_the_place_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, said = Model.load(MODELS / "sklearn_mlp.onnx"), list[str]()
    found = recover(teacher, rounded(teacher), samples("sklearn_mlp"), FEW, say=said.append, blockwise=False)
    assert "training on the processor" in said
    assert found.notes[-1].startswith("12 steps on the processor, all steps done; loss on held-back samples ")


def test_memory_that_is_full_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8.00 GiB of which 1.25 is free."
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "NVIDIA H200")
    wanted = (
        "training: the memory of NVIDIA H200 (CUDA) is full, 2.50 GiB more are needed; smaller batches need less, and "
        "with CUDA_VISIBLE_DEVICES= in the environment the processor trains"
    )
    with pytest.raises(ModelError) as caught, within_memory(torch.device("cuda")):
        raise torch.OutOfMemoryError(text)
    assert str(caught.value) == wanted
    more = "the memory of the processor is full, 4503599627370496 bytes more are needed"
    with pytest.raises(ModelError, match=more), within_memory(torch.device("cpu")):
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="another"), within_memory(torch.device("cpu")):
        raise RuntimeError("another")


@pytest.mark.parametrize("place", ["Relu", "backward"])
def test_a_training_without_memory_leaves_the_model_as_it_was(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward an operator says so, backward torch: neither is a fault of the model's node, or a bug."""
    teacher = Model.load(MODELS / "sklearn_mlp.onnx")
    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    if place == "Relu":
        monkeypatch.setitem(OPERATORS, ("", "Relu"), full)
    else:
        monkeypatch.setattr(torch.Tensor, "backward", full)
    with pytest.raises(ModelError, match=r"training: the memory of the processor is full, 20\.00 MiB more"):
        recover(teacher, rounded(teacher), samples("sklearn_mlp"), FEW)


def test_kernels_that_are_not_deterministic_are_told(recwarn: pytest.WarningsRecorder) -> None:
    strict = torch.are_deterministic_algorithms_enabled()
    with orderly(0, 1, torch.device("cpu")) as loose:
        assert not torch.backends.cudnn.allow_tf32
        first = torch.rand(3)
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        warnings.warn("RNN module weights are not part of single contiguous chunk of memory.", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert loose == {"put_"}
    assert [str(each.message) for each in recwarn] == ["another"]
    assert torch.are_deterministic_algorithms_enabled() == strict
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    with orderly(0, 1, torch.device("cpu")):
        assert torch.equal(torch.rand(3), first)


def test_a_state_of_cuda_goes_on_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diary = Diary(tmp_path / "state.pt", "key")
    with monkeypatch.context() as patch:  # what torch.save writes of a tensor on CUDA
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        diary.save("training", {"latents": [torch.ones(3)]})
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(diary.path, weights_only=True)
    again = Diary(diary.path, "key")
    again.open()
    assert again.kept["training"]["latents"][0].tolist() == [1, 1, 1]


def test_a_state_goes_on_on_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted here after half of the steps, it ends elsewhere as it would have here."""
    teacher = Model.load(MODELS / "sklearn_mlp.onnx")
    student = rounded(teacher)
    undisturbed = learned_by(teacher, student, FEW)
    kept = replace(FEW, work=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_without_nan", Interrupting(5))
        with pytest.raises(KeyboardInterrupt):
            learned_by(teacher, student, kept)
    assert len(list(tmp_path.iterdir())) == 1
    with elsewhere() as there:
        monkeypatch.setattr(trainer, "device", lambda: there)
        fused = ["cpu", there.type]
        monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: fused)
        steps = Interrupting(0)
        monkeypatch.setattr(tuning, "_without_nan", steps)
        resumed = learned_by(teacher, student, kept)
    assert steps.count == FEW.steps - 5
    for one, other in zip(undisturbed, resumed, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


class Interrupting:
    """What looks at the gradients of a step, and presses Ctrl-C in the one told."""

    def __init__(self, last: int) -> None:
        self.last, self.count, self.inner = last, 0, tuning._without_nan

    def __call__(self, found: Sequence[Latent]) -> None:
        self.inner(found)
        self.count += 1
        if self.count == self.last:
            signal.raise_signal(signal.SIGINT)


def learned_by(teacher: Model, student: Model, settings: Settings) -> list[np.ndarray]:
    found = made(teacher, student, "sklearn_mlp", 24, settings)
    found.run(blockwise=False)
    return learned(found)
