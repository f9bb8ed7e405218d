"""Speed and score of models that answer the same task. In: files and samples. Out: a JSON file of figures.

    python measure.py score OUT.json SAMPLES/ JUDGE MODEL.onnx ORIGINAL.onnx
    python measure.py speeds OUT.json SAMPLES/ ORIGINAL.onnx NAME=MODEL.onnx ...

run.py starts it as a process of its own: a model that crashes ONNX Runtime costs a row. Plain onnxruntime, nothing
of onnxc: a judge should not come from the judged.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ROUNDS = 15
SECONDS = 4.0
SAMPLES = 16

Sample = Mapping[str, np.ndarray]


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """One thread on the CPU, all of ONNX Runtime's optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def one_round(session: Any, samples: Sequence[Sample]) -> list[float]:
    """Seconds of each sample, one after the other."""
    seconds = []
    for sample in samples:
        start = time.perf_counter()
        session.run(None, sample)
        seconds.append(time.perf_counter() - start)
    return seconds


def speeds(original: Path, others: Mapping[str, Path], samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """How many times as fast as ``original`` each of ``others`` is, all of them interleaved in this process.

    A round runs every session once over all samples, in an order that rotates; its ratio is the median over
    the samples of the original's time over the other's, so that a run which the system interrupted does not
    count. Given are the median of the rounds' ratios, and their 10th and 90th percentile.
    """
    sessions = {"": open_session(original), **{name: open_session(path) for name, path in others.items()}}
    for session in sessions.values():
        one_round(session, samples[:3])
    names = list(sessions)
    ratios: dict[str, list[float]] = {name: [] for name in others}
    milliseconds: dict[str, list[float]] = {name: [] for name in names}
    start, rounds = time.perf_counter(), 0
    while rounds < ROUNDS or time.perf_counter() - start < SECONDS:
        turn = rounds % len(names)
        order = names[turn:] + names[:turn]
        taken = {name: one_round(sessions[name], samples) for name in (order if rounds % 2 else order[::-1])}
        for name in others:
            ratios[name].append(statistics.median(a / b for a, b in zip(taken[""], taken[name], strict=True)))
        for name in names:
            milliseconds[name].append(1000 * statistics.median(taken[name]))
        rounds += 1
    return {
        name: {
            "speed": statistics.median(found),
            "low": float(np.percentile(found, 10)),
            "high": float(np.percentile(found, 90)),
            "milliseconds": statistics.median(milliseconds[name]),
            "milliseconds_original": statistics.median(milliseconds[""]),
        }
        for name, found in ratios.items()
    }


def samples_of(folder: Path) -> list[Sample]:
    """The first few of a folder's samples."""
    found: list[Sample] = []
    for path in sorted(folder.glob("*.npz"))[:SAMPLES]:
        with np.load(path) as archive:
            found.append({name: archive[name] for name in archive.files})
    return found


def main() -> None:
    """The command line."""
    what, out, folder, *rest = sys.argv[1:]
    samples = samples_of(Path(folder))
    if what == "score":
        from judge import decibels, judged  # which import this file

        judge, model, original = rest
        found: dict[str, Any] = judged(judge, Path(model), Path(original))
        found["decibels"] = decibels(Path(model), Path(original), samples)
    else:
        original, *others = rest
        pairs = (other.partition("=") for other in others)
        found = {"speeds": speeds(Path(original), {name: Path(path) for name, _, path in pairs}, samples)}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
