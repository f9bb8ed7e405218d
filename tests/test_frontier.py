"""onnxc frontier: which models there are in the end, what goes on after a stop, whose files are touched."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxc import cli
from onnxc.errors import BudgetError, MissingExtraError, ModelError, RecipeError, UsageError
from onnxc.frontier import frontier
from onnxc.judge import Judge
from onnxc.planning import Planning
from onnxc.recipe import Budget, Recipe, load_recipe, parse_evals, parse_passes, presets
from onnxc.tradeoff import walking
from onnxc.tradeoff.choosing import expect, score, select
from onnxc.tradeoff.expecting import expected_drop, expected_items, followed
from onnxc.tradeoff.pacing import Pace
from onnxc.tradeoff.points import Frontier, Point
from onnxc.tradeoff.record import Record, digest
from onnxc.tradeoff.walking import targets
from tests.unpriced import pretend_everything_pays

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "sklearn_mlp.onnx"
CALIB = ROOT / "models" / "data" / "sklearn_mlp_calib.npz"
HOOK = f"{ROOT / 'models' / 'evaluate.py'}:quality_sklearn_mlp"
PASSES = "quantize-dynamic,store-int8,store-float16,store-low-bit"
WORDS = ["--calib", str(CALIB), "--passes", PASSES, "--min-sqnr", "24"]


def recipe(**limits: Any) -> Recipe:
    return Recipe(Budget(**({"min_sqnr": 24.0} | limits)), passes=parse_passes(PASSES))


def run(folder: Path, wanted: Recipe | None = None, **more: Any) -> Frontier:
    more = {"plot": False, "prices": folder.parent / "prices.json"} | more
    return frontier(MODEL, folder, calib=CALIB, recipe=wanted or recipe(), **more)


def noting(patch: pytest.MonkeyPatch) -> list[object]:
    """Nothing is timed, and targets are few; the plans that are built, and how, in order."""
    pretend_everything_pays(patch)
    patch.setattr(walking, "LADDER_DB", (60.0, 35.0))
    patch.setattr(walking, "TRIES", 2)
    built, judged = list[object](), Planning.judged

    def noted(self: Planning, plan: Any) -> Any:
        built.append((plan.key, self.feedback))
        return judged(self, plan)

    patch.setattr(Planning, "judged", noted)
    return built


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    return noting(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Frontier, list[object]]:
    """A folder with a frontier, and the plans that were built for it."""
    with pytest.MonkeyPatch.context() as patch:
        built = noting(patch)
        folder = tmp_path_factory.mktemp("frontier") / "out"
        return folder, run(folder), built


@pytest.fixture
def again(whole: tuple[Path, Frontier, list[object]], tmp_path: Path, calls: list[object]) -> Path:
    """A copy of that folder."""
    shutil.copy(whole[0].parent / "prices.json", tmp_path / "prices.json")
    assert not calls
    return shutil.copytree(whole[0], tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def models(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.onnx")}


def test_models_from_almost_lossless_to_the_floor(whole: tuple[Path, Frontier, list[object]]) -> None:
    folder, found, built = whole
    assert len(found.points) >= 3
    sizes, noises = [p.size for p in found.points], [p.sqnr_db or 0.0 for p in found.points]
    assert sizes == sorted(sizes, reverse=True)
    assert all(second < 0.98 * first for first, second in pairwise(sizes))  # another model is worth it
    assert noises == sorted(noises, reverse=True)  # equally fast: what is smaller is noisier
    assert noises[0] > 45
    assert 24 <= noises[-1] < 40
    assert {p.files[0] for p in found.points} == models(folder)
    feed = {"X": np.load(CALIB)["X"][:16]}
    wanted = onnxruntime.InferenceSession(MODEL).run(None, feed)[-1]
    errors = []
    for point in found.points:
        path = folder / point.files[0]
        assert path.stat().st_size == point.size
        share = 100 * point.size / MODEL.stat().st_size
        assert point.files[0] in [
            f"sklearn_mlp-{share:.{digits}f}.onnx" for digits in (1, 2)
        ]  # 2: one like it was beaten
        assert json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["onnxc"])["seed"] == 0
        errors.append(np.abs(onnxruntime.InferenceSession(path).run(None, feed)[-1] - wanted).max())
    assert errors[0] < 1e-2 * np.abs(wanted).max()
    assert errors[-1] > errors[0]
    shares = [p.share for p in found.points]
    assert [p.predicted_share for p in found.points] == pytest.approx(shares, rel=0.06)  # nodes count in 400 KB
    assert len(built) == found.built == len(set(map(repr, built)))


def test_tables_tell_the_same(tmp_path: Path, calls: list[object]) -> None:
    folder = tmp_path / "out"
    found = run(folder, eval=HOOK)
    rows = list(csv.DictReader((folder / "frontier.csv").read_text().splitlines()))
    told = [(row["file"], int(row["size"]), float(row["score"]), float(row["drop"])) for row in rows]
    assert told == [(p.files[0], p.size, p.score, found.drop(p)) for p in found.points]
    assert found.score == 0.98
    assert all(0.9 < (p.score or 0.0) <= 1 for p in found.points)
    for better, worse in combinations(found.points, 2):  # largest first, all equally fast
        assert (better.score or 0.0) >= min(worse.score or 0.0, found.score)
    assert calls
    page = (folder / "frontier.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in page
    assert not any(word in page for word in ("http:", "https:", "<script", "<link", "@import", "url("))
    picture = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    titles = [each.text or "" for each in picture.iter("title")]
    assert [title.splitlines()[0] for title in titles] == [f"model: {p.files[0]}" for p in found.points]
    assert page.count('<tr id="row-') == len(found.points) + 1  # and the input


def test_a_run_that_was_stopped_goes_on(
    whole: tuple[Path, Frontier, list[object]], tmp_path: Path, calls: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after two points, then again to its end: the same files as of one run, no point built twice."""
    shutil.copy(whole[0].parent / "prices.json", tmp_path / "prices.json")
    original = Judge.trial

    def stopping(self: Judge, *arguments: Any) -> Any:
        if len(calls) > 3:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Judge, "trial", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out")
    assert models(tmp_path / "out")
    calls.clear()
    monkeypatch.setattr(Judge, "trial", original)
    found = run(tmp_path / "out")
    assert calls == [whole[2][0], *whole[2][3:]]  # the first is what sensitivities are measured beside
    assert found.known == 2
    for name, content in contents(whole[0]).items():
        if name.endswith((".onnx", ".csv")):
            assert contents(tmp_path / "out")[name] == content, name
    assert models(tmp_path / "out") == models(whole[0])


