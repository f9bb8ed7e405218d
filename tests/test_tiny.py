"""The 60 second ring: the main job, end to end, on a tiny model. Run it before anything else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxc
from onnxc.cli import main

RNG = np.random.default_rng(0)


def network() -> onnx.ModelProto:
    """x [n, 1, 16, 16] -> Conv, Relu, Conv, Add, Relu, pool -> Gemm 512 -> Gemm 10: 330 KB."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        spread = np.sqrt(2 / np.prod(shape[1:]))
        return numpy_helper.from_array((RNG.standard_normal(shape) * spread).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="block", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c1", "r0"], ["s1"], name="skip"),
        helper.make_node("Relu", ["s1"], ["r1"], name="relu1"),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["h"], name="hidden", transB=1),
        helper.make_node("Relu", ["h"], ["r2"], name="relu2"),
        helper.make_node("Gemm", ["r2", "w3", "b3"], ["logits"], name="head", transB=1),
    ]
    weights = [
        weight("w0", 64, 1, 3, 3),
        weight("b0", 64),
        weight("w1", 64, 64, 3, 3),
        weight("b1", 64),
        weight("w2", 512, 64),
        weight("b2", 512),
        weight("w3", 10, 512),
        weight("b3", 10),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="author", value="somebody")
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    onnx.save(network(), place / "in.onnx")
    np.savez(place / "calib.npz", x=RNG.standard_normal((16, 1, 1, 16, 16)).astype(np.float32))
    return place


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_optimize_without_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "nodata.onnx"
    code = main(["optimize", str(folder / "in.onnx"), str(out), "--json", "--prices", str(folder / "prices")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    report = json.loads(captured.out)
    assert report["met"]
    assert out.stat().st_size == report["bytes_after"] < 0.35 * report["bytes_before"]
    assert report["generated"]
    x = RNG.standard_normal((8, 1, 16, 16)).astype(np.float32)
    reference, new = run(folder / "in.onnx", x), run(out, x)
    assert np.square(reference).sum() > 100 * np.square(reference - new).sum()


def test_optimize_with_data_compare_and_repeat(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, again = folder / "data.onnx", folder / "again.onnx"
    source, calib, prices = str(folder / "in.onnx"), str(folder / "calib.npz"), str(folder / "prices")
    for target in (out, again):
        code = main(["optimize", source, str(target), "--calib", calib, "--prices", prices])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        assert f"wrote {target}" in captured.out
    assert out.read_bytes() == again.read_bytes()
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["author"] == "somebody"
    assert out.stat().st_size < 0.35 * (folder / "in.onnx").stat().st_size

    assert main(["compare", source, str(out), "--calib", calib, "--json", "--sites"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sqnr_db"] >= 20
    assert result["judged"] == 16
    assert {site["site"] for site in result["sites"]} <= {"stem", "block", "hidden", "head"}


def test_a_missed_limit_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "small.onnx"
    out.write_bytes(b"what was there before")
    code = main(["optimize", str(folder / "in.onnx"), str(out), "--size", "1%", "--prices", str(folder / "prices")])
    captured = capsys.readouterr()
    assert code == 1
    assert captured.err.strip().splitlines()[-1].startswith("onnxc: error: ")
    assert out.read_bytes() == b"what was there before"


def test_inspect_and_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder / "in.onnx"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["macs"] for row in found["rows"]] == [64 * 9 * 256, 64 * 64 * 9 * 256, 64 * 512, 512 * 10]
    assert main(["inspect", str(folder / "in.onnx")]) == 0
    assert main(["passes"]) == 0
    assert "quantize-dynamic" in capsys.readouterr().out


def test_the_library_gives_the_model_when_no_output_is_named(folder: Path) -> None:
    report = onnxc.optimize(network(), prices=folder / "prices")
    assert report.model is not None
    assert report.model.ByteSize() < 0.35 * network().ByteSize()
    with pytest.raises(onnxc.BudgetError) as error:
        onnxc.optimize(network(), budget=onnxc.Budget(size=0.01), prices=folder / "prices")
    assert error.value.report is not None
    assert error.value.exit_code == 1
