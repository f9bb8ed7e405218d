"""Ranges do not depend on how samples are ordered or batched; entropy; what more samples would change."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from onnxc.convergence import SETTLED, convergence_note, movement, needed, tail_scale, told
from onnxc.histograms import GROUPS, Histogram, Spread
from onnxc.observe import Observations, observe
from onnxc.session import Options
from onnxc.sites import find
from onnxc.targets import target
from tests.emission import Sample
from tests.trained import context, load, samples, sqnr, static

METHODS = ("minmax", "percentile", "mse", "entropy")


def observed(name: str, data: Sequence[Sample]) -> Observations:
    model = load(name)
    found = find(model, target("cpu"))
    tensors = [t for site in found for t in (*site.inputs, site.result) if found.is_float(t)]
    return observe(model, list(data), len(data), tensors, [], Options())


def batched(data: Sequence[Sample], sizes: Sequence[int]) -> list[Sample]:
    ends = np.cumsum(sizes).tolist()
    parts = [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return [{key: np.concatenate([sample[key] for sample in part]) for key in part[0]} for part in parts]


@pytest.mark.parametrize("name", ["depthwise_cnn", "vision_transformer"])
def test_ranges_do_not_depend_on_order_or_batches(name: str) -> None:
    """Batches of different sizes are tensors of different shapes; kernels may sum in another order: a bin may go."""
    data = samples(name, 12)
    one = observed(name, data)
    shuffled = observed(name, [data[i] for i in np.random.default_rng(3).permutation(12)])
    for other, exact in ((shuffled, True), (observed(name, batched(data, [4, 1, 7])), False)):
        assert other.ranges.keys() == one.ranges.keys()
        for tensor, histogram in one.ranges.items():
            again = other.ranges[tensor]
            assert again.total == histogram.total
            if exact:
                assert np.array_equal(again.counts, histogram.counts)
            for method in METHODS:
                assert again.limits(method) == (
                    histogram.limits(method)
                    if exact
                    else pytest.approx(histogram.limits(method), abs=0.012 * histogram.radius, rel=1e-4)
                )


def filled(values: np.ndarray) -> Histogram:
    made = Histogram()
    made.add(values.astype(np.float32))
    return made


def migacz(values: np.ndarray, levels: int = 128, bins: int = 2048) -> float:
    """The threshold of "8-bit Inference with TensorRT" (2017), page 38: for every end P with the outliers in its last
    bin, Q of the bins without them, spread over those that hold something.
    """
    top = float(values.max())
    counts = np.histogram(values[values != 0], bins, (0, top))[0].astype(float)
    losses = []
    for end in range(levels, bins + 1):
        inside, wanted = counts[:end], counts[:end].copy()
        wanted[-1] += counts[end:].sum()
        level = np.arange(end) * levels // end
        mass, held = np.bincount(level, inside), np.bincount(level, inside > 0)
        found = np.where(inside > 0, (mass / np.maximum(held, 1))[level], 0.0)
        p, q = wanted / wanted.sum(), np.maximum(found / found.sum(), 1e-9)
        losses.append(float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()))
    return (int(np.argmin(losses)) + levels) * top / bins


class TestEntropy:
    def test_it_gains_over_the_whole_range_on_a_trained_model(self) -> None:
        model, data = load("residual_cnn"), samples("residual_cnn")
        made = context(model, data)
        assert sqnr(model, static(made, range="entropy"), data) > sqnr(model, static(made, range="minmax"), data) + 1

    def test_a_few_outliers_are_clipped(self) -> None:
        values = np.append(np.random.default_rng(0).standard_normal(200_000), [40.0])
        low, high = filled(values).limits("entropy")
        assert -6 < low < -3
        assert 3 < high < 6

    @pytest.mark.parametrize("name", ["relu", "lognormal", "gamma", "outliers"])
    def test_it_is_about_the_threshold_of_the_paper(self, name: str) -> None:
        """Against a transcript of the talk's pseudocode, on magnitudes."""
        random = np.random.default_rng(0)
        values = {
            "relu": np.maximum(random.standard_normal(100_000), 0),
            "lognormal": random.lognormal(size=100_000),
            "gamma": random.gamma(0.5, size=100_000),
            "outliers": np.append(np.abs(random.standard_normal(100_000)), [60, 61]),
        }[name]
        low, high = filled(values).limits("entropy", levels=127)
        assert low == 0
        assert high == pytest.approx(migacz(values), rel=0.3)

    def test_a_grid_and_a_clipped_peak_stay_whole(self) -> None:
        grey = np.random.default_rng(0).integers(0, 256, 50_000) / 255 * 3.2 - 0.4
        assert filled(grey).limits("entropy") == pytest.approx((-0.4, 2.8), abs=1e-6)
        clipped = np.clip(np.random.default_rng(0).normal(3, 3, 100_000), 0, 6)
        assert filled(clipped).limits("entropy") == pytest.approx((0, 6))

    def test_a_scaled_tensor_has_a_scaled_range(self) -> None:
        values = np.random.default_rng(0).laplace(size=50_000)
        low, high = filled(values).limits("entropy")
        assert filled(values * 16).limits("entropy") == pytest.approx((16 * low, 16 * high))

    def test_nothing_or_one_value(self) -> None:
        assert Histogram().limits("entropy") == (0.0, 1.0)
        low, high = filled(np.full(10, 3.0)).limits("entropy")
        assert low == 0
        assert 0 < high <= 3


