"""Plans against brute force over every assignment, and the promises that hold for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxc.contract.candidates import Activation, Candidate
from onnxc.contract.context import Context
from onnxc.cost import APART, KERNEL_OVERHEAD, Prices
from onnxc.islands import silently_quantized
from onnxc.passes.quantize_dynamic import QuantizeDynamic
from onnxc.passes.quantize_embedding import QuantizeEmbedding
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.passes.store_int8 import StoreInt8
from onnxc.planner import cut, plan
from onnxc.problem import Plan, Problem, smallest_bytes
from onnxc.profiling import FLOAT
from onnxc.propose import Proposals
from onnxc.sensitivity import activation_key, weight_key
from onnxc.under_noise import repair, under
from tests.emission import emitted, model, node, proposed, samples, weight


def residual() -> tuple[Context, Proposals]:
    """Two convolutions around a residual Add, a pool and a head: 6 sites, 3 weights."""
    nodes = [
        node("Conv", "x w0", "a", pads=[1] * 4),
        node("Relu", "a", "r"),
        node("Conv", "r w1", "b", pads=[1] * 4),
        node("Add", "b r", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w2 b2", "y", transB=1),
    ]
    weights = {
        "w0": weight(8, 8, 3, 3),
        "w1": weight(8, 8, 3, 3),
        "w2": weight(40, 8),
        "b2": weight(40, scale=0.1),
    }
    proto = model(nodes, {"x": [1, 8, 6, 6]}, {"y": None}, weights)
    return proposed(proto, samples(2, x=[1, 8, 6, 6]), QuantizeStatic(), StoreInt8())


def shared() -> tuple[Context, Proposals]:
    """Three linears that read one tensor, two of them one weight; the third reads the first."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("MatMul", "x v", "b"),
        node("MatMul", "a w", "c"),
        node("Sum", "a b c", "y"),
    ]
    proto = model(nodes, {"x": [8, 24]}, {"y": None}, {"w": weight(24, 24), "v": weight(24, 24)})
    return proposed(proto, samples(2, x=[8, 24]), QuantizeStatic(), StoreInt8())


RESIDUAL, SHARED = residual(), shared()


def rounded(candidate: Candidate) -> Iterator[Activation]:
    yield from candidate.reads
    if candidate.writes is not None:
        yield candidate.writes


def problem_of(pair: tuple[Context, Proposals], draw: st.DrawFn) -> Problem:
    """A problem with drawn times, sizes of boundaries and noises."""
    context, found = pair
    seconds = st.integers(0, 50).map(lambda value: value * 1e-5)
    prices = Prices(
        {name: {FLOAT: draw(seconds), "static": draw(seconds)} for name in found.compute},
        1e-3,
        draw(st.sampled_from([0.0, 1e-8, 1e-6])),
        draw(st.sampled_from([1e-7, 2e-5])),
    )
    if "s_node" in prices.sites:
        prices.sites["s_node"] |= {FLOAT: 0.0, APART: draw(seconds)}
    keys = {activation_key(a) for each in found.compute.values() for c in each for a in rounded(c)}
    keys |= {weight_key(each.name) for each in context.sites.weights}
    noise = {key: draw(st.integers(0, 100)) * 1e-4 for key in sorted(keys)}
    elements = {name: draw(st.integers(1, 400)) for name in sorted(context.observations.shapes)}
    return Problem(context.sites, found.compute, found.storage, prices, elements, noise)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    return problem_of(draw(st.sampled_from([RESIDUAL, SHARED])), draw)


