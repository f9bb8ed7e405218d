"""What was told gets the opset that it needs, no more; nobody else does, and what cannot be raised is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxc
from onnxc.passes import raise_opset
from tests.emission import model, node, weight
from tests.unpriced import pretend_everything_pays

KEPT = "it needs opset 21, the model has 17"


@pytest.fixture(autouse=True)
def unpriced(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)


def made(folder: Path, passes: str, rows: int = 1) -> tuple[onnxc.Report, int, int]:
    """The report, the opset of the result and its ir_version, of an MLP of opset 17."""
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    stored = {"w": weight(128, 256), "v": weight(256, 128)}
    onnx.save(model(nodes, {"x": [rows, 128]}, {"y": [rows, 128]}, stored), folder / "in.onnx")
    random = np.random.default_rng(0)
    data = [{"x": random.standard_normal((rows, 128)).astype(np.float32)} for _ in range(8)]
    report = onnxc.optimize(
        folder / "in.onnx", folder / "out.onnx", calib=data, passes=passes,
        prices=folder / "prices.json", budget=onnxc.Budget(min_sqnr=5, min_agreement=0.0),
    )  # fmt: skip
    written = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(written, full_check=True)
    return report, written.opset_import[0].version, written.ir_version


@pytest.mark.parametrize(
    ("passes", "opset", "ir_version", "names"),
    [
        ("quantize-decode:bits=4", 21, 10, "quantize-decode"),
        ("store-float16:type=float8e5m2", 19, 9, "store-float16"),
        ("quantize-decode:bits=8,store-float16:type=float8e5m2", 21, 10, "quantize-decode, store-float16"),
        ("store-float16:type=bfloat16", 17, 8, ""),
    ],
)
def test_a_told_pass_raises_what_it_needs(passes: str, opset: int, ir_version: int, names: str, tmp_path: Path) -> None:
    report, found, version = made(tmp_path, passes)
    assert (found, version) == (opset, ir_version)
    assert report.bytes_after < 0.7 * report.bytes_before
    assert not any("needs opset" in row.reason for row in report.refusals)
    notes = [note for note in report.notes if note.startswith("raise-opset")]
    assert notes == ([f"raise-opset: opset 17 became {opset}, for {names}"] if names else [])


def test_one_that_was_only_named_or_has_nothing_to_do_raises_nothing(tmp_path: Path) -> None:
    report, opset, _ = made(tmp_path, "quantize-decode,store-int8")
    assert opset == 17
    assert {row.reason for row in report.refusals if row.pass_name == "quantize-decode"} == {
        f"{KEPT}; add raise-opset:version=21 to --passes"
    }
    nothing = [node("Relu", "x", "r"), node("Conv", "r w", "y")]
    onnx.save(
        model(nothing, {"x": [1, 8, 9, 9]}, {"y": [1, 64, 7, 7]}, {"w": weight(64, 8, 3, 3)}), tmp_path / "in.onnx"
    )
    onnxc.optimize(
        tmp_path / "in.onnx", tmp_path / "out.onnx", passes="quantize-decode:bits=4,store-int8",
        prices=tmp_path / "prices.json",
    )  # fmt: skip
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version == 17


def test_where_it_cannot_be_raised_the_reason_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("/project/convert.h:96: f: Assertion `a && b` failed: No adapter from 17 to 18")

    monkeypatch.setattr(raise_opset.version_converter, "convert_version", failing)
    report, opset, _ = made(tmp_path, "quantize-decode:bits=4,store-int8")
    assert opset == 17
    assert "raise-opset: opset 17 was kept: converting it to 21 fails: No adapter from 17 to 18" in report.notes
    assert KEPT in {row.reason for row in report.refusals}


@pytest.mark.parametrize(
    ("passes", "says"),
    [
        ("raise-opset:version=15", "opset 17 was kept: it is 15 or newer"),
        ("raise-opset:version=21:gaining=LSTM", "opset 17 was kept: the model has none of LSTM"),
        ("raise-opset", ""),
    ],
)
def test_raising_that_was_asked_for_and_does_nothing_says_so(passes: str, says: str, tmp_path: Path) -> None:
    report, opset, _ = made(tmp_path, f"{passes},store-int8")
    assert opset == 17
    notes = [note for note in report.notes if note.startswith("raise-opset")]
    assert len(notes) == bool(says)
    assert all(says in note for note in notes)
