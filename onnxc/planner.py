"""Candidates and limits in, a plan out: compute per site, storage per weight.

For a price of noise (a Lagrange multiplier) the best plan is a minimum cut: a node per site (int8 or float), per
quantized activation and per weight. Cutting a site's edge costs its measured time, entering and leaving an island
costs a Q or DQ, a float weight costs its bytes, a rounding costs its noise. All terms are submodular, so the cut is
the optimum, islands included. Raising the price of noise walks along the frontier of time, size and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

from onnxc.cost import FLOAT, Prices
from onnxc.model import Tensor
from onnxc.rewrite import Activation, Candidate
from onnxc.sensitivity import Noise, activation_key, weight_key
from onnxc.sites import Site, Sites, Weight
from onnxc.targets import ABSORBED, MOVED_THROUGH, QUANTIZED_AT_LOAD

Vertex = tuple[str, str]
SOURCE: Vertex = ("source", "")
SINK: Vertex = ("sink", "")
KERNEL_OVERHEAD = 1e-6  # seconds of one more node: what breaks ties towards fewer islands


@dataclass(frozen=True)
class Plan:
    """What is done where.

    Attributes:
        compute: site name -> chosen candidate; sites that stay float are absent.
        stored: names of the weights that are stored as codes; halves: of those stored as float16.
        noise: predicted noise power over signal power of the worst output; 0 where nothing was measured.
        seconds: predicted time per run.
        price: the multiplier it is optimal for.
    """

    compute: Mapping[str, Candidate] = field(default_factory=dict)
    stored: frozenset[str] = frozenset()
    halves: frozenset[str] = frozenset()
    noise: float = 0.0
    seconds: float = 0.0
    price: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        return tuple(sorted((s, c.mode) for s, c in self.compute.items())), (
            tuple(sorted(self.stored)),
            tuple(sorted(self.halves)),
        )


@dataclass
class Problem:
    """Everything a plan is made from.

    Attributes:
        found: weights and sites of the model.
        compute: site name -> its candidates, at most one per mode.
        storage: weight name -> its storage candidate.
        prices: measured seconds.
        elements: tensor name -> elements per run, for the price of a boundary.
        noise: measured noise of each rounding alone; empty until it is needed.
        halves: weight name -> its float16 storage, taken where codes are not.
        forbidden: sites that must stay float, and weights that must stay float32.
        told: sites and weights whose candidate was asked for by name: chosen whether or not it pays.
    """

    found: Sites
    compute: Mapping[str, Sequence[Candidate]]
    storage: Mapping[str, Candidate]
    prices: Prices
    elements: Mapping[str, int]
    noise: Noise = field(default_factory=dict)
    halves: Mapping[str, Candidate] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)


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
    total = max(problem.prices.total, 1e-9)
    bytes_total = smallest_bytes(problem)
    sites = {site.name: site for site in problem.found}
    choices = {name: choice(problem, name, price) for name in problem.compute if name not in forbidden}
    candidates = {name: candidate for name, candidate in choices.items() if candidate is not None}
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
        flow.edge(("values", key), SINK, price * problem.noise.get(key, 0.0))
    for key, activation in quantized.items():
        node = ("tensor", key)
        flow.require(node, ("values", activation_key(activation)))
        if activation.dynamic:
            continue
        boundary = (problem.elements.get(activation.tensor, 0) * problem.prices.per_element + KERNEL_OVERHEAD) / total
        producer = producers.get(activation.tensor)
        if producer is None:
            flow.edge(node, SINK, boundary)
        else:
            flow.edge(node, ("site", producer), boundary)
            flow.leave(sites[producer], candidates, boundary)
    for weight in problem.found.weights:
        flow.add_weight(problem, weight, bytes_total, price, forbidden)
    _, (int8, _) = nx.minimum_cut(flow.graph, SOURCE, SINK, flow_func=nx.algorithms.flow.boykov_kolmogorov)
    compute = {name: c for name, c in candidates.items() if ("site", name) in int8}
    stored = {name for kind, name in int8 if kind == "weight"}
    stored |= {s.weight.name for n in compute if (s := sites[n]).weight is not None}
    stored |= {weight for candidate in compute.values() for weight in candidate.weights}
    rounded = {activation_key(a) for c in compute.values() for a in (*c.reads, *((c.writes,) if c.writes else ()))}
    noise = sum(problem.noise.get(key, 0.0) for key in sorted(rounded))
    noise += sum(problem.noise.get(weight_key(name), 0.0) for name in sorted(stored))
    halves = frozenset(set(problem.halves) - stored)
    return Plan(compute, frozenset(stored), halves, noise, predicted_seconds(problem, compute), price)


def choice(problem: Problem, name: str, price: float) -> Candidate | None:
    """The mode of a site: the one with the least time and noise. Sites that read one tensor share a mode."""
    candidates = problem.compute[name]
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    peers = [
        other
        for other, found in problem.compute.items()
        if len(found) > 1 and found[0].reads and found[0].reads[0].tensor == candidates[0].reads[0].tensor
    ]
    total = max(problem.prices.total, 1e-9)

    def cost(mode: str) -> float:
        spent = sum(problem.prices.of(peer, mode) or 0.0 for peer in peers)
        activation = next(c for c in candidates if c.mode == mode).reads[0]
        if not activation.dynamic:
            spent += problem.elements.get(activation.tensor, 0) * problem.prices.per_element
        return spent / total + price * problem.noise.get(activation_key(activation), 0.0)

    return min(candidates, key=lambda candidate: cost(candidate.mode))


class Flow:
    """The graph that is cut: edges with summed capacities, and requirements that must not be cut."""

    def __init__(self) -> None:
        self.graph = nx.DiGraph()
        self.graph.add_nodes_from((SOURCE, SINK))

    def edge(self, start: Vertex, end: Vertex, capacity: float) -> None:
        """``capacity`` is paid when ``start`` is int8 and ``end`` is not."""
        if capacity <= 0:
            return
        if self.graph.has_edge(start, end):
            if "capacity" in self.graph[start][end]:
                self.graph[start][end]["capacity"] += capacity
        else:
            self.graph.add_edge(start, end, capacity=capacity)

    def require(self, start: Vertex, end: Vertex) -> None:
        """If ``start`` is int8 so is ``end``: an edge without a capacity is never cut."""
        if self.graph.has_edge(start, end):
            self.graph.remove_edge(start, end)
        self.graph.add_edge(start, end)

    def leave(self, site: Site, candidates: Mapping[str, Candidate], boundary: float) -> None:
        """The DQ behind ``site``: paid when it is int8 and one of the readers of its result is float."""
        node, exit_node = ("site", site.name), ("exit", site.name)
        self.edge(node, exit_node, boundary)
        for reader in site.result.outputs:
            if reader.name in candidates:
                self.require(exit_node, ("site", reader.name))
            else:
                self.require(exit_node, SINK)
                return
        if not site.result.outputs:
            self.require(exit_node, SINK)

    def add_weight(self, problem: Problem, weight: Weight, bytes_total: int, price: float, forbidden: set[str]) -> None:
        """A weight: its bytes are paid when it stays float32, its noise when it is stored as codes."""
        node = ("weight", weight.name)
        storage = problem.storage.get(weight.name)
        if weight.name in forbidden:
            self.require(node, SINK)
            return
        if weight.name in problem.told:
            self.require(SOURCE, node)
        if storage is not None:
            self.edge(SOURCE, node, (fallback_bytes(problem, weight) - storage.bytes) / bytes_total)
        self.edge(node, SINK, price * problem.noise.get(weight_key(weight.name), 0.0))


def smallest_bytes(problem: Problem) -> int:
    """Bytes of all weights, each as small as it gets: bytes times seconds is least where shares of what is left of
    each are traded, not shares of the original.
    """
    stored = (problem.storage.get(weight.name) for weight in problem.found.weights)
    kept = (each.bytes if each else w.bytes for each, w in zip(stored, problem.found.weights, strict=True))
    return max(sum(kept), 1)


def fallback_bytes(problem: Problem, weight: Weight) -> int:
    """Bytes of ``weight`` where it is not stored as codes."""
    half = problem.halves.get(weight.name)
    return half.bytes if half is not None else weight.bytes


def stored_share(problem: Problem, plan: Plan) -> float:
    """Bytes of all weights under ``plan``, as a share of their bytes in float32."""
    total, kept = sum(weight.bytes for weight in problem.found.weights) or 1, 0
    for weight in problem.found.weights:
        storage = problem.storage.get(weight.name) if weight.name in plan.stored else None
        kept += storage.bytes if storage else fallback_bytes(problem, weight)
    return kept / total


def predicted_seconds(problem: Problem, compute: Mapping[str, Candidate]) -> float:
    """The float model's time, with each chosen site's price in place of its float price."""
    seconds = problem.prices.total
    for name, candidate in compute.items():
        seconds += (problem.prices.of(name, candidate.mode) or 0.0) - (problem.prices.of(name, FLOAT) or 0.0)
    return seconds


def silently_quantized(found: Sites, chosen: Plan) -> set[str]:
    """Int8 readers of float sites that stand between a DQ and a Q.

    ONNX Runtime quantizes the float weight of such a node per tensor at load, whatever the file says, and moves DQ
    and Q through data movement and activations towards it; its readers must stay float too, so that no Q follows.
    """
    codes = {c.writes.tensor for c in chosen.compute.values() if c.writes}
    entered = {a.tensor for c in chosen.compute.values() for a in c.reads if not a.dynamic}
    trapped: set[str] = set()
    for site in found:
        if site.name in chosen.compute or not (site.operator in QUANTIZED_AT_LOAD or (site.tail and site.bias)):
            continue
        if not came_from(site.input, codes):
            continue
        reached = {tensor.name for tensor in moved_on(site.result)} & entered
        trapped |= {
            name for name, c in chosen.compute.items() if any(a.tensor in reached and not a.dynamic for a in c.reads)
        }
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
