"""The time of sites, in the model. In: one model per compute mode, a sample. Out: seconds per site and mode.

The whole model is built once per mode and run under ONNX Runtime's profiler, whose kernels owners.py gives back to
sites. A profiler adds microseconds to every kernel, and more to a model of many small ones: so every variant is also
run without it, interleaved with the float model, and its kernels are reduced until they add up to what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from onnxc.model import Model
from onnxc.owners import Owners, owner_names, owners_of
from onnxc.session import Options, Session
from onnxc.sites import Sites

FLOAT = "float"  # the mode of the model as it is
PROFILER_OVERHEAD = 4e-6  # the most that a profiler adds to a kernel; 1.5 to 3 were seen
FEWEST_RUNS, MOST_RUNS = 7, 1000  # of two models in turn
Kernel = tuple[str, str]  # name of a node of the optimized graph, and its operator
Profile = Mapping[Kernel, tuple[float, float]]  # seconds and calls per run


@dataclass
class Spent:
    """Seconds per run, the profiler's own share taken out.

    Attributes:
        total: of the float model.
        sites: mode -> site name -> seconds. Kernels of no site that are others than in the float model are the
            site's before them.
        crossings: (mode, name of a Q or DQ) -> seconds, the changes of layout beside it included.
    """

    total: float
    sites: dict[str, dict[str, float]] = field(default_factory=dict)
    crossings: dict[tuple[str, str], float] = field(default_factory=dict)


def profile(
    variants: Mapping[str, Callable[[], Model]],
    found: Sites,
    sample: Mapping[str, np.ndarray],
    options: Options,
    seconds: float,
) -> Spent:
    """Run every variant under the profiler, then without it, interleaved with the float model. Two sessions live at a
    time: the float one, and one variant.
    """
    model = variants[FLOAT]()
    loops = any(node.bodies() for node in model.nodes() if node.attrs and node.op != "If")
    most = 10 if loops else 100  # a profile has an entry per kernel call, in loops per turn
    names = owner_names(model, found)
    reference, plain, owners = profiled(model, sample, options, seconds / len(variants), most, names)
    measured: dict[str, tuple[Profile, Owners, float]] = {}
    total = np.inf
    for mode, build in variants.items():
        if mode != FLOAT:
            session, kernels, own = profiled(build(), sample, options, seconds / len(variants), most, names)
            before, after = raced(reference, session, sample, seconds / 2)
            measured[mode], total = (kernels, own, after / before), min(total, before)
            del session
    spent = Spent(float(total) if measured else min(raced(reference, reference, sample, seconds / 2)))
    plain = corrected(plain, spent.total)
    spent.sites[FLOAT] = shared(plain, owners.sites)
    for mode, (seen, own, ratio) in measured.items():
        kernels = corrected(seen, spent.total * ratio)
        times = spent.sites[mode] = shared(kernels, own.sites)
        for here, there, sign in ((kernels, plain, 1), (plain, kernels, -1)):
            followers = (own if sign > 0 else owners).followers
            others = {node for node, op in here.keys() - there.keys() if node in followers}
            for site, value in shared({k: t for k, t in here.items() if k[0] in others}, followers).items():
                times[site] = max(times.get(site, 0.0) + sign * value, 0.0)
        spent.crossings |= {(mode, name): t for name, t in shared(kernels, own.crossings).items()}
    return spent


def raced(a: Session, b: Session, sample: Mapping[str, np.ndarray], seconds: float) -> tuple[float, float]:
    """Seconds per run of each, run in turn: the first quartile, for a run that was interrupted says nothing."""
    calls, times = [a.call(sample), b.call(sample)], np.zeros((2, MOST_RUNS))
    for call in calls:
        call()
    done, end = 0, perf_counter() + seconds
    while done < MOST_RUNS and (done < FEWEST_RUNS or perf_counter() < end):
        for index in ((0, 1), (1, 0))[done % 2]:
            start = a.clock()
            calls[index]()
            times[index, done] = a.clock() - start
        done += 1
    first, second = np.percentile(times[:, :done], 25, axis=1)
    return float(first), float(second)


def profiled(
    model: Model,
    sample: Mapping[str, np.ndarray],
    options: Options,
    seconds: float,
    most: int,
    names: Mapping[str, str],
) -> tuple[Session, dict[Kernel, tuple[float, float]], Owners]:
    """A session whose profile is over, (seconds, calls) per run of its kernels, and who owns them."""
    session = Session(model, options, profile=True, dump=True)
    session.run(sample)
    start = perf_counter()
    session.run(sample)
    runs = int(np.clip(seconds / max(perf_counter() - start, 1e-6), 5, most))
    for _ in range(runs):
        session.run(sample)
    owners = owners_of(session.optimized(), names)
    kernels: dict[Kernel, tuple[float, float]] = {}
    for kernel in session.end_profile(warmup=2):
        kernels[kernel.node, kernel.op] = kernel.seconds, kernel.calls / runs
    return session, kernels, owners


def corrected(kernels: Mapping[Kernel, tuple[float, float]], total: float) -> dict[Kernel, tuple[float, float]]:
    """``kernels`` so that they add up to ``total``, what the run takes without a profiler: what is over is taken off
    every call alike, at most PROFILER_OVERHEAD; what is left, of a machine more or less busy meanwhile, in proportion.
    """
    calls = sum(count for _, count in kernels.values())
    excess = sum(seconds for seconds, _ in kernels.values()) - total
    each = min(max(excess, 0.0) / max(calls, 1.0), PROFILER_OVERHEAD)
    less = {key: (max(seconds - each * count, 0.1 * seconds), count) for key, (seconds, count) in kernels.items()}
    scale = total / max(sum(seconds for seconds, _ in less.values()), 1e-9)
    return {key: (seconds * scale, count) for key, (seconds, count) in less.items()}


def shared(kernels: Mapping[Kernel, tuple[float, float]], owners: Mapping[str, str]) -> dict[str, float]:
    """Seconds by owner."""
    spent: dict[str, float] = {}
    for (node, _), (seconds, _) in kernels.items():
        if node in owners:
            spent[owners[node]] = spent.get(owners[node], 0.0) + seconds
    return spent
