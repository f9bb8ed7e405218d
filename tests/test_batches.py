"""Data at another batch or shape: what is timed is what was asked for, what is judged stays the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxc import cli, deliver
from onnxc.errors import UsageError
from onnxc.samples.batches import as_run
from onnxc.session import Ratio, Session, TensorInfo, measure_ratio

ROOT = Path(__file__).parents[1]
MLP, CALIB = ROOT / "models" / "sklearn_mlp.onnx", ROOT / "models" / "data" / "sklearn_mlp_calib.npz"
INPUTS = (
    TensorInfo("x", "tensor(float)", ("n", 3), np.dtype(np.float32)),
    TensorInfo("ids", "tensor(int64)", ("n", None), np.dtype(np.int64)),
    TensorInfo("rate", "tensor(float)", (), np.dtype(np.float32)),
)
SAMPLES = [
    {
        "x": np.full((1, 3), index, np.float32),
        "ids": np.arange(4 + index % 2)[None] + 10 * index,
        "rate": np.float32(index),
    }
    for index in range(4)
]


def test_samples_that_are_alike_share_a_batch() -> None:
    made = as_run(SAMPLES, INPUTS, batch=3)
    assert len(made) == 4
    assert made[0]["x"].tolist() == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    assert made[3]["x"].tolist() == [[3.0] * 3, [0.0] * 3, [1.0] * 3]
    assert made[0]["ids"].tolist() == [[0, 1, 2, 3], [20, 21, 22, 23], [0, 1, 2, 3]]  # of four entries, as the first
    assert made[1]["rate"] == 1.0
    assert SAMPLES[0]["x"].shape == (1, 3)


def test_a_shape_repeats_values() -> None:
    made = as_run(SAMPLES, INPUTS, shapes={"ids": (2, 6)})
    assert made[0]["ids"].tolist() == [[0, 1, 2, 3, 0, 1]] * 2
    assert made[0]["x"].shape == (1, 3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"shapes": {"y": (1, 3)}}, "--shape y: the model has no such input; its inputs are x, ids, rate"),
        ({"shapes": {"x": (1, 4)}}, "--shape x=1x4: the model takes nx3"),
        ({"shapes": {"x": (1,)}}, "--shape x=1: the model takes nx3"),
    ],
)
def test_a_shape_that_the_model_does_not_take(words: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        as_run(SAMPLES, INPUTS, **words)
    assert says in str(caught.value)


def test_a_fixed_batch_cannot_be_another() -> None:
    fixed = [TensorInfo("x", "tensor(float)", (1, 3), np.dtype(np.float32))]
    with pytest.raises(UsageError, match="--batch 8: the first axis of every input is fixed"):
        as_run([{"x": np.zeros((1, 3), np.float32)}], fixed, batch=8)
    assert as_run([{"x": np.zeros((1, 3), np.float32)}], fixed, batch=1)[0]["x"].shape == (1, 3)


def test_plans_are_priced_at_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line: the answers judged are those of the samples, the times and MACs those of 16 at once."""
    timed: set[int] = set()

    def measure(a: Session, b: Session, samples: Sequence[dict[str, np.ndarray]], **words: Any) -> Ratio:
        timed.update(len(array) for each in samples for array in each.values())
        return measure_ratio(a, b, samples, **words)

    monkeypatch.setattr(deliver, "measure_ratio", measure)
    figures = {}
    for batch in (1, 16):
        timed.clear()
        report, prices = tmp_path / f"report-{batch}.json", tmp_path / f"prices-{batch}.json"
        words = ["--calib", str(CALIB), "--batch", str(batch), "--passes", "quantize-dynamic,store-int8", "--quiet"]
        words += ["--report", str(report), "--prices", str(prices), "--dry-run"]
        assert cli.main(["optimize", str(MLP), str(tmp_path / "out.onnx"), *words]) == 0
        found = json.loads(report.read_text())
        assert found["comparison"]["judged"] == 128
        assert found["comparison"]["ratio"]["seconds_a"] > 0
        assert timed == {batch}, "the two models are timed on what was asked for, and on nothing else"
        macs = {row["site"]: row["macs"] for row in found["rows"] if row["macs"]}
        figures[batch] = macs["MatMul1"], set(json.loads(prices.read_text())["prices"])
    assert figures[16][0] == 16 * figures[1][0]
    shared = {key for key in figures[1][1] & figures[16][1] if "MatMul" in key}
    assert not shared, "a price at one batch is not that at another"
