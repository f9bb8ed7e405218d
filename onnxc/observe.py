"""Statistics of tensors, streamed. In: a model, samples, the tensors and sites to watch. Out: ranges and input rows.

One pass over the calibration data. A model's activations are never all held: tensors are captured in groups whose
size fits a byte limit, one sample at a time. Everything kept is bounded: a histogram per tensor, a fixed number of
input rows per site. The result does not depend on the order of the samples or on how they are batched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxc.bodies import HandedOut, at_once, hand_out, hidden, paths
from onnxc.histograms import Histogram, Spread
from onnxc.model import Model, Tensor, Variable
from onnxc.session import Options, Session
from onnxc.shapes import TensorType
from onnxc.sites import Site, matrix_axes
from onnxc.windows import Windows, im2col, places

FEWEST_ROWS, MOST_ROWS = 256, 2048
ROW_BYTES = 48 << 20  # of all sampled rows together
CAPTURE_BYTES = 192 << 20
NEVER_RUN = "it is in a body that no sample runs, so no range was observed"

Array = NDArray[np.float32]


@dataclass
class Observations:
    """What was seen of each tensor.

    Attributes:
        ranges: tensor name -> histogram of its values over all samples.
        rows: rows_key(site) -> sampled rows [R, K] of the matrix that multiplies the site's weight (group 0 of a
            convolution's im2col, in the order of the stored weight); linears that read one tensor share them.
        moments: site name of a grouped convolution -> second moments [G, K, K], summed over sampled rows; of a
            recurrent one recurrent_key() -> those of its inputs [1, I, I], or of its states [directions, H, H].
        spreads: tensor name -> how much its samples differ.
        refined: tensor name -> (low, high) where a range was chosen by its effect on the model's outputs.
        shapes: tensor name -> shape in the first sample.
        unseen: tensor name of a body -> why no values of it were seen.
        samples: how many samples were read; 0 when there was no data.
        imagined: the same of made-up images, where there was no data: only moments of convolutions say anything.
    """

    ranges: dict[str, Histogram] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    samples: int = 0
    moments: dict[str, Array] = field(default_factory=dict)
    refined: dict[str, tuple[float, float]] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)
    imagined: Observations | None = None

    def limits(self, tensor: str, method: str = "mse", percentile: float = 99.99) -> tuple[float, float]:
        """(low, high) of a tensor's range; with mse a refined range comes first."""
        if method == "mse" and tensor in self.refined:
            return self.refined[tensor]
        return self.ranges[tensor].limits(method, percentile)

    def rows_of(self, site: Site) -> Array | None:
        """The sampled rows that meet the weight of ``site``, None where there are none."""
        return self.rows.get(rows_key(site))


def rows_key(site: Site) -> str:
    """Where the rows of a site are kept."""
    return str(site.input.name) if site.operator == "MatMul" else f"{site.input.name} of {site.name}"


def recurrent_key(site: Site, part: int) -> str:
    """Where the moments of a recurrent site are kept: of its inputs (``part`` 1) or its states (2)."""
    return f"{site.name} {'states' if part == 2 else 'inputs'}"


