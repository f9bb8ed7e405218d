"""Candidates and limits in, a plan out: compute per site, storage per weight.

For a price of noise (a Lagrange multiplier) the best plan is a minimum cut: a node per site (int8 or float), per
quantized activation and per weight. Cutting a site's edge costs its measured time, entering and leaving an island
costs a Q or DQ, a float weight costs its bytes, a rounding costs its noise. All terms are submodular, so the cut is
the optimum, islands included. Raising the price of noise walks along the frontier of time, size and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

from onnxc.cheapest import Formats
from onnxc.codes.formats import FLOATS, INT8, is_small
from onnxc.contract.candidates import Activation, Candidate
from onnxc.cost import FLOAT, KERNEL_OVERHEAD, Prices
from onnxc.flow import SINK, SOURCE, Flow
from onnxc.model import Node, Tensor
from onnxc.sensitivity import Noise, activation_key, weight_key
from onnxc.sites import Site, Sites, Weight
from onnxc.targets import ABSORBED, MOVED_THROUGH, QUANTIZED_AT_LOAD

TABLES = 4  # of formats, kept: all of them, only those of 8 bits


@dataclass(frozen=True)
class Plan:
    """What is done where.

    Attributes:
        compute: site name -> chosen candidate; sites that stay float are absent.
        stored: name -> format of the weights that are not stored in float32.
        noise: predicted noise power over signal power of the worst output; 0 where nothing was measured.
        seconds: predicted time per run.
        price: the multiplier it is optimal for.
    """

    compute: Mapping[str, Candidate] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    noise: float = 0.0
    seconds: float = 0.0
    price: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        return tuple(sorted((s, c.mode) for s, c in self.compute.items())), tuple(sorted(self.stored.items()))

    @property
    def coded(self) -> set[str]:
        """Names of the weights that are stored as codes."""
        return {name for name, mode in self.stored.items() if mode not in FLOATS}


def small_codes(found: Plan) -> bool:
    """Whether some weight is stored in fewer than 8 bits."""
    return any(is_small(mode) for mode in found.stored.values())


@dataclass
class Problem:
    """Everything a plan is made from.

    Attributes:
        found: weights and sites of the model.
        compute: site name -> its candidates, at most one per mode.
        storage: weight name -> its storage candidates, one per format.
        prices: measured seconds.
        elements: tensor name -> elements per run, for the price of a boundary.
        noise: measured noise of each rounding alone; empty until it is needed.
        ratios: weight name -> format -> its noise over the measured one.
        heard: how much of the noise of activations and of weights arrives when all of it comes together, from trials.
        byte_price, time_price: what bytes and time count; 1 each where none is limited.
        limited: the price of what is limited that the last plan under limits was found with.
        most_bytes: of all weights, and most_seconds: of a run, where a limit is given.
        load_price: what a second of loading counts beside all bytes.
        unit: the bytes that count as much as ``pace`` seconds; see smallest_bytes().
        pace: by default the float model's time. Of a plan near the one sought, so that least bytes times seconds is
            found where shares of its own bytes and seconds are traded.
        forbidden: sites that must stay float, and weights that must stay float32.
        told: sites and weights whose candidate was asked for by name: chosen whether or not it pays.
        tables: of the formats, shared by all variants of a problem.
    """

    found: Sites
    compute: Mapping[str, Sequence[Candidate]]
    storage: Mapping[str, Sequence[Candidate]]
    prices: Prices
    elements: Mapping[str, int]
    noise: Noise = field(default_factory=dict)
    ratios: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    heard: tuple[float, float] = (1.0, 1.0)
    byte_price: float = 1.0
    time_price: float = 1.0
    load_price: float = 0.1
    unit: int | None = None
    pace: float | None = None
    limited: float = 1.0
    most_bytes: float | None = None
    most_seconds: float | None = None
    tables: list[Formats] = field(default_factory=list, repr=False)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Elements of every weight."""
        return {weight.name: weight.elements for weight in self.found.weights}

    @property
    def whole(self) -> float:
        """The seconds that count as 1."""
        return max(self.pace or self.prices.total, 1e-9) / self.time_price

    forbidden: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)

    def weight_noise(self, name: str, mode: str) -> float:
        """Predicted noise of a weight in a format."""
        if mode in FLOATS:
            return 0.0
        return self.heard[1] * self.noise.get(weight_key(name), 0.0) * self.ratios.get(name, {}).get(mode, 1.0)

    def activation_noise(self, key: str) -> float:
        """Predicted noise of a quantized activation."""
        return self.heard[0] * self.noise.get(key, 0.0)

    def coded(self, name: str, price: float) -> Candidate | None:
        """The format of codes with the least bytes and noise, None where the weight has no candidate."""
        formats = self.formats
        noises = formats.noises(self.noise, self.ratios)
        found = formats.cheapest(self.byte_price / smallest_bytes(self), price * self.heard[1], self.load_price, noises)
        return found.get(name)

    @property
    def formats(self) -> Formats:
        """The ways to store weights as arrays, made once for all variants of a problem."""
        known = next((each for each in self.tables if each.storage is self.storage), None)
        if known is None:
            known = Formats(self.storage, self.sizes)
            self.tables[:] = [known, *self.tables[: TABLES - 1]]
        return known

    def half(self, name: str) -> Candidate | None:
        """The storage in float16, or in the smaller float that was asked for."""
        return next((way for way in self.storage.get(name, ()) if way.mode in FLOATS), None)

    def bytes_of(self, weight: Weight, mode: str | None) -> int:
        """Bytes of a weight in a format, as float32 where ``mode`` is None."""
        found = next((way.bytes for way in self.storage.get(weight.name, ()) if way.mode == mode), None)
        if found is not None or mode is None:
            return weight.bytes if found is None else found
        return self.own_bytes.get((weight.name, mode), weight.bytes)

    @property
    def own_bytes(self) -> dict[tuple[str, str], int]:
        """Of weights in the formats that candidates to compute their sites bring with them."""
        weights = {site.name: site.weight.name for site in self.found if site.weight is not None}
        ways = [(weights[name], c) for name, found in self.compute.items() for c in found if c.form]
        return {(weight, c.form): c.bytes for weight, c in ways}

    @property
    def has_small_codes(self) -> bool:
        """Whether a weight may be stored in fewer than 8 bits."""
        forms = [way.mode for ways in self.storage.values() for way in ways]
        return any(is_small(form) for form in (*forms, *(form for _, form in self.own_bytes)))

    def in_full_codes(self) -> Problem:
        """The same problem without the formats below 8 bits, where there is another."""
        storage = {
            name: [way for way in ways if way.mode in (INT8.name, *FLOATS)] or list(ways)
            for name, ways in self.storage.items()
        }
        compute = {
            name: [way for way in ways if not (way.form and is_small(way.form))] or (list(ways) * (name in self.told))
            for name, ways in self.compute.items()
        }
        return replace(self, storage=storage, compute=compute)


