"""Time and memory, measured so that a busy machine does not decide.

In: two things that run, a profile, or a file to load. Out: ratios with their spread, kernel times, load cost.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import get_clock_info, perf_counter, thread_time
from typing import Any

import numpy as np

_MOST_ROUNDS = 41
FINE = 1e-6  # seconds: the resolution of a clock that can time a kernel
_ROUND_SECONDS = 0.01  # a shorter round says more about the clock and the scheduler than about the model
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})


@dataclass(frozen=True)
class Ratio:
    """How much faster B is than A: time of A / time of B, above 1 when B is faster.

    median, low (10th percentile) and high (90th) are over rounds of interleaved runs; seconds_a and seconds_b
    are per run, mean over the samples and median over the rounds.
    """

    median: float
    low: float
    high: float
    seconds_a: float
    seconds_b: float


@dataclass(frozen=True)
class KernelTime:
    """Time of one node of the optimized graph: seconds per run of the model, and how often it was called in
    all runs counted. Nodes in the bodies of control flow are not included in it: they have their own entry.
    """

    node: str
    op: str
    seconds: float
    calls: int


@dataclass(frozen=True)
class LoadCost:
    """Creating a session in a fresh process: seconds (best of three, or of twenty where they take little; file cached),
    and by how many bytes the first one raised the peak of resident memory (None where the system does not tell).
    """

    seconds: float
    peak_bytes: int | None


def interleaved_ratio(
    pairs: Sequence[tuple[Callable[[], object], Callable[[], object]]],
    *,
    rounds: int = 7,
    seconds: float = 2.0,
    decide: float | None = None,
    clock: Callable[[], float] | None = None,
) -> Ratio:
    """Times A against B: A,B and B,A in turn, so that what else the machine does hits both alike.

    Args:
        pairs: for each sample, a call of A and a call of B.
        rounds: how many rounds at least (fewer if they took over twice ``seconds``).
        seconds: how long in all, about; more rounds are run while there is time.
        decide: a ratio that matters to the caller: from the fifth round on, stop as soon as low and high are
            on the same side of it.
        clock: what a run takes is read from, in seconds; None: the wall's, which tells how long all of it may take.
    """
    if not pairs:
        raise ValueError("interleaved_ratio needs at least one sample")
    start, clock = perf_counter(), clock or perf_counter
    first = pairs[0]
    cost = _timed(first[0], clock) + _timed(first[1], clock)
    if cost < seconds:  # the first run allocates
        cost = min(cost, _timed(first[0], clock) + _timed(first[1], clock))
    costs = [cost]  # samples of different shapes may take very different times
    for a, b in pairs[1:]:
        if sum(costs) > seconds / 4:
            break
        costs.append(_timed(a, clock) + _timed(b, clock))
    cost = sum(costs) / len(costs)
    fewest = 4 if cost < seconds / 4 else 1  # a model that runs for seconds is steady enough on one sample
    keep = max(fewest, int(seconds / (max(rounds, 1) * max(cost, 1e-7))))
    if keep < len(pairs):  # too long: fewer samples, evenly spread, rather than fewer rounds
        pairs = [pairs[(2 * i + 1) * len(pairs) // (2 * keep)] for i in range(keep)]
    passes = max(1, min(64, int(_ROUND_SECONDS / (cost * len(pairs) + 1e-9))))
    ratios: list[float] = []
    times: list[tuple[float, float]] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(ratios) < _MOST_ROUNDS:
            spent = perf_counter() - start
            if (len(ratios) >= rounds and spent > seconds) or (len(ratios) >= 3 and spent > 2 * seconds):
                break
            time_a = time_b = 0.0
            for turn in range(passes * len(pairs)):
                a, b = pairs[turn % len(pairs)]
                if (turn + turn // len(pairs) + len(ratios)) % 2:
                    time_b += _timed(b, clock)
                    time_a += _timed(a, clock)
                else:
                    time_a += _timed(a, clock)
                    time_b += _timed(b, clock)
            ratios.append(time_a / max(time_b, 1e-12))
            times.append((time_a / (passes * len(pairs)), time_b / (passes * len(pairs))))
            if decide is not None and len(ratios) >= 5:
                low, high = np.percentile(ratios, (10, 90))
                if low > decide or high < decide:
                    break
    finally:
        if collecting:
            gc.enable()
    low, high = np.percentile(ratios, (10, 90))
    return Ratio(median(ratios), float(low), float(high), median(a for a, _ in times), median(b for _, b in times))


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def clock_of(providers: Sequence[str], threads: int) -> Callable[[], float]:
    """What a run is timed with. With one thread on the CPU all of it happens in the thread that calls: its own time
    leaves out what other programs take in between. Elsewhere, or where that clock is coarse, the wall's.
    """
    alone = threads == 1 and tuple(providers) == ("CPUExecutionProvider",)
    return thread_time if alone and get_clock_info("thread_time").resolution < FINE else perf_counter


def kernel_times(events: Sequence[Mapping[str, Any]], warmup: int = 1) -> list[KernelTime]:
    """Sums up the events of a profile, without the first ``warmup`` runs when there are more.

    seconds is the interquartile mean over the runs in which a node ran, times the share of the runs in which
    it did: a profile counts whole microseconds, of which a median would keep only the nearest.
    """
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
    runs = runs[warmup:] if len(runs) > warmup else runs
    found = [e for e in events if e.get("cat") == "Node" and str(e.get("name", "")).endswith("_kernel_time")]
    found.sort(key=lambda e: (e["ts"], -e["dur"]))
    own = [float(e["dur"]) for e in found]
    parents: list[int] = []  # control flow whose body is being walked: its time contains its children's
    for index, event in enumerate(found):
        while parents and found[parents[-1]]["ts"] + found[parents[-1]]["dur"] <= event["ts"]:
            parents.pop()
        if parents:
            own[parents[-1]] -= event["dur"]
        if event["args"].get("op_name") in _CONTROL_FLOW:
            parents.append(index)
    sums: dict[tuple[str, str], dict[int, float]] = {}
    calls: Counter[tuple[str, str]] = Counter()
    run = 0
    for event, microseconds in zip(found, own, strict=True):
        while run < len(runs) and event["ts"] > runs[run][1]:
            run += 1
        if run == len(runs) or event["ts"] < runs[run][0]:
            continue  # a warm-up run
        key = (event["name"].removesuffix("_kernel_time"), str(event["args"].get("op_name", "")))
        in_run = sums.setdefault(key, {})
        in_run[run] = in_run.get(run, 0.0) + max(microseconds, 0.0)
        calls[key] += 1
    return [
        KernelTime(node, op, _middle_mean(list(in_run.values())) * len(in_run) / len(runs) * 1e-6, calls[node, op])
        for (node, op), in_run in sums.items()
    ]


def _middle_mean(values: Sequence[float]) -> float:
    """The mean of the middle half."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return sum(middle) / len(middle)


