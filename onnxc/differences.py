"""Running sums over the differences of an output. In: its value in two models, sample by sample. Out: an OutputError.

SQNR = 10 log10(sum ref^2 / sum (ref - new)^2), in float64 over all samples, at most 200 dB. An output that is zero
everywhere in the reference is held against an absolute scale of 1. Where the reference is not finite the other must
hold the same NaN or infinity. Class scores are judged by their top-1 answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from onnxc.quality import HIGHEST_SQNR_DB, OutputError, Quality

_CHUNK = 1 << 20  # elements turned into float64 at a time


class Tally:
    """Running sums over one output."""

    def __init__(self, name: str, is_answer: bool, axis: int | None) -> None:
        self.name, self.is_answer, self.axis = name, is_answer, axis
        self.samples = self.entries = self.strange = self.equal = self.discrete = self.changed = self.judged = 0
        self.signal = self.noise = self.new_power = self.product = self.absolute = self.largest = 0.0
        self.problem: str | None = None

    def add(self, reference: list[np.ndarray], new: list[np.ndarray]) -> None:
        """One sample's value of the output, as arrays (several for a sequence)."""
        self.samples += 1
        if [part.shape for part in reference] != [part.shape for part in new]:
            shapes = [" ".join(str(list(part.shape)) for part in parts) for parts in (reference, new)]
            self.problem = f"output '{self.name}' has shape {shapes[1]} instead of {shapes[0]}"
            return
        for old_part, new_part in zip(reference, new, strict=True):
            if not (_is_quantity(old_part) and _is_quantity(new_part)):
                same = int(np.sum(_plain(old_part) == _plain(new_part)))
                self.equal += same
                self.discrete += old_part.size
                continue
            for old, fresh in _chunks(old_part, new_part):
                self._add_floats(old, fresh)
            if self.axis is not None:
                self._add_answers(old_part, new_part, self.axis)

    def _add_floats(self, old: np.ndarray, new: np.ndarray) -> None:
        finite = np.isfinite(old)
        if not finite.all() or not np.isfinite(new).all():
            same = np.array_equal(old[~finite], new[~finite], equal_nan=True)
            self.strange += int((~finite).sum())
            old, new = old[finite], new[finite]
            if not same or not np.isfinite(new).all():
                self.problem = f"output '{self.name}' differs from the original's in where it is NaN or infinite"
                return
        error = old - new
        absolute = np.abs(error)
        self.entries += old.size
        self.signal += float(np.dot(old, old))
        self.new_power += float(np.dot(new, new))
        self.product += float(np.dot(old, new))
        self.noise += float(np.dot(error, error))
        self.absolute += float(absolute.sum())
        self.largest = max(self.largest, float(absolute.max(initial=0.0)))

    def _add_answers(self, old: np.ndarray, new: np.ndarray, axis: int) -> None:
        if not old.ndim or not -old.ndim <= axis < old.ndim or old.shape[axis] < 2 or not old.size:
            return
        best = old.max(axis=axis, keepdims=True)
        chosen = np.take_along_axis(old, new.argmax(axis=axis, keepdims=True), axis=axis)
        judged = ~np.isnan(best)
        self.judged += int(judged.sum())
        self.changed += int((judged & ~(chosen >= best)).sum())  # a tie in the reference is not a change

    def result(self, count_all: bool) -> OutputError:
        """The figures; ``count_all`` makes every discrete entry an answer."""
        strange = self.strange > 0 == self.entries and not self.problem
        numeric = self.entries > 0 or not (self.discrete or strange)
        if (self.is_answer and self.axis is None) or count_all:
            self.judged += self.discrete
            self.changed += self.discrete - self.equal
        return OutputError(
            name=self.name,
            sqnr_db=(-math.inf if self.problem else self.sqnr()) if numeric else None,
            max_error=self.largest if numeric else None,
            mean_error=self.absolute / max(1, self.entries) if numeric else None,
            cosine=self.cosine() if numeric else None,
            equal=self.equal / self.discrete if self.discrete else None,
            top1_agreement=1 - self.changed / self.judged if self.judged else None,
            is_class_scores=self.is_answer,
            samples=self.samples,
            changed=self.changed,
            judged=self.judged,
            problem=self.problem,
            nowhere_finite=strange,
        )

    def sqnr(self) -> float:
        """In dB; an all-zero reference counts as a signal of 1 per entry."""
        if self.noise == 0:
            return HIGHEST_SQNR_DB
        return min(HIGHEST_SQNR_DB, 10 * math.log10((self.signal or float(self.entries)) / self.noise))

    def cosine(self) -> float:
        """1 for two outputs that are both zero."""
        power = math.sqrt(self.signal) * math.sqrt(self.new_power)
        if power:
            return max(-1.0, min(1.0, self.product / power))
        return 1.0 if self.signal == self.new_power else 0.0


def unfitted_sqnr(every: Tally, apart: Tally, share: float) -> float:
    """The SQNR over all samples in dB, as those tell that were kept apart.

    Args:
        share: that those have of noise that was fitted to no sample; at least their share of the signal is taken.
    """
    if not apart.entries or not apart.noise:
        return HIGHEST_SQNR_DB
    signals = [tally.signal or float(tally.entries) for tally in (every, apart)]
    share = min(max(share, signals[1] / signals[0]), 1.0)
    return min(HIGHEST_SQNR_DB, 10 * math.log10(signals[0] * share / apart.noise))


def summary(tallies: Iterable[Tally]) -> Quality:
    """The worst of every kind over the outputs."""
    tallies = list(tallies)
    only_discrete = not any(tally.entries for tally in tallies)
    outputs = [tally.result(count_all=only_discrete) for tally in tallies]
    quality = Quality(outputs, problem=next((each.problem for each in outputs if each.problem), None))
    quality.sqnr_db = min((each.sqnr_db for each in outputs if each.sqnr_db is not None), default=HIGHEST_SQNR_DB)
    if quality.problem:
        quality.sqnr_db = -math.inf
    judged = [each for each in outputs if each.judged]
    if judged:
        worst = min(judged, key=lambda each: each.top1_agreement or 0.0)
        quality.agreement, quality.changed, quality.judged = worst.top1_agreement, worst.changed, worst.judged
    return quality


def _is_quantity(array: np.ndarray) -> bool:
    """Floats of any kind and small integers, which are quantized ones; not labels or strings."""
    kind = array.dtype.kind
    return kind in "fcV" or (kind in "iu" and array.dtype.itemsize <= 2)


def _plain(array: np.ndarray) -> np.ndarray:
    return array.astype(str) if array.dtype.kind in "OSU" else array


def _chunks(old: np.ndarray, new: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both as flat float64, a bounded number of entries at a time; complex as pairs of reals."""
    flat = [np.ascontiguousarray(array).reshape(-1) for array in (old, new)]
    flat = [array.view(array.real.dtype) if array.dtype.kind == "c" else array for array in flat]
    for start in range(0, flat[0].size, _CHUNK):
        old_chunk, new_chunk = (array[start : start + _CHUNK].astype(np.float64) for array in flat)
        yield old_chunk, new_chunk
