"""What a file will take is known before its weights are solved, and a limit of size is used up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxc import Budget, optimize
from onnxc.limits import fits
from onnxc.problem import Plan
from onnxc.size_limit import SizeLimit
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


def test_every_plan_has_the_limit_of_its_own_file() -> None:
    """What a file holds besides its weights differs from plan to plan: the limit that was drawn for a plan with many
    int8 sites neither takes one away that was built and fits, nor lets one in that was built and does not.
    """
    slim, wide, unseen = (Plan(stored={"w": mode}) for mode in ("int8", "levels16", "float16"))
    problem: Any = SimpleNamespace(free=False, most_bytes=None, most_seconds=None, beside={})
    problem.found = SimpleNamespace(weights=[SimpleNamespace(name="w")])
    problem.bytes_of = lambda weight, mode: {"int8": 80, "levels16": 70, "float16": 75}[mode]
    scales: Any = SimpleNamespace(able=False)
    limit = SizeLimit(problem, 100.0, scales)
    assert not limit.exceeded(unseen), "nothing is known yet"
    assert limit.learn(slim, 99) == 19.0
    assert problem.most_bytes == 80, "what was seen to fit, fits"
    assert limit.learn(wide, 110) == 40.0
    assert problem.most_bytes <= 100 - 40
    assert fits(problem, slim)
    assert not fits(problem, wide)
    assert limit.exceeded(wide)
    assert not limit.exceeded(slim)
    problem.free = True
    assert not limit.exceeded(wide), "the limit was given up"
