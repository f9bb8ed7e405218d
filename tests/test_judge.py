"""How far a score on few items is trusted."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from onnxc.judge import Judge, luck, smoothed, step, suspected
from onnxc.problem import Plan
from onnxc.quality import Quality, relative_drop
from onnxc.recipe import Budget
from onnxc.session import Options
from onnxc.trial import NOTHING


@pytest.mark.parametrize(
    ("scores", "reference", "right"),
    [
        ([49 / 83, 50 / 83, 51 / 83], 51 / 83, 51),
        ([48 / 83, 50 / 83, 52 / 83], 51 / 83, 51),
        ([49 / 83, 51 / 83], 51 / 83, 51),
        ([1.0, 1 - 3 / 1184], 1.0, 1184),
        ([51 / 83], 51 / 83, 51),  # of 83 items at least: the same score again tells that they are few
        ([1.0], 1.0, 20),
        ([50 / 83, 50 / 83, 51 / 83], 51 / 83, 51),
        ([0.5012871230, 0.4931349172], 0.4973128231, 0),  # a correlation has no steps
    ],
)
def test_what_one_item_is_worth(scores: list[float], reference: float, right: int) -> None:
    found = step(reference, [reference - relative_drop(reference, score) * reference for score in scores])
    assert found == pytest.approx(1 / right if right else 0.0, rel=1e-6)


def test_the_last_trial_is_read_off_a_curve_that_never_falls() -> None:
    """Drops by noise: the lucky trial counts as much as its neighbours let it."""
    generator = np.random.default_rng(0)
    noise = np.sort(generator.uniform(-30, -10, 40))
    true = np.exp((noise + 10) / 6) * 0.02
    seen = np.maximum(true + generator.normal(0, 0.004, 40), 0)
    order = generator.permutation(40)
    errors = []
    for last in range(10, 40):
        trials = [(float(noise[i]), float(seen[i])) for i in order[: last + 1]]
        errors.append([smoothed(trials) - true[order[last]], seen[order[last]] - true[order[last]]])
    curve, alone = np.sqrt(np.square(errors).mean(0))
    assert curve < 0.7 * alone


def test_luck_is_what_other_items_would_differ_by() -> None:
    """Of 1,000 items one in fifty changes, as often for better as for worse: how the drops of two such sets differ."""
    generator = np.random.default_rng(0)
    items, judged, changed = 1000, 99, 1
    draws = generator.binomial(items, (changed + 1) / (judged + 2), (2, 4000))
    judged_drops, other_drops = (draws - 2 * generator.binomial(draws, 0.5)) / items
    assert luck(1 / items, changed, judged) == pytest.approx((other_drops - judged_drops).std(), rel=0.05)
    assert luck(1 / items, 0, 0) == pytest.approx((1 / items) ** 0.5), "no answers known: half of them change"


def test_changed_answers_are_weighed_against_a_score() -> None:
    """Losses drawn as the changed answers suggest them, scores of 83 items drawn around them: what models lose that
    score alike is what is suspected.
    """
    generator, items, reference, changed, judged = np.random.default_rng(0), 83, 0.75, 4, 64
    share, net = (changed + 1) / (judged + 2), 2 * reference - 1
    lost = generator.normal(net * share, net * share, 400_000)
    scored = lost + generator.normal(0, np.sqrt(share / items), lost.size)
    for drop in (0.0, 0.02, 0.06):
        alike = lost[abs(scored - drop * reference) < 0.002]
        found = suspected(reference, drop, 1 / items / reference, changed, judged)
        assert found * reference == pytest.approx(alike.mean(), abs=0.001)
    assert suspected(reference, -0.05, 1 / items / reference, 4, 64) == suspected(
        reference, 0.0, 1 / items / reference, 4, 64
    )


@pytest.mark.parametrize(
    ("items", "right", "others", "scored", "changed", "holds"),
    [
        (83, 51, [50], 52, 6, False),  # one item more is right, but of 64 other answers six are not what they were
        (83, 51, [50], 51, 6, False),
        (83, 51, [], 51, 5, False),  # how many items there are is told by the original's score alone
        (83, 51, [], 51, 2, False),  # they suggest 1.2 %; three of 83 other items were lost with three changed
        (83, 51, [], 51, 1, True),
        (1000, 990, [989], 988, 0, True),
        (1000, 990, [], 991, 2, True),
        (1000, 990, [989], 980, 0, False),
        (20, 20, [], 20, 0, True),
    ],
)
def test_a_lucky_score_is_not_believed(
    items: int, right: int, others: list[int], scored: int, changed: int, *, holds: bool
) -> None:
    """``others``: how many items quieter plans had right."""
    nothing = cast("Any", None)
    judge = Judge(nothing, nothing, Budget(), Options(), score=right / items)
    judge.drops += [(-40.0 - place, 1 - each / right) for place, each in enumerate(others)]
    missed = judge.dropped(Quality(sqnr_db=20.0, changed=changed, judged=64), scored / items, 0.5)
    assert (missed is None) == holds


@pytest.mark.parametrize(("changed", "scored_changed", "holds"), [(3, 0, True), (1, 0, True), (1, 4, False)])
def test_answers_on_scored_items_count_too(changed: int, scored_changed: int, *, holds: bool) -> None:
    """Of 83 scored items 51 stay right; 64 answers on samples, 83 on those items."""
    nothing = cast("Any", None)
    judge = Judge(nothing, nothing, Budget(), Options(), score=51 / 83)
    quality = Quality(sqnr_db=20.0, changed=changed, judged=64, scored_changed=scored_changed, scored_judged=83)
    assert (judge.dropped(quality, 51 / 83, 0.5) is None) == holds


@pytest.mark.parametrize(("items", "lost", "excess"), [(83, 1, 1.0), (83, 2, 2.0), (1000, 20, 2.0), (1000, 5, 1.0)])
def test_how_far_a_score_fell_is_told_in_items_where_one_is_more_than_is_allowed(
    items: int, lost: int, excess: float
) -> None:
    """One of 83 is more than 1 %: losing two is twice as bad, not two and a half times."""
    nothing = cast("Any", None)
    right = items - 20
    judge = Judge(nothing, nothing, Budget(), Options(), score=right / items)
    judge.drops += [(-40.0, 1 / right), (-30.0, lost / right)]
    quality = Quality(sqnr_db=20.0)
    found = judge.weighed(NOTHING, Plan(), (quality, (right - lost) / items, "the score fell"), ())
    assert found.excess == pytest.approx(excess, rel=0.05)


def test_luck_is_not_feared_where_a_limit_says_how_small() -> None:
    """The most exact plan within a limit is looked for, so the score counts as it is measured."""
    nothing, small = cast("Any", None), Plan(stored={"w": "levels16"})
    shares = [
        Judge(nothing, nothing, budget, Options()).share(small)
        for budget in (Budget(), Budget(size=0.2), Budget(speed=2))
    ]
    assert shares == [0.5, 1.0, 1.0]
    fitted = Judge(nothing, nothing, Budget(size=0.2), Options(), strictly=True, score=0.99)
    assert fitted.share(small) == 0.5
    losses = {
        score: fitted.dropped(Quality(sqnr_db=20.0, changed=2, judged=64), score, 0.5) for score in (0.986, 0.984)
    }
    assert [missed is None for missed in losses.values()] == [True, False], "half of 1 %, whatever luck may do"
