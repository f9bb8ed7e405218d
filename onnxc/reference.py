"""What a model is judged against. In: the session of a reference, samples. Out: the Quality of any other session."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxc.differences import Tally, summary, unfitted_sqnr
from onnxc.parts import Loudness, Parts
from onnxc.quality import Quality

if TYPE_CHECKING:
    from onnxc.data import Calibration, Sample
    from onnxc.session import Session

_SPILL_BYTES = 256 << 20


class ReferenceOutputs:
    """The outputs of the reference, computed once, against which any number of candidates is judged.

    Args:
        session: the reference.
        samples: re-iterable; read again, one at a time, for every candidate.
        answers: output name -> axis of its class scores, as answers.class_scores() finds them.
        apart: positions of samples that nothing was fitted to: by what they show the outputs must be as good.
        parts: what the outputs join: parts that are not heard beside louder ones are judged as outputs.

    ``hears`` tells whether any output is a float tensor, in which roundings are heard in proportion: labels alone jump,
    or do not. Outputs stay in memory up to 256 MB, then go to temporary files.
    """

    def __init__(
        self,
        session: Session,
        samples: Calibration | Sequence[Sample],
        answers: Mapping[str, int | None] | None = None,
        apart: Collection[int] = (),
        parts: Parts | None = None,
    ) -> None:
        self.apart, self.parts = frozenset(apart), parts
        self.names = [each.name for each in session.outputs]
        self.inputs = [each.name for each in session.inputs]
        self.answers = dict(answers or {})
        self.hears = False
        self.samples = samples
        self._folder: Path | None = None
        self._kept: list[list[list[np.ndarray | Path]]] = []
        self._files = held = 0
        loudness = None if parts is None or not parts.leaves else Loudness(parts)
        for sample in samples:
            results = session.run(sample)
            self.hears |= any(getattr(value, "dtype", np.dtype(object)).kind == "f" for value in results.values())
            arrays = [as_arrays(results[name]) for name in self.names]
            held += sum(array.nbytes for each in arrays for array in each)
            spill = held > _SPILL_BYTES
            self._kept.append([[self._spill(a) if spill else a for a in each] for each in arrays])
            if loudness is not None:
                loudness.add(sample, results)
        self.quiet = [] if loudness is None else loudness.quiet()
        self.shares: dict[str, float] = {}

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
        """The quality of ``session``'s outputs over all samples; matched by name, else by position.

        What the samples kept apart show counts for all of them: their noise is divided by the share that they have of
        the signal, or of noise that was fitted to nothing, where that is more (see hear()).
        """
        pairs = self._tallies(session)
        quality = summary(every for every, _ in pairs)
        if self.apart and not quality.problem:
            lower = min((unfitted_sqnr(*pair, self.shares.get(pair[0].name, 0.0)) for pair in pairs), default=np.inf)
            if lower < quality.sqnr_db:
                quality.fitted, quality.sqnr_db = quality.sqnr_db - lower, lower
        return quality

    def hear(self, session: Session) -> None:
        """Learn how hard the samples kept apart are, from outputs with noise that was fitted to no sample."""
        pairs = self._tallies(session) if self.apart else []
        self.shares = {every.name: kept.noise / every.noise for every, kept in pairs if every.noise > 0}

    def _tallies(self, session: Session) -> list[tuple[Tally, Tally]]:
        """For every output and part: over all samples, and over those kept apart."""
        names = match([each.name for each in session.outputs], self.names)
        tallies = [Tally(name, name in self.answers, self.answers.get(name)) for name in self.names]
        others = [Tally(name, False, None) for name in self.names]
        heard = [_Part(self.parts, name, group) for name, group in self.quiet if self.parts is not None]
        for position, (sample, kept) in enumerate(zip(self.samples, self._kept, strict=True)):
            results = session.run(rename(sample, self.inputs, [each.name for each in session.inputs]))
            for tally, other, new_name, parts in zip(tallies, others, names, kept, strict=True):
                if new_name is None:
                    tally.problem = f"output '{tally.name}' is missing"
                    continue
                old, new = [_opened(part) for part in parts], as_arrays(results[new_name])
                tally.add(old, new)
                if position in self.apart:
                    other.add(old, new)
                for part in heard:
                    if part.output == tally.name and not tally.problem:
                        part.add(sample, old, new, apart=position in self.apart)
        return [*zip(tallies, others, strict=True), *((part.every, part.apart) for part in heard)]


class _Part:
    """Running sums over a part of an output: of all samples, and of those kept apart."""

    def __init__(self, parts: Parts, output: str, group: Sequence[int]) -> None:
        self.parts, self.output, self.group = parts, output, group
        self.every, self.apart = (Tally(parts.called(output, group), False, None) for _ in range(2))

    def add(self, sample: Sample, old: list[np.ndarray], new: list[np.ndarray], *, apart: bool) -> None:
        """One sample's value of the whole output."""
        mask = self.parts.mask(sample, self.output, self.group)
        if len(old) == 1 and old[0].shape == mask.shape:
            for tally in (self.every, self.apart)[: 1 + apart]:
                tally.add([old[0][mask]], [new[0][mask]])


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


def as_arrays(value: Any) -> list[np.ndarray]:
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
            return [part for each in value for key in sorted(each, key=str) for part in as_arrays(each[key])]
        return [part for each in value for part in as_arrays(each)]
    return [np.asarray(value)]


def _opened(part: np.ndarray | Path) -> np.ndarray:
    return np.load(part, mmap_mode="r") if isinstance(part, Path) else part
