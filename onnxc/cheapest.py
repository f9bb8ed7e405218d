"""The cheapest format of every weight at once. In: the ways to store weights, and what counts. Out: one way each.

Bytes and load times of all ways lie in arrays [weights, ways], since a plan asks thousands of weights with tens of ways
each, and a search makes hundreds of plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from onnxc.codes.formats import FLOATS, INT8, float_seconds, parse_format
from onnxc.contract.candidates import Candidate


@lru_cache(maxsize=1 << 16)
def load_seconds(mode: str, elements: int) -> float:
    """About what unfolding a weight of so many elements costs when the model is loaded."""
    return float_seconds(elements) if mode in FLOATS else parse_format(mode).load_seconds(elements)


@dataclass
class Formats:
    """The ways to store weights as codes, smaller floats left out.

    Attributes:
        storage: weight name -> its candidates, as the problem has them; sizes: weight name -> elements; computed:
            weight name -> seconds that its int8 codes take at load, where they are waves.
        rows: weight name -> row of the arrays; ways: the candidates of each row, in order.
        bytes, loading: [weights, ways]; absent: the same, infinite where a row has fewer ways.
    """

    storage: Mapping[str, Sequence[Candidate]]
    sizes: Mapping[str, int]
    computed: Mapping[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(init=False)
    ways: list[list[Candidate]] = field(init=False)
    bytes: np.ndarray = field(init=False)
    loading: np.ndarray = field(init=False)
    absent: np.ndarray = field(init=False)
    _heard: tuple[object, object, np.ndarray] | None = None
    _found: tuple[object, dict[str, Candidate]] = (None, {})

    def __post_init__(self) -> None:
        coded = {name: [way for way in ways if way.mode not in FLOATS] for name, ways in self.storage.items()}
        coded = {name: ways for name, ways in coded.items() if ways}
        self.rows, self.ways = {name: row for row, name in enumerate(coded)}, list(coded.values())
        shape = (len(coded), max(map(len, self.ways), default=0))
        self.bytes, self.loading, self.absent = np.zeros(shape), np.zeros(shape), np.full(shape, np.inf)
        for (name, row), ways in zip(self.rows.items(), self.ways, strict=True):
            self.bytes[row, : len(ways)] = [way.bytes for way in ways]
            self.absent[row, : len(ways)] = 0.0
            size = self.sizes.get(name, 0)
            self.loading[row, : len(ways)] = [load_seconds(way.mode, size) for way in ways]
            if name in self.computed:
                self.loading[row, : len(ways)] += [(way.mode == INT8.name) * self.computed[name] for way in ways]

    def noises(self, alone: Mapping[str, float], ratios: Mapping[str, Mapping[str, float]]) -> np.ndarray:
        """[weights, ways]: noise of each way. ``alone``: weight name -> measured noise; ``ratios`` of ways to it."""
        if self._heard is None or self._heard[0] is not alone or self._heard[1] is not ratios:
            found = np.zeros(self.bytes.shape)
            for (name, row), ways in zip(self.rows.items(), self.ways, strict=True):
                own = ratios.get(name, {})
                found[row, : len(ways)] = [own.get(way.mode, 1.0) for way in ways]
                found[row] *= alone.get(f"weight {name}", 0.0)
            self._heard = alone, ratios, found
        return self._heard[2]

    def cheapest(
        self, byte_price: float, price: float, load_price: float, noises: np.ndarray
    ) -> Mapping[str, Candidate]:
        """The way of every weight with the least bytes, noise and loading; the first of equals.

        Args:
            byte_price, price, load_price: of one byte, of noise, of a second; noises: [weights, ways].
        """
        asked = (byte_price, price, load_price, id(noises))
        if self._found[0] != asked and self.ways:
            costs = byte_price * self.bytes + price * noises + load_price * self.loading + self.absent
            best = np.argmin(costs, axis=1).tolist()
            self._found = asked, {name: ways[i] for name, ways, i in zip(self.rows, self.ways, best, strict=True)}
        return self._found[1]
