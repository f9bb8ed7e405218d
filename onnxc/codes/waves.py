"""Weights that are sampled waves, computed at load, not stored. In: a float weight. Out: what describes it, and codes.

The basis of a short-time Fourier transform is a weight of audio models like any other, a fifth of a small one: its rows
are a w[n] cos(2 pi f n / period + q pi / 2), with whole f, a quarter q, an amplitude a and one window w for all.

    f, n ── Mul ── Mod(period) ── Cast ── Mul(2 pi / period) ── Add(q pi / 2) ── Cos ── Mul(w / scale) ── Round ── W_q

ONNX Runtime computes it once, at load.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxc.codes.formats import NODE_SECONDS
from onnxc.codes.sheets import Sheet
from onnxc.model import Model, Tensor

WAVES_OPSET = 11  # the first with Range and Round
FEWEST_ROWS, FEWEST_SAMPLES, MOST_SAMPLES = 8, 32, 8192
LOOKED_AT, PEAK = 8, 0.9  # rows of which most must have so much of their power in five frequencies
BORDER = 4  # frequencies next to none and to the highest
TURNS = 4
CLOSE = 2e-4  # largest error over the largest entry: far below a step of int8
OVERHEAD, NODES = 1400, 15  # bytes of the nodes, and how many there are
QUARTER = np.float32(np.pi / 2)

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Waves:
    """A weight as waves.

    Attributes:
        frequencies, quarters: [R], turns per period and phase, in quarters of a turn; period: in samples.
        amplitudes: [R], the largest is 1. window: [K]; shape: of the weight; axis: of its R rows.
    """

    frequencies: Array
    quarters: Array
    amplitudes: NDArray[np.float64]
    period: int
    window: NDArray[np.float64]
    shape: tuple[int, ...]
    axis: int

    @classmethod
    def of(cls, values: Array, axis: int | None) -> Waves | None:
        """What ``values`` are, along the axis of their channels; None for anything but waves."""
        shape = tuple(int(size) for size in values.shape)
        if axis is None or values.dtype != np.float32 or len(shape) < 2:
            return None
        rows, samples = shape[axis], prod(shape) // max(shape[axis], 1)
        if sum(size > 1 for size in shape) != 2 or rows < FEWEST_ROWS or not FEWEST_SAMPLES <= samples <= MOST_SAMPLES:
            return None
        matrix = np.moveaxis(values, axis, 0).reshape(rows, samples)
        some = matrix[np.linspace(0, rows - 1, LOOKED_AT).astype(int)].astype(np.float64)
        if not np.isfinite(some).all():
            return None
        power = np.sort(np.square(np.abs(np.fft.rfft(some, axis=1))), axis=1)
        if np.median((power[:, -5:].sum(1) + 1e-30) / (power.sum(1) + 1e-30)) < PEAK:
            return None
        matrix = matrix.astype(np.float64)
        if not np.isfinite(matrix).all():
            return None
        for period in dict.fromkeys((samples, rows - 2)):  # a padded kernel is as long as its period, most often
            if period >= samples and (found := cls._fitted(matrix, period, shape, axis)) is not None:
                return found
        return None

    @classmethod
    def _fitted(cls, matrix: NDArray[np.float64], period: int, shape: tuple[int, ...], axis: int) -> Waves | None:
        spectrum = np.fft.rfft(matrix, period, axis=1)
        peaks = np.abs(spectrum).argmax(1)
        phases = np.angle(spectrum[np.arange(len(matrix)), peaks])
        frequencies, quarters = peaks.copy(), np.rint(phases / (np.pi / 2)).astype(int) % 4
        clear = (peaks >= BORDER) & (peaks <= period // 2 - BORDER)  # elsewhere a window's sidelobes meet their mirror
        if clear.sum() < FEWEST_ROWS:
            return None
        waves = sampled(frequencies[clear], quarters[clear], period, matrix.shape[1])
        loud = np.sqrt(np.square(matrix[clear]).sum(1))
        window = np.zeros(matrix.shape[1])
        for _ in range(TURNS):  # amplitudes and window in turn, each by least squares
            shown = waves * loud[:, None]
            window = (matrix[clear] * shown).sum(0) / np.square(shown).sum(0).clip(1e-12)
            loud = (matrix[clear] * waves * window).sum(1) / np.square(waves * window).sum(1).clip(1e-12)
        errors, amplitudes = np.full(len(matrix), np.inf), np.zeros(len(matrix))
        for near in range(-2, 3):
            for quarter in range(4):
                tried = np.clip(peaks + near, 0, period // 2)
                made = sampled(tried, np.full(len(matrix), quarter), period, matrix.shape[1]) * window
                amplitude = (matrix * made).sum(1) / np.square(made).sum(1).clip(1e-12)
                error = np.abs(matrix - amplitude[:, None] * made).max(1)
                better = (error < errors - 1e-9) & (amplitude >= 0)
                frequencies[better], quarters[better], amplitudes[better] = tried[better], quarter, amplitude[better]
                errors[better] = error[better]
        if errors.max() > CLOSE * np.abs(matrix).max():
            return None
        loudest = amplitudes.max()
        silent = amplitudes < CLOSE * loudest
        frequencies[silent], quarters[silent], amplitudes[silent] = 0, 1, loudest  # the cosine of a quarter is nothing
        return cls(frequencies, quarters, even(amplitudes / loudest), period, window * loudest, shape, axis)

    @property
    def bytes(self) -> int:
        """What they add to a file."""
        return 4 * len(self.window) + len(self.frequencies) * (1 + smallest_type(self.frequencies).itemsize) + OVERHEAD

    @property
    def load_seconds(self) -> float:
        """About what computing them costs at load, in the measure of Format.load_seconds."""
        return NODES * NODE_SECONDS + 7e-9 * prod(self.shape)


def even(amplitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ones, where they are all the same but for float32's last digits."""
    return np.ones_like(amplitudes) if (amplitudes > 1 - CLOSE).all() else amplitudes