def observe(
    model: Model,
    samples: Iterable[Mapping[str, NDArray[np.generic]]],
    count: int,
    tensors: Sequence[Variable],
    sites: Sequence[Site],
    options: Options,
    apart: Collection[int] = (),
    types: Mapping[str, TensorType] | None = None,
) -> Observations:
    """Run ``samples`` once per capture group and collect ranges of ``tensors`` and rows of ``sites``.

    Args:
        apart: positions of samples that no weight is fitted to: they give ranges, but no rows and no moments.
        types: of tensors whose type the model does not tell; float32 where these do not either.

    A tensor in a body has as many values as the body runs. One that a sample does not make is not observed on it.
    """
    seen = Observations(samples=count)
    where = paths(model)
    reasons = {t.name: hidden(where[t.name], model.opset) for t in tensors if t.name in where}
    seen.unseen = {name: reason for name, reason in reasons.items() if reason is not None}
    names = [name for name in dict.fromkeys(t.name for t in tensors) if name not in seen.unseen]
    inputs = {t.name for t in model.graph.inputs}
    fed = set(next(iter(samples), {}))
    names = [name for name in names if name not in inputs or name in fed]  # inputs with defaults need not be given
    if not names or not count:
        return seen
    readers: dict[str, dict[str, Site]] = {}
    for site in sites:
        if row_length(site):
            readers.setdefault(site.input.name, {}).setdefault(rows_key(site), site)
    depths = {name: sum(row_length(site) for site in found.values()) for name, found in readers.items()}
    depth = at_once(model.graph, depths)
    kept = int(np.clip(ROW_BYTES / max(4 * depth, 1), FEWEST_ROWS, MOST_ROWS))
    fitted = [position for position in range(count) if position not in apart]
    fitted = fitted[:: -(-len(fitted) // kept)]  # of very many samples not each gives rows
    quota, giving = max(1, kept // len(fitted)), frozenset(fitted)
    meeting = _Meeting(seen, readers, sites)
    for group in capture_groups(model, samples, names, options, types):
        watch = Watch.of(model, group, options, types)
        for position, sample in enumerate(samples):
            for name, arrays in watch.values(sample).items():
                for values in arrays:
                    seen.shapes.setdefault(name, tuple(values.shape))
                    fresh = seen.ranges.setdefault(name, Histogram()).add(np.asarray(values, np.float32))
                    if fresh is not None:
                        seen.spreads.setdefault(name, Spread()).add(*fresh, seen.ranges[name].radius)
                if position in giving and arrays:
                    for values in arrays[:: -(-len(arrays) // quota)]:
                        meeting.add(name, values, max(1, quota // len(arrays)), position)
    seen.unseen |= {name: NEVER_RUN for name in names if name in where and name not in seen.shapes}
    while meeting.parts:
        key, rows_list = meeting.parts.popitem()
        seen.rows[key] = np.concatenate(rows_list)
    return seen


class _Meeting:
    """What meets weights, of which ``seen`` gets the moments.

    Attributes:
        parts: rows_key(site) -> sampled rows of every sample.
    """

    def __init__(self, seen: Observations, readers: Mapping[str, Mapping[str, Site]], sites: Sequence[Site]) -> None:
        self.seen, self.readers, self.parts = seen, readers, dict[str, list[Array]]()
        self.grouped: dict[str, list[Site]] = {}
        self.recurrent: dict[str, list[tuple[str, int]]] = {}
        for site in sites:
            if site.operator == "Conv" and int(site.node.attrs.get("group", 1)) > 1:
                self.grouped.setdefault(site.input.name, []).append(site)
            if site.kind == "recurrent":
                self.recurrent.setdefault(site.input.name, []).append((recurrent_key(site, 1), 1))
                if site.node.outputs[0].name:  # the states, one step late
                    self.recurrent.setdefault(site.node.outputs[0].name, []).append((recurrent_key(site, 2), 2))

    def add(self, name: str, values: NDArray[np.generic], quota: int, seed: int) -> None:
        """``values`` of a tensor, of which up to ``quota`` rows are kept."""
        moments = self.seen.moments
        if values.dtype.kind == "f" and not np.isfinite(values).all():  # of no use to a solver
            values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        for site in self.grouped.get(name, []):
            windows = patches(np.asarray(values, np.float32), site, quota, np.random.default_rng(seed))
            if windows is not None:
                found = np.einsum("rgk,rgl->gkl", windows, windows, optimize=True)
                moments[site.name] = moments.get(site.name, np.float32(0)) + found
        for key, part in self.recurrent.get(name, []):
            states = np.asarray(values, np.float32)
            states = states.swapaxes(0, 1) if part == 2 else states[None]
            states = states.reshape(len(states), -1, states.shape[-1])
            moments[key] = moments.get(key, np.float32(0)) + states.swapaxes(1, 2) @ states
        for key, site in self.readers.get(name, {}).items():
            rows = sampled_rows(site, values, quota, seed)
            if rows is not None and len(rows):
                self.parts.setdefault(key, []).append(rows)


def channel_ranges(
    model: Model,
    samples: Iterable[Mapping[str, NDArray[np.generic]]],
    wanted: Mapping[str, NDArray[np.intp]],
    options: Options,
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The lowest and highest value of every channel of some tensors, over all samples.

    Args:
        wanted: tensor name -> the channel of every entry, as an array that broadcasts against its last axes.

    Returns:
        tensor name -> (low, high), each [channels]; without those of bodies that no sample runs, or that hand out none.
    """
    where = paths(model)
    shown = [name for name in wanted if name not in where or hidden(where[name], model.opset) is None]
    found: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    if not shown:
        return found
    for group in capture_groups(model, samples, shown, options):
        watch = Watch.of(model, group, options)
        for sample in samples:
            for name, array in [(name, each) for name, arrays in watch.values(sample).items() for each in arrays]:
                order = wanted[name]
                if not array.size:
                    continue
                channels = int(order.max()) + 1
                low, high = found.setdefault(name, (np.full(channels, np.inf), np.full(channels, -np.inf)))
                wide = order.reshape([1] * (array.ndim - order.ndim) + list(order.shape))
                others = tuple(axis for axis in range(array.ndim) if wide.shape[axis] == 1)
                np.minimum.at(low, wide.reshape(-1), array.min(axis=others).reshape(-1))
                np.maximum.at(high, wide.reshape(-1), array.max(axis=others).reshape(-1))
    return found


def row_length(site: Site) -> int:
    """K of the matrix that meets the site's weight; 0 where no rows are sampled."""
    if site.weight is None or not (site.kind == "linear" or site.operator == "Conv"):
        return 0
    if site.operator == "Conv":
        return int(np.prod(site.weight.shape[1:])) if int(site.node.attrs.get("group", 1)) == 1 else 0
    axes = matrix_axes(site)
    return site.weight.shape[axes[0]] if axes is not None else 0


@dataclass(frozen=True)
class Watch:
    """A session that tells the values of some tensors, those of bodies too.

    Attributes:
        given: tensors that samples hold; outer: names of outputs; inner: what bodies hand out.
    """

    session: Session
    given: tuple[str, ...]
    outer: tuple[str, ...]
    inner: HandedOut

    @classmethod
    def of(
        cls, model: Model, names: Sequence[str], options: Options, types: Mapping[str, TensorType] | None = None
    ) -> Watch:
        """Watches the tensors called ``names``, float32 where neither the model nor ``types`` know better. ModelError
        where one of them cannot be handed out of its body.
        """
        copy, where = model.copy(), paths(model)
        kinds = {name: known.dtype for name, known in (types or {}).items() if known.dtype is not None}
        inputs = {t.name for t in copy.graph.inputs}
        outer = tuple(name for name in names if name not in inputs and name not in where)
        present = {t.name for t in copy.graph.outputs}
        tensors: dict[str, Tensor] = {t.name: t for node in copy.graph.nodes for t in node.outputs}
        for name in outer:
            if name not in present:
                tensor = tensors[name]
                tensor.dtype = tensor.dtype or kinds.get(name, np.dtype(np.float32))
                copy.graph.outputs.append(tensor)
        inner = hand_out(copy, [name for name in names if name in where], kinds)
        if inner.outputs:
            copy.tidy()  # what bodies read has to come before them
        given = tuple(name for name in names if name in inputs)
        return cls(Session(copy, options), given, outer, inner)

    def values(self, sample: Mapping[str, NDArray[np.generic]]) -> dict[str, list[NDArray[np.generic]]]:
        """Name -> its values in this sample: one, or in bodies as many as were made."""
        wanted = [*self.outer, *(tensor.name for tensor in self.inner.outputs.values())]
        results = self.session.run(sample, wanted) if wanted else {}
        found = {name: [np.asarray(sample[name])] for name in self.given if name in sample}
        found |= {name: [np.asarray(results[name])] for name in self.outer}
        return found | {name: self.inner.values(name, results) for name in self.inner.outputs}


def capture_groups(
    model: Model,
    samples: Iterable[Mapping[str, NDArray[np.generic]]],
    names: Sequence[str],
    options: Options,
    types: Mapping[str, TensorType] | None = None,
) -> list[list[str]]:
    """Split ``names`` so that one sample's captured tensors stay under CAPTURE_BYTES; one of a body that the first
    sample does not run counts as much as the largest of the others.
    """
    inputs = {t.name for t in model.graph.inputs}
    sizes: dict[str, int] = {}
    first = next(iter(samples))
    inner = [n for n in names if n not in inputs]
    for start in range(0, len(inner), 64):
        found = Watch.of(model, inner[start : start + 64], options, types).values(first)
        sizes |= {name: sum(int(value.nbytes) for value in arrays) for name, arrays in found.items() if arrays}
    most = max(sizes.values(), default=0)
    groups: list[list[str]] = [[]]
    used = 0
    for name in names:
        size = 0 if name in inputs else sizes.get(name, most)
        if groups[-1] and used + size > CAPTURE_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def sampled_rows(site: Site, values: NDArray[np.generic], quota: int, seed: int) -> Array | None:
    """Up to ``quota`` rows [quota, K] of the matrix that meets the site's weight, from one sample."""
    random = np.random.default_rng(seed)
    if site.kind == "linear":
        matrix = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
        if site.operator == "Gemm" and site.node.attrs.get("transA", 0):
            matrix = matrix.T
        pick = random.permutation(len(matrix))[:quota]
        return np.ascontiguousarray(matrix[np.sort(pick)])
    if site.operator == "Conv" and site.weight is not None:
        rows = patches(np.asarray(values, np.float32), site, quota, random)
        return None if rows is None else rows[:, 0]
    return None


def patches(values: Array, site: Site, quota: int, random: np.random.Generator) -> Array | None:
    """``quota`` im2col rows [quota, G, K] of a convolution's G groups at random output positions."""
    assert site.weight is not None
    seen = Windows.of(site.node.attrs, values.shape[2:], site.weight.shape[2:]).seen(values)
    if seen is None:
        return None
    return im2col(seen, [random.integers(n, size=quota) for n in places(seen)], int(site.node.attrs.get("group", 1)))
