"""Initializers that are inputs too: a caller may feed others, so they stay; the weights beside them are compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxc import optimize
from onnxc.session import Session
from tests import builders
from tests.unpriced import pretend_everything_pays


@pytest.mark.parametrize("given", ["generated", "never", "sometimes"])
def test_a_default_stays_and_the_rest_is_compressed(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_everything_pays(monkeypatch)
    b = builders.Builder(0)
    default = b.weight(64, 64)
    b.add("MatMul", b.add("Relu", b.add("MatMul", "x", default)), b.weight(64, 512), out="y")
    made = b.model([builders.X], [("y", TensorProto.FLOAT, ["n", 512])], ir=8)
    made.graph.input.append(helper.make_tensor_value_info(default, TensorProto.FLOAT, [64, 64]))
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(made, source)
    random = np.random.default_rng(0)
    other = random.standard_normal((64, 64), np.float32)
    data = [{"x": random.standard_normal((8, 64), np.float32)} for _ in range(4)]
    calib = (
        None if given == "generated" else [each | ({default: other} if given == "sometimes" else {}) for each in data]
    )
    if given == "sometimes":
        assert calib is not None
        del calib[2][default]
    report = optimize(source, out, calib=calib, prices=tmp_path / "prices.json")
    assert [(row.count, row.examples) for row in report.refusals if "callers may override" in row.reason] == [
        (1, [default])
    ]
    assert out.stat().st_size < (64 * 64 * 4 + 64 * 512 * 2)  # the other weight has less than half of its bytes
    before, after = Session(source), Session(out)
    assert [each.name for each in after.optional] == [default]
    for feeds in (data[0], data[0] | {default: other}):
        wanted, got = before.run(feeds)["y"], after.run(feeds)["y"]
        assert np.square(wanted).sum() > 100 * np.square(got - wanted).sum()
