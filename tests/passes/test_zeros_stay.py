"""Zeros of a pruned model stay zeros in every form of storage, as ONNX Runtime unfolds it, or the report counts
them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxc
from onnxc.codes.fitting import block_grid
from tests.unpriced import pretend_everything_pays

MODELS = Path(__file__).parents[2] / "models"
CALIB = MODELS / "data" / "sklearn_mlp_calib.npz"
ANY = onnxc.Budget(min_sqnr=0.1, min_agreement=0.0)
KEPT = (
    "store-int8",
    "store-float16",
    "raise-opset:version=21,store-float16:type=float8e4m3fn",
    "store-low-bit:levels=16:block=0",
    "store-low-bit:levels=16:block=32",
    "store-low-bit:levels=4:block=32",
    "store-low-bit:levels=16:block=32:rounding=nearest",
    "store-low-bit:levels=16:block=32:rounding=hqq",
    "quantize-static",
    "quantize-dynamic,store-low-bit:levels=16:block=64",
    "raise-opset:version=21,quantize-decode:bits=4",
)


@pytest.fixture(autouse=True)
def unpriced(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of which half of the weights are zero, two of any four inputs."""
    path = tmp_path_factory.mktemp("pruned") / "pruned.onnx"
    with pytest.MonkeyPatch.context() as patch:
        pretend_everything_pays(patch)
        onnxc.optimize(
            MODELS / "sklearn_mlp.onnx", path, calib=CALIB, passes="prune-weights:pattern=2:4",
            prices=path.with_name("prices.json"), budget=ANY,
        )  # fmt: skip
    return path


def matrices(path: Path) -> list[np.ndarray]:
    """What a session computes with, of two axes: constants of its optimized graph."""
    options, optimized = onnxruntime.SessionOptions(), path.with_name("optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(optimized)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    constants = onnx.load(optimized).graph.initializer
    return [onnx.numpy_helper.to_array(each) for each in constants if len(each.dims) == 2]


def zeros_kept(before: Path, after: Path) -> tuple[int, int]:
    """Zeros of the matrices of one model, and how many of them are zeros of the other's."""
    found, kept, there = 0, 0, matrices(after)
    for matrix in matrices(before):
        alike = [each for each in there if sorted(each.shape) == sorted(matrix.shape)]
        alike = [each if each.shape == matrix.shape else each.T for each in alike]
        found += int((matrix == 0).sum())
        kept += max((int(((matrix == 0) & (each == 0)).sum()) for each in alike), default=0)
    return found, kept


def stored(pruned: Path, passes: str | None, target: Path) -> onnxc.Report:
    prices = target.with_name("prices.json")
    return onnxc.optimize(pruned, target, calib=CALIB, passes=passes, prices=prices, budget=ANY)


@pytest.mark.parametrize("passes", KEPT)
def test_zeros_stay(pruned: Path, passes: str, tmp_path: Path) -> None:
    report = stored(pruned, passes, tmp_path / "stored.onnx")
    assert (tmp_path / "stored.onnx").stat().st_size < 0.8 * pruned.stat().st_size
    found, kept = zeros_kept(pruned, tmp_path / "stored.onnx")
    assert found == 50112
    assert kept == found
    assert not any("no zeros any more" in note for note in report.notes)


@pytest.mark.parametrize(
    ("passes", "least", "most"), [("store-codebook:dimension=2", 0.001, 0.2), ("store-trellis:levels=8", 0.5, 1.0)]
)
def test_what_is_lost_by_name_is_counted(pruned: Path, passes: str, least: float, most: float, tmp_path: Path) -> None:
    report = stored(pruned, passes, tmp_path / "stored.onnx")
    (note,) = [note for note in report.notes if "no zeros any more" in note]
    said = re.match(r"([\d.]+)% of the ([\d,]+) zeros", note)
    assert said is not None
    share, whole = float(said[1]) / 100, int(said[2].replace(",", ""))
    assert least < share <= most
    found, kept = zeros_kept(pruned, tmp_path / "stored.onnx")
    assert found - kept == pytest.approx(share * whole, abs=0.001 * whole)


def test_unasked_nothing_takes_zeros(pruned: Path, tmp_path: Path) -> None:
    report = stored(pruned, None, tmp_path / "stored.onnx")
    found, kept = zeros_kept(pruned, tmp_path / "stored.onnx")
    assert kept == found
    reasons = {(each.pass_name, each.reason) for each in report.refusals}
    for name in ("store-codebook", "store-trellis"):
        assert (name, "it was pruned: some of its zeros would be no zeros any more") in reasons


def test_channels_that_are_cut_leave_the_zeros_of_others(pruned: Path, tmp_path: Path) -> None:
    """What reads fewer channels is solved again, but for its zeros."""
    stored(pruned, "prune-channels:fraction=25%", tmp_path / "cut.onnx")
    before, after = (matrices(path) for path in (pruned, tmp_path / "cut.onnx"))
    assert sum(each.size for each in after) < 0.85 * sum(each.size for each in before)
    for matrix in (each for each in after if min(each.shape) > 1):
        assert (matrix == 0).mean() > 0.4


@pytest.mark.parametrize("passes", ["factor-matmul", "factor-conv"])
def test_factors_take_no_zeros_unless_told(pruned: Path, passes: str, tmp_path: Path) -> None:
    stored(pruned, passes, tmp_path / "factored.onnx")
    found, kept = zeros_kept(pruned, tmp_path / "factored.onnx")
    assert kept == found


@pytest.mark.parametrize("rounding", ["gptq", "hqq"])
@pytest.mark.parametrize(("levels", "limit"), [(levels, limit) for levels in (16, 9, 6, 4, 3) for limit in (127, 63)])
def test_a_block_with_a_zero_has_one_and_others_are_as_they_were(rounding: str, levels: int, limit: int) -> None:
    """Whatever its values are: far from zero, on one side of it, at the limits."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((2, 96, 40)).astype(np.float32) * np.float32(limit / 4)
    matrix += random.choice([0, 0, limit / 2, -limit], (2, 3, 40)).repeat(32, 1).astype(np.float32)
    matrix = np.clip(matrix, -limit, limit)
    dense, places = matrix.copy(), random.random(matrix.shape) < 0.4
    places[:, 32:64] = False
    matrix[places] = 0
    importance = np.ones(matrix.shape[:2], np.float32)
    grid, free = (block_grid(each, levels, 32, importance, limit, rounding) for each in (matrix, dense))
    for row in range(96):
        values = grid.snap((np.arange(2), np.full(2, row)), matrix[:, row])[1]
        assert np.abs(values.astype(int)).max() <= limit
        assert not values[places[:, row]].any()
    np.testing.assert_array_equal(grid.steps[:, 1], free.steps[:, 1])
    np.testing.assert_array_equal(grid.offsets[:, 1], free.offsets[:, 1])