def objective(problem: Problem, chosen: Mapping[str, Candidate], stored: frozenset[str], price: float) -> float:
    """Time + bytes + price * noise of an assignment, added up from the definition."""
    sites = {site.name: site for site in problem.found}
    total, size = problem.prices.total, smallest_bytes(problem)
    spent = 0.0
    for name in problem.compute:
        times = problem.prices.sites[name]
        spent += (times["static"] + KERNEL_OVERHEAD if name in chosen else times[FLOAT]) / total
    quantized = {a.tensor for c in chosen.values() for a in rounded(c)}
    producers = {c.writes.tensor: n for n, (c,) in problem.compute.items() if c.writes is not None}
    for tensor in quantized:
        boundary = (problem.elements[tensor] * problem.prices.per_element + problem.prices.per_crossing) / total
        producer = producers.get(tensor)
        if producer not in chosen or not sites[producer].result.outputs:  # a Q in front of the readers
            spent += boundary
        else:  # a DQ for every float reader
            spent += boundary * sum(reader.name not in chosen for reader in sites[producer].result.outputs)
    loose = problem.prices.sites.get("s_node", {}).get(APART, 0.0)
    if "s_node" in problem.compute and "s_node" not in chosen and "b_node" in chosen:
        spent += loose / total  # the Add that was a part of its convolution
    keys = {activation_key(a) for c in chosen.values() for a in rounded(c)} | {weight_key(name) for name in stored}
    spent += price * sum(problem.noise.get(key, 0.0) for key in keys)
    for each in problem.found.weights:
        if each.name in problem.storage and each.name not in stored:
            spent += (each.bytes - problem.storage[each.name][0].bytes) / size
    return spent


def needed(problem: Problem, chosen: Mapping[str, Candidate]) -> frozenset[str]:
    return frozenset(s.weight.name for s in problem.found if s.name in chosen and s.weight is not None)


def assignments(problem: Problem) -> Iterator[tuple[dict[str, Candidate], frozenset[str]]]:
    """Every set of sites, with every set of further weights as codes."""
    names, weights = list(problem.compute), [each.name for each in problem.found.weights]
    for count in range(len(names) + 1):
        for sites in combinations(names, count):
            chosen = {name: problem.compute[name][0] for name in sites}
            base = needed(problem, chosen)
            free = [name for name in weights if name not in base]
            for extra in range(len(free) + 1):
                for more in combinations(free, extra):
                    yield chosen, base | set(more)


@given(problems(), st.sampled_from([0.0, 0.1, 1.0, 10.0, 1000.0]))
@settings(max_examples=40, deadline=None)
def test_the_cut_is_the_best_of_all_assignments(problem: Problem, price: float) -> None:
    found = cut(problem, price, set())
    assert needed(problem, found.compute) <= found.coded
    best = min(objective(problem, *each, price) for each in assignments(problem))
    assert objective(problem, found.compute, frozenset(found.coded), price) == pytest.approx(best, abs=1e-9)
    assert found.price == price


@given(problems())
@settings(max_examples=25, deadline=None)
def test_a_higher_price_never_gives_more_noise(problem: Problem) -> None:
    noises = [plan(problem, price).noise for price in (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1e6)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(noises))
    assert noises[-1] <= 1e-6 + min(noises)


@given(problems(), st.data())
@settings(max_examples=25, deadline=None)
def test_told_is_chosen_and_forbidden_is_not(problem: Problem, data: st.DataObject) -> None:
    names = sorted(problem.compute)
    told = data.draw(st.sets(st.sampled_from(names)))
    weights = sorted(problem.storage)
    told_weights = data.draw(st.sets(st.sampled_from(weights)))
    ruled = set(needed(problem, dict.fromkeys(told, None))) | told_weights  # type: ignore[arg-type]
    forbidden = data.draw(st.sets(st.sampled_from(names + weights))) - told - ruled
    found = plan(
        replace(problem, told=told | told_weights, forbidden=forbidden),
        data.draw(st.sampled_from([0.0, 1e6])),
    )
    assert not forbidden & (set(found.compute) | found.coded)
    assert told_weights <= found.coded
    trap = any(s.operator in {"Conv", "Gemm"} and s.name not in found.compute for s in problem.found)
    assert trap or told <= set(found.compute)  # a float convolution between codes would not stay float


