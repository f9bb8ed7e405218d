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
SECONDS = 10.0  # for all models of a task
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
    """How many times as fast as ``original`` each of ``others`` is, each with the original in turn.

    Two at a time: a model of ten microseconds that is 1.00 times as fast beside the original alone was 1.46 times as
    fast among four models in turn, and 0.71 times among twenty-five.
    """
    return {name: pair(original, other, samples, SECONDS / len(others)) for name, other in others.items()}


def pair(original: Path, other: Path, samples: Sequence[Sample], seconds: float) -> dict[str, float]:
    """How many times as fast as ``original`` another model is, both interleaved in this process.

    A round runs both sessions once over all samples, in an order that changes; its ratio is the median over the
    samples of the original's time over the other's, so that a run which the system interrupted does not count.
    Given are the median of the rounds' ratios, and their 10th and 90th percentile.
    """
    sessions = [open_session(original), open_session(other)]
    for session in sessions:
        one_round(session, samples[:3])
    ratios: list[float] = []
    milliseconds: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(ratios) < ROUNDS or time.perf_counter() - start < seconds:
        turn = len(ratios) % 2
        taken = [one_round(session, samples) for session in (sessions[::-1] if turn else sessions)]
        before, after = taken[::-1] if turn else taken
        ratios.append(statistics.median(a / b for a, b in zip(before, after, strict=True)))
        for kept, each in zip(milliseconds, (before, after), strict=True):
            kept.append(1000 * statistics.median(each))
    return {
        "speed": statistics.median(ratios),
        "low": float(np.percentile(ratios, 10)),
        "high": float(np.percentile(ratios, 90)),
        "milliseconds": statistics.median(milliseconds[1]),
        "milliseconds_original": statistics.median(milliseconds[0]),
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
