"""Speed, size and score of several models that answer the same task. In: files and samples. Out: figures.

Plain onnxruntime, nothing of onnxc: a judge should not come from the judged.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ROUNDS = 15
SECONDS = 4.0

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
