"""What every script of this folder is asked to do. In: its command line. Out: paths, a mode, and the samples.

    ENVIRONMENT/bin/python with_nncf.py MODE IN.onnx OUT.onnx SAMPLES/

Each script runs in the environment of the tool that it calls (environments.py), so it imports nothing of onnxc.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

Sample = dict[str, np.ndarray]


class Job(NamedTuple):
    """One compression: where the model is, where the result goes, and the folder of samples."""

    source: Path
    target: Path
    folder: Path

    def samples(self) -> Iterator[Sample]:
        """The calibration samples, input name to array, batch axis included."""
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path) as archive:
                yield {name: archive[name] for name in archive.files}

    def save(self, model: onnx.ModelProto) -> None:
        """Write the result as one file."""
        onnx.save(model, str(self.target))


class Reader:
    """Samples the way onnxruntime.quantization and the tools built on it ask for them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rewind()

    def get_next(self) -> Sample | None:
        """The next sample, None after the last."""
        return next(self.left, None)

    def get_first(self) -> Sample | None:
        """The first sample, wherever it stands."""
        return next(self.job.samples(), None)

    def rewind(self) -> None:
        """Start again."""
        self.left = self.job.samples()

    def __iter__(self) -> Iterator[Sample]:
        return self.job.samples()

    def __len__(self) -> int:
        return sum(1 for _ in self.job.folder.glob("*.npz"))


def main(modes: Mapping[str, Callable[[Job], Any]]) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=modes)
    for name in ("source", "target", "folder"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    modes[given.mode](Job(given.source, given.target, given.folder))
