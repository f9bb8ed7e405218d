"""The stored models: scores are the recorded ones, the items that judge are seen by nobody, all is small."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

MODELS = Path(__file__).parent.parent / "models"
RECORDS = json.loads((MODELS / "scores.json").read_text("utf8"))
TOLERANCE_ITEMS = 3  # another processor may round an answer or two the other way


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("models_evaluate", MODELS / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


evaluate = hooks()


def test_the_collection_is_what_it_should_be() -> None:
    assert set(RECORDS) == set(evaluate.TASKS) == {path.stem for path in MODELS.glob("*.onnx")}
    assert len(RECORDS) >= 7
    assert len({record["framework"] for record in RECORDS.values()}) >= 4
    stored = [path for path in MODELS.rglob("*") if path.is_file() and ".cache" not in path.parts]
    assert sum(path.stat().st_size for path in stored) < 10_000_000


@pytest.mark.parametrize("name", RECORDS)
def test_scores_are_the_recorded_ones(name: str) -> None:
    path = MODELS / f"{name}.onnx"
    record = RECORDS[name]
    assert record["bytes"] == path.stat().st_size
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    session = evaluate.open_session(path)
    hook = getattr(evaluate, f"quality_{name}")(session)
    test = evaluate.score(name, path)
    assert abs(hook - record["select"]) * len(evaluate.items(name, "select")[1]) <= TOLERANCE_ITEMS
    assert abs(test["value"] - record["test"]) * test["items"] <= TOLERANCE_ITEMS
    assert record["test"] > (0.6 if record["data"] == "glosses" else 0.94)


@pytest.mark.parametrize("name", RECORDS)
def test_no_item_is_in_two_parts(name: str) -> None:
    with np.load(MODELS / "data" / f"{name}_calib.npz") as archive:
        (calib,) = (archive[key] for key in archive.files)
    parts = [calib, evaluate.items(name, "select")[0], evaluate.items(name, "test")[0]]
    seen = [{row.tobytes() for row in part} for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    assert len(calib) >= 128
    assert all(part.dtype == calib.dtype for part in parts)


@pytest.mark.parametrize("name", RECORDS)
def test_calibration_data_feeds_the_model(name: str) -> None:
    session = evaluate.open_session(MODELS / f"{name}.onnx")
    (source,) = session.get_inputs()
    with np.load(MODELS / "data" / f"{name}_calib.npz") as archive:
        assert archive.files == [source.name]
        sample = archive[source.name][:1]
    assert sample.ndim == len(source.shape)
    scores = session.run(None, {source.name: sample})[-1]
    assert scores.shape[0] == 1
    assert np.isfinite(scores).all()


def test_a_broken_model_scores_nothing() -> None:
    class Broken:
        def get_inputs(self) -> list[object]:
            return [type("Input", (), {"name": "x", "shape": [64, 1, 28, 28]})]

        def get_outputs(self) -> list[object]:
            return [type("Output", (), {"name": "y"})]

        def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert names == ["y"]
            assert feeds["x"].shape == (64, 1, 28, 28)  # the last batch is filled up
            return [np.full((64, 10), np.nan, np.float32)]

    assert evaluate.quality("residual_cnn", Broken()) == 0


def test_table_of_the_readme_has_the_recorded_scores() -> None:
    lines = (MODELS / "README.md").read_text("utf8").splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `") and "|" in line[3:]}
    for name, record in RECORDS.items():
        for figure in (f"{record['bytes']:,}", f"{record['test']:.4f}", f"{record['select']:.4f}"):
            assert f"| {figure} |" in rows[name]