def spread_of(parts: Sequence[np.ndarray]) -> Spread:
    histogram, made = Histogram(), Spread()
    for part in parts:
        fresh = histogram.add(part.astype(np.float32))
        assert fresh is not None
        made.add(*fresh, histogram.radius)
    return made


class TestMeter:
    def test_samples_that_are_alike_need_no_more(self) -> None:
        part = np.random.default_rng(0).standard_normal(4000)
        found = spread_of([part] * 16)
        for method in ("mse", "percentile", "entropy"):
            assert movement(found, 40, method) == 0
        assert told("x", found, 40) == "40 more samples would move the range of 'x' by less than 1 %"
        assert needed(found) == 0

    def test_samples_that_differ_need_more(self) -> None:
        random = np.random.default_rng(0)
        found = spread_of([random.standard_normal(400) * random.lognormal(0, 1.5) for _ in range(16)])
        assert movement(found, 40) > 5 * SETTLED
        assert movement(found, 4) < movement(found, 40) < movement(found, 400)
        assert needed(found) > 100
        assert told("x", found, 40).startswith("40 more samples would move the range of 'x' by about ")

    def test_it_foretells_what_more_samples_do(self) -> None:
        """On 24 samples of a trained model, for 72 more: hardly any range moves more than three deviations."""
        data = samples("depthwise_cnn", 96)
        few, many = observed("depthwise_cnn", data[:24]), observed("depthwise_cnn", data)
        within, moved, foretold = 0, [], []
        for tensor, spread in few.spreads.items():
            old, new = few.ranges[tensor].limits(), many.ranges[tensor].limits()
            moved.append(np.hypot(new[0] - old[0], new[1] - old[1]) / (old[1] - old[0]))
            foretold.append(movement(spread, 72))
            within += moved[-1] <= 3 * foretold[-1] + 0.02
        assert within >= 0.9 * len(moved)
        assert 0.3 < np.mean(foretold) / np.mean(moved) < 3

    def test_the_growth_of_the_largest_value(self) -> None:
        """Exponential values: the maximum of n grows by the logarithm of n."""
        random = np.random.default_rng(0)
        scales = [tail_scale(sorted(random.exponential(2.0, 500), reverse=True)[:16]) for _ in range(300)]
        assert np.mean(scales) == pytest.approx(2.0, rel=0.05)

    def test_order_of_merging_does_not_matter(self) -> None:
        """A radius that grows on the way leaves the counts as if it had been there from the start."""
        parts = [np.random.default_rng(i).standard_normal(100) * 4.0**i for i in range(GROUPS)]
        found = spread_of(parts)
        whole = Histogram()
        for part in parts:
            whole.add(part.astype(np.float32))
        merged = whole.counts.reshape(found.groups.shape[1], -1).sum(1)
        assert np.array_equal(found.groups.sum(0), merged)

    def test_the_sentence_on_all_ranges(self) -> None:
        assert convergence_note(Observations()) is None
        few = observed("depthwise_cnn", samples("depthwise_cnn", 4))
        assert convergence_note(few) == "4 calibration samples are too few to tell whether more would change a range"
        seen = observed("depthwise_cnn", samples("depthwise_cnn", 16))
        note = convergence_note(seen)
        assert note is not None
        found = re.fullmatch(
            r"(\d+) of (\d+) quantized activations have a range that is not settled: "
            r"16 more samples would move the range of '(.+)' by about (\d+)%; about ([\d,]+) would settle it",
            note,
        )
        assert found is not None, note
        loose = {name for name, spread in seen.spreads.items() if movement(spread, 16) >= SETTLED}
        assert (int(found[1]), int(found[2])) == (len(loose), len(seen.spreads))
        assert found[3] in loose
        settled = min(seen.spreads, key=lambda name: movement(seen.spreads[name], 16))
        only = convergence_note(seen, [settled])
        assert ("every range by less than 1 %" in str(only)) == (settled not in loose)
        assert convergence_note(seen, []) is None