@given(problems(), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_under_a_noise_the_plan_holds_it(problem: Problem, share: int) -> None:
    ceiling = share / 100 * plan(problem).noise
    assert under(problem, ceiling).noise <= ceiling + 1e-12


@given(problems())
@settings(max_examples=15, deadline=None)
def test_repair_leaves_what_was_told(problem: Problem) -> None:
    """A weight of a site that was told cannot be put back either."""
    told = set(sorted(problem.compute)[:2])
    problem = replace(problem, told=told)
    start = plan(problem)
    found = repair(problem, start, start.noise * 0.5)
    assert found is None or (told & set(start.compute) <= set(found.compute) and found.noise <= start.noise * 0.5)


def test_noise_is_counted_once_for_a_tensor_that_several_sites_read() -> None:
    context, found = SHARED
    noise = {"static x": 1.0, "static a": 0.25, "weight w": 0.5, "weight v": 0.125}
    prices = Prices({name: {FLOAT: 1e-3, "static": 0.0} for name in found.compute}, 1e-2)
    problem = Problem(context.sites, found.compute, found.storage, prices, {}, noise)
    assert plan(problem).noise == 1.875


def test_an_island_pays_for_its_boundaries_together() -> None:
    """Each convolution alone would lose to its Q and DQ; the chain gains."""
    context, found = RESIDUAL
    fast = {name: {FLOAT: 1e-4, "static": 0.5e-4} for name in found.compute}
    elements = dict.fromkeys(context.observations.shapes, 80)
    problem = Problem(context.sites, found.compute, {}, Prices(fast, 1e-3, 1e-6), elements)
    chain = plan(problem)
    assert set(chain.compute) == set(found.compute)
    for name in found.compute:
        others = set(found.compute) - {name}
        assert not plan(replace(problem, forbidden=others)).compute
    saved, crossings = len(found.compute) * 0.5e-4, 80e-6 + KERNEL_OVERHEAD  # one Q; the Gemm's result stays float
    assert chain.seconds == pytest.approx(1e-3 - saved + crossings)


def test_the_trap_of_silent_quantization_is_seen() -> None:
    """x -> Conv (int8) -> Conv (float) -> Conv (int8): the float one would become int8 per tensor at load."""
    nodes = [node("Conv", f"{s} w", t, pads=[1] * 4) for s, t in (("x", "a"), ("a", "b"), ("b", "y"))]
    proto = model(nodes, {"x": [1, 8, 6, 6]}, {"y": None}, {"w": weight(8, 8, 3, 3)})
    context, found = proposed(proto, samples(2, x=[1, 8, 6, 6]), QuantizeStatic())
    chosen = Plan({name: found.compute[name][0] for name in ("a_node", "y_node")})
    assert silently_quantized(context.sites, chosen) == {"y_node"}
    emission = emitted(proto, samples(2, x=[1, 8, 6, 6]), QuantizeStatic(), without=["b_node"])
    assert set(emission.plan.compute) == {"a_node"}
    assert emission.kernels["QLinearConv"] == 1


@pytest.mark.parametrize("cheaper", ["static", "dynamic"])
def test_sites_that_read_one_tensor_share_the_cheaper_mode(cheaper: str) -> None:
    nodes = [node("MatMul", f"x w{i}", f"m{i}") for i in range(3)] + [node("Sum", "m0 m1 m2", "y")]
    proto = model(nodes, {"x": [8, 24]}, {"y": None}, {f"w{i}": weight(24, 24) for i in range(3)})
    context, found = proposed(proto, samples(2, x=[8, 24]), QuantizeStatic(), QuantizeDynamic())
    other = {"static": "dynamic", "dynamic": "static"}[cheaper]
    prices = {name: {FLOAT: 1e-3, cheaper: 1e-4, other: 2e-4} for name in found.compute}
    prices["m0_node"] |= {cheaper: 2e-4, other: 1e-4}  # the one that would rather not
    problem = Problem(context.sites, found.compute, {}, Prices(prices, 1e-2), {"x": 1})
    assert [c.mode for c in plan(problem).compute.values()] == [cheaper] * 3


def test_a_table_is_gathered_as_codes_only_when_it_is_stored() -> None:
    proto = model(
        [node("Gather", "table ids", "y")],
        {"ids": [4]},
        {"y": None},
        {"table": weight(50, 8)},
        integers=["ids"],
    )
    context, found = proposed(proto, [{"ids": np.arange(4)}], QuantizeEmbedding(), StoreInt8())
    problem = Problem(context.sites, found.compute, found.storage, Prices({}, 1e-3), {}, {"weight table": 1.0})
    assert set(plan(problem).compute) == {"y_node"}
    assert not plan(problem, 1e6).compute
    assert not plan(replace(problem, forbidden={"table"})).compute


def test_nothing_to_plan() -> None:
    context, _ = SHARED
    assert plan(Problem(context.sites, {}, {}, Prices({}, 0.0), {})).key == Plan().key
