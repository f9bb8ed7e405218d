"""Measured time, given back to sites. In: one model per compute mode, a sample. Out: seconds per site and mode.

The whole model is built once per mode and run interleaved with the others under ONNX Runtime's profiler. A kernel
belongs to the site whose node or tensor name its own name begins with (a fused kernel keeps the name of a part, new
nodes are named after what they replace); kernels that ONNX Runtime adds for layout belong to the site that reads them.
Prices go to a file keyed by operator, shapes, mode, threads, ONNX Runtime version and processor, so that the same
prices give the same plan.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from onnxc.errors import DataError
from onnxc.model import Model
from onnxc.session import Options, Session, runtime_version
from onnxc.sites import Site, Sites

BOUNDARY = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
FLOAT = "float"


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
    """Seconds per run: ``sites[site name][mode]``, and the float model's total."""

    sites: dict[str, dict[str, float]]
    total: float
    per_element: float = 1e-9

    def of(self, site: str, mode: str) -> float | None:
        return self.sites.get(site, {}).get(mode)


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
        applied: mode -> names of the sites that are changed in that variant.
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
    if not all(key in prices.entries for key in keys.values()) or "total " + model_key(keys) not in prices.entries:
        times = profile({mode: build() for mode, build in variants.items()}, found, sample, options, seconds)
        groups: dict[str, list[float]] = {}
        for (name, mode), key in keys.items():
            groups.setdefault(key, []).append(times[mode].get(name, 0.0))
        for key, values in groups.items():
            prices.entries[key] = float(np.mean(values))
        prices.entries["total " + model_key(keys)] = sum(times[FLOAT].values())
    sites: dict[str, dict[str, float]] = {}
    for (name, mode), key in keys.items():
        sites.setdefault(name, {})[mode] = prices.entries[key]
    return Prices(sites, prices.entries["total " + model_key(keys)], boundary_price(prices, options))


def model_key(keys: Mapping[tuple[str, str], str]) -> str:
    """A short name of a set of prices, for what belongs to the whole model."""
    return hashlib.sha256("\n".join(sorted(keys.values())).encode()).hexdigest()[:16]


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


def profile(
    variants: Mapping[str, Model],
    found: Sites,
    sample: Mapping[str, np.ndarray],
    options: Options,
    seconds: float,
) -> dict[str, dict[str, float]]:
    """Run the variants interleaved under the profiler; seconds per site, by mode. "" collects what has no owner."""
    from time import perf_counter

    sessions = {mode: Session(model, options, profile=True, dump=True) for mode, model in variants.items()}
    spent = 0.0
    for session in sessions.values():
        session.run(sample)
        start = perf_counter()
        session.run(sample)
        spent += perf_counter() - start
    loops = any(node.bodies() for model in variants.values() for node in model.nodes() if node.attrs)
    most = 10 if loops else 100  # a profile has an entry per kernel call, in loops per turn
    for _ in range(int(np.clip(seconds / max(spent, 1e-6), 5, most))):
        for session in sessions.values():
            session.run(sample)
    names = owner_names(variants[FLOAT], found)
    times: dict[str, dict[str, float]] = {}
    for mode, session in sessions.items():
        owners = owners_of(session.optimized(), names)
        spent_by: dict[str, float] = {}
        for kernel in session.end_profile(warmup=2):
            site = owners.get(kernel.node, "")
            spent_by[site] = spent_by.get(site, 0.0) + kernel.seconds
        times[mode] = spent_by
    return times


def owner_names(model: Model, found: Sites) -> dict[str, str]:
    """Node and tensor name -> name of the site that it is a part of, "" for the other nodes of ``model``."""
    names = {name: "" for node in model.nodes() for name in (node.name, *(t.name for t in node.outputs)) if name}
    for site in found:
        for node in (site.node, *site.tail):
            names[node.name] = site.name
            for tensor in node.outputs:
                names[tensor.name] = site.name
    return names


def owners_of(optimized: onnx.ModelProto, names: Mapping[str, str]) -> dict[str, str]:
    """Kernel name -> site name in the graph that ONNX Runtime runs. Q/DQ kernels belong to nobody."""
    owners: dict[str, str] = {}

    def walk(graph: onnx.GraphProto) -> None:
        readers: dict[str, str] = {}
        for node in reversed(graph.node):
            owner = named_owner([node.name, *node.output], names)
            if owner is None and node.op_type not in BOUNDARY:
                owner = next((readers[o] for o in node.output if o in readers), None)
            if node.op_type in BOUNDARY and node.op_type != "DynamicQuantizeLinear":
                owner = None
            elif node.op_type == "DynamicQuantizeLinear":
                owner = next((readers[o] for o in node.output if o in readers), None)
            if owner:
                owners[node.name] = owner
                if node.op_type in LAYOUT_READERS:
                    for name in node.input:
                        readers.setdefault(name, owner)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    walk(attribute.g)

    walk(optimized.graph)
    return owners


LAYOUT_READERS = frozenset(
    {
        "Conv", "FusedConv", "QLinearConv", "ReorderInput", "ReorderOutput", "Transpose", "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearConcat",
        "QLinearGlobalAveragePool", "GlobalAveragePool", "Add", "Concat", "MaxPool",
    }
)  # fmt: skip


def named_owner(candidates: list[str], names: Mapping[str, str]) -> str | None:
    """The site whose name one of ``candidates`` is, or begins with (``conv1_token_3`` belongs to ``conv1``); "" for
    a node that is no part of a site, None where no name is known.
    """
    for candidate in candidates:
        stem = candidate
        while stem:
            if stem in names:
                return names[stem]
            cut = max(stem.rfind("_"), stem.rfind("/"))
            stem = stem[:cut] if cut > 0 else ""
    return None
