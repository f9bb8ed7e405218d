"""Measured time, given back to sites. In: one model per compute mode, a sample. Out: seconds per site and mode.

The whole model is built once per mode and run under ONNX Runtime's profiler, whose kernels owners.py gives back to
sites. A profiler adds microseconds to every kernel, and more to a model of many small ones: so every variant is also
run without it, interleaved with the float model, and its kernels are reduced until they add up to what was measured.
Prices go to a file keyed by operator, shapes, mode, threads, ONNX Runtime version and processor, so that the same
prices give the same plan.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx

from onnxc.errors import DataError
from onnxc.model import Model
from onnxc.owners import Owners, owner_names, owners_of, stems
from onnxc.session import Options, Session, runtime_version
from onnxc.sites import Site, Sites

FLOAT = "float"
APART = "apart"  # the variant in which convolutions are int8 and the joints between them are not
KERNEL_OVERHEAD = 1e-6  # seconds of one more node: what breaks ties towards fewer islands
PROFILER_OVERHEAD = 4e-6  # the most that a profiler adds to a kernel; 1.5 to 3 were seen
SMALL_TENSOR = 1000  # elements: below it the time of a Q is that of any kernel
FEWEST_RUNS, MOST_RUNS = 7, 1000  # of two models in turn
Kernel = tuple[str, str]  # name of a node of the optimized graph, and its operator


def cpu_name() -> str:
    """The processor's model name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "flags")) and "flags" not in line:
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@dataclass
class PriceFile:
    """Prices that outlive a run."""

    path: Path
    entries: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path | None, *, fresh: bool = False) -> PriceFile:
        """The file at ``path``, by default in the user's cache folder; empty where there is none, or for ``fresh``.

        Raises DataError if it is not a price file.
        """
        place = Path(path) if path else default_path()
        entries: dict[str, float] = {}
        if place.exists() and not fresh:
            try:
                found = json.loads(place.read_text())
                entries = {str(key): float(value) for key, value in found["prices"].items()}
                if not all(0 <= value < np.inf for value in entries.values()):
                    raise ValueError
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                if path:
                    raise DataError(f"'{place}' is not a price file; delete it or name another one") from None
        return cls(place, entries)

    def save(self) -> None:
        """Write the file if anything is in it; a read-only cache folder is no reason to fail."""
        if not self.entries:
            return
        text = json.dumps({"prices": dict(sorted(self.entries.items()))}, indent=1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            partial.write_text(text)
            partial.replace(self.path)
        except OSError:
            return


def default_path() -> Path:
    """Where prices are kept when no file is named."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "onnxc" / "prices.json"


def site_key(site: Site, shapes: Mapping[str, tuple[int, ...]], mode: str, options: Options) -> str:
    """What a price depends on: operator, attributes, shapes, what follows, mode, and the machine."""
    attributes = sorted((k, str(v)) for k, v in site.node.attrs.items() if not hasattr(v, "nodes"))
    parts = [
        site.operator,
        str(attributes),
        str(site.weight.shape if site.weight else ""),
        str([shapes.get(t.name) for t in site.inputs]),
        "+".join(str(node.op) for node in site.tail),
        mode,
        f"{options.threads} threads",
        f"onnxruntime {runtime_version()}",
        cpu_name(),
    ]
    return " | ".join(parts)


def sample_shapes(sample: Mapping[str, np.ndarray]) -> str:
    """The shapes of a sample, as a part of a key."""
    return ",".join(f"{k}{list(np.shape(v))}" for k, v in sorted(sample.items()))


@dataclass
class Prices:
    """Seconds per run: ``sites[site name][mode]``, and the float model's total.

    Attributes:
        per_element, per_crossing: of entering or leaving an int8 island: a Q or DQ and the change of layout.
    """

    sites: dict[str, dict[str, float]]
    total: float
    per_element: float = 1e-9
    per_crossing: float = KERNEL_OVERHEAD

    def of(self, site: str, mode: str) -> float | None:
        return self.sites.get(site, {}).get(mode)

    def crossing(self, elements: int) -> float:
        """Seconds of a Q or DQ of so many elements."""
        return elements * self.per_element + self.per_crossing

    def crossings_times(self, factor: float) -> Prices:
        """The same with ``factor`` times dearer crossings."""
        return replace(self, per_element=self.per_element * factor, per_crossing=self.per_crossing * factor)

    def loose(self, site: str) -> float:
        """What a float joint costs beside an int8 convolution, with which it is not fused."""
        times = self.sites.get(site, {})
        return max(times.get(APART, 0.0) - times.get(FLOAT, 0.0), 0.0)


def measure(
    variants: Mapping[str, Callable[[], Model]],
    found: Sites,
    applied: Mapping[str, set[str]],
    sample: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    options: Options,
    prices: PriceFile,
    seconds: float = 2.0,
) -> Prices:
    """Seconds of every site in every mode it has a candidate for.

    Args:
        variants: mode -> builder of the model in which every candidate of the mode is applied; "float" is one.
        found: the sites, of the float model.
        applied: mode -> names of the sites that are changed in that variant; of "apart" those that are not.
        sample: one input; shapes: of the activations, for the key.
        prices: what is already known; it is filled.
        seconds: about how long to measure.
    """
    keys = {
        (
            site.name,
            mode,
        ): f"{site_key(site, shapes, mode, options)} | {sample_shapes(sample) if not shapes else ''}"
        for site in found
        for mode in variants
        if mode == FLOAT or site.name in applied[mode]
    }
    whole = [f"{what} {model_key(keys)}" for what in ("total", "per element", "per crossing")]
    if not all(key in prices.entries for key in (*keys.values(), *whole)):
        spent = profile(variants, found, sample, options, seconds)
        groups: dict[str, list[float]] = {}
        for (name, mode), key in keys.items():
            groups.setdefault(key, []).append(spent.sites[mode].get(name, 0.0))
        for key, values in groups.items():
            prices.entries[key] = float(np.mean(values))
        line = crossing_line(spent.crossings, shapes) or (boundary_price(prices, options), KERNEL_OVERHEAD)
        prices.entries |= dict(zip(whole, (spent.total, *line), strict=True))
    sites: dict[str, dict[str, float]] = {}
    for (name, mode), key in keys.items():
        sites.setdefault(name, {})[mode] = prices.entries[key]
    return Prices(sites, *(prices.entries[key] for key in whole))


def speed_up(
    model: Model,
    built: Model,
    sample: Mapping[str, np.ndarray],
    options: Options,
    prices: PriceFile,
    key: str,
    seconds: float = 1.0,
) -> float:
    """Interleaved ratio of ``model`` to ``built`` on one sample; from the price file where ``key`` is known."""
    entry = f"ratio of a plan {key}"
    if entry not in prices.entries:
        first, second = Session(model, options), Session(built, options)
        prices.entries[entry] = np.divide(*raced(first, second, sample, seconds)).item()
    return prices.entries[entry]


def model_key(keys: Mapping[tuple[str, str], str]) -> str:
    """A short name of a set of prices, for what belongs to the whole model."""
    return hashlib.sha256("\n".join(sorted(keys.values())).encode()).hexdigest()[:16]


def crossing_line(
    crossings: Mapping[tuple[str, str], float], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[float, float] | None:
    """(seconds per element, seconds per crossing) through what was measured in the model, both at least 0, and so that
    all of them together cost what they did; None where nothing crosses. Least squares, weighted by size.
    """
    rows = []
    for (_, name), seconds in sorted(crossings.items()):
        tensor = next((stem for stem in stems(name) if stem in shapes), None)
        if tensor is not None:
            rows.append((float(np.prod(shapes[tensor], initial=1.0)), seconds))
    if not rows or not sum(seconds for _, seconds in rows):
        return None
    elements, times = np.array(rows).T
    weight = 1 / np.sqrt(elements + SMALL_TENSOR)
    slope, constant = np.linalg.lstsq(
        np.stack([elements, np.ones_like(elements)], 1) * weight[:, None], times * weight
    )[0]
    if slope < 0 or constant < 0:  # one of the two alone
        slope, constant = (0.0, 1.0) if slope < 0 else (1.0, 0.0)
    scale = float(times.sum() / (slope * elements + constant).sum())
    return float(slope) * scale, max(float(constant) * scale, 0.1 * KERNEL_OVERHEAD)


def boundary_price(prices: PriceFile, options: Options) -> float:
    """Seconds per element of entering or leaving an int8 island: a Q or DQ and the change of layout."""
    key = f"boundary | {options.threads} threads | onnxruntime {runtime_version()} | {cpu_name()}"
    if key not in prices.entries:
        shape = [1, 64, 56, 56]
        make = onnx.helper
        graph = make.make_graph(
            [
                make.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], name="codes"),
                make.make_node("Transpose", ["codes"], ["moved"], name="moved", perm=[0, 2, 3, 1]),
            ],
            "boundary",
            [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [make.make_tensor_value_info("moved", onnx.TensorProto.UINT8, [1, 56, 56, 64])],
            [
                onnx.numpy_helper.from_array(np.array(0.02, np.float32), "scale"),
                onnx.numpy_helper.from_array(np.array(0, np.uint8), "zero"),
            ],
        )
        model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
        session = Session(model, options, profile=True)
        values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for _ in range(20):
            session.run({"x": values})
        spent = sum(kernel.seconds for kernel in session.end_profile(warmup=3))
        prices.entries[key] = spent / values.size
    return prices.entries[key]


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
    loops = any(node.bodies() for node in model.nodes() if node.attrs)
    most = 10 if loops else 100  # a profile has an entry per kernel call, in loops per turn
    names = owner_names(model, found)
    reference, plain, owners = profiled(model, sample, options, seconds / len(variants), most, names)
    spent = Spent(min(raced(reference, reference, sample, seconds / 2)))
    plain = corrected(plain, spent.total)
    spent.sites[FLOAT] = shared(plain, owners.sites)
    for mode, build in variants.items():
        if mode == FLOAT:
            continue
        session, kernels, own = profiled(build(), sample, options, seconds / len(variants), most, names)
        before, after = raced(reference, session, sample, seconds / 2)
        del session
        kernels = corrected(kernels, spent.total * after / before)
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
