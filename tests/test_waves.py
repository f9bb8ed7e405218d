"""Fourier bases are recognized, computed at load bit for bit, and take a few kilobytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxc.codes.waves import PackedWaves, Waves
from onnxc.exactness import file_bytes
from onnxc.kernels import leftover_weights
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.passes.store_int8 import StoreInt8
from onnxc.session import Session
from tests.emission import emitted, model, node, samples

WINDOWS: dict[str, Callable[[int], np.ndarray]] = {
    "hann": lambda size: np.hanning(size + 1)[:-1],
    "hamming": np.hamming,
    "none": np.ones,
    "kaiser": lambda size: np.kaiser(size, 8.0),
}


def basis(size: int, window: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """[2 (size / 2 + 1), size]: cosines, then sines with the sign of a Fourier transform."""
    turns = np.outer(np.arange(size // 2 + 1), np.arange(size)) * 2 * np.pi / size
    return (np.concatenate([np.cos(turns), -np.sin(turns)]) * window * scale).astype(np.float32)


def step_error(values: np.ndarray, axis: int) -> float:
    """Largest error of the codes, in steps of their scale, where they are solved as waves."""
    found = Waves.of(values, axis)
    assert found is not None
    form = PackedWaves(found, np.float32(np.abs(found.window).max() / 127))
    scale = (form.scale * found.amplitudes).reshape([-1 if place == axis else 1 for place in range(values.ndim)])
    return float(np.abs(form.codes - values / scale).max())


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", [64, 256, 400])
def test_every_code_is_the_nearest(window: str, size: int) -> None:
    assert step_error(basis(size, WINDOWS[window](size)), 0) <= 0.501


def test_a_short_window_in_a_long_kernel() -> None:
    padded = np.zeros(512)
    padded[56:456] = WINDOWS["hann"](400)
    assert step_error(basis(512, padded), 0) <= 0.501


def test_as_a_matrix_or_a_kernel_with_amplitudes_of_their_own() -> None:
    amplitudes = np.random.default_rng(0).uniform(0.5, 2, (130, 1))
    rows = basis(128, WINDOWS["hann"](128), amplitudes)
    assert step_error(np.ascontiguousarray(rows.T), 1) <= 0.501
    assert step_error(rows[:, None], 0) <= 0.501


@pytest.mark.parametrize("what", ["random", "between", "noise", "small", "inf"])
def test_anything_else_is_none(what: str) -> None:
    rows, random = basis(128, WINDOWS["hann"](128)), np.random.default_rng(0)
    turns = np.outer(np.arange(65) + 0.3, np.arange(128)) * 2 * np.pi / 128
    others = {
        "random": random.standard_normal((130, 128)),
        "between": np.cos(turns) * WINDOWS["hann"](128),
        "noise": rows + 1e-3 * random.standard_normal(rows.shape),  # trained a little further
        "small": rows[:4],
        "inf": np.where(rows == rows.max(), np.inf, rows),
    }
    assert Waves.of(others[what].astype(np.float32), 0) is None


def test_in_a_model_it_is_computed_at_load_and_takes_three_kilobytes() -> None:
    rows = basis(256, WINDOWS["hann"](256))[:, None]
    proto = model([node("Conv", "x w", "y", strides=[64])], {"x": [1, 1, 1024]}, {"y": None}, {"w": rows})
    data = samples(4, x=[1, 1, 1024])
    for each in (StoreInt8(), QuantizeStatic()):  # the site in float, and in int8
        made = emitted(proto, data, each)
        held = Session(made.model, dump=True).optimized()
        assert file_bytes(made.model) < 5_000 < 0.02 * rows.nbytes
        assert not leftover_weights(held)
        codes = made.codes.of({"w": "int8"}, {})["w"]
        assert codes.packed is not None
        assert np.abs(codes.restored() - rows).max() <= 0.51 * codes.scale[0]
        assert made.sqnr_db > 35, each.name


def test_the_session_holds_the_codes_bit_for_bit() -> None:
    found = Waves.of(basis(256, WINDOWS["hann"](256)), 0)
    assert found is not None
    form = PackedWaves(found, np.float32(1 / 127))
    again = PackedWaves(found, np.float32(1 / 127))
    assert np.array_equal(form.codes, again.codes)
    assert np.abs(form.codes).max() == 127
    assert found.bytes < 3_100
