"""Histograms are exact whatever the order, ranges are what their method says, what is kept is bounded."""

from __future__ import annotations

from random import Random
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxc.histograms import BINS, Histogram
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.observe import MOST_ROWS, Observations, observe, patches, sampled_rows
from onnxc.session import Options, Session
from onnxc.sites import find
from onnxc.targets import target
from tests.emission import Sample, model, node, random, samples, weight

Array = NDArray[np.float32]

values = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-(2.0**20), 2.0**20, width=32).map(lambda v: 0.0 if abs(v) < 2.0**-30 else v),
)


def filled(parts: list[Array]) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(part)
    return made


def same(one: Histogram, other: Histogram) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


class TestHistogram:
    @given(st.lists(values, min_size=1, max_size=6), st.randoms())
    @settings(max_examples=60, deadline=None)
    def test_order_and_batching_do_not_matter(self, parts: list[Array], shuffler: Random) -> None:
        mixed = list(parts)
        shuffler.shuffle(mixed)
        whole = np.concatenate(parts)
        assert same(filled(parts), filled(mixed))
        assert same(filled(parts), filled([whole]))
        assert same(filled(parts), filled([part.reshape(-1, 1) for part in parts]))
        assert same(filled(parts), filled([whole[i : i + 1] for i in range(len(whole))]))

    @given(values)
    @settings(max_examples=60, deadline=None)
    def test_every_value_is_counted_in_its_bin(self, part: Array) -> None:
        found = filled([part])
        assert found.total == found.counts.sum() == part.size
        assert found.zeros == np.count_nonzero(part == 0)
        assert (found.lowest, found.highest) == (part.min(), part.max())
        assert found.radius > np.abs(part).max()
        width = 2 * found.radius / BINS
        nearest = np.abs(part.astype(np.float64)[:, None] - found.centres[None, found.counts > 0]).min(1)
        assert (nearest <= width / 2).all()

    def test_values_that_are_not_finite_are_passed_over(self) -> None:
        part = np.array([1, np.nan, -2, np.inf, -np.inf], np.float32)
        found = filled([part, np.full(3, np.nan, np.float32), np.zeros(0, np.float32)])
        assert (found.lowest, found.highest, found.total) == (-2.0, 1.0, 2)

    def test_nothing_seen_or_only_zeros_still_give_a_range(self) -> None:
        assert filled([]).limits() == (0.0, 1.0)
        assert filled([np.zeros(5, np.float32)]).limits() == (0.0, 1.0)


def error(part: Array, limits: tuple[float, float]) -> float:
    """Mean squared error of rounding ``part`` to 256 levels over ``limits``, zero exact."""
    low, high = limits
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    rounded = (np.clip(np.rint(part / scale) + zero, 0, 255) - zero) * scale
    return float(np.mean((part - rounded) ** 2))


Shape = Literal["normal", "laplace", "uniform", "relu", "outlier", "one-sided"]


def distribution(name: Shape, size: int = 50_000) -> Array:
    found = {
        "normal": lambda: random.standard_normal(size),
        "laplace": lambda: random.laplace(size=size),
        "uniform": lambda: random.uniform(-1, 3, size),
        "relu": lambda: np.maximum(random.standard_normal(size), 0),
        "outlier": lambda: np.append(random.standard_normal(size), [60.0]),
        "one-sided": lambda: -random.exponential(size=size),
    }[name]()
    return np.asarray(found, np.float32)


@pytest.mark.parametrize("name", ["normal", "laplace", "uniform", "relu", "outlier", "one-sided"])
class TestRanges:
    def test_least_squares_is_no_worse_than_the_whole_range(self, name: Shape) -> None:
        part = distribution(name)
        found = filled([part])
        assert error(part, found.limits("mse")) <= 1.02 * error(part, found.limits("minmax"))

    def test_ranges_hold_zero_and_lie_inside_what_was_seen(self, name: Shape) -> None:
        found = filled([distribution(name)])
        low, high = found.limits("minmax")
        assert (low, high) == (min(found.lowest, 0.0), max(found.highest, 0.0))
        for method in ("mse", "percentile"):
            inner = found.limits(method)
            assert low <= inner[0] <= 0 <= inner[1] <= high
            assert inner[1] > inner[0]

    def test_a_larger_percentile_is_a_wider_range(self, name: Shape) -> None:
        found = filled([distribution(name)])
        ranges = [found.limits("percentile", share) for share in (90.0, 99.0, 99.9, 99.99, 100.0)]
        assert ranges == sorted(ranges, key=lambda pair: (-pair[0], pair[1]))
        widths = [high - low for low, high in ranges]
        assert widths == sorted(widths)

    def test_a_scaled_tensor_has_a_scaled_range(self, name: Shape) -> None:
        part = distribution(name)
        low, high = filled([part]).limits()
        assert filled([part * np.float32(8)]).limits() == pytest.approx((8 * low, 8 * high))


def test_an_outlier_is_clipped_where_that_pays() -> None:
    part = distribution("outlier", 1_000_000)
    found = filled([part])
    assert found.limits("mse")[1] < 30
    assert error(part, found.limits("mse")) < 0.6 * error(part, found.limits("minmax"))


