"""Structure that nobody named: chosen where it wins on size and speed, refused with reasons, bounded and repeatable."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest

from onnxc import Budget, optimize
from onnxc.contract.context import Context, Stakes
from onnxc.contract.passes import StructuralPass
from onnxc.data import Calibration
from onnxc.factors.goals import Curve, Goal, Loss, rank_of
from onnxc.passes import FactorMatmul, PruneChannels
from onnxc.price_file import PriceFile
from onnxc.propose import passes_of
from onnxc.recipe import Recipe, parse_passes
from onnxc.session import Session
from onnxc.structure import choice
from onnxc.structure.choice import Choice
from onnxc.structure.planned import UNMET, Aim, Clock
from onnxc.structure.prospects import Prospects
from tests import trained
from tests.emission import model, node, samples, weight
from tests.factored import MODELS, context_of, limited
from tests.unpriced import pretend_everything_pays

STRUCTURAL = {"prune-channels", "factor-matmul", "factor-conv"}
PLAIN = "quantize-static,quantize-dynamic,store-int8,store-low-bit,store-codebook,store-float16"


def images(name: str, count: int = 64) -> list[dict[str, np.ndarray]]:
    with np.load(MODELS / "data" / f"{name}_calib.npz") as data:
        arrays = {key: data[key] for key in data.files}
    ranks = {info.name: len(info.shape) for info in Session(MODELS / f"{name}.onnx").inputs}
    return [
        {key: array[at] if array.ndim > ranks[key] else array[at : at + 1] for key, array in arrays.items()}
        for at in range(count)
    ]


@pytest.mark.slow
def test_a_model_of_low_rank_is_factored_unasked_and_wins_on_size_and_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "MOST", 1)
    proto, names = limited("vision_transformer", 16, 0.01)
    source, prices = tmp_path / "limited.onnx", tmp_path / "prices.json"
    onnx.save(proto, source)
    found = optimize(source, tmp_path / "found.onnx", calib=images("vision_transformer", 32), prices=prices)
    told = (
        r"factor-matmul: .*; planned with it the file has (.*)% of the bytes and is (.*) times as fast; without, (.*)%"
    )
    note = next(match for note in found.notes if (match := re.match(told + " and (.*) times", note)))
    size, fast, plain_size, plain_fast = (float(each) for each in note.groups())
    left = [node for node in onnx.load(tmp_path / "found.onnx").graph.node if node.name.endswith("_left")]
    assert len(left) >= len(names) // 4  # the others: bits are cheaper
    assert found.bytes_after < 0.9 * plain_size / 100 * found.bytes_before
    assert found.bytes_after == pytest.approx(size / 100 * found.bytes_before, rel=0.02)
    assert fast > 0.98 * plain_fast


@pytest.mark.slow
def test_the_same_prices_choose_the_same_structure(tmp_path: Path) -> None:
    def thin() -> np.ndarray:
        return weight(128, 4) @ weight(4, 128, scale=1.0) + 0.01 * weight(128, 128)

    proto = model(
        [node("MatMul", "x u", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "g"), node("Relu", "g", "s"),
         node("MatMul", "s w", "y")],
        {"x": [32, 128]},
        {"y": None},
        {"u": thin(), "v": thin(), "w": thin()},
    )  # fmt: skip
    source, prices = tmp_path / "thin.onnx", tmp_path / "prices.json"
    onnx.save(proto, source)
    random = np.random.default_rng(0)
    data = [{"x": random.standard_normal((32, 128)).astype(np.float32)} for _ in range(16)]
    first = optimize(source, tmp_path / "first.onnx", calib=data, prices=prices)
    second = optimize(source, tmp_path / "second.onnx", calib=data, prices=prices)
    chosen = [
        note for note in first.notes if re.match(r"factor-matmul: 3 of 3 .*; planned with it .*; without, ", note)
    ]
    assert len(chosen) == 1
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    assert second.notes == first.notes
    assert first.comparison is not None
    assert first.comparison.sqnr_db >= 20
    sizes = [t.dims for t in onnx.load(tmp_path / "first.onnx").graph.initializer if t.name.startswith(("u", "v", "w"))]
    assert max(int(np.prod(dims)) for dims in sizes) < 128 * 32


def full_rank(cost: float) -> Context:
    """Two matrices of full rank in a plan where damage 1 of either costs ``cost`` times what both are worth."""
    proto = model(
        [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")],
        {"x": [16, 128]},
        {"y": None},
        {"w": weight(128, 128), "v": weight(128, 128)},
    )
    stakes = Stakes({"w": 0.5, "v": 0.5}, {"w": cost, "v": cost}, {})
    return replace(context_of(proto, samples(32, x=[16, 128])), stakes=stakes)


def test_where_damage_is_dear_nothing_is_offered_and_the_reasons_have_names() -> None:
    factors, channels = FactorMatmul().offers(full_rank(100.0)), PruneChannels().offers(full_rank(100.0))
    assert factors.found == channels.found == ()
    assert [(each.place, each.reason.partition(",")[0]) for each in factors.refusals] == [
        ("h_node", "factors cost more"),
        ("y_node", "factors cost more"),
    ]
    assert re.fullmatch(
        r"the closest is [hy]_node: rank \d+, \d+% of its numbers, loses 0\.\d+ of its output: "
        r"with the bits that would make it good that costs \d+\.\d times what it saves",
        factors.reason,
    )
    assert re.fullmatch(r".* any cut costs at least \d+\.\d times what it saves", channels.reason)


@pytest.mark.parametrize("instance", [FactorMatmul(), PruneChannels()], ids=lambda each: each.name)
def test_where_damage_is_cheap_deeper_and_deeper_forms_are_offered(instance: StructuralPass) -> None:
    context = full_rank(0.01)
    offers = instance.offers(context).found
    assert offers
    assert [offer.saved for offer in offers] == sorted(offer.saved for offer in offers)
    assert [offer.cost for offer in offers] == sorted(offer.cost for offer in offers)
    assert all(0 < offer.saved < 1 and 0 < offer.cost < 0.1 for offer in offers)
    before = sum(each.nbytes for each in context.model.graph.weights)
    after = sum(each.nbytes for each in offers[-1].make().model.graph.weights)
    assert after == pytest.approx(before * (1 - offers[-1].saved), rel=0.05)


@pytest.mark.parametrize("words", [None, PLAIN, "prune-channels", "factor-conv:rank=4,store-int8"])
def test_nothing_structural_is_tried_where_passes_are_named(words: str | None) -> None:
    chosen = passes_of(Recipe(passes=parse_passes(words) if words else None))
    assert {each.name for each in chosen.unasked} == (STRUCTURAL if words is None else set())
    named = {each.name for each, _ in chosen.structural} & STRUCTURAL
    assert named == ({request.name for request in parse_passes(words)} & STRUCTURAL if words else set())


def test_without_data_no_structure_is_tried(tmp_path: Path) -> None:
    report = optimize(MODELS / "sklearn_mlp.onnx", tmp_path / "out.onnx", prices=tmp_path / "prices.json")
    assert not any(note.startswith(tuple(STRUCTURAL)) for note in report.notes)


def curve(*damages: float) -> Curve:
    return Curve(np.array(damages))


def goal(gain: float, cost: float, codes: float = 0.0, kernel: float = 0.0, caution: float = 1.0) -> Goal:
    stakes = Stakes({"w": gain}, {"w": cost}, {"w": codes}, kernel)
    return Goal(automatic=True, stakes=stakes, caution=caution)


def test_the_rank_is_the_one_that_wins_most() -> None:
    falling = curve(1.0, *(0.5**rank for rank in range(1, 65)))

    def rank(found: Goal) -> int | str:
        return rank_of(falling, 64, 64, found, speed=0.65, step=4, weights=["w"])

    cheap, dear = rank(goal(1.0, 1.0)), rank(goal(1.0, 1000.0))
    assert isinstance(cheap, int)
    assert isinstance(dear, int)
    assert cheap < dear <= 0.65 * 32
    # by hand: at rank 4, of 64 * 64 numbers 4 * 128 are left; 1 - 1/8 - 1/16 is the most that can be won
    assert cheap == 4
    assert goal(1.0, 1.0).win(["w"], 1 / 8, 1 / 16) == pytest.approx(1 - 1 / 8 - 1 / 16)
    lost = rank(goal(1.0, 1.0, codes=1.0))
    assert isinstance(lost, Loss)
    assert lost.times == pytest.approx((1 / 16 + 1) / (7 / 8))
    assert lost.startswith("rank 4, 12% of its numbers, loses 0.062 of its output")
    assert isinstance(rank(goal(1.0, 1.0, kernel=0.9)), Loss)  # one more kernel takes all that would be won
    flat = curve(*np.linspace(1.0, 0.0, 65))
    assert isinstance(rank_of(flat, 64, 64, goal(1.0, 2.0), speed=0.65, step=4, weights=["w"]), Loss)


def test_costs_of_rounding_are_a_least_for_what_is_cut() -> None:
    stakes = Stakes({"a": 0.5, "b": 0.25}, {"a": 1.0, "b": 9.0, "c": 3.0}, {})
    assert [stakes.cost(name) for name in ("a", "b", "d")] == [3.0, 9.0, 3.0]
    assert stakes.total == 0.75
    assert stakes.gain("c") == 0.0


@pytest.mark.parametrize(
    ("budget", "better", "worse"),
    [
        (Budget(), (0.1, 1.5), (0.08, 1.1)),
        (Budget(size=0.2), (0.19, 1.5), (0.05, 1.4)),
        (Budget(size=0.2), (0.2, 1.0), (0.21, 3.0)),
        (Budget(speed=1.2), (0.1, 1.2), (0.11, 3.0)),
        (Budget(speed=1.2), (0.9, 1.2), (0.01, 1.1)),
    ],
)
def test_what_is_wanted_follows_the_limits(budget: Budget, better: Any, worse: Any) -> None:
    aim = Aim(budget)
    assert aim.of(better) < aim.of(worse)
    assert (aim.of(worse) >= UNMET) == (not aim.holds(worse))


def test_what_steps_took_is_that_of_the_first_run(tmp_path: Path) -> None:
    prices = PriceFile.open(tmp_path / "prices.json")
    first = Clock(prices, "run")
    assert (first.took("a", 3.0), first.took("b", 4.0), first.spent) == (3.0, 4.0, 7.0)
    prices.save()
    second = Clock(PriceFile.open(tmp_path / "prices.json"), "run")
    assert (second.took("a", 30.0), second.took("c", 1.0), second.spent) == (3.0, 1.0, 4.0)
    assert Clock(prices, "other").took("a", 5.0) == 5.0


@pytest.mark.parametrize("kind", ["list", "function"])
def test_samples_that_are_kept_apart_are_not_among_those_that_are_fitted(kind: str) -> None:
    inputs = Session(MODELS / "sklearn_mlp.onnx").inputs
    name, width = inputs[0].name, int(inputs[0].shape[1])
    data = [{name: np.full((1, width), at, np.float32)} for at in range(18)]
    whole = Calibration.open(data if kind == "list" else lambda: iter(data), inputs)
    fitted = whole.fitted()
    expected = [at for at in range(18) if at not in whole.apart]
    assert sorted(whole.apart) == [3, 7, 11, 15]
    assert [int(each[name][0, 0]) for each in fitted] == expected
    assert len(fitted) == 14
    assert [int(each[name][0, 0]) for each in fitted.take(14)] == expected
    assert fitted.digest != whole.digest


def test_where_planning_takes_long_a_form_has_to_promise_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made and judged, and the notes say that planning it was not worth the time."""
    pretend_everything_pays(monkeypatch)
    monkeypatch.setattr(choice, "LONG", -1.0)
    monkeypatch.setattr(choice, "WORTH", 0.0)
    monkeypatch.setattr(choice.Choice, "attempt", lambda *_: pytest.fail("a form was planned"))
    data, out = list(trained.samples("lstm", 48)), tmp_path / "out.onnx"
    report = optimize(trained.MODELS / "lstm.onnx", out, calib=data, prices=tmp_path / "prices.json")
    assert report.changed
    assert any("not planned, predicted to be not worth" in note for note in report.notes)
    assert any(note.startswith("factor-matmul: not tried: ") for note in report.notes)


