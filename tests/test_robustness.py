"""Awkward models through optimize: within the floor, never larger, same interface, the same bytes again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxc import optimize
from onnxc.answers import class_scores
from onnxc.data import generate
from onnxc.errors import DataError, ModelError
from onnxc.model import Model
from onnxc.quality import FLOOR_SQNR_DB
from onnxc.reference import ReferenceOutputs
from onnxc.session import Session
from tests import builders
from tests.unpriced import pretend_everything_pays

UNREPEATABLE = {"random_outputs"}
MODELS: dict[str, Callable[[], ModelProto]] = {
    **builders.MODELS,
    **{f"opset_{opset}": lambda opset=opset: builders.of_opset(opset) for opset in (7, 8, 9, 10, 12, 15, 19, 21, 24)},
    **{f"ir_{ir}": lambda ir=ir: builders.of_opset(11, ir) for ir in (3, 4, 6, 10)},
}
REFUSED = {"same_node_names": "same node name"}


def samples(path: Path, seed: int = 0, count: int = 4) -> list[dict[str, Any]]:
    """Generated inputs; by default those that optimize() makes up."""
    return [dict(sample) for sample in generate(Model.load(path), Session(path), count=count, seed=seed)]


def interface(path: Path) -> list[str]:
    """Inputs and outputs as the file has them."""
    graph = onnx.load(path).graph
    return [str(each) for each in (*graph.input, *graph.output)]


def hold(source: Path, result: Path, name: str, data: list[dict[str, Any]]) -> None:
    """What is promised whatever was done, on the data that it was done with."""
    assert result.stat().st_size <= source.stat().st_size
    if onnx.load(source).ir_version >= 4:
        assert interface(source) == interface(result)
    assert onnx.load(result).opset_import[0].version >= onnx.load(source).opset_import[0].version
    if name in UNREPEATABLE:
        return
    reference, made = Session(source), Session(result)
    assert [(i.name, i.dtype, i.shape) for i in reference.inputs] == [(i.name, i.dtype, i.shape) for i in made.inputs]
    assert [(o.name, o.dtype) for o in reference.outputs] == [(o.name, o.dtype) for o in made.outputs]
    found = ReferenceOutputs(reference, data, class_scores(Model.load(source))).judge(made)
    assert found.problem is None
    assert found.sqnr_db >= FLOOR_SQNR_DB - 0.01  # sums in another order


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    source, result, again = (tmp_path / f"{each}.onnx" for each in ("in", "out", "again"))
    source.write_bytes(MODELS[name]().SerializeToString())
    prices = tmp_path / "prices.json"
    if name in REFUSED:
        with pytest.raises((ModelError, DataError), match=REFUSED[name]):
            optimize(source, result, prices=prices)
        return
    optimize(source, result, prices=prices)
    hold(source, result, name, samples(source))
    optimize(source, again, prices=prices)
    assert again.read_bytes() == result.read_bytes()
    data = samples(source, 3, 6)
    optimize(source, result, calib=data, prices=prices)
    hold(source, result, name, data)
    optimize(result, again, calib=data, prices=prices)
    hold(result, again, name, data)


def test_weights_outside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    source, inside, outside = (tmp_path / f"{name}.onnx" for name in ("in", "inside", "outside"))
    model = builders.plain_linear()
    onnx.save(model, source, save_as_external_data=True, location="in.data", size_threshold=1024)
    assert optimize(source, inside).changed
    hold_size = source.stat().st_size + (tmp_path / "in.data").stat().st_size
    assert inside.stat().st_size < hold_size
    assert optimize(source, outside, external_data=True).changed
    held = [path for path in tmp_path.iterdir() if path.name.startswith("outside.onnx.")]
    assert len(held) == 1
    assert outside.stat().st_size + held[0].stat().st_size < hold_size
    first, second = (Session(path).run(samples(source, 5)[0])["y"] for path in (inside, outside))
    np.testing.assert_array_equal(first, second)


def test_with_measured_prices_the_same_price_file_gives_the_same_bytes(tmp_path: Path) -> None:
    source, first, second = (tmp_path / f"{name}.onnx" for name in ("in", "first", "second"))
    source.write_bytes(builders.small_cnn().SerializeToString())
    data = samples(source, 3)
    optimize(source, first, calib=data, prices=tmp_path / "prices")
    held = (tmp_path / "prices").read_bytes()
    optimize(source, second, calib=data, prices=tmp_path / "prices")
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "prices").read_bytes() == held