def test_a_finished_run_builds_nothing(whole: tuple[Path, Frontier, list[object]], again: Path) -> None:
    before = contents(again)
    assert run(again).points == whole[1].points
    assert contents(again) == before


def test_what_is_not_ours_stays(whole: tuple[Path, Frontier, list[object]], again: Path, calls: list[object]) -> None:
    (again / "notes.txt").write_text("mine")
    last = whole[1].points[-1]
    name = last.files[0]
    record = json.loads((again / "frontier.json").read_text())
    beaten = [each for each in record["points"] if each["beaten_by"] == last.key]
    (again / name).write_bytes(b"changed by its owner")
    found = run(again)
    # the first plan, the one whose file is another now, and what was not kept for its sake alone
    assert 2 <= len(calls) <= 2 + len(beaten) < len(whole[2])
    assert (again / name).read_bytes() == b"changed by its owner"
    assert (again / "notes.txt").read_text() == "mine"
    assert found.points[-1].files[0] != name
    assert found.points[-1].size == whole[1].points[-1].size


def test_a_stricter_floor_takes_away(whole: tuple[Path, Frontier, list[object]], again: Path) -> None:
    found = run(again, recipe(min_sqnr=38.0))
    kept = [p for p in whole[1].points if (p.sqnr_db or 0.0) >= 38]
    assert kept
    assert {p.files[0] for p in found.points} == models(again)
    assert all((p.sqnr_db or 0.0) >= 38 for p in found.points)
    for old in kept:  # or one as small with less noise, which the other floor led to
        assert any(
            p.files == old.files or ((p.sqnr_db or 0.0) > (old.sqnr_db or 0.0) and p.size < old.size / 0.98)
            for p in found.points
        )
    assert sum(p.files == old.files for p in found.points for old in kept) >= len(kept) - 1


