"""How far one model's outputs are from another's.

In: two sessions and samples. Out: Quality, and the sentence of a quality floor that is missed.

Per output: SQNR = 10 log10(sum ref^2 / sum (ref - new)^2), in float64 over all samples, at most 200 dB.
An output that is zero everywhere in the reference is held against an absolute scale of 1. Where the reference
is not finite the other must hold the same NaN or infinity. Class scores are judged by their top-1 answers.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxc.data import Calibration, Sample
    from onnxc.recipe import Budget
    from onnxc.session import Session

HIGHEST_SQNR_DB = 200.0
"""Equal outputs have no noise; this stands for them."""
FLOOR_SQNR_DB = 20.0
"""Default of --min-sqnr when no hook judges the model."""
FLOOR_SQNR_WITH_HOOK_DB = 10.0
"""The same with a hook: the user's metric decides, this only stops nonsense."""
FLOOR_DROP = 0.01
"""Default of --max-drop."""
FLOOR_CHANGED = 0.02
"""Largest share of changed top-1 answers by default; one changed answer is always allowed."""

FITTED_DB = 0.5  # worth a word: less is chance
_SPILL_BYTES = 256 << 20
_CHUNK = 1 << 20  # elements turned into float64 at a time


@dataclass(frozen=True)
class OutputError:
    """How one output differs over all samples.

    Attributes:
        sqnr_db: signal to quantization noise ratio; None for indices, labels, booleans and strings.
        max_error, mean_error: of |ref - new| over the finite entries; None as sqnr_db.
        cosine: similarity of all entries taken as one vector; None as sqnr_db.
        equal: fraction of equal entries; None for quantities.
        top1_agreement: fraction of unchanged answers; None when the output is not judged by answers.
        is_class_scores: whether its largest entry is an answer.
        samples, changed, judged: samples compared; answers that changed, out of those judged.
        problem: what makes the outputs incomparable, None if nothing does.
    """

    name: str
    sqnr_db: float | None
    max_error: float | None
    mean_error: float | None
    cosine: float | None
    equal: float | None
    top1_agreement: float | None
    is_class_scores: bool
    samples: int
    changed: int = 0
    judged: int = 0
    problem: str | None = None


@dataclass
class Quality:
    """The differences of all outputs.

    Attributes:
        outputs: one entry per output of the reference.
        sqnr_db: of the worst float output; 200 when no output is float, -inf when one cannot be compared. Over all
            samples, or over those kept apart where it is lower.
        fitted: how many dB it is lower over the samples kept apart than over all: what was fitted to the others.
        agreement: of the output with most changed answers; None when no output is judged by answers.
        changed, judged: the answers of that output.
        problem: the first thing that makes outputs incomparable.
    """

    outputs: list[OutputError] = field(default_factory=list)
    sqnr_db: float = HIGHEST_SQNR_DB
    agreement: float | None = None
    changed: int = 0
    judged: int = 0
    problem: str | None = None
    fitted: float = 0.0

    @property
    def has_floats(self) -> bool:
        """Whether any output is a quantity, so that sqnr_db says something."""
        return any(each.sqnr_db is not None for each in self.outputs)

    @property
    def worst(self) -> str:
        """The name of the float output with the lowest SQNR; empty when there is none."""
        floats = [(each.sqnr_db, each.name) for each in self.outputs if each.sqnr_db is not None]
        return min(floats)[1] if floats else ""


class ReferenceOutputs:
    """The outputs of the reference, computed once, against which any number of candidates is judged.

    Args:
        session: the reference.
        samples: re-iterable; read again, one at a time, for every candidate.
        answers: output name -> axis of its class scores, as answers.class_scores() finds them.
        apart: positions of samples that nothing was fitted to: on them alone the outputs must be as good.

    Outputs stay in memory up to 256 MB, then go to temporary files.
    """

    def __init__(
        self,
        session: Session,
        samples: Calibration | Sequence[Sample],
        answers: Mapping[str, int | None] | None = None,
        apart: Collection[int] = (),
    ) -> None:
        self.apart = frozenset(apart)
        self.names = [each.name for each in session.outputs]
        self.inputs = [each.name for each in session.inputs]
        self.answers = dict(answers or {})
        self.samples = samples
        self._folder: Path | None = None
        self._kept: list[list[list[np.ndarray | Path]]] = []
        self._files = held = 0
        for sample in samples:
            results = session.run(sample)
            parts = [_parts(results[name]) for name in self.names]
            held += sum(array.nbytes for each in parts for array in each)
            spill = held > _SPILL_BYTES
            self._kept.append([[self._spill(a) if spill else a for a in each] for each in parts])

    def __len__(self) -> int:
        return len(self._kept)

    def _spill(self, array: np.ndarray) -> np.ndarray | Path:
        if array.dtype.kind in "OV" or array.nbytes < 1 << 12:
            return array
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="onnxc-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._files += 1
        path = self._folder / f"{self._files}.npy"
        np.save(path, array)
        return path

    def judge(self, session: Session) -> Quality:
        """The quality of ``session``'s outputs over all samples; matched by name, else by position."""
        names = match([each.name for each in session.outputs], self.names)
        tallies = [_Tally(name, name in self.answers, self.answers.get(name)) for name in self.names]
        others = [_Tally(name, False, None) for name in self.names]
        for position, (sample, kept) in enumerate(zip(self.samples, self._kept, strict=True)):
            results = session.run(rename(sample, self.inputs, [each.name for each in session.inputs]))
            for tally, other, new_name, parts in zip(tallies, others, names, kept, strict=True):
                if new_name is None:
                    tally.problem = f"output '{tally.name}' is missing"
                    continue
                old, new = [_opened(part) for part in parts], _parts(results[new_name])
                tally.add(old, new)
                if position in self.apart:
                    other.add(old, new)
        quality = summary(tallies)
        if self.apart and (lower := summary(others).sqnr_db) < quality.sqnr_db:
            quality.fitted, quality.sqnr_db = quality.sqnr_db - lower, lower
        return quality


