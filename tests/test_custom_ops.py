"""A model with operators of a library: registered with --custom-ops, carried through untouched, compressed around them.

Needs onnxruntime-extensions, which is no dependency: without it the tests are skipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxc.cli import main
from onnxc.session import Options, Session
from tests.emission import model, node, weight

library = pytest.importorskip("onnxruntime_extensions").get_library_path()


def custom() -> onnx.ModelProto:
    """A linear, NegPos (negative and positive part) of the library, and another linear."""
    split = helper.make_node("NegPos", ["a"], ["n", "p"], name="split", domain="ai.onnx.contrib")
    nodes = [node("MatMul", "x w", "a"), split, node("MatMul", "p v", "y")]
    weights = {"w": weight(128, 256), "v": weight(256, 128)}
    proto = model(nodes, {"x": [16, 128]}, {"y": [16, 128]}, weights)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    return proto


def test_custom_nodes_are_carried_through(tmp_path: Path) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(custom(), source)
    arguments = ["optimize", str(source), str(out), "--quiet", "--prices", str(tmp_path / "prices")]
    assert main([*arguments, "--custom-ops", library]) == 0
    made = onnx.load(out)
    original = next(each for each in custom().graph.node if each.op_type == "NegPos")
    assert [each for each in made.graph.node if each.domain == "ai.onnx.contrib"] == [original]
    assert {each.domain: each.version for each in made.opset_import}["ai.onnx.contrib"] == 1
    assert out.stat().st_size < 0.5 * source.stat().st_size
    options = Options(custom_ops=(library,))
    feeds = {"x": np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)}
    before, after = (Session(path, options).run(feeds)["y"] for path in (source, out))
    assert 10 * np.log10(np.square(before).sum() / np.square(before - after).sum()) > 20
    assert main(["compare", str(source), str(out), "--quiet", "--custom-ops", library]) == 0
    assert main(["inspect", str(source), "--custom-ops", library]) == 0


def test_without_the_library_the_operator_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(custom(), tmp_path / "in.onnx")
    assert main(["optimize", str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--quiet"]) == 3
    assert "NegPos" in (message := capsys.readouterr().err)
    assert "--custom-ops" in message
    assert not (tmp_path / "out.onnx").exists()