def test_that_no_form_wins_is_not_found_out_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    monkeypatch.setattr(Prospects, "judged", lambda *_: None)
    data, asked = list(trained.samples("lstm", 48)), list[str]()
    offered = Prospects.offered

    def watched(self: Prospects, instance: StructuralPass, context: Context) -> object:
        asked.append(instance.name)
        return offered(self, instance, context)

    monkeypatch.setattr(Prospects, "offered", watched)
    first, second = (
        optimize(trained.MODELS / "lstm.onnx", tmp_path / name, calib=data, prices=tmp_path / "prices.json")
        for name in ("first.onnx", "second.onnx")
    )
    assert asked == ["prune-channels", "factor-matmul", "factor-conv"]
    assert [n for n in first.notes if "not tried" in n or "not planned" in n]
    assert second.notes == first.notes
    assert second.refusals == first.refusals
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


@pytest.mark.parametrize(
    ("bad", "made"),
    [
        (8, [4, 8, 6]),  # half the way from the one that held to the one that did not
        (4, [4, 2, 3]),  # half the way from nothing
        (9, [4, 8]),  # all hold: the deepest one promises most
    ],
)
def test_the_deepest_form_that_holds_is_closed_in_on(
    bad: int, made: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine offers of which those from ``bad`` on miss a floor, and of the others the deepest one is best."""
    seen = list[int]()

    def formed(self: Prospects, offer: Any) -> tuple[Any, float, str | None]:
        seen.append(offer)
        return SimpleNamespace(specification=f"form {offer}"), 1e-4, "too loud" if offer >= bad else None

    monkeypatch.setattr(Prospects, "formed", formed)
    monkeypatch.setattr(Prospects, "judged", lambda self, by, at, *_: SimpleNamespace(at=at, predicted=(0.1, 2.0 + at)))
    monkeypatch.setattr(Prospects, "promised", lambda self, offer, rate: (0.1, 2.0 + offer))
    clock = Clock(PriceFile.open(tmp_path / "prices.json"), "run", allowed=1e6)
    whole: Any = SimpleNamespace(figures=(1.0, 1.0))
    nothing: Any = None
    prospects = Prospects(whole, nothing, nothing, clock, Aim(Budget()), "run", lambda _: None)
    offers: Any = tuple(SimpleOffer(at) for at in range(9))
    cuts = prospects.made("a pass", offers)
    assert seen == made
    assert max(cut.at for cut in cuts) == max(at for at in made if at < bad)


@pytest.mark.parametrize(
    ("missed", "hurried", "size", "all_of_it"),
    [
        (None, False, 0.6, True),
        ("a score", True, 0.6, True),
        ("a score", False, 0.6, False),
        (None, False, None, False),
    ],
)
def test_a_quiet_plan_that_nothing_stopped_leaves_forms_all_the_noise(
    missed: str | None, hurried: bool, size: float | None, all_of_it: bool
) -> None:
    """Within a limit of size the fastest plan of the whole model is made as quiet as can be: that says nothing of what
    a score allows.
    """
    problem, attempts = SimpleNamespace(hurried=hurried), [SimpleNamespace(missed=missed)]
    whole: Any = SimpleNamespace(planning=SimpleNamespace(allowed=0.1, problem=problem, attempts=attempts))
    best, nothing = cast("Any", SimpleNamespace(noise=1e-4)), cast("Any", None)
    prospects = Prospects(whole, best, nothing, nothing, Aim(Budget(size=size)), "run", lambda _: None)
    assert (prospects.allowed >= 0.09) == all_of_it


class SimpleOffer(int):
    """An offer that is known by its place."""

    cost = 1.0


@pytest.mark.parametrize(("whole", "tried"), [((0.068, 1.0), 3), ((0.064, 1.0), 1)])
def test_where_a_limit_is_missed_more_forms_are_planned(
    whole: tuple[float, float], tried: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until one holds it; the first takes all of the time that there is otherwise."""
    cuts: list[Any] = [
        SimpleNamespace(by="a pass", text=f"form {n}", predicted=(0.05, 2.0 - n / 100), level=SimpleNamespace(notes=[]))
        for n in range(5)
    ]
    sizes = iter((0.075, 0.070, 0.060, 0.055))
    seen = list[str]()

    def attempt(self: Choice, cut: Any, _: Clock) -> Any:
        seen.append(cut.text)
        clock.spent += 10.0
        return Made((next(sizes), 2.0))

    monkeypatch.setattr(Choice, "attempt", attempt)
    clock = Clock(PriceFile.open(tmp_path / "prices.json"), "run", allowed=16.0)
    prospects: Any = SimpleNamespace(aim=Aim(Budget(size=0.065)), clock=clock)
    start: Any = Made(whole)
    judge: Any = None
    choice = Choice(start, 10.0, lambda *_: start, judge, clock.prices, "run", lambda _: None)
    best = choice.planned(cuts, prospects, 10.0)
    assert seen == [f"form {n}" for n in range(tried)]
    assert best.figures == ((0.060, 2.0) if tried == 3 else whole)


@pytest.mark.parametrize(
    ("sizes", "seconds", "planned", "best"),
    [
        ([0.05, 0.04, 0.03, 0.035, 0.02], 1.0, [1, 2, 3], 2),  # deeper, until one is no better
        ([0.03, 0.05, 0.06, 0.035, 0.02], 1.0, [1, 2, 0], 0),  # the deeper one is no better: a shallower one
        ([0.06, 0.05, 0.06, 0.035, 0.02], 1.0, [1, 2, 0], 1),
        ([0.05, 0.04, 0.03, 0.02, 0.01], 20.0, [1, 2], 2),  # no time for more
    ],
)
def test_forms_beside_the_best_one_are_planned(
    sizes: list[float], seconds: float, planned: list[int], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts: list[Any] = [
        SimpleNamespace(by="a pass", at=n, text=f"form {n}", predicted=(0.07, 1.0), level=SimpleNamespace(notes=[]))
        for n in range(5)
    ]
    seen = list[int]()

    def attempt(self: Choice, cut: Any, _: Clock) -> Any:
        seen.append(cut.at)
        clock.spent += seconds
        return Made((sizes[cut.at], 1.0))

    def beside(cut: Any, step: int) -> Any:
        return cuts[cut.at + step] if 0 <= cut.at + step < len(cuts) else None

    monkeypatch.setattr(Choice, "attempt", attempt)
    clock = Clock(PriceFile.open(tmp_path / "prices.json"), "run", allowed=50.0)
    prospects: Any = SimpleNamespace(aim=Aim(Budget()), clock=clock, beside=beside)
    start, judge = cast(Any, Made((0.1, 1.0))), cast(Any, None)
    choice = Choice(start, 10.0, lambda *_: start, judge, clock.prices, "run", lambda _: None)
    assert choice.planned([cuts[1]], prospects, seconds).figures == (sizes[best], 1.0)
    assert seen == planned


@dataclass
class Made:
    """What came of planning a form, as far as its figures go."""

    figures: tuple[float, float]
    notes: tuple[str, ...] = ()
