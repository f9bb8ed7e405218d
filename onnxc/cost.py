"""What sites and crossings cost. In: one model per compute mode, a sample. Out: seconds per site and mode.

What is not in the price file is measured in the model; sites of one key share the mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxc.model import Model
from onnxc.owners import stems
from onnxc.price_file import PriceFile, cpu_name, sample_shapes, site_key
from onnxc.profiling import FLOAT, profile, raced
from onnxc.session import Options, Session, runtime_version
from onnxc.sites import Sites

APART = "apart"  # the variant in which convolutions are int8 and the joints between them are not
KERNEL_OVERHEAD = 1e-6  # seconds of one more node: what breaks ties towards fewer islands
SMALL_TENSOR = 1000  # elements: below it the time of a Q is that of any kernel


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
    seconds: float = 1.5,
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
