"""Ranges chosen on the outputs hold on samples that they were not chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxc.contract.candidates import Activation
from onnxc.histograms import Histogram
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.propose import collect
from onnxc.refining import Errors, convincing, held_together, refine
from onnxc.sensitivity import Meter, build_probe
from onnxc.session import Options
from tests.trained import context, load, samples


def decibels(meter: Meter, activations: Sequence[Activation]) -> float:
    changes = {name: value for each in activations for name, value in meter.at(each).items()}
    return float(-10 * np.log10(meter.noise(changes)))


def test_what_is_chosen_is_better_on_other_samples() -> None:
    """By one rule for all tensors."""
    made, every = load("residual_cnn"), samples("residual_cnn", 64)
    seen = context(made, every[:32])
    activations, _ = collect([(QuantizeStatic(), True)], seen).roundings(seen)
    probe, ranges = build_probe(made, activations, {}), seen.observations.ranges
    meter, others = Meter(probe, every[:32], Options()), Meter(probe, every[32:], Options())
    found = refine(meter, activations, dict.fromkeys(ranges, 1.0), ranges, 32, 140)
    assert len(found) == len(activations)  # another rule for all of them
    chosen = [replace(each, low=found[each.tensor][0], high=found[each.tensor][1]) for each in activations]
    assert decibels(meter, chosen) > decibels(meter, activations) + 0.5
    assert decibels(others, chosen) > decibels(others, activations) + 0.5


def test_no_runs_no_choice() -> None:
    made, data = load("depthwise_cnn"), samples("depthwise_cnn", 4)
    seen = context(made, data)
    activations, _ = collect([(QuantizeStatic(), True)], seen).roundings(seen)
    meter = Meter(build_probe(made, activations, {}), data, Options())
    noise = dict.fromkeys((each.tensor for each in activations), 1.0)
    assert refine(meter, activations, noise, seen.observations.ranges, 4, 3) == {}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([[4.0], [5.0], [6.0], [5.0]], [[1.0], [2.0], [1.5], [1.0]], True),  # every sample gains
        ([[1.0], [1.0], [1.0], [9.0]], [[1.1], [1.1], [1.1], [1.0]], False),  # one sample gains
        ([[4.0], [5.0], [6.0], [5.0]], [[3.98], [4.98], [5.98], [4.98]], False),  # too little
        ([[4.0, 1.0]] * 4, [[1.0, 5.0]] * 4, False),  # another output loses
        ([[4.0]], [[3.0]], False),  # one sample tells little
        ([[4.0]], [[1.0]], True),
        (
            [[1.0], [1.1], [0.9], [40.0]],
            [[0.2], [0.3], [0.25], [8.0]],
            True,
        ),  # all gain, one is so loud that it hides it
        ([[1.0], [1.1], [0.9], [40.0]], [[1.2], [1.3], [1.0], [8.0]], False),  # the loud one alone gains
    ],
)
def test_a_gain_has_to_convince(before: list[list[float]], after: list[list[float]], expected: bool) -> None:
    pair: tuple[Errors, Errors] = np.array(before), np.array(after)
    assert convincing(*pair, 2.0) is expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([[1.0], [1.2], [1.1], [9.0]], True),  # less in all
        ([[0.2], [0.3], [0.25], [11.0]], True),  # less in three, and one answer that changed
        ([[2.0], [2.5], [1.9], [11.0]], False),
    ],
)
def test_what_was_chosen_one_by_one_has_to_hold_together(after: list[list[float]], expected: bool) -> None:
    assert held_together(np.array([[1.0], [1.1], [0.9], [10.0]]), np.array(after)) is expected


class Recordings:
    """A bench of eight samples, of which the last has a peak of 2 and the others of 1; clipping costs all of it."""

    peaks = np.array([1.0] * 7 + [2.0])

    def errors(self, changes: Mapping[str, Any], samples: Sequence[int] | None = None) -> Errors:
        high = float(changes["high"])
        found = 1e-4 * high**2 + np.square(np.maximum(self.peaks - high, 0.0))
        return np.asarray(found[list(range(8)) if samples is None else list(samples)][:, None])

    def at(self, activation: Activation) -> dict[str, Any]:
        return {"high": np.asarray(activation.high)}


@pytest.mark.parametrize(("now", "expected"), [(1.2, 2.0), (2.0, None)])
def test_one_loud_sample_widens_a_range_and_quiet_ones_do_not_narrow_it(now: float, expected: float | None) -> None:
    values = np.concatenate([np.linspace(0, 1, 100_000), [2.0]]).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    found = refine(Recordings(), [Activation("x", 0.0, now)], {"x": 1.0}, {"x": histogram}, 8, 1000)
    assert (found["x"][1] if found else None) == (None if expected is None else pytest.approx(expected, rel=0.01))
