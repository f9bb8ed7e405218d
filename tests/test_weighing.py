"""What a file will take is known before its weights are solved, and a limit of size is used up."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxc import Budget, optimize
from tests import trained


@pytest.mark.parametrize(("name", "size"), [("residual_cnn", 0.11), ("sklearn_mlp", 0.084)])
def test_plans_are_weighed(name: str, size: float, tmp_path: Path) -> None:
    data, source = list(trained.samples(name, 16)), trained.MODELS / f"{name}.onnx"
    budget, passes = (
        Budget(size=size, min_sqnr=10, max_load_time=100),
        "quantize-static,quantize-dynamic,store-low-bit,store-int8",
    )
    report = optimize(
        source, tmp_path / "out.onnx", calib=data, budget=budget, passes=passes, prices=tmp_path / "prices"
    )
    assert report.predicted_bytes == pytest.approx(report.bytes_after, rel=2e-3)
    assert 0.96 * size < report.bytes_after / report.bytes_before <= size
    assert (tmp_path / "out.onnx").stat().st_size == report.bytes_after
