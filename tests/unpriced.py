"""optimize() without clocks: int8 always pays, so that small models are rewritten, the same way every time.

In: pytest's monkeypatch. Out: nothing; prices, ratios and load costs are made up, everything else is real.
"""

from __future__ import annotations

from typing import Any

import pytest

from onnxc import compiler, deliver, exactness, planning
from onnxc.cost import Prices
from onnxc.loading import LoadCost
from onnxc.profiling import FLOAT
from onnxc.session import Ratio


def pretend_everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Int8 sites take a thousandth of the float time; nothing is measured."""

    def priced(context: Any, proposals: Any, *_: Any) -> Prices:
        sites = {
            name: {FLOAT: 1e-3} | {candidate.mode: 1e-6 for candidate in found}
            for name, found in proposals.compute.items()
        }
        return Prices(sites, 1.0, 1e-15)

    monkeypatch.setattr(planning, "priced", priced)
    monkeypatch.setattr(deliver, "speed_of", lambda *_: Ratio(2.0, 2.0, 2.0, 2.0, 1.0))
    monkeypatch.setattr(deliver, "loads_of", lambda *_: (LoadCost(0.1, 0), LoadCost(0.1, 0)))
    monkeypatch.setattr(deliver, "seconds_to_load", lambda *_: (0.1, 0.1))
    monkeypatch.setattr(planning, "load_pace", lambda *_: 1.0)
    monkeypatch.setattr(compiler, "head_start", lambda *_: 1.0)
    monkeypatch.setattr(exactness.Exactness, "_slowed", lambda *_: 1.0)
