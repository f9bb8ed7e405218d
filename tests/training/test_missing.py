"""Without torch everything else works, and what needs it says in one line what to install."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import onnxc
from onnxc.cli import main
from onnxc.errors import MissingExtraError

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    for name in [name for name in sys.modules if name.startswith("onnxc.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(onnxc, "training", raising=False)

    def find(name: str, *rest: Any) -> Any:
        return None if name == "torch" else there(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("verb", ["optimize", "optimize by a pass", "distill"])
def test_one_line_says_what_to_install(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = MODELS / "sklearn_mlp.onnx", MODELS / "data" / "sklearn_mlp_calib.npz", tmp_path / "out.onnx"
    words = {
        "optimize": [model, out, "--calib", data, "--recover", "1"],
        "optimize by a pass": [model, out, "--calib", data, "--passes", "store-low-bit,recover:minutes=1"],
        "distill": [model, model, out, "--data", data],
    }[verb]
    assert main([verb.split(maxsplit=1)[0], *map(str, words)]) == 3
    shown = capsys.readouterr()
    assert shown.err == ("onnxc: error: training needs PyTorch, which is not installed: pip install onnxc[distill]\n")
    assert not out.exists()


@pytest.mark.usefixtures("without_torch")
def test_everything_else_works(tmp_path: Path) -> None:
    assert onnxc.optimize(MODELS / "sklearn_mlp.onnx", tmp_path / "out.onnx", passes="store-int8").changed
    with pytest.raises(MissingExtraError, match=r"pip install onnxc\[distill\]"):
        importlib.import_module("onnxc.training")