def plan(problem: Problem, price: float = 0.0) -> Plan:
    """The plan with least time + bytes + ``price`` * noise, each as a share of the original's."""
    forbidden = set(problem.forbidden)
    while True:
        chosen = cut(problem, price, forbidden)
        trapped = silently_quantized(problem.found, chosen)
        if not trapped - forbidden:
            return chosen
        forbidden |= trapped


def cut(problem: Problem, price: float, forbidden: set[str]) -> Plan:
    """One minimum cut. Nodes on the source's side are int8, quantized, stored as codes."""
    total = problem.whole
    bytes_total = smallest_bytes(problem)
    sites = {site.name: site for site in problem.found}
    candidates = {name: each for name, each in choices(problem, price).items() if name not in forbidden}
    producers = {candidate.writes.tensor: name for name, candidate in candidates.items() if candidate.writes}
    flow = Flow()
    quantized: dict[str, Activation] = {}
    for name, candidate in candidates.items():
        site, node = sites[name], ("site", name)
        floats, codes = problem.prices.of(name, FLOAT) or 0.0, problem.prices.of(name, candidate.mode) or 0.0
        if candidate.mode == "rows":  # microseconds either way, but gathering codes never unfolds the whole table
            floats, codes = 2 * KERNEL_OVERHEAD, 0.0
        flow.edge(SOURCE, node, floats / total)
        flow.edge(node, SINK, (codes + KERNEL_OVERHEAD) / total)
        if name in problem.told:
            flow.require(SOURCE, node)
        for activation in (*candidate.reads, *((candidate.writes,) if candidate.writes else ())):
            key = f"{activation.dynamic} {activation.tensor}"
            flow.require(node, ("tensor", key))
            quantized[key] = activation
        if site.weight is not None:
            if site.weight.name in forbidden:
                flow.require(node, SINK)
            elif candidate.mode != "rows" or site.weight.name in problem.storage:
                flow.require(node, ("weight", site.weight.name))
        for further in candidate.weights:
            flow.require(node, SINK if further in forbidden else ("weight", further))
    for key in dict.fromkeys(activation_key(activation) for activation in quantized.values()):
        flow.edge(("values", key), SINK, price * problem.activation_noise(key))
    for key, activation in quantized.items():
        node = ("tensor", key)
        flow.require(node, ("values", activation_key(activation)))
        if activation.dynamic:
            continue
        boundary = problem.prices.crossing(problem.elements.get(activation.tensor, 0)) / total
        producer = producers.get(activation.tensor)
        if producer is None:
            flow.edge(node, SINK, boundary)
        else:
            flow.edge(node, ("site", producer), boundary)
            for reader in leaves(sites[producer]):
                end = ("site", reader.name) if reader is not None and reader.name in candidates else SINK
                flow.edge(("site", producer), end, boundary)
    for joint, makers in fused_joints(problem.found).items():
        for maker in makers:
            if ("site", maker) in flow:
                flow.edge(("site", maker), ("site", joint), problem.prices.loose(joint) / len(makers) / total)
                if joint not in candidates:
                    flow.require(("site", joint), SINK)
    for weight in problem.found.weights:
        add_weight(flow, problem, weight, bytes_total, price, forbidden)
    int8 = flow.cut()
    compute = {name: c for name, c in candidates.items() if ("site", name) in int8}
    coded = {name for kind, name in int8 if kind == "weight"}
    coded |= {s.weight.name for n in compute if (s := sites[n]).weight is not None}
    coded |= {weight for candidate in compute.values() for weight in candidate.weights}
    stored = {
        name: (way.mode if (way := problem.coded(name, price)) is not None else INT8.name) for name in sorted(coded)
    }
    stored |= {own.name: c.form for n, c in compute.items() if c.form and (own := sites[n].weight) is not None}
    stored |= {name: half for name, half in smaller_floats(problem).items() if name not in stored}
    return Plan(compute, stored, predicted_noise(problem, compute, stored), predicted_seconds(problem, compute), price)


