"""How codes are rounded, by the fields of passes: what each way gains over the nearest ones, by the command line.

SQNR of the outputs of trained models, on samples that nothing was chosen on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxc.cli import main
from onnxc.contract.rounding import Asked
from onnxc.model import Model
from tests import trained
from tests.trained import MODELS
from tests.unpriced import pretend_everything_pays

SEEN = 64
LIMITS = ["--min-sqnr", "0.1", "--min-agreement", "0", "--max-load-time", "100"]
# 7 bits where pair sums saturate: at 8 there is little to gain, and not every machine computes with them.
COARSE = ["--target", "cpu-avx2"]
Run = Callable[..., float]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Compresses a model by passes into out.onnx; dB on samples that it has not seen."""
    pretend_everything_pays(monkeypatch)

    def compressed(name: str, passes: str, *options: str, seen: int = SEEN) -> float:
        source, target, calibration = MODELS / f"{name}.onnx", tmp_path / "out.onnx", tmp_path / "calib.npz"
        with np.load(MODELS / "data" / f"{name}_calib.npz") as file:
            np.savez(calibration, **{key: file[key][:seen] for key in file.files})
        data = ["--calib", str(calibration), "--prices", str(tmp_path / "prices.json")]
        assert main(["optimize", str(source), str(target), "--passes", passes, *data, *LIMITS, *options]) == 0
        unseen = trained.samples(name, 2 * SEEN)[SEEN:]
        return trained.sqnr(Model.load(source), Model.load(target), unseen)

    return compressed


def test_int8_codes_and_biases(run: Run, tmp_path: Path) -> None:
    """Static int8 of a residual network: 38.2 dB to nearest, 40.1 with corrected biases, 40.2 by GPTQ."""
    name, passes, found, sizes = "residual_cnn", "quantize-static:rounding=", {}, set()
    for how in ("nearest", "nearest:bias=corrected", "gptq"):
        found[how] = run(name, passes + how, *COARSE)
        sizes.add((tmp_path / "out.onnx").stat().st_size)
    assert found["nearest:bias=corrected"] > found["nearest"] + 1.5
    assert found["gptq"] > found["nearest"] + 1.5
    assert max(sizes) - min(sizes) < 64


@pytest.mark.parametrize(
    ("name", "passes", "gain", "options"),
    [
        ("text_gru", "store-int8", 1.0, []),
        ("lstm", "quantize-lstm", 1.0, ["--ops", "ort", *COARSE]),
    ],
)
def test_codes_of_other_passes(name: str, passes: str, gain: float, options: list[str], run: Run) -> None:
    found = {how: run(name, f"{passes}:rounding={how}", *options) for how in ("nearest", "gptq")}
    assert found["gptq"] > found["nearest"] + gain, found


def test_palettes(run: Run, tmp_path: Path) -> None:
    """Sixteen values of the weight's own against sixteen even ones, both of 4 bits; 256 are what int8 is."""
    even = run("sklearn_mlp", "store-low-bit:levels=16:block=0:rounding=nearest")
    nearest = run("sklearn_mlp", "store-codebook:entries=16:rounding=nearest")
    assert (tmp_path / "out.onnx").stat().st_size < 0.15 * (MODELS / "sklearn_mlp.onnx").stat().st_size
    assert nearest > even + 1
    nearest, solved = (run("residual_cnn", f"store-codebook:entries=16{how}") for how in (":rounding=nearest", ""))
    assert solved > nearest + 8
    assert run("sklearn_mlp", "store-codebook:dimension=1:entries=256") > 55


def test_feedback_can_be_left_out(run: Run) -> None:
    """Below 8 bits it is there by itself."""
    passes = "store-low-bit:levels=3"
    fed, alone = run("sklearn_mlp", passes), run("sklearn_mlp", f"{passes}:feedback=off")
    assert run("sklearn_mlp", f"{passes}:feedback=on") == fed != alone


def test_what_cannot_be_done_is_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("sklearn_mlp", "store-int8:bias=corrected", seen=8)
    assert "bias=corrected need 8 calibration samples" in " ".join(capsys.readouterr().out.split())
    run("sklearn_mlp", "store-int8:bias=corrected")
    assert "no operator here has a bias of its own" in " ".join(capsys.readouterr().out.split())
    assert main(["optimize", "in.onnx", "out.onnx", "--passes", "store-int8:rounding=nearest:feedback=on"]) == 3
    assert "feedback=on solves weights by GPTQ" in capsys.readouterr().err


def test_what_two_passes_say_of_one_weight() -> None:
    usual, told = Asked(), Asked("nearest", "on", "corrected")
    assert usual.beside(told) == Asked("gptq", "on", "corrected")
    assert told.beside(Asked("gptq", "off", "kept")) == Asked("nearest", "off", "kept")
    assert Asked("gptq", "off", "kept").beside(told) == Asked("gptq", "off", "kept")
    assert not usual.walks
    assert told.walks
