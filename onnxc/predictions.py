"""What a plan is predicted to take. In: a problem, and what is chosen. Out: noise, seconds, bytes."""

from __future__ import annotations

from collections.abc import Mapping

from onnxc.cheapest import load_seconds
from onnxc.codes.formats import FLOATS, INT8, NODE_SECONDS, parse_format
from onnxc.contract.candidates import Candidate
from onnxc.islands import crossings, fused_joints
from onnxc.problem import Plan, Problem
from onnxc.profiling import FLOAT
from onnxc.sensitivity import activation_key


def predicted_noise(problem: Problem, compute: Mapping[str, Candidate], stored: Mapping[str, str]) -> float:
    """The sum of the noise of every rounding."""
    return sum(noise_parts(problem, compute, stored))


def noise_parts(problem: Problem, compute: Mapping[str, Candidate], stored: Mapping[str, str]) -> tuple[float, float]:
    """Predicted noise of all quantized activations, and of all weights."""
    rounded = {activation_key(a) for c in compute.values() for a in (*c.reads, *((c.writes,) if c.writes else ()))}
    weights = sum(problem.weight_noise(name, stored[name]) for name in sorted(stored))
    return sum(problem.activation_noise(key) for key in sorted(rounded)), weights


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


def stored_bytes(problem: Problem, stored: Mapping[str, str]) -> int:
    """Bytes of all weights under a plan."""
    return sum(problem.bytes_of(weight, stored.get(weight.name)) for weight in problem.found.weights)


def predicted_loading(problem: Problem, plan: Plan) -> float:
    """Seconds in which the weights of ``plan`` unfold at load, and its integer kernels are made ready."""
    elements, waves, each, totals = problem.found.elements, problem.found.waves, 0.0, dict[str, int]()
    for name, mode in sorted(plan.stored.items()):
        each += load_seconds(mode, elements[name]) + (waves.get(name, 0.0) if mode == INT8.name else 0.0)
        totals[mode] = totals.get(mode, 0) + elements[name]
    chains = sum(parse_format(mode).chain_seconds(totals[mode]) for mode in sorted(totals) if mode not in FLOATS)
    return problem.site_loading * len(plan.integers) + chains + each + NODE_SECONDS * nodes_of_floats(problem, plan)


def nodes_of_floats(problem: Problem, plan: Plan) -> int:
    """Nodes that weights take which become floats, beside those that load_seconds() counts of each: codes of a format
    are cast or shaped and scaled, those of one shape but for their channels together, and split.
    """
    alike, taken, groups, counted = problem.found.alike, problem.found.read_by, dict[tuple[str, int], int](), 0
    read = {name for at, way in plan.compute.items() for name in (taken.get(at), *way.weights)}
    for name, mode in plan.stored.items():
        if name not in read:
            key = mode, alike[name][mode in FLOATS]
            groups[key] = groups.get(key, 0) + 1
            counted += mode != INT8.name
    return sum((mode not in FLOATS) + (1 if count == 1 else 2) for (mode, _), count in groups.items()) - counted


def stored_share(problem: Problem, plan: Plan) -> float:
    """Bytes of all weights under ``plan``, as a share of their bytes in float32."""
    return stored_bytes(problem, plan.stored) / (sum(weight.bytes for weight in problem.found.weights) or 1)