def test_folders_that_cannot_be_used(tmp_path: Path, calls: list[object]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        run(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be made: No such file"):
        run(tmp_path / "none" / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "frontier.csv").write_text("a,b")
    with pytest.raises(UsageError, match="was not made by onnxc frontier"):
        run(tmp_path / "other")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "frontier.json").write_text("[]")
    with pytest.raises(UsageError, match="was not made by this onnxc frontier"):
        run(tmp_path / "odd")
    with pytest.raises(UsageError, match="does not train"):
        run(tmp_path / "out", Recipe(recover=1.0))
    assert not calls


def test_another_model_needs_another_folder(again: Path) -> None:
    before = contents(again)
    with pytest.raises(UsageError, match="another model, other data or other options; name another folder"):
        run(again, replace(recipe(), seed=1))
    assert contents(again) == before


def test_where_solving_takes_long_the_lowest_targets_have_feedback(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two plans may be solved so: the targets are 60, 35 and 24 dB."""
    monkeypatch.setattr(Planning, "affordable", lambda self: 2)
    found = run(tmp_path / "out")
    fed = [each for _, each in calls]
    assert fed[:3] == [False, True, False]  # the first plan both ways, which tells how long it takes
    assert sum(fed) == 3
    assert fed.index(True, 2) > fed.index(False, 2)
    assert any("takes 0 s a model, and was done for the 2 lowest of 3 targets" in note for note in found.notes)
    assert run(tmp_path / "out").points == found.points


def test_weights_that_cannot_be_solved_with_feedback(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise ModelError("a part does not run")

    monkeypatch.setattr("onnxc.planning.solve", failing)
    found = run(tmp_path / "out")
    assert len(found.points) >= 3
    assert not any(fed for _, fed in calls[2:])
    assert any("on the original's activations alone: a part does not run" in note for note in found.notes)
    assert {p.files[0] for p in found.points} == models(tmp_path / "out")


def test_what_is_predicted_of_speeds_learns_from_measured_ones() -> None:
    pace = Pace()
    assert pace.of(2.0) == pytest.approx(2.0)
    for predicted, measured in (
        (1.0, 1.2),
        (2.0, 1.8),
        (1.5, 1.5),
    ):  # simplifying gained, int8 less than its price says
        pace.learn(predicted, measured)
    assert pace.of(1.0) == pytest.approx(1.2, rel=0.05)
    assert pace.of(2.0) == pytest.approx(1.8, rel=0.05)
    assert pace.of(1e9) <= 1 / 0.02


def test_the_drop_to_expect_is_read_off_a_curve_that_never_falls() -> None:
    assert expected_drop(20.0, []) is None
    known = [(60.0, 0.0), (40.0, 0.002), (30.0, 0.0), (20.0, 0.01)]
    drops = [expected_drop(each, known) or 0.0 for each in (70.0, 60.0, 35.0, 30.0, 25.0, 20.0, 10.0)]
    assert drops[:2] == [0.0, 0.0]
    assert drops == sorted(drops)
    assert len(set(drops)) == len(drops) - 1, "no two alike where there are drops, though 40 and 30 dB share their mean"
    assert drops[-2:] == pytest.approx([0.01, 0.06], rel=0.1)


def test_expected_drops_are_whole_items() -> None:
    """A score of 100 items: what is expected to lose less than one loses none."""
    points = {
        str(at): SimpleNamespace(sqnr_db=db, predicted_sqnr_db=db, outputs={}, score=score, predicted_drop=None)
        for at, (db, score) in enumerate([(50.0, 0.9), (40.0, 0.9), (30.0, 0.89), (20.0, 0.87), (15.0, 0.85)])
    }
    run, record = SimpleNamespace(judge=SimpleNamespace(score=0.9)), SimpleNamespace(points=points)
    expect(cast("Any", run), cast("Any", record))
    items = [90 * point.predicted_drop for point in points.values()]
    assert items == pytest.approx([round(each) for each in items], abs=1e-9)
    assert items[:2] == [0.0, 0.0]
    assert items == sorted(items)
    assert items[-1] >= 2


def test_the_output_whose_noise_a_score_follows_tells_it() -> None:
    """A state is louder than the answer in some models, and quieter in others: the score follows the answer."""
    states, answers, drops = (15.9, 15.9, 11.5, 13.0), (40.0, 31.0, 25.0, 22.0), (0.0, 0.0, 0.01, 0.04)
    known = [({"": s, "answer": a}, d) for s, a, d in zip(states, answers, drops, strict=True)]
    assert followed(known) == "answer"
    assert followed([({"": a, "answer": s}, d) for s, a, d in zip(states, answers, drops, strict=True)]) == ""
    assert followed([({"": 30.0, "answer": 30.0}, 0.0)]) == "", "where both tell the same, the worst output does"
    assert followed([]) == ""


def test_expected_items_follow_the_likeliest_power_of_the_noise() -> None:
    """Means of 0.1 items at 30 dB, 1 at 20, 10 at 10: a power of one; luck at a single point moves it little."""
    known = [(40.0, 0.0), (30.0, 0.0), (20.0, 0.01), (15.0, 0.03), (10.0, 0.1)]
    drops = [expected_items(each, known, 0.01) for each in (50.0, 30.0, 20.0, 15.0, 10.0)]
    assert drops == pytest.approx([0.0, 0.0, 0.01, 0.03, 0.1])
    lucky = [(db, 0.02 if db == 20.0 else drop) for db, drop in known]
    assert expected_items(10.0, lucky, 0.01) == pytest.approx(0.1, abs=0.011)
    assert expected_items(20.0, [(40.0, 0.0), (30.0, -0.01)], 0.01) == 0.0
    assert expected_items(20.0, [], 0.01) is None


def test_limits_that_no_model_holds(tmp_path: Path, calls: list[object]) -> None:
    with pytest.raises(
        BudgetError, match=r"none of \d+ models holds --size, --min-sqnr; the smallest has .* dB, the c"
    ):
        run(tmp_path / "out", recipe(size=0.01, min_sqnr=40.0))
    assert not models(tmp_path / "out")
    assert calls


def test_limits_that_no_model_holds_take_none_away(again: Path) -> None:
    before = models(again)
    with pytest.raises(BudgetError, match="none of"):
        run(again, recipe(size=0.01))
    assert models(again) == before
    assert {p.files[0] for p in run(again).points} == before


def test_on_the_terminal(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["frontier", str(MODEL), str(again), *WORDS, "--no-plot", "--prices", str(again.parent / "prices.json")]
    assert cli.main(words) == 0
    page = capsys.readouterr().out
    assert "sklearn_mlp (the input)" in page
    assert "0 built" in page
    assert cli.main([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert all(each["file"] in page for each in values["points"])
    assert cli.main([*words, "--passes", "store-int8"]) == 2
    assert "name another folder" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> Frontier:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxc.frontier.frontier", stopped)
    assert cli.main(["frontier", str(MODEL), str(tmp_path / "out")]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_nothing_to_compress(tmp_path: Path, calls: list[object]) -> None:
    plain = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'
    )
    found = frontier(plain, tmp_path / "out", prices=tmp_path / "prices.json", plot=False)
    assert not found.points
    assert not calls
    assert any("the input is the only point: no float weights" in note for note in found.notes)
    assert "the input is the only point" in (tmp_path / "out" / "frontier.html").read_text(encoding="utf-8")


def test_what_exact_passes_left_is_a_point(tmp_path: Path, calls: list[object]) -> None:
    trees = ROOT / "models" / "lightgbm_trees.onnx"
    found = frontier(trees, tmp_path / "out", prices=tmp_path / "prices.json", plot=False)
    (point,) = found.points
    assert point.share < 0.9
    assert (tmp_path / "out" / point.files[0]).stat().st_size == point.size
    assert len(calls) == 1


def test_the_picture_is_optional(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'onnxc\[plot\]'"):
            run(again, plot=True)
        found = run(again, plot=None)
        assert not (again / "frontier.png").exists()
        assert any("pip install 'onnxc[plot]'" in note for note in found.notes)
    pytest.importorskip("matplotlib")
    assert "frontier.png" in run(again, plot=True).files
    assert (again / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_targets_end_at_the_floor() -> None:
    assert targets(10.0)[0] == 60.0
    assert targets(10.0)[-2:] == [13.0, 10.0]
    assert targets(22.0)[-2:] == [25.0, 22.0]
    assert targets(70.0) == [70.0]


def scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: Sequence[float], budget: Budget
) -> tuple[list[int], list[int]]:
    """The order in which points of falling SQNR are asked for, and which are left."""
    order = list[int]()
    monkeypatch.setattr("onnxc.tradeoff.choosing.Session", lambda path, options: int(Path(path).stem))

    def hook(session: int) -> float:
        order.append(session)
        return scores[session]

    record = Record(tmp_path, "run")
    for index in range(len(scores)):
        (tmp_path / f"{index}.onnx").write_bytes(bytes([index]))
        point = Point(str(index), [f"{index}.onnx"], size=1000 - 100 * index, share=1 - index / 10, speed=2.0)
        point.sqnr_db, point.digest = 60.0 - 5 * index, digest(tmp_path, point.files)
        record.points[point.key] = point
    judge = SimpleNamespace(evaluation=hook, evaluations=1, budget=budget, options=None, score=1.0)
    run: Any = SimpleNamespace(
        judge=judge, recipe=Recipe(budget), samples=SimpleNamespace(generated=False), notes=[], prices=None
    )
    score(run, record, lambda message: None)
    select(run, record)
    return order, sorted(int(key) for key, point in record.points.items() if point.files)


def test_calls_of_the_hook_go_where_they_tell_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, left = scoring(tmp_path, monkeypatch, [1.0] * 9, Budget(evals=5))
    assert order == [8, 0, 4, 6]  # one of the five was the input's
    assert left == list(range(9))


def test_a_bounded_hook_finds_the_drop_by_halving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [1.0, 1.0, 0.999, 0.995, 0.99, 0.985, 0.97, 0.9, 0.5]
    order, left = scoring(tmp_path, monkeypatch, scores, Budget(evals=6, max_drop=0.01))
    assert order == [8, 0, 4, 6, 5]
    assert left == [0, 1, 2, 3, 4]
    assert not (tmp_path / "5.onnx").exists()


def test_a_better_score_beats_a_better_sqnr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, left = scoring(tmp_path, monkeypatch, [0.98, 0.97, 0.99, 1.5, 0.9], Budget())
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert left == [3, 4]  # smaller, as fast and better than all before it


def test_recipes_come_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(presets()) == {"browser", "download", "edge", "server"}
    assert load_recipe("download").budget == Budget(speed=0.95, max_load_time=3.0)
    assert load_recipe("server").ops == "ort"
    assert load_recipe("edge").threads == 1
    assert "store-low-bit" not in {request.name for request in load_recipe("edge").passes or ()}
    assert load_recipe("browser").passes is None
    with pytest.raises(RecipeError, match="no recipe is called 'brwser'; did you mean 'browser'"):
        load_recipe("brwser")
    monkeypatch.chdir(tmp_path)
    Path("edge").write_text("threads = 2")
    assert load_recipe("edge").threads == 2  # a file of that name is the user's own


def test_the_number_of_calls_is_read() -> None:
    assert parse_evals("12") == 12
    for text in ("1", "-3", "many", "2.5"):
        with pytest.raises(UsageError, match="write 2 or more"):
            parse_evals(text)