def sampled(frequencies: Array, quarters: Array, period: int, samples: int) -> NDArray[np.float64]:
    """[R, samples], one cosine a row."""
    turns = np.outer(frequencies, np.arange(samples)) % period
    return np.asarray(np.cos(2 * np.pi * turns / period + quarters[:, None] * (np.pi / 2)))


@dataclass(frozen=True, eq=False)
class PackedWaves:
    """int8 codes of waves of amplitude 1: rounded multiples of ``scale``."""

    waves: Waves
    scale: np.float32

    @property
    def kind(self) -> Hashable:
        return "waves", self.waves.frequencies.tobytes(), self.waves.shape, float(self.scale)

    @property
    def size(self) -> int:
        return prod(self.waves.shape)

    @property
    def bytes(self) -> int:
        return self.waves.bytes

    @cached_property
    def codes(self) -> NDArray[np.int8]:
        """What ONNX Runtime makes of it."""
        from onnxc.session import Session  # it writes models, which hold codes

        empty = helper.make_graph([], "waves", [], [])
        opsets = [helper.make_opsetid("", max(WAVES_OPSET, 13))]
        model = Model.load(helper.make_model(empty, opset_imports=opsets, ir_version=8))
        (made,) = self.emit(Sheet(model), {"codes": self}).values()
        made.dtype, made.shape = np.dtype(np.int8), list(self.waves.shape)
        model.graph.outputs.append(made)
        return np.asarray(Session(model).run({})["codes"], np.int8)

    def emit(self, sheet: Sheet, forms: Mapping[str, PackedWaves]) -> dict[str, Tensor]:
        """Write the nodes that compute ``forms``."""
        return {name: form.computed(sheet, name) for name, form in forms.items()}

    def computed(self, sheet: Sheet, name: str) -> Tensor:
        """Write the nodes that compute the codes, called ``name``."""
        waves, samples = self.waves, len(self.waves.window)
        first = waves.axis < max(place for place, size in enumerate(waves.shape) if size > 1)
        rows, columns = ((-1, 1), (1, -1)) if first else ((1, -1), (-1, 1))

        def stored(what: str, values: Array, to: int) -> Tensor:
            small = values.astype(smallest_type(values)).reshape(rows)
            return sheet.node("Cast", [sheet.constant(f"{name}_{what}", small)], f"{name}_{what}_wide", to=to)

        bounds = [sheet.shared(f"whole_{value}", np.asarray(value, np.int64)) for value in (0, samples, 1)]
        places = sheet.reshaped(sheet.node("Range", bounds, f"{name}_places"), columns, f"{name}_axis")
        turns = sheet.node("Mul", [stored("frequency", waves.frequencies, TensorProto.INT64), places], f"{name}_turns")
        period = sheet.shared(f"whole_{waves.period}", np.asarray(waves.period, np.int64))
        part = sheet.node("Cast", [sheet.node("Mod", [turns, period], f"{name}_part")], f"{name}_parts", to=1)
        unit = sheet.shared(f"turn_{waves.period}", np.asarray(2 * np.pi / waves.period, np.float32))
        phase = sheet.node(
            "Mul",
            [stored("quarter", waves.quarters, TensorProto.FLOAT), sheet.shared("quarter_turn", np.asarray(QUARTER))],
            f"{name}_phase",
        )
        angle = sheet.node("Add", [sheet.node("Mul", [part, unit], f"{name}_angle"), phase], f"{name}_angles")
        steps = (waves.window / self.scale).astype(np.float32).reshape(columns)
        window = sheet.constant(f"{name}_window", steps)
        scaled = sheet.node("Mul", [sheet.node("Cos", [angle], f"{name}_waves"), window], f"{name}_scaled")
        whole = sheet.node("Round", [scaled], f"{name}_round")
        codes = sheet.node("Cast", [whole], f"{name}_matrix", to=TensorProto.INT8)
        return sheet.reshaped(codes, waves.shape, name)


def smallest_type(values: Array) -> np.dtype[Any]:
    """The smallest unsigned type that holds ``values``."""
    return np.min_scalar_type(int(values.max(initial=0)))
