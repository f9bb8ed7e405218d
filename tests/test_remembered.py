"""What trials measured is in the price file: the search goes the same way by figures, what it delivers is built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import onnxc
from onnxc import deliver, planning
from onnxc.model import Model
from onnxc.runtime.timing import LoadCost, Ratio
from tests.trained import MODELS

RUN: dict[str, Any] = {"calib": MODELS / "data" / "sklearn_mlp_calib.npz", "budget": onnxc.Budget(min_sqnr=32)}
PASSES = "quantize-static,quantize-dynamic,store-int8,store-low-bit"


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is delivered depends on no measured time here."""
    monkeypatch.setattr(deliver, "measure_ratio", lambda *_, **__: Ratio(1.5, 1.5, 1.5, 3e-3, 2e-3))
    monkeypatch.setattr(deliver, "load_costs", lambda *_, **__: (LoadCost(0.1, None), LoadCost(0.1, None)))
    monkeypatch.setattr(deliver, "seconds_to_load", lambda *_: [0.1, 0.1])


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The plans whose weights were solved."""
    plans: list[object] = []
    solve = planning.solve

    def counted(plan: Any, *others: Any, **more: Any) -> Any:
        plans.append(plan.key)
        return solve(plan, *others, **more)

    monkeypatch.setattr(planning, "solve", counted)
    return plans


def made(out: Path, prices: Path) -> bytes:
    onnxc.optimize(MODELS / "sklearn_mlp.onnx", out, passes=PASSES, prices=prices, **RUN)
    return out.read_bytes()


def test_the_same_model_from_figures_and_one_plan_built(tmp_path: Path, solved: list[object]) -> None:
    out, prices = tmp_path / "out.onnx", tmp_path / "prices.json"
    cold, tries = made(out, prices), len(solved)
    assert tries > 2
    solved.clear()
    assert made(out, prices) == cold
    assert len(solved) == 1


def test_figures_that_no_longer_hold_are_forgotten(tmp_path: Path, solved: list[object]) -> None:
    out, prices = tmp_path / "out.onnx", tmp_path / "prices.json"
    cold, tries = made(out, prices), len(solved)
    kept = json.loads(prices.read_text())
    trials = [finding for key, finding in kept["findings"].items() if key.startswith("trial ")]
    assert len(trials) == tries
    for finding in trials:
        finding["quality"] |= {"sqnr_db": 60.0, "agreement": 1.0, "changed": 0}
    prices.write_text(json.dumps(kept))
    solved.clear()
    assert made(out, prices) == cold
    assert len(solved) > tries, "of the wrong figures one plan was built, and then all anew"


def test_a_second_search_knows_the_figures_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where training was in vain: its first plan has figures and no model, and is built to be heard and loaded."""
    searched = planning.Planning.trials

    def twice(self: planning.Planning) -> Iterator[Any]:
        next(searched(self))
        assert self.feedback
        yield from searched(self)

    def loaded(original: Path, path: Path, *_: Any, **__: Any) -> tuple[LoadCost, LoadCost]:
        assert Model.load(path).graph.nodes
        return LoadCost(0.1, None), LoadCost(0.1, None)

    monkeypatch.setattr(planning.Planning, "trials", twice)
    monkeypatch.setattr(deliver, "load_costs", loaded)
    onnxc.optimize(
        MODELS / "sklearn_mlp.onnx",
        tmp_path / "out.onnx",
        passes="store-low-bit:levels=16",
        prices=tmp_path / "prices.json",
        **(RUN | {"budget": onnxc.Budget(min_sqnr=60)}),
    )
