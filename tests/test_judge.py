"""How far a score on few items is trusted."""

from __future__ import annotations

import numpy as np
import pytest

from onnxc.judge import luck, smoothed, step
from onnxc.quality import relative_drop


@pytest.mark.parametrize(
    ("scores", "reference", "right"),
    [
        ([49 / 83, 50 / 83, 51 / 83], 51 / 83, 51),
        ([48 / 83, 50 / 83, 52 / 83], 51 / 83, 51),
        ([49 / 83, 51 / 83], 51 / 83, 51),
        ([1.0, 1 - 3 / 1184], 1.0, 1184),
        ([51 / 83], 51 / 83, 0),  # one score is a fraction of many numbers
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
    draws = generator.binomial(items, (changed + 1) / (judged + 1), (2, 4000))
    judged_drops, other_drops = (draws - 2 * generator.binomial(draws, 0.5)) / items
    assert luck(1 / items, changed, judged) == pytest.approx((other_drops - judged_drops).std(), rel=0.05)
    assert luck(1 / items, 0, 0) == pytest.approx((2 / items) ** 0.5), "no answers known: any may change"