# What tells the GNU C library to keep memory that was freed; others do not read it.
KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 28)}

_CHILD = """
import json, statistics, sys, time
import numpy, onnxruntime
job = json.loads(sys.argv[1])
def status(key):
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
    except (OSError, StopIteration):
        return None
def peak():
    high = status("VmHWM:")
    if high is None:
        try:
            import resource
        except ImportError:
            return None
        high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return high
def load(path):
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = job["threads"]
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, job["level"])
    for library in job["custom_ops"]:
        settings.register_custom_ops_library(library)
    start, busy = time.perf_counter(), time.process_time()
    providers = job["providers"]
    session = onnxruntime.InferenceSession(path, settings, providers=providers, enable_fallback=0)
    # what other processes take of the machine must not count: the file is in memory, so nothing is waited for
    return min(time.perf_counter() - start, max(time.process_time() - busy, 1e-6)), session
for path in job["paths"]:
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass
try:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
except OSError:
    pass
before = peak()
first, session = load(job["paths"][0])
after = peak()
times = [[first], *([] for path in job["paths"][1:])]
del session
while first < 5 and (len(times[-1]) < 3 or (len(times[-1]) < 20 and sum(times[-1]) < 0.15 * len(times))):
    for path, found in zip(job["paths"], times):
        seconds, session = load(path)
        found.append(seconds)
        del session
# a processor's pace changes: the ratio of two loads behind each other does not
turns = list(zip(times[0][len(times) > 1:], *times[1:]))
ratios = [statistics.median(turn[at] / turn[0] for turn in turns) for at in range(len(times))]
best = min(turn[0] for turn in turns)
print(json.dumps([[best * ratio for ratio in ratios], None if before is None else max(after - before, 0)]))
"""


def child_load_costs(
    paths: Sequence[str], *, providers: Sequence[str], threads: int, level: str, custom_ops: Sequence[str]
) -> list[LoadCost] | str:
    """Loads models in turn in a fresh Python: of the first the least seconds, of others that times the median ratio of
    a turn. Memory is told of the first. The last line of its error when that fails.

    A fresh process because memory that this one has touched before would not count. Where models are loaded in turn it
    keeps the memory that it frees: whether the C library gives it back after a load, and the next one waits for it
    again, depends on the largest piece of it that any model asked for, and makes a factor of two.
    """
    job = {
        "paths": list(paths),
        "providers": list(providers),
        "threads": threads,
        "level": level,
        "custom_ops": list(custom_ops),
    }
    child = subprocess.run(  # -P: a module in the working directory must not shadow onnxruntime
        [sys.executable, "-P", "-W", "ignore", "-c", _CHILD, json.dumps(job)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(KEEPING if len(paths) > 1 else {})},
    )
    if child.returncode:
        lines = child.stderr.strip().splitlines()
        return lines[-1] if lines else f"the process ended with code {child.returncode}"
    seconds, peak = json.loads(child.stdout.strip().splitlines()[-1])
    return [LoadCost(each, None if place else peak) for place, each in enumerate(seconds)]