def predicted_noise(problem: Problem, compute: Mapping[str, Candidate], stored: Mapping[str, str]) -> float:
    """The sum of the noise of every rounding."""
    return sum(noise_parts(problem, compute, stored))


def noise_parts(problem: Problem, compute: Mapping[str, Candidate], stored: Mapping[str, str]) -> tuple[float, float]:
    """Predicted noise of all quantized activations, and of all weights."""
    rounded = {activation_key(a) for c in compute.values() for a in (*c.reads, *((c.writes,) if c.writes else ()))}
    weights = sum(problem.weight_noise(name, stored[name]) for name in sorted(stored))
    return sum(problem.activation_noise(key) for key in sorted(rounded)), weights


def choices(problem: Problem, price: float) -> dict[str, Candidate]:
    """The mode of every site: the one with the least time and noise. Sites that read one tensor share a mode."""
    several = {name: ways for name, ways in problem.compute.items() if len(ways) > 1}
    read = {name: next((c.reads[0].tensor for c in ways if c.reads), name) for name, ways in several.items()}
    peers: dict[str, list[str]] = {}
    for name, tensor in read.items():
        peers.setdefault(tensor, []).append(name)
    owned = {site.name: site.weight.name for site in problem.found if site.weight is not None}
    weights = {weight.name: weight for weight in problem.found.weights}
    prices, total = problem.prices, problem.whole
    spent: dict[tuple[str, str], float] = {}

    def stored(name: str, candidate: Candidate) -> float:
        """What the weight costs in the format that this mode brings with it, or else may have."""
        if name not in owned or not any(each.form for each in several[name]):
            return 0.0
        weight, free = owned[name], problem.coded(owned[name], price)
        form = candidate.form or (free.mode if free is not None else INT8.name)
        share = problem.byte_price * problem.bytes_of(weights[weight], form) / smallest_bytes(problem)
        return share + price * problem.weight_noise(weight, form)

    def cost(name: str, candidate: Candidate) -> float:
        key = (read[name], candidate.mode)
        if key not in spent:
            times = ((prices.of(peer, candidate.mode), prices.of(peer, FLOAT)) for peer in peers[read[name]])
            spent[key] = sum(int8 or floats or 0.0 for int8, floats in times)
        if not candidate.reads:
            return spent[key] / total + stored(name, candidate)
        activation = candidate.reads[0]
        crossing = 0.0 if activation.dynamic else prices.crossing(problem.elements.get(activation.tensor, 0))
        noise = price * problem.activation_noise(activation_key(activation))
        return (spent[key] + crossing) / total + noise + stored(name, candidate)

    return {
        name: min(ways, key=partial(cost, name)) if name in several else ways[0]
        for name, ways in problem.compute.items()
        if ways
    }


