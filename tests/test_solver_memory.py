"""Grids and damages of large tables: in parts, with the same result, without copies of the table."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxc.codes import grids
from onnxc.codes.gptq import damage
from onnxc.codes.grids import BlockGrid, block_grid, even_scale

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
