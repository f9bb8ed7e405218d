"""The algorithms of pruning, held against exact solutions of small problems."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxc.pruning.masks import (
    Curvature,
    Meeting,
    Pattern,
    grouped,
    kth_smallest,
    prune,
    refit,
    second_order,
    survivors,
    ungrouped,
)
from onnxc.sequential import Statistic

random = np.random.default_rng(0)


def inputs(rows: int = 600, depth: int = 48) -> np.ndarray:
    """Correlated inputs, as those of a layer behind a layer."""
    return (random.standard_normal((rows, depth // 3)) @ random.standard_normal((depth // 3, depth))) + (
        0.3 * random.standard_normal((rows, depth))
    )


def meeting(now: np.ndarray, before: np.ndarray, *, centred: bool = False) -> Meeting:
    seen = Statistic()
    seen.add(now[:, None].astype(np.float32), before[:, None].astype(np.float32))
    seen.flush()
    found = Meeting.of(seen, centred=centred)
    assert found is not None
    return found


def cost(weight: np.ndarray, other: np.ndarray, x: np.ndarray) -> float:
    return float(np.square(x @ (weight - other)[0]).mean())


def test_refit_is_least_squares_on_the_survivors() -> None:
    x, weight = inputs(), random.standard_normal((1, 48, 5)).astype(np.float32)
    kept = survivors(np.square(weight), 0.5, Pattern())
    met = meeting(x, x)
    found = refit(weight * kept, met.curvature.moment, met.wanted(weight), steps=500)
    assert np.array_equal(found != 0, kept)
    for output in range(5):
        rows = kept[0, :, output]
        moment = met.curvature.moment[0].astype(np.float64)
        exact = np.linalg.solve(moment[np.ix_(rows, rows)], met.wanted(weight)[0, rows, output])
        np.testing.assert_allclose(found[0, rows, output], exact, rtol=2e-3, atol=2e-4)


def test_every_step_of_the_second_order_pays() -> None:
    x, weight = inputs(), random.standard_normal((1, 48, 32)).astype(np.float32)
    met = meeting(x, x)
    by_size = weight * survivors(np.square(weight), 0.5, Pattern())
    swept = second_order(weight, met.curvature, 0.5, Pattern())
    pruned = prune(weight, met, 0.5, Pattern())
    costs = [cost(weight, each, x) for each in (by_size, swept, pruned)]
    assert costs[1] < 0.5 * costs[0]
    assert costs[2] < 0.7 * costs[1]
    for each in (swept, pruned):
        assert (each == 0).mean() == pytest.approx(0.5, abs=0.001)


def test_lost_before_is_repaired() -> None:
    """Behind a pruned layer the weight is fitted to what the original made of the original's inputs."""
    before, weight = inputs(), random.standard_normal((1, 48, 16)).astype(np.float32)
    mixing = np.eye(48) + 0.1 * random.standard_normal((48, 48))
    now = before @ mixing
    wanted = before @ weight[0]
    alone, paired = (prune(weight, meeting(now, other), 0.3, Pattern()) for other in (now, before))
    errors = [float(np.square(now @ made[0] - wanted).mean()) for made in (alone, paired)]
    assert errors[1] < 0.4 * errors[0]


def test_a_bias_takes_up_the_means() -> None:
    x, weight = inputs() + 3.0, random.standard_normal((1, 48, 16)).astype(np.float32)
    met = meeting(x, x, centred=True)
    pruned = prune(weight, met, 0.5, Pattern())
    result = x @ pruned[0] + met.shift(weight, pruned)[0]
    np.testing.assert_allclose(result.mean(0), (x @ weight[0]).mean(0), rtol=1e-3, atol=1e-2)
    with_bias, without = float(np.square(x @ weight[0] - result).mean()), prune(weight, meeting(x, x), 0.5, Pattern())
    assert with_bias < cost(weight, without, x)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:5"])
def test_groups_keep_what_they_may(pattern: str) -> None:
    x, weight, allowed = inputs(), random.standard_normal((1, 48, 7)).astype(np.float32), Pattern.parse(pattern)
    met = meeting(x, x)
    for made in (prune(weight, met, 0.0, allowed), weight * survivors(np.square(weight), 0.0, allowed)):
        for start in range(0, 48, allowed.of):
            left = (made[0, start : start + allowed.of] != 0).sum(0)
            assert (left <= allowed.kept).all()
        assert (made != 0).mean() == pytest.approx(allowed.kept / allowed.of, abs=0.03)


def test_blocks_go_as_a_whole() -> None:
    x, weight = inputs(), random.standard_normal((1, 48, 8)).astype(np.float32)
    made = prune(weight, meeting(x, x), 0.5, Pattern.parse("4x2"))
    blocks = (made[0] != 0).reshape(12, 4, 4, 2).sum((1, 3))
    assert set(blocks.reshape(-1)) == {0, 8}
    assert (blocks == 0).mean() == pytest.approx(0.5)


def test_zeros_stay_zero() -> None:
    weight = random.standard_normal((2, 24, 8)).astype(np.float32)
    weight[random.random(weight.shape) < 0.7] = 0
    rows = np.stack([inputs(depth=24), inputs(depth=24)], 1).astype(np.float32)
    seen = Statistic()
    seen.add(rows, rows + 0.1)
    seen.flush()
    met = Meeting.of(seen, centred=True)
    assert met is not None
    for pattern in ("", "2:4", "4x1"):
        made = prune(weight, met, 0.4, Pattern.parse(pattern))
        assert not made[weight == 0].any()


def test_inputs_that_were_always_zero_or_not_finite_are_survived() -> None:
    weight = random.standard_normal((2, 8, 4)).astype(np.float32)
    moment = np.stack([np.zeros((8, 8)), np.full((8, 8), np.nan)]).astype(np.float32)
    curvature = Curvature.of(moment)
    made = second_order(weight, curvature, 0.5, Pattern())
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(made[made != 0], weight[made != 0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=60), st.data())
def test_the_kth_smallest(numbers: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(numbers)))
    values = np.array(numbers, np.float32)
    parts = np.array_split(values, 3)
    assert kth_smallest(lambda: parts, count) == np.sort(values)[count - 1]


@pytest.mark.parametrize(("shape", "axis", "groups"), [((6, 4, 3, 3), 0, 2), ((5, 7), 1, 1), ((2, 8, 3), 1, 1)])
def test_a_weight_comes_back_from_its_matrix(shape: tuple[int, ...], axis: int, groups: int) -> None:
    weight = random.standard_normal(shape).astype(np.float32)
    matrix = grouped(weight, axis, groups)
    assert matrix.shape[0] * matrix.shape[2] == shape[axis]
    np.testing.assert_array_equal(ungrouped(matrix, shape, axis), weight)
    np.testing.assert_array_equal(ungrouped(grouped(weight, None, 1), shape, None), weight)


@pytest.mark.parametrize("text", ["2", "4:2", "0:4", "ax4", "2:", "2x0", "-1:4"])
def test_patterns_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"N:M"):
        Pattern.parse(text)
