"""What a file will take is known before its weights are solved, and a limit of size is used up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxc import Budget, optimize
from onnxc.planning import Planning
from onnxc.problem import Plan
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


def test_a_large_model_is_weighed_where_it_was_built() -> None:
    """The limit of its weights, drawn for another plan that was built later, is not the limit of this one."""
    built, other = Plan(stored={"w": "int8"}), Plan(stored={"w": "float16"})
    problem = SimpleNamespace(free=False, most_bytes=5.0, found=SimpleNamespace(weights=[SimpleNamespace(name="w")]))
    problem.bytes_of = lambda weight, mode: 8
    scales = SimpleNamespace(able=False, known={built.key: 90}, file_bytes=lambda plan: scales.known[plan.key])
    judge = SimpleNamespace(budget=Budget(size=0.1), original=SimpleNamespace(source_bytes=1000))
    given: Any = SimpleNamespace(problem=problem, scales=scales, judge=judge)
    given.limited = lambda others: Planning.limited(given, others)
    assert not Planning.weighed(given, other)
    assert problem.most_bytes == 5.0
    assert not Planning.weighed(given, built)
    assert problem.most_bytes == pytest.approx(17.0)
    scales.known[built.key] = 120
    assert Planning.weighed(given, built), "it is too large"
