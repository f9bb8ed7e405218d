"""The report explains a plan: options, runner-up, and what kept it from going further."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import onnxc
from onnxc.cost import Prices
from onnxc.deliver import Delivery
from onnxc.errors import UsageError
from onnxc.explain import ceiling, computed, further, runner_up, stopped, stored
from onnxc.judge import Judge
from onnxc.overheads import Overheads
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.passes.store_int8 import StoreInt8
from onnxc.planner import plan
from onnxc.planning import Attempt
from onnxc.predictions import stored_bytes
from onnxc.problem import Plan, Problem
from onnxc.profiling import FLOAT
from onnxc.quality import Quality
from onnxc.recipe import Budget, Recipe, parse_passes
from tests.emission import model, node, proposed, samples, weight
from tests.unpriced import pretend_everything_pays

ROOT = Path(__file__).parents[1]


def linears() -> Problem:
    """x -> MatMul w -> MatMul v: int8 takes a fifth of the time of the first and twice that of the second."""
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a v", "y")]
    proto = model(nodes, {"x": [8, 96]}, {"y": None}, {"w": weight(96, 96), "v": weight(96, 96)})
    context, found = proposed(proto, samples(2, x=[8, 96]), QuantizeStatic(), StoreInt8())
    prices = {"a_node": {FLOAT: 1e-3, "static": 2e-4}, "y_node": {FLOAT: 1e-3, "static": 2e-3}}
    noise = {"static x": 1e-4, "static a": 2e-4, "weight w": 4e-4, "weight v": 8e-4}
    return Problem(context.sites, found.compute, found.storage, Prices(prices, 3e-3), {}, noise)


def test_options_of_a_site_and_what_the_other_would_have_cost() -> None:
    problem = linears()
    found = plan(problem)
    fast, slow = (site for site in problem.found if site.weight is not None)
    options = computed(problem, found, fast)
    assert [(each.mode, each.milliseconds, each.chosen) for each in options] == [
        (FLOAT, 1.0, False),
        ("static", 0.2, True),
    ]
    assert options[1].noise == pytest.approx(1e-4 + (2e-4 if found.compute[fast.name].writes else 0))
    assert fast.weight is not None
    formats = stored(problem, found, fast.weight)
    assert [(each.mode, each.chosen) for each in formats] == [(FLOAT, False), ("int8", True)]
    assert formats[0].bytes == 96 * 96 * 4
    assert formats[1].noise == 4e-4
    other = runner_up(problem, found, fast, options + formats)
    assert other is not None
    assert (other.kind, other.mode, other.bytes) == ("compute", FLOAT, 0)  # float32 storage is none of an int8 site's
    assert other.milliseconds == pytest.approx(0.8)
    assert other.noise == pytest.approx(-(options[1].noise or 0.0))
    assert slow.weight is not None
    other = runner_up(problem, found, slow, computed(problem, found, slow) + stored(problem, found, slow.weight))
    assert other is not None
    assert other.mode == "static"
    assert other.milliseconds == pytest.approx(1.0)


def test_a_site_that_would_be_int8_brings_its_codes() -> None:
    """Everything float: the runner-up of the fast site is int8 with its weight as codes."""
    problem = linears()
    fast = next(site for site in problem.found if site.weight is not None)
    assert fast.weight is not None
    found = Plan()
    other = runner_up(problem, found, fast, computed(problem, found, fast) + stored(problem, found, fast.weight))
    assert other is not None
    assert other.mode == "static"
    assert other.bytes < -0.7 * 96 * 96 * 4
    assert (other.noise or 0.0) >= 1e-4 + 4e-4


def test_the_kernels_ceiling() -> None:
    """3 ms, of which one site can save 0.8; the other one is best in float, and 1 ms has no site."""
    problem, here = linears(), SimpleNamespace(target=SimpleNamespace(measured=True))
    problem.lead = 1.5
    said = ceiling(SimpleNamespace(problem=problem, context=here))
    assert "at most 2.05 times as fast" in said  # 1.5 * 3 / 2.2
    assert "45% of the time" in said
    assert "at most 2.20 times as fast" in ceiling(SimpleNamespace(problem=problem, context=here), reached=2.2)
    problem.prices.sites["a_node"]["static"] = 1e-3
    assert "no other form" in ceiling(SimpleNamespace(problem=problem, context=here))
    problem.compute = {}
    assert ceiling(SimpleNamespace(problem=problem, context=here)) == ""


def test_why_not_further() -> None:
    problem = linears()
    best = plan(problem)
    judge = SimpleNamespace(original=SimpleNamespace(source_bytes=100_000))
    overheads = Overheads()
    free, named = (SimpleNamespace(recipe=Recipe(passes=each)) for each in (None, parse_passes("store-int8")))
    size = SimpleNamespace(overheads=overheads)
    planning: Any = SimpleNamespace(problem=problem, attempts=[], size=size, judge=judge)
    planning.context = free
    overheads.learn(problem, best, 1000 + stored_bytes(problem, best.stored))
    assert further(planning, best).endswith("smallest and fastest form that pays")
    planning.context = named
    assert further(planning, best).endswith("smallest and fastest form that pays, of the passes that were asked for")
    assert "no plan that was tried" in further(planning, Plan(seconds=3e-3))
    missed = "output 'y' has an SQNR of 18.2 dB, below 20 dB"
    planning.attempts = [Attempt(Plan(seconds=4e-3), 60.0, None, "not ahead"), Attempt(best, 18.2, None, missed)]
    said = further(planning, Plan(seconds=3e-3))
    assert said.endswith(f"was not taken: {missed}")
    share = (1000 + sum(way.bytes for ways in problem.storage.values() for way in ways)) / 100_000
    assert f"about {share:.1%} of the bytes and {3e-3 / best.seconds:.2f} times as fast" in said


def test_what_stopped_every_plan() -> None:
    """The floor that the nearest one missed; the gate, where one held them; nothing, where there was no plan."""
    problem = linears()
    judge = SimpleNamespace(original=SimpleNamespace(source_bytes=100_000))
    planning: Any = SimpleNamespace(problem=problem, attempts=[], judge=judge)
    best, gate = plan(problem), "the plan with 2 sites in int8 runs 0.80 times as fast as the input"
    delivery = Delivery(None, 100_000, None, ["the plan with 0 sites in int8 takes 100,000 bytes"])
    floats = Attempt(Plan(), 200.0, None, None, 100_000)
    planning.attempts = [floats]
    assert stopped(planning, delivery) == ""
    planning.attempts += [Attempt(best, each, None, f"{each} dB, below 20 dB", 27_000) for each in (18.0, 19.0, 17.0)]
    assert stopped(planning, delivery) == (
        "the nearest plan, with about 27.0% of the bytes, was not taken: 19.0 dB, below 20 dB"
    )
    planning.attempts.append(Attempt(best, 21.0, None, None, 40_000))
    assert stopped(planning, replace(delivery, rejected=[gate, *delivery.rejected])) == gate


@pytest.mark.parametrize(
    ("passes", "agreement", "floor"),
    [
        ("quantize-decode:bits=4", 1.0, "top-1 answers changed, more than the 0 allowed (--min-agreement)"),
        ("store-low-bit:levels=3:zeros=95%", None, "below 20 dB"),
    ],
)
def test_the_headline_names_the_floor(passes: str, agreement: float | None, floor: str, tmp_path: Path) -> None:
    """What vectors were refused for is not why nothing was changed; the floor is told once."""
    models, plain = ROOT / "models", tmp_path / "plain.onnx"
    onnxc.optimize(models / "sklearn_mlp.onnx", plain, passes="strip-debug", prices=tmp_path / "prices.json")
    report = onnxc.optimize(
        plain, tmp_path / "out.onnx", calib=models / "data" / "sklearn_mlp_calib.npz",
        passes=passes, budget=Budget(min_agreement=agreement), prices=tmp_path / "prices.json",
    )  # fmt: skip
    assert not report.changed
    assert report.sentences[0].startswith("nothing was changed: the nearest plan, with about ")
    assert report.sentences[0].endswith(floor)
    assert len([each for each in report.sentences if each.endswith(floor)]) == 1


def test_the_report_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    report = onnxc.optimize(
        ROOT / "models" / "sklearn_mlp.onnx",
        tmp_path / "out.onnx",
        calib=ROOT / "models" / "data" / "sklearn_mlp_calib.npz",
        recipe=Recipe(
            Budget(min_sqnr=44.0, min_agreement=0.0), parse_passes("quantize-dynamic,store-int8,store-low-bit")
        ),
        prices=tmp_path / "prices.json",
    )
    values = json.loads(report.to_json())
    assert values["predicted_bytes"] == pytest.approx(values["bytes_after"], rel=0.06)
    assert values["predicted_sqnr_db"] is not None
    assert values["further"] in values["sentences"]
    assert "below 44 dB" in values["further"]
    rows = [row for row in values["rows"] if row["considered"]]
    assert len(rows) >= 3
    for row in rows:
        chosen = [each for each in row["considered"] if each["chosen"]]
        assert sorted(each["kind"] for each in chosen) == sorted({each["kind"] for each in row["considered"]})
        sizes = [each["bytes"] for each in chosen if each["kind"] == "storage"]
        assert sizes == [row["bytes_after"]]
        assert row["runner_up"]["specification"]


def test_no_call_is_spent_on_what_cannot_pass() -> None:
    judge = Judge.__new__(Judge)
    judge.budget, judge.evaluations, judge.failed = Budget(evals=3), 1, (float("-inf"), 0.0)
    assert judge.saved(Quality(sqnr_db=20.0), 1.0) is None
    judge.failed = (25.0, 0.5)  # it failed under half of the allowed drop
    assert judge.saved(Quality(sqnr_db=20.0), 1.0) is None
    assert "a closer one, with 25.0 dB" in str(judge.saved(Quality(sqnr_db=20.0), 0.5))
    assert judge.saved(Quality(sqnr_db=30.0), 0.5) is None
    judge.evaluations = 3
    assert "all 3 calls of the hook (--evals) are used" in str(judge.saved(Quality(sqnr_db=30.0), 0.5))


def test_the_hook_is_called_so_often_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    calls = []

    def hook(session: Any) -> float:
        calls.append(session)
        return 1.0 if len(calls) == 1 else 0.5

    arguments: dict[str, Any] = {
        "calib": ROOT / "models" / "data" / "sklearn_mlp_calib.npz",
        "prices": tmp_path / "prices.json",
        "recipe": Recipe(Budget(evals=3), parse_passes("quantize-dynamic,store-int8")),
    }
    report = onnxc.optimize(ROOT / "models" / "sklearn_mlp.onnx", tmp_path / "out.onnx", eval=hook, **arguments)
    assert len(calls) == 3
    assert not report.changed
    assert any("(--evals) are used" in note for note in report.notes)
    with pytest.raises(UsageError, match="--evals bounds the calls of a hook"):
        onnxc.optimize(ROOT / "models" / "sklearn_mlp.onnx", tmp_path / "out.onnx", **arguments)


def test_what_a_file_holds_besides_weights_is_learned() -> None:
    """Bytes of plans with other kinds of nodes, from those of two that were built."""
    problem = linears()
    whole, none = plan(problem), Plan()
    overheads = Overheads()
    assert overheads.of(whole) == 0
    overheads.learn(problem, none, 5_000 + stored_bytes(problem, none.stored))
    assert overheads.of(none) == pytest.approx(5_000, abs=1)
    assumed = overheads.of(whole) - 5_000  # a Q and DQ, an int8 site
    assert 300 < assumed < 1500
    overheads.learn(problem, whole, 6_400 + stored_bytes(problem, whole.stored))
    assert overheads.of(whole) == pytest.approx(6_400, rel=0.02)
    assert overheads.of(none) == pytest.approx(5_000, rel=0.05)
    coded = Plan(whole.compute, dict.fromkeys(whole.stored, "levels16"))
    assert 6_700 < overheads.of(coded) < 7_800  # one more chain of nodes, for all weights of the format
    overheads.correct(problem, whole, 6_300 + stored_bytes(problem, whole.stored))
    assert len(overheads.seen) == 2