class _Tally:
    """Running sums over one output."""

    def __init__(self, name: str, is_answer: bool, axis: int | None) -> None:
        self.name, self.is_answer, self.axis = name, is_answer, axis
        self.samples = self.entries = self.equal = self.discrete = self.changed = self.judged = 0
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
        numeric = self.entries > 0 or not self.discrete
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


def summary(tallies: Iterable[_Tally]) -> Quality:
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


def floor_met(
    quality: Quality,
    budget: Budget,
    *,
    generated: bool,
    score: tuple[float, float] | None = None,
) -> str | None:
    """None, or the sentence that says which quality floor is missed.

    Args:
        quality: what ReferenceOutputs.judge() found.
        budget: the user's limits, which replace the defaults.
        generated: the samples were generated: top-1 answers on them are not judged unless asked for.
        score: (reference, new) of the evaluation hook, if there is one.
    """
    if quality.problem:
        return quality.problem
    lowest = budget.min_sqnr
    if lowest is None:
        lowest = FLOOR_SQNR_DB if score is None else FLOOR_SQNR_WITH_HOOK_DB
    if quality.sqnr_db < lowest:
        where = "" if quality.fitted < FITTED_DB else " on samples that nothing was fitted to"
        return f"output '{quality.worst}' has an SQNR of {quality.sqnr_db:.1f} dB{where}, below {lowest:g} dB"
    if score is not None:
        allowed_drop = FLOOR_DROP if budget.max_drop is None else budget.max_drop
        drop = relative_drop(*score)
        if drop > allowed_drop + 1e-12:
            fell = f"the score fell from {score[0]:.6g} to {score[1]:.6g}, by {drop:.2%}"
            return f"{fell}; at most {100 * allowed_drop:g} % is allowed"
    if not quality.judged:
        return None
    if budget.min_agreement is not None:
        allowed = int((1 - budget.min_agreement) * quality.judged + 1e-9)
    elif score is not None or (generated and quality.has_floats):
        return None
    else:
        allowed = max(1, int(FLOOR_CHANGED * quality.judged))
    if quality.changed > allowed:
        return f"{quality.changed} of {quality.judged} top-1 answers changed, more than the {allowed} allowed"
    return None


def relative_drop(reference: float, new: float) -> float:
    """(reference - new) / |reference|, at least 0: a score above the original's counts as the original's."""
    return max(0.0, (reference - new) / abs(reference))


def match(names: Sequence[str], wanted: Sequence[str]) -> list[str | None]:
    """For each of ``wanted`` the same name in ``names``; by position if none is the same and counts agree."""
    if not set(names) & set(wanted) and len(names) == len(wanted):
        return list(names)
    return [name if name in names else None for name in wanted]


def rename(sample: Sample, wanted: Sequence[str], names: Sequence[str]) -> Sample:
    """``sample`` for a model whose inputs are called ``names``, where the reference calls them ``wanted``."""
    if set(wanted) == set(names) or len(wanted) != len(names) or set(wanted) & set(names):
        return sample
    renamed = dict(zip(wanted, names, strict=True))
    return {renamed.get(name, name): array for name, array in sample.items()}


def _parts(value: Any) -> list[np.ndarray]:
    """An output as arrays: a sequence gives several, a list of maps its keys and a matrix [rows, keys]."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list | tuple):
        if value and all(isinstance(each, Mapping) for each in value):
            keys = sorted(value[0], key=str)
            if all(set(each) == set(keys) for each in value):
                return [
                    np.array([str(key) for key in keys]),
                    np.array([[each[key] for key in keys] for each in value]),
                ]
            return [part for each in value for key in sorted(each, key=str) for part in _parts(each[key])]
        return [part for each in value for part in _parts(each)]
    return [np.asarray(value)]


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


def _opened(part: np.ndarray | Path) -> np.ndarray:
    return np.load(part, mmap_mode="r") if isinstance(part, Path) else part