def add_weight(
    flow: Flow, problem: Problem, weight: Weight, bytes_total: int, price: float, forbidden: set[str]
) -> None:
    """A weight: its bytes are paid when it stays float32, its noise when it is stored as codes."""
    node = ("weight", weight.name)
    storage = problem.coded(weight.name, price)
    if weight.name in forbidden:
        flow.require(node, SINK)
        return
    if weight.name in problem.told:
        flow.require(SOURCE, node)
    noise = problem.weight_noise(weight.name, storage.mode if storage is not None else INT8.name)
    if storage is not None:
        half = problem.half(weight.name)
        saved = (half.bytes if half is not None else weight.bytes) - storage.bytes
        flow.edge(SOURCE, node, problem.byte_price * saved / bytes_total)
    flow.edge(node, SINK, price * noise)


def smallest_bytes(problem: Problem) -> int:
    """Bytes of all weights, each as small as 8 bits get it: bytes times seconds is least where shares of what is left
    of each are traded, not shares of the original.
    """
    if problem.unit is None:
        sizes = (
            [way.bytes for way in problem.storage.get(w.name, ()) if way.mode in (INT8.name, *FLOATS)]
            for w in problem.found.weights
        )
        problem.unit = max(
            sum(min(found, default=w.bytes) for found, w in zip(sizes, problem.found.weights, strict=True)), 1
        )
    return problem.unit


def smaller_floats(problem: Problem) -> dict[str, str]:
    """Every weight that may be stored as a smaller float, and as which."""
    return {name: way.mode for name in sorted(problem.storage) if (way := problem.half(name)) is not None}


def stored_bytes(problem: Problem, stored: Mapping[str, str]) -> int:
    """Bytes of all weights under a plan."""
    return sum(problem.bytes_of(weight, stored.get(weight.name)) for weight in problem.found.weights)


