"""The last gate: what loads too slowly is passed over, and the report says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

import onnxc
from onnxc import deliver, planning
from onnxc.deliver import loads_too_long
from onnxc.errors import BudgetError, UsageError
from onnxc.fallbacks import Fallbacks
from onnxc.judge import Judge
from onnxc.loading import LoadCost, load_costs
from onnxc.model import Model
from onnxc.planning import Planning
from onnxc.problem import Plan
from onnxc.quality import Quality
from onnxc.recipe import Budget, parse_passes, parse_recipe
from onnxc.session import Ratio
from onnxc.trial import Trial
from tests import trained
from tests.emission import model, node, weight
from tests.unpriced import pretend_everything_pays

MODELS = Path(__file__).parents[1] / "models"


def linears() -> onnx.ModelProto:
    """Two linears; dynamic int8 and int8 storage apply."""
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v", "y")]
    return model(nodes, {"x": [8, 96]}, {"y": None}, {"w": weight(96, 96), "v": weight(96, 96)})


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of linears(); optimize() runs without clocks, but the load times are the test's."""
    real = deliver.loads_of
    pretend_everything_pays(monkeypatch)
    monkeypatch.setattr(deliver, "loads_of", real)
    onnx.save(linears(), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def loading(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> list[int]:
    """Every new model takes the next of ``seconds`` to load, the original 100 ms; the rounds asked for."""
    left, asked = list(seconds), list[int]()

    def load_costs(*_: Any, rounds: int = 1, **__: Any) -> tuple[LoadCost, LoadCost]:
        asked.append(rounds)
        return LoadCost(0.1, 1000), LoadCost(left.pop(0) if len(left) > 1 else left[0], None)

    monkeypatch.setattr(deliver, "load_costs", load_costs)
    return asked


def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """While plans are looked for all of them load in time."""
    monkeypatch.setattr(planning, "time_taken", lambda *_: (0.2, 0.1))


@pytest.mark.parametrize(
    ("limit", "patient", "before", "after", "slow"),
    [
        (None, False, 0.1, 0.19, False),
        (None, False, 0.1, 0.21, True),
        (None, False, 0.001, 0.0019, False),
        (None, False, 0.001, 0.0021, True),  # of small models too
        (None, True, 0.1, 9.0, False),
        (3.0, False, 0.1, 0.29, False),
        (3.0, True, 0.1, 0.31, True),
        (0.5, False, 0.1, 0.06, True),
    ],
)
def test_what_is_too_long(limit: float | None, patient: bool, before: float, after: float, slow: bool) -> None:
    asked: Any = SimpleNamespace(budget=Budget(max_load_time=limit), patient=patient, grace=0.0)
    asked.time_to_load = partial(Judge.time_to_load, asked)
    sentence = loads_too_long(asked, LoadCost(before, None), LoadCost(after, None))
    assert (sentence is not None) == slow
    if sentence is not None:
        assert f"{after / before:.2f} times as long" in sentence
        assert f"at most {limit or 2.0:g} times" in sentence


def test_a_plan_that_loads_too_slowly_is_passed_over(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first plan is measured three times before it is believed; the next one loads fast."""
    unhurried(monkeypatch)
    asked = loading(monkeypatch, 0.5, 0.5, 0.5, 0.1)
    report = onnxc.optimize(source, tmp_path / "out.onnx", prices=tmp_path / "prices")
    assert asked == [1, 2, 3, 1]
    assert report.changed
    assert any("500 ms to load, 5.00 times as long as the input" in note for note in report.notes)
    assert report.comparison is not None
    assert report.comparison.load_new == LoadCost(0.1, None)
    assert report.comparison.load_reference == LoadCost(0.1, 1000)
    again = onnxc.optimize(source, tmp_path / "again.onnx", prices=tmp_path / "prices")
    assert len(asked) == 4  # known from the price file
    assert again.changed
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


@pytest.mark.usefixtures("source")
def test_kernels_are_not_given_up_for_the_time_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a limit of size what loads faster is noisier: four int8 sites were left of thirteen."""
    unhurried(monkeypatch)
    loading(monkeypatch, 0.5, 0.5, 0.5, 0.1)
    plans = list[Plan]()
    judged = Planning.judged

    def noted(planning: Planning, plan: Plan) -> Trial:
        plans.append(plan)
        return judged(planning, plan)

    monkeypatch.setattr(Planning, "judged", noted)
    report = onnxc.optimize(
        MODELS / "residual_cnn.onnx",
        tmp_path / "out.onnx",
        calib=list(trained.samples("residual_cnn", 24)),
        passes=parse_passes("quantize-static,store-int8,store-low-bit,store-float16"),
        prices=tmp_path / "prices",
        budget=Budget(size=0.12),
    )
    slow = next(note for note in report.notes if "500 ms to load" in note)
    at = next(i for i, plan in enumerate(plans) if f"with {len(plan.compute)} sites in int8" in slow)
    assert len(plans[at + 1].compute) > len(plans[at].compute) / 2


def test_where_only_the_time_to_load_is_missed_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is small unfolds, and all of it is late; the user did not set that limit."""
    pretend_everything_pays(monkeypatch)
    monkeypatch.setattr(planning, "time_taken", late_where_it_unfolds)
    data, passes = list(trained.samples("residual_cnn", 16)), parse_passes("store-int8,store-low-bit")
    budget = Budget(size=0.15, min_sqnr=5)
    with pytest.raises(BudgetError, match=r"not 15\.0%; more time to load \(--max-load-time\) or .* may help"):
        onnxc.optimize(
            MODELS / "residual_cnn.onnx",
            tmp_path / "out.onnx",
            calib=data,
            passes=passes,
            prices=tmp_path / "prices",
            budget=budget,
        )


def test_what_was_not_taken_for_its_time_to_load_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    monkeypatch.setattr(planning, "time_taken", late_where_it_unfolds)
    data, passes = list(trained.samples("residual_cnn", 16)), parse_passes("store-int8,store-low-bit")
    report = onnxc.optimize(
        MODELS / "residual_cnn.onnx",
        tmp_path / "out.onnx",
        calib=data,
        passes=passes,
        prices=tmp_path / "prices",
        budget=Budget(min_sqnr=5),
    )
    told = (
        r"a plan with ([0-9.]+)% of the bytes takes ([0-9.]+) times as long to load as the input, and was not taken .*"
    )
    found = next(match for note in report.notes if (match := re.fullmatch(told, note)))
    share, times = map(float, found.groups())
    assert share / 100 < 0.9 * report.bytes_after / report.bytes_before
    assert times > 2


def late_where_it_unfolds(judge: Judge, made: Callable[[], Model], *_: Any) -> tuple[float, float]:
    """A millisecond for every node, of which int8 codes take as many as are allowed."""
    return judge.time_to_load(0.027), 1e-3 * len(list(made().nodes()))


def test_what_was_told_loads_as_long_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan is better for loading in time where nothing asks for that: the codes are those that were told."""
    loading(monkeypatch, *[0.5] * 9)
    report = onnxc.optimize(
        MODELS / "vision_transformer.onnx",
        tmp_path / "out.onnx",
        calib=list(trained.samples("vision_transformer", 8)),
        passes=parse_passes("quantize-dynamic,store-low-bit:levels=16"),
        prices=tmp_path / "prices",
        budget=Budget(min_sqnr=5),
    )
    assert report.bytes_after < 0.2 * report.bytes_before
    assert any("4-bit codes" in row.specification for row in report.rows)


def test_where_a_limit_is_out_of_reach_no_plan_after_the_nearest_is_made(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are larger or slower; each is solved, judged and timed."""
    loading(monkeypatch, 0.1)
    monkeypatch.setattr(Fallbacks, "after", lambda *_: pytest.fail("made all the same"))
    with pytest.raises(BudgetError, match=r"has .* of the size, not 1\.0%; samples .* may help; nothing was written"):
        onnxc.optimize(source, tmp_path / "out.onnx", prices=tmp_path / "prices", budget=Budget(size=0.01))
    assert not (tmp_path / "out.onnx").exists()


def test_a_wider_limit_lets_it_through(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = loading(monkeypatch, 0.5)
    report = onnxc.optimize(source, tmp_path / "out.onnx", prices=tmp_path / "prices", budget=Budget(max_load_time=6.0))
    assert asked == [1]
    assert report.limits == {"max_load_time": 6.0}
    assert not any("to load" in note for note in report.notes)


def test_a_limit_that_nothing_holds_is_missed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading(monkeypatch, 0.09)
    with pytest.raises(BudgetError, match=r"loads in 0\.5 times the input's time; nothing was written"):
        onnxc.optimize(source, tmp_path / "out.onnx", prices=tmp_path / "prices", budget=Budget(max_load_time=0.5))
    assert not (tmp_path / "out.onnx").exists()


def test_a_table_whose_rows_are_slow_to_unfold_is_unfolded_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of codes take three more nodes per run: in a small model that is more than all the rest."""
    pretend_everything_pays(monkeypatch)
    nodes = [node("Gather", "e ids", "a"), node("MatMul", "a w", "y")]
    made = model(nodes, {"ids": [8]}, {"y": None}, {"e": weight(300, 96), "w": weight(96, 96)})
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(made, tmp_path / "in.onnx")

    def speed_of(_: Any, path: Path, __: Any) -> Ratio:
        gathers = [each for each in onnx.load(path).graph.node if each.op_type == "Gather"]
        codes = {each.name for each in onnx.load(path).graph.initializer if each.data_type == onnx.TensorProto.INT8}
        speed = 0.6 if any(set(each.input) & codes for each in gathers) else 1.0
        return Ratio(speed, speed, speed, 1.0, 1.0 / speed)

    monkeypatch.setattr(deliver, "speed_of", speed_of)
    monkeypatch.setattr(deliver, "same_kernels", lambda *_: False)
    report = onnxc.optimize(tmp_path / "in.onnx", tmp_path / "out.onnx", prices=tmp_path / "prices")
    assert report.changed
    assert (tmp_path / "out.onnx").stat().st_size < 0.35 * (tmp_path / "in.onnx").stat().st_size


@pytest.mark.parametrize(("low", "high", "kept"), [(0.3, 1.8, True), (0.8, 0.9, False)])
def test_the_same_kernels_are_slower_only_if_every_round_says_so(
    low: float, high: float, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine spreads; a model that really is slower does not."""
    pretend_everything_pays(monkeypatch)
    onnx.save(linears(), tmp_path / "in.onnx")
    monkeypatch.setattr(deliver, "speed_of", lambda *_: Ratio(0.85, low, high, 1.0, 1.2))
    report = onnxc.optimize(
        tmp_path / "in.onnx", tmp_path / "out.onnx", passes="store-int8", prices=tmp_path / "prices"
    )
    assert report.changed == kept


@pytest.mark.parametrize("late", [False, True])
def test_a_trial_that_has_its_model_is_not_judged_again(late: bool) -> None:
    """Its verdict may be another one after more trials: the search would begin anew, each time."""
    made = Model.load(linears())
    trial = Trial(Plan(), made, Quality(sqnr_db=20.0), None, None)
    given: Any = SimpleNamespace(judge=SimpleNamespace(late=late))
    assert Planning.built_again(given, trial) is trial


def test_real_load_times() -> None:
    """The same file against itself, in fresh processes."""
    path = MODELS / "mixer.onnx"
    before, after = load_costs(path, path)
    assert 0 < before.seconds < 5
    assert 0 < after.seconds < 5
    assert 0.1 < after.seconds / before.seconds < 10


def test_recipe_words() -> None:
    assert parse_recipe({"max-load-time": "2.5x"}).budget.max_load_time == 2.5
    with pytest.raises(UsageError, match="is not a factor"):
        parse_recipe({"max-load-time": "slow"})
