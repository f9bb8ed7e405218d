"""What a plan is made from, and what it says. In: sites, candidates, prices, noise. Out: what each choice counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from onnxc.cheapest import Formats
from onnxc.codes.formats import FLOATS, INT8, is_small
from onnxc.contract.candidates import Candidate
from onnxc.cost import Prices
from onnxc.encoding import stored_bytes
from onnxc.sensitivity import Noise, weight_key
from onnxc.sites import Sites, Weight

# What unfolding takes, beside what its formats say of it alone: 40 and 85 ms for 18 MB, 130 and 230 ms for 90 MB, on a
# machine whose pace is 1.
ARRIVES = 1.7
SHORT = 2048  # numbers of a bias or scale that are little beside a model that loads late
TABLES = 4  # of formats, kept: all of them, only those of 8 bits


@dataclass(frozen=True)
class Plan:
    """What is done where.

    Attributes:
        compute: site name -> chosen candidate; sites that stay float are absent.
        stored: name -> format of the weights that are not stored in float32.
        noise: predicted noise power over signal power of the worst output; 0 where nothing was measured.
        seconds: predicted time per run.
        price: the multiplier it is optimal for.
    """

    compute: Mapping[str, Candidate] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    noise: float = 0.0
    seconds: float = 0.0
    price: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        return tuple(sorted((s, c.mode) for s, c in self.compute.items())), tuple(sorted(self.stored.items()))

    @property
    def integers(self) -> list[str]:
        """Names of the sites that run on integers."""
        return [name for name, candidate in self.compute.items() if candidate.mode != "rows"]

    @property
    def coded(self) -> set[str]:
        """Names of the weights that are stored as codes."""
        return {name for name, mode in self.stored.items() if mode not in FLOATS}


@dataclass
class Problem:
    """Everything a plan is made from.

    Attributes:
        found: weights and sites of the model.
        compute: site name -> its candidates, at most one per mode.
        storage: weight name -> its storage candidates, one per format.
        prices: measured seconds; lead: times as fast as the original the float form of this model is.
        elements: tensor name -> elements per run, for the price of a boundary.
        noise: measured noise of each rounding alone; empty until it is needed.
        ratios: weight name -> format -> its noise over the measured one.
        heard: how much of the noise of activations and of weights arrives when all of it comes together, from trials.
        byte_price, time_price: what bytes and time count; 1 each where none is limited.
        limited: the price of what is limited that the last plan under limits was found with.
        most_bytes: of all weights, and most_seconds: of a run, where a limit is given; free: none counts any more.
        beside: plan -> bytes that the file that was built of it holds beside its weights, more than most_bytes is for.
        load_price: what a second of loading counts beside all bytes; most_loading: seconds in which all weights may
            unfold and sites be made ready, None where nothing is known of that; site_loading: what a site on integers
            takes of them, beside its float form.
        arrives: seconds in which a second of unfolding arrives, as formats tell it.
        loaded: what the first plan was predicted to take of these seconds, and those by which it loaded faster than it
            must; hurried: whether the best plan would not load in time; late: whether one of int8 codes hardly does.
        unit: the bytes that count as much as ``pace`` seconds; see smallest_bytes().
        pace: by default the float model's time. Of a plan near the one sought, so that least bytes times seconds is
            found where shares of its own bytes and seconds are traded.
        forbidden: sites that must stay float, and weights that must stay float32.
        told: sites and weights whose candidate was asked for by name: chosen whether or not it pays.
        tables: of the formats, shared by all variants of a problem.
    """

    found: Sites
    compute: Mapping[str, Sequence[Candidate]]
    storage: Mapping[str, Sequence[Candidate]]
    prices: Prices
    elements: Mapping[str, int]
    noise: Noise = field(default_factory=dict)
    ratios: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    heard: tuple[float, float] = (1.0, 1.0)
    byte_price: float = 1.0
    time_price: float = 1.0
    load_price: float = 0.1
    unit: int | None = None
    pace: float | None = None
    limited: float = 1.0
    most_bytes: float | None = None
    beside: Mapping[object, float] = field(default_factory=dict)
    most_seconds: float | None = None
    most_loading: float | None = None
    site_loading: float = 0.0
    arrives: float = ARRIVES
    loaded: tuple[float, float] | None = None
    hurried: bool = False
    late: bool = False
    free: bool = False
    tables: list[Formats] = field(default_factory=list, repr=False)
    forbidden: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    lead: float = 1.0

    @property
    def original_seconds(self) -> float:
        """Of a run of the original: how fast a plan is predicted to be is this, over its seconds."""
        return self.prices.total * self.lead

    def unlimited(self) -> None:
        """From now on no limit of size or speed counts."""
        self.free, self.most_bytes, self.most_seconds = True, None, None

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Elements of every weight."""
        return {weight.name: weight.elements for weight in self.found.weights}

    @property
    def whole(self) -> float:
        """The seconds that count as 1."""
        return max(self.pace or self.prices.total, 1e-9) / self.time_price

    def weight_noise(self, name: str, mode: str) -> float:
        """Predicted noise of a weight in a format."""
        if mode in FLOATS:
            return 0.0
        return self.heard[1] * self.noise.get(weight_key(name), 0.0) * self.ratios.get(name, {}).get(mode, 1.0)

    def activation_noise(self, key: str) -> float:
        """Predicted noise of a quantized activation."""
        return self.heard[0] * self.noise.get(key, 0.0)

    def coded(self, name: str, price: float) -> Candidate | None:
        """The format of codes with the least bytes and noise, None where the weight has no candidate."""
        formats = self.formats
        noises = formats.noises(self.noise, self.ratios)
        found = formats.cheapest(self.byte_price / smallest_bytes(self), price * self.heard[1], self.load_price, noises)
        return found.get(name)

    @property
    def formats(self) -> Formats:
        """The ways to store weights as arrays, made once for all variants of a problem."""
        known = next((each for each in self.tables if each.storage is self.storage), None)
        if known is None:
            known = Formats(self.storage, self.sizes, self.found.waves)
            self.tables[:] = [known, *self.tables[: TABLES - 1]]
        return known

    def half(self, name: str) -> Candidate | None:
        """The storage in float16, or in the smaller float that was asked for; None of what is small where models load
        late: it saves little, and a node has to unfold it.
        """
        if self.late and self.sizes[name] < SHORT and name not in self.told:
            return None
        return next((way for way in self.storage.get(name, ()) if way.mode in FLOATS), None)

    def bound(self, found: Plan) -> set[str]:
        """Sites and weights of a plan that are not free: told by name, or read as they lie by the chosen operator."""
        formed = {name for name, candidate in found.compute.items() if candidate.form}
        return self.told | {s.weight.name for s in self.found if s.name in formed and s.weight is not None}

    def bytes_of(self, weight: Weight, mode: str | None) -> int:
        """Bytes of a weight in a format, as float32 where ``mode`` is None. An int8 kernel reads int8 codes even where
        no pass stores them.
        """
        found = next((way.bytes for way in self.storage.get(weight.name, ()) if way.mode == mode), None)
        if found is not None or mode is None:
            return weight.bytes if found is None else found
        if mode == INT8.name:
            return self.own_bytes.get((weight.name, mode)) or stored_bytes(weight, INT8)
        return self.own_bytes.get((weight.name, mode), weight.bytes)

    @property
    def own_bytes(self) -> dict[tuple[str, str], int]:
        """Of weights in the formats that candidates to compute their sites bring with them."""
        weights = {site.name: site.weight.name for site in self.found if site.weight is not None}
        ways = [(weights[name], c) for name, found in self.compute.items() for c in found if c.form]
        return {(weight, c.form): c.bytes for weight, c in ways}

    @property
    def has_small_codes(self) -> bool:
        """Whether a weight may be stored in fewer than 8 bits."""
        forms = [way.mode for ways in self.storage.values() for way in ways]
        return any(is_small(form) for form in (*forms, *(form for _, form in self.own_bytes)))

    def only(self, modes: Collection[str]) -> Problem:
        """The same problem without the formats below 8 bits that are not among ``modes``; weights that have no other
        keep all of theirs.
        """
        storage = {
            name: [way for way in ways if not is_small(way.mode) or way.mode in modes] or list(ways)
            for name, ways in self.storage.items()
        }
        return replace(self, storage=storage)

    def in_floats(self) -> Problem:
        """The same problem without integer kernels, but for those that were told."""
        compute = {
            name: [way for way in ways if way.mode == "rows" or name in self.told]
            for name, ways in self.compute.items()
        }
        return replace(self, compute=compute)

    def in_full_codes(self) -> Problem:
        """The same problem without the formats below 8 bits, where there is another."""
        storage = {
            name: [way for way in ways if way.mode in (INT8.name, *FLOATS)] or list(ways)
            for name, ways in self.storage.items()
        }
        compute = {
            name: [way for way in ways if not (way.form and is_small(way.form))] or (list(ways) * (name in self.told))
            for name, ways in self.compute.items()
        }
        return replace(self, storage=storage, compute=compute)


def small_codes(found: Plan) -> bool:
    """Whether some weight is stored in fewer than 8 bits."""
    return any(is_small(mode) for mode in found.stored.values())


def smallest_bytes(problem: Problem) -> int:
    """Bytes of all weights, each as small as 8 bits get it: bytes times seconds is least where shares of what is left
    of each are traded, not shares of the original.
    """
    if problem.unit is None:
        sizes = (
            [way.bytes for way in problem.storage.get(w.name, ()) if way.mode in (INT8.name, *FLOATS)]
            for w in problem.found.weights
        )
        problem.unit = max(
            sum(min(found, default=w.bytes) for found, w in zip(sizes, problem.found.weights, strict=True)), 1
        )
    return problem.unit


def smaller_floats(problem: Problem) -> dict[str, str]:
    """Every weight that may be stored as a smaller float, and as which."""
    return {name: way.mode for name in sorted(problem.storage) if (way := problem.half(name)) is not None}
