"""What values a tensor takes, counted. In: arrays, one after the other. Out: ranges, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 4096
GROUPS, COARSE, PEAKS = 8, 1024, 16  # of a Spread: groups of samples, their bins, and extremes kept

Array = NDArray[np.float32]


@dataclass
class Histogram:
    """Counts of a tensor's values over [-radius, radius), radius a power of two.

    When a larger value arrives the radius doubles and neighbouring bins merge exactly, so the final counts are those
    of the final radius whatever came first. Zeros are counted apart: every quantizer here represents zero exactly.
    """

    lowest: float = np.inf
    highest: float = -np.inf
    radius: float = 2.0**-60
    zeros: int = 0
    total: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: Array) -> tuple[NDArray[np.int64], float, float] | None:
        """Count ``values`` (any shape); non-finite entries are ignored.

        Returns:
            Of these values alone: the counts without zeros, the lowest and the highest; None where there are none.
        """
        flat = np.asarray(values, np.float32).ravel()
        if flat.size == 0:
            return None
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            flat = flat[np.isfinite(flat)]
            if flat.size == 0:
                return None
            low, high = float(flat.min()), float(flat.max())
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        peak = max(-low, high)
        while peak >= self.radius:
            self.grow(peak)
        self.total += flat.size
        zeros = int(flat.size - np.count_nonzero(flat))
        self.zeros += zeros
        index = np.floor(flat * np.float32(BINS / 2 / self.radius)).astype(np.int32) + BINS // 2
        fresh = np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)
        self.counts += fresh
        fresh[BINS // 2] -= zeros
        return fresh, low, high

    def grow(self, peak: float) -> None:
        """Double the radius, or jump to the right one while the histogram is empty."""
        if self.total == 0:
            self.radius = 2.0 ** np.floor(np.log2(peak) + 1)
            return
        self.radius *= 2
        self.counts = halved(self.counts)

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle value of every bin."""
        bins = self.counts.size
        return np.asarray((np.arange(bins) + 0.5 - bins / 2) * (2 * self.radius / bins), np.float64)

    def limits(self, method: str = "mse", percentile: float = 99.99, levels: int = 255) -> tuple[float, float]:
        """(low, high) of the range to quantize, zero included.

        ``minmax`` is the range seen, ``percentile`` cuts the two tails, ``mse`` minimizes the mean squared error of
        rounding and clipping together over a grid of both ends, ``entropy`` the information that they lose.
        """
        low, high = min(self.lowest, 0.0), max(self.highest, 0.0)
        if self.total == 0 or high - low <= 0:
            return 0.0, 1.0
        if method == "minmax":
            return low, high
        counts = self.counts.astype(np.float64)
        if method == "percentile":
            share = np.cumsum(counts) / counts.sum()
            edges = self.centres
            tail = (100 - percentile) / 100
            first = edges[min(int(np.searchsorted(share, tail)), counts.size - 1)]
            last = edges[min(int(np.searchsorted(share, 1 - tail)), counts.size - 1)]
            return max(low, min(first, 0.0)), min(high, max(last, 0.0))
        if method == "entropy":
            return self.entropy_limits(low, high, levels)
        return self.least_squares_limits(low, high, levels)

    def entropy_limits(self, low: float, high: float, levels: int) -> tuple[float, float]:
        """The (low, high) pair that loses least information: the Kullback-Leibler divergence of the quantized
        distribution from the clipped one, each end searched in turn.

        Migacz, "8-bit Inference with TensorRT" (2017), with both ends free, and zeros, which are exact, left out.
        The histogram is smoothed over a step of the whole range: a grid that the values already lie on, such as grey
        levels, or a peak where a Clip ends, is no distribution that a narrower range would keep.
        """
        centres, counts = self.centres, self.counts.astype(np.float64)
        counts[counts.size // 2] = max(counts[counts.size // 2] - self.zeros, 0.0)
        reach = int(np.ceil((high - low) / levels / (centres[1] - centres[0])))
        counts = np.convolve(counts, np.full(2 * reach + 1, 1 / (2 * reach + 1)), "same")
        first, last = int(np.searchsorted(centres, low)), min(int(np.searchsorted(centres, high)), counts.size - 1)
        for end, beyond in ((first, slice(0, first)), (last, slice(last + 1, None))):  # nothing lies beyond the ends
            counts[end] += counts[beyond].sum()
            counts[beyond] = 0
        ratios = np.concatenate([np.linspace(1, 0.5, 26), np.linspace(0.47, 0.05, 15)])

        def best(pairs: list[tuple[float, float]]) -> tuple[float, float]:
            return min(pairs, key=lambda pair: divergence(centres, counts, pair[0], pair[1], levels))

        found = (low, high)
        for _ in range(2):
            if high > 0:
                found = best([(found[0], high * ratio) for ratio in ratios])
            if low < 0:
                found = best([(low * ratio, found[1]) for ratio in ratios])
            if low == 0 or high == 0:
                break
        return float(found[0]), float(found[1])

    def least_squares_limits(self, low: float, high: float, levels: int) -> tuple[float, float]:
        """The (low, high) pair with the least mean squared error: the clipping error of each end from cumulative
        sums, the rounding error as step^2 / 12 for the values inside that are not zero.
        """
        centres, counts = self.centres, self.counts.astype(np.float64)
        counts[counts.size // 2] = max(counts[counts.size // 2] - self.zeros, 0.0)
        ratios = np.concatenate([np.linspace(1, 0.5, 51), np.linspace(0.48, 0.02, 24)])
        lows, highs = low * ratios, high * ratios

        def clipped(ends: NDArray[np.float64], sign: float) -> NDArray[np.float64]:
            distance = np.maximum(sign * (centres[None, :] - ends[:, None]), 0.0)
            return np.asarray((distance**2) @ counts)

        below = clipped(lows, -1.0) if low < 0 else np.zeros(1)
        above = clipped(highs, 1.0) if high > 0 else np.zeros(1)
        lows, highs = (lows if low < 0 else np.zeros(1)), (highs if high > 0 else np.zeros(1))
        step = (highs[None, :] - lows[:, None]) / levels
        error = below[:, None] + above[None, :] + counts.sum() * step**2 / 12
        row, column = np.unravel_index(int(np.argmin(error)), error.shape)
        return float(lows[row]), float(highs[column])


def halved(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``counts`` [..., bins] over twice the radius: neighbouring bins merge, and lie in the middle half."""
    bins = counts.shape[-1]
    wide = np.zeros_like(counts)
    wide[..., bins // 4 : bins // 4 + bins // 2] = counts.reshape(*counts.shape[:-1], bins // 2, 2).sum(-1)
    return wide


def divergence(
    centres: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float, levels: int
) -> float:
    """KL(P | Q) of a clipped histogram P from Q, what is left of it after rounding to ``levels`` steps.

    Values outside [low, high] count as the outermost bins of P, and are missing in Q: clipping costs information.
    """
    first, last = (int(i) for i in np.searchsorted(centres, (low, high)))
    inner = counts[first:last]
    if last - first < 2 or not inner.any():
        return float("inf")
    clipped = inner.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    level = np.rint((centres[first:last] - low) * (levels / (high - low))).astype(np.intp)
    filled = inner > 0
    mass = np.bincount(level, inner, levels + 1)
    bins = np.bincount(level, filled, levels + 1)
    spread = np.where(filled, (mass / np.maximum(bins, 1))[level], 0.0)
    wanted = clipped / clipped.sum()
    found = np.maximum(spread / inner.sum(), 1e-9)
    seen = wanted > 0
    return float((wanted[seen] * np.log(wanted[seen] / found[seen])).sum())


@dataclass
class Spread:
    """How much the samples differ in one tensor: what tells whether more of them would change its range.

    Attributes:
        samples: how many were added.
        radius: of the bins, as in Histogram.
        groups: counts of nonzero values [GROUPS, COARSE], samples dealt out to the groups in turn.
        lowest, highest: the PEAKS most extreme of the samples' own ends, most extreme first.
    """

    samples: int = 0
    radius: float = 2.0**-60
    groups: NDArray[np.int64] = field(default_factory=lambda: np.zeros((GROUPS, COARSE), np.int64))
    lowest: list[float] = field(default_factory=list)
    highest: list[float] = field(default_factory=list)

    def add(self, fresh: NDArray[np.int64], low: float, high: float, radius: float) -> None:
        """Count one sample: what Histogram.add returned for it, and the radius of that histogram."""
        if not self.samples:
            self.radius = radius
        while self.radius < radius:
            self.radius *= 2
            self.groups = halved(self.groups)
        self.groups[self.samples % GROUPS] += fresh.reshape(COARSE, -1).sum(1)
        self.samples += 1
        self.lowest = sorted([*self.lowest, low])[:PEAKS]
        self.highest = sorted([*self.highest, high], reverse=True)[:PEAKS]
