"""How long unfolding takes on this machine: measured once, of a model that computes the same either way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxc import load_pace
from onnxc.load_pace import LEAST, MOST, SHAPE, products, unfolding, weights
from onnxc.price_file import PriceFile
from onnxc.runtime.timing import LoadCost
from onnxc.session import Options, Session


def test_packed_codes_are_the_same_codes() -> None:
    codes = weights()
    rows = np.random.default_rng(1).integers(0, 256, (1, SHAPE[0])).astype(np.uint8)
    plain, small = products(codes), unfolding(codes)
    assert len(small.serialized()) < 0.6 * len(plain.serialized())
    expected, found = (Session(model).run({"x": rows}) for model in (plain, small))
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_it_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = PriceFile.open(tmp_path / "prices.json")
    found = load_pace.load_pace(Options(), prices)
    assert LEAST <= found <= MOST
    monkeypatch.setattr(load_pace, "load_costs", lambda *_, **__: pytest.fail("measured again"))
    assert load_pace.load_pace(Options(), prices) == found
    monkeypatch.setattr(load_pace, "load_costs", lambda *_, **__: (LoadCost(1.0, None), LoadCost(9.0, None)))
    assert load_pace.load_pace(Options(threads=2), prices) == MOST
