"""onnxc frontier solves weights on what the compressed model feeds them: what that gains."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onnxc.frontier import frontier
from onnxc.judge import build
from onnxc.model import Model
from onnxc.planning import Planning
from onnxc.problem import Plan
from onnxc.recipe import Budget, Recipe, parse_passes
from onnxc.tradeoff import walking
from onnxc.tradeoff.points import Frontier
from tests import trained
from tests.unpriced import pretend_everything_pays

NAME, SEEN, FLOOR_DB, PLANS = "residual_cnn", 48, 16.0, 3
MODEL = trained.MODELS / f"{NAME}.onnx"
PASSES = parse_passes("quantize-static,store-int8,store-float16,store-low-bit,store-codebook")
GAIN_DB = 3.0  # 5.1 dB were measured


@dataclass
class Made:
    """A frontier, and every plan that was built for it with whether it was solved with feedback."""

    folder: Path
    found: Frontier
    plans: list[tuple[Planning, Plan, bool]]


def settings(patch: pytest.MonkeyPatch) -> None:
    """Nothing is timed, one target, few plans."""
    pretend_everything_pays(patch)
    patch.setattr(walking, "LADDER_DB", (FLOOR_DB,))
    patch.setattr(walking, "LEAN", ())
    patch.setattr(Planning, "affordable", lambda self: PLANS)


def recipe(**limits: Any) -> Recipe:
    return Recipe(Budget(min_sqnr=FLOOR_DB, **limits), passes=PASSES)


def data() -> dict[str, Any]:
    return {"calib": list(trained.samples(NAME, SEEN))}


def unseen(model: Model) -> float:
    """SQNR on samples that nothing was fitted to, and that chose nothing [dB]."""
    return trained.sqnr(trained.load(NAME), model, trained.samples(NAME, 128)[SEEN:])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    plans, judged = list[tuple[Planning, Plan, bool]](), Planning.judged

    def noted(self: Planning, plan: Plan) -> Any:
        trial = judged(self, plan)
        plans.append((self, plan, self.feedback))
        return trial

    with pytest.MonkeyPatch.context() as patch:
        settings(patch)
        patch.setattr(Planning, "judged", noted)
        folder = tmp_path_factory.mktemp("fed") / "out"
        found = frontier(MODEL, folder, recipe=recipe(), prices=folder.parent / "prices.json", plot=False, **data())
    return Made(folder, found, plans)


def test_a_small_point_gains_by_feedback(made: Made) -> None:
    """Beside the same plan with its weights solved on the original's activations, on samples that nobody saw."""
    small = made.found.points[-1]
    assert small.share < 0.08
    planning, plan = next(
        (p, plan) for p, plan, fed in made.plans if fed and Counter(plan.stored.values()) == small.formats
    )
    alone = build(planning.context.model, plan, planning.coder)
    assert len(alone.serialized()) == pytest.approx(small.size, rel=0.02)
    assert unseen(Model.load(made.folder / small.files[0])) > unseen(alone) + GAIN_DB


def test_plans_are_solved_with_feedback_from_the_first_target_on(made: Made) -> None:
    fed = [fed for _, _, fed in made.plans]
    assert fed == [False, *[True] * (len(fed) - 1)]  # the first is solved both ways
    assert made.plans[0][1].key == made.plans[1][1].key
    assert len(made.plans) <= 2 + PLANS
    assert not any("solving the weights" in note for note in made.found.notes)
