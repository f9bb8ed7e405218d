"""What is written for TensorRT is what its ONNX parser reads: plain int8 codes, float scales and biases, nothing packed
or unfolded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxc
from onnxc.model import Model
from onnxc.targets import TARGETS
from tests import trained
from tests.unpriced import pretend_everything_pays

MODELS = Path(__file__).parents[1] / "models"
LOSSY = (
    "quantize-static,quantize-dynamic,quantize-decode,quantize-embedding,store-int8,store-low-bit,store-codebook,"
    "store-trellis,store-float16,fold-sparse"
)
PACKING = ("store-low-bit", "store-codebook", "store-trellis", "quantize-dynamic", "quantize-decode")


def made_for_tensorrt(name: str, passes: str, folder: Path, **options: object) -> tuple[onnxc.Report, onnx.ModelProto]:
    report = onnxc.optimize(
        MODELS / f"{name}.onnx", folder / "out.onnx", calib=MODELS / "data" / f"{name}_calib.npz", target="tensorrt",
        passes=passes, prices=folder / "prices.json", **options,
    )  # fmt: skip
    return report, onnx.load(folder / "out.onnx")


@pytest.mark.parametrize("name", ["residual_cnn", "text_gru", "sklearn_mlp"])
def test_its_parser_can_read_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    report, made = made_for_tensorrt(name, LOSSY, tmp_path)
    held = {each.name: each for each in made.graph.initializer}
    makers = {output: node for node in made.graph.node for output in node.output}
    pairs = [node for node in made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    weights = 0
    for node in pairs:
        codes, scale, zero = node.input
        assert held[scale].data_type == onnx.TensorProto.FLOAT
        assert held[zero].data_type == onnx.TensorProto.INT8
        assert not onnx.numpy_helper.to_array(held[zero]).any()
        if node.op_type == "QuantizeLinear":
            assert not held[scale].dims
        elif codes in held:
            assert held[codes].data_type == onnx.TensorProto.INT8
            weights += 1
            assert list(held[scale].dims) == [held[codes].dims[next(a.i for a in node.attribute if a.name == "axis")]]
        else:
            assert makers[codes].op_type == "QuantizeLinear"
    assert weights >= 2
    assert {node.op_type for node in pairs} == {"QuantizeLinear", "DequantizeLinear"}
    for node in made.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            assert held[node.input[2]].data_type == onnx.TensorProto.FLOAT
        if node.op_type == "Cast" and node.input[0] in held:
            assert held[node.input[0]].data_type == onnx.TensorProto.FLOAT16
    codes = {each.name for each in held.values() if each.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)}
    assert {node.op_type for node in made.graph.node if codes & set(node.input)} <= {
        "QuantizeLinear",
        "DequantizeLinear",
    }
    reasons = {(each.pass_name, each.reason) for each in report.refusals}
    for each in PACKING:
        assert any("target 'tensorrt'" in reason for told, reason in reasons if told == each), each
    assert "fold-sparse: refused: the target 'tensorrt' reads weights as initializers" in report.notes
    samples = trained.samples(name, 128)
    assert report.comparison is not None
    assert report.comparison.sqnr_db > 20
    before, after = trained.load(name), Model.load(tmp_path / "out.onnx")
    assert trained.sqnr(before, after, samples) == pytest.approx(report.comparison.sqnr_db, abs=1.0)
    assert (
        report.bytes_after
        == (tmp_path / "out.onnx").stat().st_size
        < (0.6 if name == "text_gru" else 0.45) * report.bytes_before
    )


@pytest.mark.parametrize("passes", ["store-low-bit:levels=16", "store-codebook:dimension=2", "store-trellis:levels=8"])
def test_told_by_name_it_still_packs_nothing(passes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    report, made = made_for_tensorrt("sklearn_mlp", passes, tmp_path)
    assert not any(node.op_type == "Gather" for node in made.graph.node)
    wanted = "the target 'tensorrt' reads codes as int8 initializers: nothing unfolds there"
    assert any(each.reason == wanted for each in report.refusals)


def test_biases_are_corrected_as_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Solved on what the compressed model feeds them, weights leave a mean error that float biases take up."""
    pretend_everything_pays(monkeypatch)
    _, made = made_for_tensorrt("residual_cnn", "quantize-static", tmp_path)
    kinds = {np.dtype(onnx.helper.tensor_dtype_to_np_dtype(each.data_type)) for each in made.graph.initializer}
    assert np.dtype(np.int32) not in kinds


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"tensorrt"}))
def test_what_runs_in_onnx_runtime_unfolds(name: str) -> None:
    """Its basic optimizations fold constants for all providers; what nobody reports is not forbidden."""
    assert not TARGETS[name].plain
    assert not TARGETS[name].float_biases
