"""Candidates and limits in, a plan out: compute per site, storage per weight.

For a price of noise (a Lagrange multiplier) the best plan is a minimum cut: a node per site (int8 or float), per
quantized activation and per weight. Cutting a site's edge costs its measured time, entering and leaving an island
costs a Q or DQ, a float weight costs its bytes, a rounding costs its noise. All terms are submodular, so the cut is
the optimum, islands included. Raising the price of noise walks along the frontier of time, size and noise.
"""

from __future__ import annotations

from functools import partial

from onnxc.codes.formats import INT8
from onnxc.contract.candidates import Activation, Candidate
from onnxc.cost import KERNEL_OVERHEAD
from onnxc.flow import SINK, SOURCE, Flow
from onnxc.islands import fused_joints, leaves, silently_quantized
from onnxc.predictions import predicted_noise, predicted_seconds
from onnxc.problem import Plan, Problem, smaller_floats, smallest_bytes
from onnxc.profiling import FLOAT
from onnxc.sensitivity import activation_key
from onnxc.sites import Weight


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
        ready = problem.load_price * problem.site_loading if candidate.mode != "rows" else 0.0
        flow.edge(node, SINK, (codes + KERNEL_OVERHEAD) / total + ready)
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