NETWORK = model(
    [
        node("MatMul", "x w", "m"),
        node("Relu", "m", "r"),
        node("MatMul", "r v", "y"),
        node("MatMul", "r u", "z"),
    ],
    {"x": ["n", "s", 24]},
    {"y": None, "z": None},
    {"w": weight(24, 32), "v": weight(32, 16), "u": weight(32, 8)},
)


def observed(data: list[Sample]) -> Observations:
    loaded = Model.load(NETWORK)
    name_nodes(loaded)
    found = find(loaded, target("cpu"))
    tensors = [t for site in found for t in (*site.inputs, site.result)]
    return observe(loaded, data, len(data), tensors, list(found), Options())


class TestObserve:
    def test_ranges_do_not_depend_on_order_or_batching(self) -> None:
        data = samples(6, x=[2, 5, 24])
        one, two = observed(data), observed(data[::-1])
        merged = observed([{"x": np.concatenate([each["x"] for each in data])}])
        assert set(one.ranges) == {"x", "m", "r", "y", "z"}
        for name in ("x", "r"):
            assert same(one.ranges[name], two.ranges[name])
        assert same(one.ranges["x"], merged.ranges["x"])
        assert merged.ranges["r"].limits() == pytest.approx(one.ranges["r"].limits(), rel=1e-3)

    def test_ranges_are_those_of_the_session(self) -> None:
        data = samples(3, x=[2, 5, 24])
        results = [Session(NETWORK).run(each)["y"] for each in data]
        seen = observed(data).ranges["y"]
        assert seen.total == sum(result.size for result in results)
        assert seen.lowest == pytest.approx(min(result.min() for result in results), rel=1e-5)

    def test_variable_shapes(self) -> None:
        data = [{"x": random.standard_normal((1, length, 24)).astype(np.float32)} for length in (1, 7, 3)]
        seen = observed(data)
        assert seen.ranges["x"].total == 11 * 24
        assert seen.shapes["x"] == (1, 1, 24)
        assert seen.rows["x"].shape == (11, 24)

    def test_linears_of_one_tensor_share_rows(self) -> None:
        seen = observed(samples(2, x=[2, 5, 24]))
        assert set(seen.rows) == {"x", "r"}
        assert seen.rows["r"].shape == (20, 32)
        assert (seen.rows["r"] >= 0).all()

    @pytest.mark.parametrize("count", [1, 3, 2 * MOST_ROWS])
    def test_rows_are_bounded_however_much_data_there_is(self, count: int) -> None:
        size = 6000 if count < 10 else 2
        data = [{"x": random.standard_normal((1, size, 24)).astype(np.float32)}] * count
        seen = observed(data)
        assert MOST_ROWS - 3 <= len(seen.rows["x"]) <= MOST_ROWS
        assert seen.ranges["x"].total == count * size * 24

    def test_no_samples(self) -> None:
        assert observed([]).ranges == {}


class TestPatches:
    """A sampled row times the weight is an output of the convolution itself."""

    @pytest.mark.parametrize(
        ("shape", "kernel", "attributes"),
        [
            ([2, 6, 9], [3], {"pads": [1, 1]}),
            ([1, 6, 9, 8], [3, 2], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
            ([1, 6, 9, 8], [3, 3], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
            ([1, 6, 9, 8], [3, 3], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
            ([1, 6, 9, 8], [2, 2], {"auto_pad": "SAME_LOWER"}),
            ([1, 6, 9, 8], [2, 2], {"auto_pad": "VALID", "dilations": [2, 3]}),
            ([1, 6, 5, 5, 5], [2, 3, 1], {}),
            ([1, 6, 9, 8], [3, 3], {"group": 2}),
            ([1, 6, 9, 8], [3, 3], {"group": 6, "pads": [1, 1, 1, 1]}),
        ],
    )
    def test_rows_are_windows_of_the_input(
        self, shape: list[int], kernel: list[int], attributes: dict[str, object]
    ) -> None:
        group = int(str(attributes.get("group", 1)))
        weights = weight(6, 6 // group, *kernel)
        proto = model([node("Conv", "x w", "y", **attributes)], {"x": shape}, {"y": None}, {"w": weights})
        loaded = Model.load(proto)
        name_nodes(loaded)
        (site,) = find(loaded, target("cpu"))
        sample = samples(1, x=shape)[0]
        rows = patches(sample["x"], site, 30, np.random.default_rng(0))
        assert rows is not None
        matrix = weights.reshape(group, 6 // group, -1)
        products = np.einsum("rgk,gnk->rgn", rows, matrix).reshape(len(rows), 6)
        expected = Session(proto).run(sample)["y"].reshape(shape[0], 6, -1).transpose(0, 2, 1).reshape(-1, 6)
        distance = np.abs(products[:, None] - expected[None]).max(2).min(1)
        assert distance.max() < 1e-4

    def test_an_input_smaller_than_the_kernel_gives_no_rows(self) -> None:
        proto = model([node("Conv", "x w", "y")], {"x": [1, 6, "s"]}, {"y": None}, {"w": weight(6, 6, 5)})
        loaded = Model.load(proto)
        (site,) = find(loaded, target("cpu"))
        assert patches(np.zeros((1, 6, 3), np.float32), site, 3, np.random.default_rng(0)) is None
        assert sampled_rows(site, np.zeros((1, 6, 3), np.float32), 3, 0) is None