def stored_share(problem: Problem, plan: Plan) -> float:
    """Bytes of all weights under ``plan``, as a share of their bytes in float32."""
    return stored_bytes(problem, plan.stored) / (sum(weight.bytes for weight in problem.found.weights) or 1)


def predicted_seconds(problem: Problem, compute: Mapping[str, Candidate]) -> float:
    """The float model's time, with each chosen site's price in place of its float price, and what the borders of the
    islands cost: Q and DQ, and float joints that are no longer fused.
    """
    prices = problem.prices
    seconds = prices.total
    for name, candidate in compute.items():
        seconds += (prices.of(name, candidate.mode) or 0.0) - (prices.of(name, FLOAT) or 0.0)
    seconds += sum(prices.crossing(size) for size in crossings(problem, compute))
    for joint, makers in fused_joints(problem.found).items():
        if joint not in compute:
            seconds += prices.loose(joint) * sum(maker in compute for maker in makers) / len(makers)
    return seconds


def crossings(problem: Problem, compute: Mapping[str, Candidate]) -> list[int]:
    """Elements of every Q and DQ at the border of an island."""
    sites = {site.name: site for site in problem.found}
    made = {c.writes.tensor: name for name, c in compute.items() if c.writes is not None}
    entered = {a.tensor for c in compute.values() for a in c.reads if not a.dynamic} - set(made)
    found = [problem.elements.get(tensor, 0) for tensor in sorted(entered)]
    for tensor, name in made.items():
        left = sum(reader is None or reader.name not in compute for reader in leaves(sites[name]))
        found += [problem.elements.get(tensor, 0)] * left
    return found


def leaves(site: Site) -> list[Node | None]:
    """The readers of an int8 site's result, each with a DQ of its own where it is float; [None] of a model output."""
    return list(site.result.outputs) or [None]


@lru_cache(maxsize=2)
def fused_joints(found: Sites) -> dict[str, list[str]]:
    """Joint -> the convolutions whose result it alone reads: in float ONNX Runtime makes an Add part of one of them."""
    alone = [site for site in found if site.operator == "Conv" and len(site.result.outputs) == 1]
    results = {site.result.name: site.name for site in alone}
    joints = {site.name: [results[t.name] for t in site.inputs if t.name in results] for site in found}
    return {site.name: joints[site.name] for site in found if site.kind == "joint" and joints[site.name]}


def silently_quantized(found: Sites, chosen: Plan) -> set[str]:
    """Int8 readers of float sites that stand between a DQ and a Q.

    ONNX Runtime quantizes the float weight of such a node per tensor at load, whatever the file says, and moves DQ
    and Q through data movement and activations towards it; its readers must stay float too, so that no Q follows.
    """
    codes = {c.writes.tensor for c in chosen.compute.values() if c.writes}
    readers: dict[str, set[str]] = {}
    for name, candidate in chosen.compute.items():
        for activation in candidate.reads:
            if not activation.dynamic:
                readers.setdefault(activation.tensor, set()).add(name)
    trapped: set[str] = set()
    for site in found:
        if site.name in chosen.compute or not (site.operator in QUANTIZED_AT_LOAD or (site.tail and site.bias)):
            continue
        if not came_from(site.input, codes):
            continue
        for tensor in moved_on(site.result):
            trapped |= readers.get(tensor.name, set())
    return trapped


def came_from(tensor: Tensor, codes: set[str]) -> bool:
    """Whether ``tensor``, or what data movement made it from, is one of ``codes``."""
    while tensor.name not in codes:
        if not tensor.inputs or tensor.inputs[0].op not in MOVED_THROUGH:
            return False
        tensor = tensor.inputs[0].inputs[0]
    return True


def moved_on(tensor: Tensor) -> list[Tensor]:
    """``tensor`` and everything that data movement and absorbed activations make of it."""
    reached = [tensor]
    for each in reached:
        for reader in each.outputs:
            if reader.op in MOVED_THROUGH | ABSORBED and reader.inputs[0] is each:
                reached += reader.outputs
    return reached
