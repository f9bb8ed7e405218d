"""onnxc frontier walks down smaller forms of the model too: what that gains, and that a second run builds nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from onnxc import optimize, planning
from onnxc.frontier import frontier
from onnxc.model import Model
from onnxc.recipe import Budget, Recipe
from onnxc.structure import prospects
from onnxc.tradeoff import forms, walking
from onnxc.tradeoff.points import Frontier
from tests import trained
from tests.unpriced import pretend_everything_pays

NAME, SEEN, FLOOR_DB = "lstm", 48, 14.0
MODEL = trained.MODELS / f"{NAME}.onnx"


def few_targets(patch: pytest.MonkeyPatch) -> None:
    """Nothing is timed; two targets, one plan for each, one form."""
    pretend_everything_pays(patch)
    patch.setattr(walking, "LADDER_DB", (30.0, 20.0))
    patch.setattr(walking, "TRIES", 1)
    patch.setattr(walking, "LEAN", ())
    patch.setattr(forms, "ANCHORS_DB", (FLOOR_DB,))
    patch.setattr(forms, "ALWAYS", 1e9)
    patch.setattr(prospects, "speed_up", lambda *_: 1.2)  # of a form in float
    patch.setattr(planning, "HEARD_SECONDS", {False: 1e6, True: 1e6})  # on all samples, however long it takes


def made(folder: Path) -> Frontier:
    data = list(trained.samples(NAME, SEEN))
    wanted = Recipe(Budget(min_sqnr=FLOOR_DB))
    return frontier(MODEL, folder, calib=data, recipe=wanted, prices=folder.parent / "prices.json", plot=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Frontier]:
    with pytest.MonkeyPatch.context() as patch:
        few_targets(patch)
        folder = tmp_path_factory.mktemp("forms") / "out"
        return folder, made(folder)


def unseen(path: Path) -> float:
    """SQNR on samples that nothing was fitted to, and that chose nothing [dB]."""
    return trained.sqnr(trained.load(NAME), Model.load(path), trained.samples(NAME, 128)[SEEN:])


def test_the_smallest_model_is_of_a_smaller_form(whole: tuple[Path, Frontier]) -> None:
    """4.7 % of the bytes at 17 dB; the whole model alone takes 5.7 % for it."""
    folder, found = whole
    small = found.points[-1]
    assert small.form.startswith("prune-channels: ")
    assert small.share < 0.05
    assert (small.sqnr_db or 0.0) >= FLOOR_DB
    assert unseen(folder / small.files[0]) > FLOOR_DB - 4.0  # few samples, each of which may be a hard one
    assert small.share < 0.9 * min(point.share for point in found.points if not point.form)
    with (folder / "frontier.csv").open() as file:
        assert [row["form"] for row in csv.DictReader(file)] == [point.form for point in found.points]


def test_predictions_hold_for_smaller_forms(whole: tuple[Path, Frontier]) -> None:
    """Bytes within 6 % of a file of 20 KB, noise within 6 dB."""
    formed = [point for point in whole[1].points if point.form]
    assert formed
    for point in formed:
        assert point.predicted_share == pytest.approx(point.share, rel=0.06)
        assert point.predicted_sqnr_db is None or abs(point.predicted_sqnr_db - (point.sqnr_db or 0.0)) < 6


def test_no_point_is_worse_than_what_optimize_makes_of_its_size(whole: tuple[Path, Frontier], tmp_path: Path) -> None:
    folder, found = whole
    small, out = found.points[-2], tmp_path / "out.onnx"
    data, limits = list(trained.samples(NAME, SEEN)), Budget(size=small.share, min_sqnr=FLOOR_DB, min_agreement=0.0)
    with pytest.MonkeyPatch.context() as patch:
        pretend_everything_pays(patch)
        optimize(MODEL, out, calib=data, budget=limits, prices=tmp_path / "prices.json")
    assert out.stat().st_size <= small.size
    assert unseen(folder / small.files[0]) > unseen(out) - 1.0


def test_a_second_run_builds_nothing(whole: tuple[Path, Frontier], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the record does not say that the first one came to its end."""
    folder, found = whole
    few_targets(monkeypatch)
    record = folder / "frontier.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    second = made(folder)
    assert [point.files for point in second.points] == [point.files for point in found.points]
    assert second.built <= 2, "the first plan of each form, beside which single roundings are measured"
