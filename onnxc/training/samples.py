"""Samples with what the teacher answers to them, in batches. In: calibration data and a session. Out: batches.

Arrays stay in memory up to a limit, then they are mapped from a temporary folder.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from onnxc.data import Sample
from onnxc.training.operators.table import from_numpy

MEMORY = 256 << 20  # bytes of arrays held; more goes to disk
Arrays = Mapping[str, np.ndarray]


class Shelf:
    """A list of dicts of arrays that does not grow in memory."""

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory
        self.held = 0
        self.folder: Path | None = None
        self._rows: list[dict[str, np.ndarray]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Arrays:
        return self._rows[index]

    def append(self, arrays: Arrays) -> None:
        """Keep one more dict."""
        self._rows.append({name: self._kept(np.asarray(array)) for name, array in arrays.items()})

    def _kept(self, array: np.ndarray) -> np.ndarray:
        self.held += array.nbytes
        if self.held <= self.memory or array.nbytes < 1 << 12:
            return array
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="onnxc-"))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        path = self.folder / f"{len(list(self.folder.iterdir()))}.npy"
        np.save(path, array)
        mapped: np.ndarray = np.load(path, mmap_mode="r")
        return mapped


def split(count: int, seed: int, share: float = 0.125) -> tuple[list[int], list[int]]:
    """Numbers of the samples to learn from, and of those held back: an eighth, at least one where there are two."""
    order = np.random.default_rng(seed).permutation(count)
    kept = min(max(round(count * share), 1), count - 1) if count > 1 else 0
    held = sorted(int(each) for each in order[:kept])
    chosen = sorted(int(each) for each in order[kept:])
    return chosen, held or chosen


def shapes(arrays: Arrays) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What must be equal for two samples to be joined."""
    return tuple(sorted((name, tuple(np.shape(array))) for name, array in arrays.items()))


def batches(rows: Shelf, numbers: Sequence[int], size: int, order: Sequence[int] | None = None) -> list[list[int]]:
    """``numbers`` in batches of samples of one shape, in the order given or as they are."""
    groups: dict[object, list[int]] = defaultdict(list)
    found: list[list[int]] = []
    for number in order if order is not None else numbers:
        group = groups[shapes(rows[number])]
        group.append(number)
        if len(group) == size:
            found.append(list(group))
            group.clear()
    return found + [group for group in groups.values() if group]


def joined(rows: Iterable[Arrays]) -> dict[str, torch.Tensor]:
    """Samples as one, along the first axis; a single one as it is."""
    rows = list(rows)
    if len(rows) == 1:
        return {name: from_numpy(array) for name, array in rows[0].items()}
    return {name: from_numpy(np.concatenate([row[name] for row in rows])) for name in rows[0]}


def plain(sample: Sample, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The inputs of a sample that a model has."""
    wanted = set(names)
    return {name: np.asarray(array) for name, array in sample.items() if name in wanted}
