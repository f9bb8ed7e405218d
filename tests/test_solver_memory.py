"""Solvers in bounded memory: large tables in parts, factors kept while there is room; the same results."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxc.codes import grids, moments
from onnxc.codes.fitting import block_grid, even_scale
from onnxc.codes.gptq import damage
from onnxc.codes.grids import BlockGrid, nearest_words
from onnxc.model import Model
from onnxc.observe import Observations
from onnxc.sites import Sites, find
from onnxc.targets import target
from tests.emission import model, node, weight

ROWS, WIDTH = 20_000, 256


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """W [1, K, N] of an embedding table, 20 MB."""
    return np.random.default_rng(0).standard_normal((1, WIDTH, ROWS), np.float32)


def peak_of(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def rounded(table: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(table * 8) / 8, np.float32)


def moment() -> np.ndarray:
    rows = np.random.default_rng(1).standard_normal((300, WIDTH)).astype(np.float32)
    return np.asarray((rows.T @ rows / 300)[None], np.float32)


def test_a_scale_per_row_takes_less_memory_than_the_table(table: np.ndarray) -> None:
    assert peak_of(lambda: even_scale(table, 16, np.ones((1, WIDTH), np.float32))) < table.nbytes


def test_blocks_take_less_memory_than_the_table(table: np.ndarray) -> None:
    codes = table * 8
    assert peak_of(lambda: block_grid(codes, 16, 64, np.ones((1, WIDTH), np.float32), 127)) < table.nbytes


def test_damage_takes_less_memory_than_the_table(table: np.ndarray) -> None:
    values, known = rounded(table), moment()
    assert peak_of(lambda: damage(table, values, known)) < table.nbytes


@pytest.mark.parametrize("elements", [1, 1000, 1 << 16])
def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    random = np.random.default_rng(2)
    matrix, weight = random.standard_normal((2, WIDTH, 37)).astype(np.float32), np.ones((2, WIDTH), np.float32)
    known = np.repeat(moment(), 2, 0)

    def found() -> tuple[np.ndarray, BlockGrid, float]:
        blocks = block_grid(matrix * 30, 9, 32, weight, 127)
        return even_scale(matrix, 16, weight), blocks, damage(matrix, rounded(matrix), known)

    whole = found()
    monkeypatch.setattr(grids, "PART", elements)
    apart = found()
    np.testing.assert_array_equal(whole[0], apart[0])
    np.testing.assert_array_equal(whole[1].steps, apart[1].steps)
    np.testing.assert_array_equal(whole[1].offsets, apart[1].offsets)
    assert whole[2] == pytest.approx(apart[2], rel=1e-6)


def chain(count: int) -> tuple[Sites, Observations]:
    """``count`` linears in a row with inputs of their own, and random rows for each."""
    nodes = [node("MatMul", f"t{i} w{i}", f"t{i + 1}") for i in range(count)]
    weights = {f"w{i}": weight(32, 32) for i in range(count)}
    loaded = Model.load(model(nodes, {"t0": [8, 32]}, {f"t{count}": None}, weights))
    seen, random = Observations(samples=1), np.random.default_rng(3)
    seen.rows = {f"t{i}": random.standard_normal((50, 32), np.float32) for i in range(count)}
    return find(loaded, target("cpu")), seen


@pytest.mark.parametrize(("room", "made"), [(1 << 20, 6), (0, 18), (3 * 32 * (32 * 2 + 2) * 4, 12)])
def test_factors_are_made_once_while_there_is_room(monkeypatch: pytest.MonkeyPatch, room: int, made: int) -> None:
    """Trials ask for all of them in the same order again; without room every one is made anew, within it none is."""
    calls: list[int] = []
    real = moments.factorize
    monkeypatch.setattr(moments, "factorize", lambda found: calls.append(1) or real(found))
    monkeypatch.setattr(moments, "KEPT_BYTES", room)
    sites, seen = chain(6)
    factors = moments.Factors(sites, seen)
    first = [factors.of(each) for each in sites.weights]
    for _ in range(2):
        again = [factors.of(each) for each in sites.weights]
    assert len(calls) == made
    for one, other in zip(first, again, strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.upper, other.upper)


@pytest.mark.parametrize("dimension", [2, 4, 8])
def test_nearest_words_are_the_nearest(dimension: int) -> None:
    random = np.random.default_rng(4)
    vectors, table = random.standard_normal((1300, dimension)), random.standard_normal((256, dimension))
    importance = random.random((1300, dimension)) + 0.1
    wanted = (importance[:, None] * (vectors[:, None] - table) ** 2).sum(2).argmin(1)
    found = nearest_words(*(each.astype(np.float32) for each in (vectors, importance, table)))
    assert (found == wanted).mean() > 0.998  # ties, and the last bit of float32
