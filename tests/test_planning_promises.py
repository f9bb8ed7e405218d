"""What planning promises whatever the problem: a looser limit never gives a worse model, and thousands of weights take
seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxc.cheapest import Formats
from onnxc.codes.formats import FLOATS, HALF, INT8, NODE_SECONDS, Format, is_small, parse_format
from onnxc.contract.candidates import Activation, Candidate
from onnxc.cost import Prices
from onnxc.encoding import stored_bytes as code_bytes
from onnxc.limits import better, filled_up, fits, worth
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.planner import plan
from onnxc.predictions import predicted_loading, predicted_noise, stored_bytes
from onnxc.problem import Plan, Problem
from onnxc.profiling import FLOAT
from onnxc.quality import Quality
from onnxc.room import quietest
from onnxc.search import Search
from onnxc.sensitivity import activation_key, weight_key
from onnxc.sites import find
from onnxc.targets import target
from onnxc.trial import NOTHING, Trial
from onnxc.under_noise import light, under
from tests.emission import model, node, weight
from tests.test_planner import problems

FORMATS = [
    Format(),
    *(Format(levels, block) for levels in (40, 16, 9, 6, 4, 3) for block in (0, 16, 32, 64)),
    *(Format(255, 0, dimension) for dimension in (2, 4, 8)),
    *(Format(levels, trellis=True) for levels in (32, 16, 8, 6, 4, 2)),
]


@st.composite
def mixed_problems(draw: st.DrawFn) -> Problem:
    """Problems with formats below 8 bits, and more time than int8 can save."""
    problem = draw(problems())
    storage, ratios = {}, {}
    for name, (way,) in problem.storage.items():
        smaller = [
            replace(way, mode=mode, bytes=int(way.bytes * share))
            for mode, share in (("levels16", 0.5), ("levels4", 0.25))
        ]
        storage[name] = [way, *smaller]
        ratios[name] = {"levels16": draw(st.floats(2, 100)), "levels4": draw(st.floats(50, 2000))}
    return replace(problem, storage=storage, ratios=ratios, prices=replace(problem.prices, total=2e-2))


@given(mixed_problems(), st.lists(st.integers(0, 100), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_more_noise_allowed_never_gives_a_larger_or_slower_model(problem: Problem, shares: list[int]) -> None:
    most = plan(problem).noise
    found = [under(problem, share / 100 * most) for share in sorted(shares)]
    for tighter, looser in pairwise(found):
        assert worth(problem, looser) <= worth(problem, tighter) * (1 + 1e-9)


@given(mixed_problems(), st.lists(st.integers(0, 100), min_size=2, max_size=4), st.integers(10, 100))
@settings(max_examples=15, deadline=None)
def test_more_bytes_allowed_never_give_a_slower_model(problem: Problem, shares: list[int], noise: int) -> None:
    least = plan(problem)
    low, high = stored_bytes(problem, least.stored), sum(each.bytes for each in problem.found.weights)
    held = []
    for share in sorted(shares):
        limited = replace(problem, most_bytes=low + share / 100 * (high - low), limited=1.0)
        found = under(limited, noise / 100 * least.noise)
        if stored_bytes(limited, found.stored) <= (limited.most_bytes or 0):
            held.append(found.seconds)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(held))


@given(mixed_problems(), st.integers(0, 100), st.floats(0, 1e4))
@settings(max_examples=25, deadline=None)
def test_what_a_limit_of_size_leaves_is_filled(problem: Problem, share: int, price: float) -> None:
    """No weight can be taken from the larger plan any more, and the plan is quieter than the one it was made of."""
    least, most = plan(problem), plan(problem, 1e6)
    low, high = (stored_bytes(problem, each.stored) for each in (least, most))
    limited = replace(problem, most_bytes=low + share / 100 * max(high - low, 0))
    start = plan(limited, price)
    if stored_bytes(limited, start.stored) > (limited.most_bytes or 0):
        start = least
    made = filled_up(limited, start, most)
    assert fits(limited, made)
    assert made.noise <= predicted_noise(limited, start.compute, start.stored) * (1 + 1e-9)
    for name, mode in made.stored.items():
        wider = most.stored.get(name, mode)
        gone = limited.weight_noise(name, mode) - limited.weight_noise(name, wider)
        if wider not in FLOATS and gone > 0:
            grown = {**made.stored, name: wider}
            assert wider == mode or not fits(limited, replace(made, stored=grown)), f"there is room for {name}"


@pytest.mark.parametrize("elements", [100, 1 << 16, 1 << 17, 1 << 21])
def test_the_table_of_load_times_is_what_plans_are_predicted_to_take(elements: int) -> None:
    """Of large weights too, which take longer per number in some formats."""
    ways = [way for way in large("MatMul", 1).storage["w0"] if way.mode not in FLOATS]
    table = Formats({"w0": ways}, {"w0": elements}).loading[0]
    assert table.tolist() == [parse_format(way.mode).load_seconds(elements) for way in ways]


def test_no_time_to_load_is_no_reason_for_formats_that_take_some() -> None:
    problem = large("MatMul", 24)
    found = light(replace(problem, load_price=1e3, tables=[]), 1e-2)
    most = 1.1 * stored_bytes(problem, found.stored)
    free, hurried = (quietest(replace(problem, most_bytes=most, most_loading=time), found) for time in (None, 0.0))
    assert predicted_loading(problem, hurried) <= predicted_loading(problem, found) < predicted_loading(problem, free)


@given(mixed_problems(), st.integers(0, 100), st.integers(1, 100))
@settings(max_examples=20, deadline=None)
def test_a_limit_of_size_is_spent_on_the_least_noise(problem: Problem, share: int, noise: int) -> None:
    """As fast, within the limit, no noisier; and no weight has a finer format for which there is room."""
    least = plan(problem)
    low, high = stored_bytes(problem, least.stored), sum(each.bytes for each in problem.found.weights)
    limited = replace(problem, most_bytes=low + share / 100 * (high - low), limited=1.0)
    found = under(limited, noise / 100 * least.noise)
    made = quietest(limited, found)
    if not fits(limited, found):
        assert made is found
        return
    assert fits(limited, made)
    assert made.seconds <= found.seconds * 1.01
    assert made.noise <= found.noise * (1 + 1e-9)
    for name, mode in made.stored.items():
        for way in limited.storage.get(name, ()):
            quieter = limited.weight_noise(name, way.mode) < limited.weight_noise(name, mode) * (1 - 1e-9)
            if quieter and mode not in FLOATS and way.mode not in FLOATS:
                grown = replace(made, stored={**made.stored, name: way.mode})
                assert not fits(limited, grown), f"there is room for {name} as {way.mode}"


def test_within_the_limit_comes_first() -> None:
    """A fast plan outside of the limit of size is no better than a slow one within."""
    problem = replace(large("MatMul", 8), most_bytes=1e6)
    outside = Plan(stored={each.name: HALF for each in problem.found.weights}, seconds=1e-9)
    within = Plan(stored={}, seconds=1.0)
    assert stored_bytes(problem, within.stored) < 1e6 < stored_bytes(problem, outside.stored)
    assert worth(problem, outside) < worth(problem, within)
    assert better(problem, within, outside)
    assert not better(problem, outside, within)


def test_what_formats_take_beside_the_weights_counts() -> None:
    """Two kilobytes less of weights for three more of nodes and tables are no gain."""
    problem = large("MatMul", 8)
    wide = Plan(stored={each.name: HALF for each in problem.found.weights}, seconds=1.0)
    narrow = Plan(stored={each.name: "levels16" for each in problem.found.weights}, seconds=1.0)
    saved = stored_bytes(problem, wide.stored) - stored_bytes(problem, narrow.stored)
    assert saved > 0
    assert better(problem, narrow, wide)
    assert better(problem, narrow, wide, 1.0, (0.9 * saved, 0.0))
    assert not better(problem, narrow, wide, 1.0, (1.1 * saved, 0.0))


def large(operator: str, count: int = 2000) -> Problem:
    """``count`` weights in 28 formats each, two ways to compute linears and one for convolutions; made-up prices."""
    convolution = operator == "Conv"
    values, nodes, last, skip = weight(4, 4, 3, 3) if convolution else weight(8, 8), [], "x", "x"
    for index in range(count):
        extra = {"pads": [1] * 4} if convolution else {}
        nodes.append(node(operator, f"{last} w{index}", f"c{index}", **extra))
        last = f"c{index}"
        if index % 4 == 3:
            nodes.append(node("Add", f"{last} {skip}", f"s{index}"))
            last = skip = f"s{index}"
    shape = [1, 4, 6, 6] if convolution else [8, 8]
    proto = model([*nodes, node("Relu", last, "y")], {"x": shape}, {"y": None}, {f"w{i}": values for i in range(count)})
    loaded = Model.load(proto)
    name_nodes(loaded)
    found, random = find(loaded, target("cpu")), np.random.default_rng(0)
    compute: dict[str, list[Candidate]] = {}
    storage: dict[str, list[Candidate]] = {}
    seconds, noise, ratios = dict[str, dict[str, float]](), dict[str, float](), dict[str, dict[str, float]]()
    for site in found:
        seconds[site.name] = {FLOAT: random.gamma(2, 50e-6)}
        for mode in ("static",) if convolution else ("static", "dynamic"):
            reads = tuple(Activation(tensor.name, -1, 1, dynamic=mode == "dynamic") for tensor in site.inputs)
            writes = Activation(site.result.name, -1, 1) if convolution else None
            compute.setdefault(site.name, []).append(Candidate("", "compute", site.name, mode, mode, reads, writes))
            seconds[site.name][mode] = seconds[site.name][FLOAT] * random.uniform(0.3, 1.3)
            for each in (*reads, *((writes,) if writes else ())):
                noise.setdefault(activation_key(each), random.gamma(0.5, 1e-6))
    for each in found.weights:
        elements = int(random.integers(10_000, 1_000_000))
        sizes = {f.name: int(elements * f.bits / 8) + (2 * elements // f.block if f.block else 100) for f in FORMATS}
        ways = {HALF: 2 * elements} | sizes
        storage[each.name] = [
            Candidate("", "storage", each.name, mode, mode, bytes=size) for mode, size in ways.items()
        ]
        noise[weight_key(each.name)] = random.gamma(0.5, 1e-6)
        ratios[each.name] = {f.name: 4 ** (8 - f.bits) * random.uniform(0.3, 1) for f in FORMATS}
    prices = Prices(seconds, 1.1 * sum(each[FLOAT] for each in seconds.values()), 1e-9, 1e-6)
    return Problem(found, compute, storage, prices, {}, noise, ratios)


def written(found: Plan) -> str:
    """Everything that a model is built from."""
    return json.dumps([[(name, each.mode) for name, each in found.compute.items()], dict(found.stored)])


@pytest.mark.parametrize("operator", ["MatMul", "Conv"])
def test_thousands_of_weights_are_planned_in_seconds(operator: str) -> None:
    problem = large(operator)
    start = process_time()
    first = under(problem, 1e-2)
    assert process_time() - start < 5.0
    assert 0.97e-2 < first.noise <= 1e-2
    assert len(set(first.stored.values())) > 5
    assert 0.3 * len(problem.compute) < len(first.compute) < len(problem.compute)
    again = replace(problem, tables=[])
    assert written(under(again, 1e-2)) == written(first)


@pytest.mark.parametrize("find_plan", [plan, lambda problem: under(problem, 1e-3)], ids=["plan", "under"])
def test_the_order_of_names_does_not_decide(find_plan: Callable[[Problem], Plan]) -> None:
    """Dictionaries filled in another order hold the same problem."""
    problem = large("Conv", 60)
    turned = replace(
        problem,
        noise=dict(reversed(problem.noise.items())),
        ratios=dict(reversed(problem.ratios.items())),
        storage=dict(reversed(problem.storage.items())),
        tables=[],
    )
    assert find_plan(turned).key == find_plan(problem).key


def test_a_plan_is_made_to_load_in_time() -> None:
    """Of the same noise, with more bytes: formats that unfold fast go before small ones."""
    problem, noise = large("MatMul", 60), 1e-2
    free = under(problem, noise)
    most = 0.7 * predicted_loading(problem, free)
    fast = light(replace(problem, most_loading=most, tables=[]), noise)
    assert predicted_loading(problem, fast) <= most
    assert fast.noise <= noise
    assert stored_bytes(problem, free.stored) <= stored_bytes(problem, fast.stored)


@pytest.mark.parametrize("excess", [1.07, 2.2, 3.5])
def test_a_plan_within_the_limit_that_missed_by_little_is_not_the_last(excess: float) -> None:
    """A score turns on single items: others of about the same noise are tried, within the limit; far off, none is."""
    problem = large("MatMul", 24)
    whole = stored_bytes(problem, plan(problem.in_full_codes()).stored)
    problem = replace(problem, most_bytes=0.55 * whole)
    first = light(problem, 1e-3)
    assert fits(problem, first)
    quality = Quality(sqnr_db=30.0)
    missed = Trial(first, NOTHING, quality, 0.9, "the score fell by a little more than is allowed", excess=excess)
    tried = [missed]

    def judge(candidate: Plan) -> Trial:
        assert fits(problem, candidate)
        assert candidate.key != first.key
        return Trial(candidate, NOTHING, quality, 1.0, None)

    found = Search(problem, judge, 0.1, tried=tried).close_miss()
    assert (found is not None) == (excess < 3)
    assert len(tried) == (2 if excess < 3 else 1)


def test_plans_as_fast_are_rounded_otherwise_before_a_limit_is_out_of_reach() -> None:
    """No louder or quieter plan helps: then weights are rounded otherwise in a little fewer bytes."""
    problem = large("MatMul", 24)
    problem = replace(problem, most_bytes=0.55 * stored_bytes(problem, plan(problem.in_full_codes()).stored))
    quality, most = Quality(sqnr_db=30.0), problem.most_bytes
    assert most is not None
    tried = [Trial(light(problem, 1e-3), NOTHING, quality, 0.9, "the score fell by one item", excess=1.0)]

    def judge(candidate: Plan) -> Trial:
        lucky = stored_bytes(problem, candidate.stored) <= 0.97 * most
        return Trial(candidate, NOTHING, quality, 1.0, None if lucky else "the score fell by one item")

    found = Search(problem, judge, 0.1, tried=tried).close_miss()
    assert found is not None
    assert fits(problem, found.plan)
    assert problem.most_bytes == most
    assert len({trial.plan.key for trial in tried}) == len(tried) <= 8


def test_what_loads_in_time_is_better() -> None:
    """Of two plans, whatever they are worth; where both do, or none does, the one that is worth more."""
    problem = large("MatMul", 24)
    small, plain = under(problem, 1e-2), plan(problem.in_full_codes())
    assert better(problem, small, plain)
    times = [predicted_loading(problem, each) for each in (small, plain)]
    assert times[0] > times[1]
    for most, wanted in ((times[1], False), (times[0], True), (0.5 * times[1], True)):
        assert better(replace(problem, most_loading=most), small, plain) is wanted


def test_codes_of_one_shape_take_few_nodes_together() -> None:
    """Linears of one shape that compute in float: a Cast, a Mul and a Split for all, where each took two."""
    problem = large("MatMul", 24)
    names = [weight.name for weight in problem.found.weights]
    for count in (1, 2, 24):
        stored = dict.fromkeys(names[:count], "int8")
        elements = sum(problem.found.elements[name] for name in stored)
        kinds = len({problem.found.alike[name][0] for name in stored})
        nodes = (predicted_loading(problem, Plan(stored=stored)) - 1e-9 * elements) / NODE_SECONDS
        assert 2 * kinds <= round(nodes) <= 3 * kinds


@pytest.mark.parametrize("unlucky", [True, False])
def test_one_score_that_fell_too_far_by_little_is_doubted(unlucky: bool) -> None:
    """A noisier plan tells whether it was by chance: then the search goes on from there, else it never comes back."""
    problem, allowed, tried = large("MatMul", 24), 1e-2, list[Trial]()

    def judge(candidate: Plan) -> Trial:
        fell = not tried or (not unlucky and candidate.noise >= 0.5 * tried[0].noise)
        words = "the score fell by a little more than is allowed" if fell else None
        excess = 1.1 + 0.5 * candidate.noise / allowed if fell else 1.0
        quality = Quality(sqnr_db=-10 * np.log10(candidate.noise))
        return Trial(candidate, NOTHING, quality, 0.9, words, excess=excess)

    search = Search(problem, judge, allowed, trials=lambda: 8, scored=True, tried=tried)
    search.close_in([])
    best, noises = search.best, [trial.noise for trial in tried]
    assert noises[1] > 1.2 * noises[0]
    assert best is not None
    if unlucky:
        assert best.noise >= noises[1]
    else:
        assert best.noise < 0.5 * noises[0]
        assert max(noises[2:]) < noises[0]


def test_a_plan_hardly_quieter_than_one_that_missed_by_far_is_not_tried() -> None:
    """Within a limit of size out of reach every trial is one less for what does hold."""
    problem, tried = large("MatMul", 24), list[Trial]()
    problem = replace(problem, most_bytes=0.4 * stored_bytes(problem, plan(problem.in_full_codes()).stored))

    def judge(candidate: Plan) -> Trial:
        assert fits(problem, candidate)
        quality = Quality(sqnr_db=-10 * np.log10(candidate.noise))
        return Trial(candidate, NOTHING, quality, 0.8, "the score fell by far too much", excess=10.0)

    search = Search(problem, judge, 1.0, trials=lambda: 10, scored=True, tried=tried)
    search.close_in([])
    assert search.best is None
    noises = [trial.noise for trial in tried]
    assert 1 <= len(tried) <= 4
    assert all(later < 0.9 * earlier for earlier, later in pairwise(noises))


def test_where_all_small_plans_missed_quieter_ones_come_last() -> None:
    """Rather than eight bits everywhere: a plan that misses says little about one with a third of its noise."""
    problem = large("MatMul", 24)
    whole = plan(problem.in_full_codes())
    best = Trial(whole, NOTHING, Quality(sqnr_db=30.0), 1.0, None)
    tried = [best, Trial(light(problem, 1e-2), NOTHING, Quality(sqnr_db=20.0), 0.9, "the score fell")]
    asked: list[float] = []

    def judge(candidate: Plan) -> Trial:
        asked.append(candidate.noise)
        return Trial(candidate, NOTHING, Quality(sqnr_db=25.0), 1.0, None if len(asked) > 1 else "the score fell")

    found = Search(problem, judge, 0.1, tried=tried, best=best).last_tries()
    assert found is not None
    assert found is tried[-1]
    assert len(asked) == 2
    assert asked[1] < asked[0] <= 0.4 * 1e-2
    assert stored_bytes(problem, found.plan.stored) < stored_bytes(problem, whole.stored)
    assert Search(problem, judge, 0.1, tried=[best], best=best).last_tries() is None
    tried[1].others = 1e9  # what more formats take besides
    assert Search(problem, judge, 0.1, tried=tried[:2], best=best).last_tries() is None


def test_what_eight_bits_hold_comes_before_fewer() -> None:
    """Where everything in 8 bits is too loud, a quieter plan in 8 bits is found before fewer bits are tried."""
    problem = replace(large("MatMul", 24), pace=None)
    known, asked = dict(problem.noise), list[Plan]()
    whole = plan(problem.in_full_codes()).noise
    problem = replace(problem, noise={})

    def sensitivities(_: Trial) -> None:
        problem.noise = known

    def judge(candidate: Plan) -> Trial:
        asked.append(candidate)
        noise = predicted_noise(replace(problem, noise=known, heard=(1.0, 1.0)), candidate.compute, candidate.stored)
        missed = "too loud" if noise > 0.5 * whole else None
        return Trial(candidate, NOTHING, Quality(sqnr_db=-10 * np.log10(max(noise, 1e-20))), None, missed)

    best = Search(problem, judge, 0.5 * whole, sensitivities, trials=lambda: 3, closing=lambda: True).run()
    full = [not any(is_small(mode) for mode in each.stored.values()) for each in asked]
    assert best.missed is None
    first = next(index for index, each in enumerate(asked) if each.noise and each.key != asked[0].key)
    assert full[: first + 1] == [True] * (first + 1)
    assert not all(full)
    assert predicted_noise(replace(problem, heard=(1.0, 1.0)), asked[first].compute, asked[first].stored) <= 0.5 * whole


def test_codes_that_only_kernels_ask_for_are_counted() -> None:
    """Where halves and few levels are told no pass stores int8: such weights counted as float32, and float won."""
    problem = large("MatMul", 4)
    kept = {name: [way for way in ways if way.mode != "int8"][:1] for name, ways in problem.storage.items()}
    halves = {name: [replace(way, mode="float16") for way in ways] for name, ways in kept.items()}
    told = replace(problem, storage=halves, tables=[])
    found = plan(told)
    assert set(found.stored.values()) >= {"int8"}
    codes = sum(code_bytes(w, INT8) for w in told.found.weights if found.stored.get(w.name) == "int8")
    others = sum(told.bytes_of(w, m) for w in told.found.weights if (m := found.stored.get(w.name)) != "int8")
    assert stored_bytes(told, found.stored) == codes + others


def searched(problem: Problem, *, allowed: float = 1e-2, sparing: bool = False) -> tuple[Trial, list[Trial]]:
    """A search where trials are as noisy as predicted and hold what is allowed; the noise is known from the second."""
    known, problem.noise = dict(problem.noise), {}

    def judge(candidate: Plan) -> Trial:
        noise = predicted_noise(replace(problem, noise=known, heard=(1.0, 1.0)), candidate.compute, candidate.stored)
        missed = "too loud" if noise > allowed else None
        quality = Quality(sqnr_db=-10 * np.log10(max(noise, 1e-20)))
        return Trial(candidate, NOTHING, quality, 0.9 if missed else 1.0, missed, excess=3.0 if missed else 1.0)

    def sensitivities(_: Trial) -> None:
        problem.noise = known

    search = Search(problem, judge, 1.0, sensitivities, trials=lambda: 8, sparing=sparing)
    return search.run(), search.tried


def test_with_a_limit_of_speed_the_smallest_plan_is_looked_for() -> None:
    """Also where full codes are fast enough."""
    problem = large("MatMul", 24)
    whole = plan(problem.in_full_codes())
    best, tried = searched(replace(problem, most_seconds=2 * problem.prices.total))
    assert best.missed is None
    assert tried[0].plan.key == whole.key
    assert stored_bytes(problem, best.plan.stored) < 0.7 * stored_bytes(problem, whole.stored)


def test_a_looser_limit_of_size_never_gives_a_noisier_or_slower_plan() -> None:
    """Also from where full codes fit on."""
    problem = large("MatMul", 24)
    whole = stored_bytes(problem, plan(problem.in_full_codes()).stored)
    found = [searched(replace(problem, most_bytes=share * whole))[0] for share in (0.9, 1.1, 1.5, 3.0)]
    assert all(trial.missed is None for trial in found)
    for tighter, looser in pairwise(found):
        assert looser.plan.seconds <= 1.02 * tighter.plan.seconds
        assert looser.noise <= 1.02 * tighter.noise
    assert found[-1].noise < 0.9 * found[0].noise


def test_where_trials_are_few_each_halves_what_is_not_known() -> None:
    """From the first plan, that holds, to the loudest one: the second trial is far below the first that misses."""
    problem = large("MatMul", 24)
    first = plan(problem.in_full_codes())
    allowed = 1.5 * predicted_noise(problem, first.compute, first.stored)
    _, tried = searched(problem, allowed=allowed, sparing=True)
    small = [trial for trial in tried if any(is_small(mode) for mode in trial.plan.stored.values())]
    assert small[0].missed is not None
    assert small[1].noise < 0.1 * small[0].noise


def test_sites_that_win_least_are_the_first_given_up_for_the_time_to_load() -> None:
    problem = replace(large("MatMul", 24).in_full_codes(), site_loading=1e-4, tables=[])
    found = [plan(replace(problem, load_price=10.0**power)).compute for power in np.arange(-2, 6, 0.25)]
    counts = [len(each) for each in found]
    assert counts[0] > 12
    assert counts[-1] == 0
    assert len(set(counts)) > 3
    won = {name: (problem.prices.of(name, FLOAT) or 0.0) - (problem.prices.of(name, c.mode) or 0.0)
           for name, c in found[0].items()}  # fmt: skip
    for more, fewer in pairwise(found):
        assert set(fewer) <= set(more)
        gone = [won[name] for name in set(more) - set(fewer)]
        assert max(gone, default=0.0) <= min((won[name] for name in fewer), default=np.inf) * 1.01
