"""Formats that few weights have are given up where their chains take more than others cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxc.codes.formats import is_small, parse_format
from onnxc.fewer_formats import Moves, fewer_formats, one_format
from onnxc.overheads import chain_bytes
from onnxc.predictions import predicted_loading, predicted_noise, stored_bytes
from onnxc.problem import Plan, Problem
from tests.test_planning_promises import large


def problem_of(count: int) -> Problem:
    """Linears with formats of every kind."""
    problem = large("MatMul", count)
    problem.noise = dict.fromkeys(problem.noise, 0.0001)
    return problem


def mixed(problem: Problem) -> Plan:
    """A plan with as many formats as there are: the first weight has the first one, and so on."""
    ways = {name: [way.mode for way in found if is_small(way.mode)] for name, found in problem.storage.items()}
    stored = {name: modes[at % len(modes)] for at, (name, modes) in enumerate(ways.items()) if modes}
    return Plan(stored=stored, noise=predicted_noise(problem, {}, stored))


def expected_bytes(problem: Problem, plan: Plan) -> float:
    """Of weights and chains."""
    used = {mode for mode in plan.stored.values() if is_small(mode)}
    return stored_bytes(problem, plan.stored) + sum(chain_bytes(parse_format(mode)) for mode in used)


@pytest.mark.parametrize("room", [1.0, 1.5, 4.0])
def test_a_small_model_has_few_formats(room: float) -> None:
    problem = problem_of(8)
    start = mixed(problem)
    found = fewer_formats(problem, start, room * start.noise)
    assert len(set(found.stored.values())) < len(set(start.stored.values()))
    assert found.stored.keys() == start.stored.keys()
    assert found.noise == pytest.approx(predicted_noise(problem, {}, found.stored))
    assert found.noise <= room * start.noise * (1 + 1e-9)
    assert expected_bytes(problem, found) < expected_bytes(problem, start)
    assert fewer_formats(problem, found, room * start.noise).key == found.key, "once is enough"


def test_limits_stay_limits() -> None:
    problem = problem_of(8)
    start = mixed(problem)
    loading = predicted_loading(problem, start)
    tight = replace(problem, most_loading=loading)
    assert predicted_loading(problem, fewer_formats(tight, start, 4 * start.noise)) <= loading
    full = replace(problem, most_bytes=stored_bytes(problem, start.stored))
    assert stored_bytes(problem, fewer_formats(full, start, start.noise).stored) <= full.most_bytes


@pytest.mark.parametrize("share", [0.9, 0.6, 0.35])
def test_one_format_is_made_to_load_in_time(share: float) -> None:
    """Weights change to full codes, those first that cost the fewest bytes for a second, and the noise still fits."""
    problem = problem_of(8)
    start = mixed(problem)
    free = one_format(problem, start, 2 * start.noise)
    assert len(free) > 4
    coded = dict.fromkeys(start.stored, "int8")
    least = predicted_loading(problem, replace(start, stored=coded))
    most = least + share * (max(predicted_loading(problem, each) for each in free) - least)
    plans = one_format(replace(problem, most_loading=most), start, 2 * start.noise)
    assert plans
    for each in plans:
        assert len({mode for mode in each.stored.values() if is_small(mode)}) <= 1
        assert predicted_loading(problem, each) <= most
        assert each.noise == pytest.approx(predicted_noise(problem, {}, each.stored))
        assert each.noise <= 2 * start.noise
    assert min(stored_bytes(problem, each.stored) for each in plans) < stored_bytes(problem, coded)


def test_what_was_told_stays() -> None:
    problem = problem_of(8)
    start = mixed(problem)
    told = sorted(start.stored)[:3]
    found = fewer_formats(replace(problem, told=set(told)), start, 4 * start.noise)
    assert all(found.stored[name] == start.stored[name] for name in told)


def test_of_a_large_model_chains_are_nothing() -> None:
    problem = problem_of(2000)
    start = mixed(problem)
    assert fewer_formats(problem, start, start.noise) is start


def test_louder_ways_are_put_back_until_the_noise_fits() -> None:
    sizes = np.array([[0.0, -100.0, 50.0], [0.0, -80.0, np.inf]])
    noise = np.array([[0.0, 3.0, -1.0], [0.0, 2.0, 0.0]])
    for slack, wanted in ((5.0, [1, 1]), (4.0, [1, 0]), (3.0, [1, 0]), (2.0, [0, 1]), (0.0, [0, 0]), (-1.0, [2, 0])):
        chosen = Moves(sizes, noise).within(slack)
        assert chosen is not None
        assert float(noise[[0, 1], chosen].sum()) <= slack
        assert chosen.tolist() == wanted or float(sizes[[0, 1], chosen].sum()) <= float(sizes[[0, 1], wanted].sum())
    assert Moves(sizes, noise).within(-2.0) is None
