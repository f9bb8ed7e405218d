"""Inputs made up for a model, to run it without data: they mean nothing, but every branch is taken.

In: a Model and its Session. Out: samples that run. Unknown axes are tried at growing sizes, batch axes last;
integers stay within what they index and take in turn the constants that they are compared with.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxc.errors import DataError, InputError, UsageError
from onnxc.file.containers import contained
from onnxc.samples.hooks import did_you_mean
from onnxc.samples.inputs import Demand, demands
from onnxc.samples.values import is_mask, make_value

if TYPE_CHECKING:
    from onnxc.model import Model
    from onnxc.session import Session, TensorInfo

LADDER = (1, 2, 8, 16, 32, 64, 128, 256, 512)
_LARGEST = {
    2: 128,
    3: 128,
    4: 256,
}  # rank -> how far an axis that may have any size is varied over the samples
_MOST_COMBINATIONS = 300
_MOST_TURNS = 16
_SECONDS = 60.0  # a safeguard for models that take seconds to fail; nothing else depends on time
_BATCH = re.compile(r"batch|^(n|b|bs)$", re.IGNORECASE)
_LENGTH = re.compile(r"seq|time|len|frame|token|step|width|height|sample", re.IGNORECASE)

Key = str | tuple[str, int]  # an unknown axis: its name, or input and position
Axis = int | Key
Sizes = dict[Key, int]


def generated_samples(
    model: Model,
    session: Session,
    *,
    shapes: Mapping[str, Sequence[int]],
    batch: int | None,
    count: int,
    seed: int,
) -> list[dict[str, Any]]:
    """See onnxc.data.generate."""
    return _Generator(model, session, shapes, batch, seed).samples(count)


_ABORTING = frozenset({"LSTM", "GRU"})


@dataclass(frozen=True)
class _Input:
    info: TensorInfo
    axes: tuple[Axis, ...] | None  # None: the rank is unknown
    demand: Demand


class _Generator:
    def __init__(
        self,
        model: Model,
        session: Session,
        shapes: Mapping[str, Sequence[int]],
        batch: int | None,
        seed: int,
    ) -> None:
        self._session = session
        self._seed = seed
        self._reason = "nothing could be tried"
        self._shapes = dict(shapes)
        self._aborts = any(node.op in _ABORTING for node in model.nodes())
        known = {each.name: each for each in model.graph.inputs}
        wanted = demands(model)
        names = [each.name for each in session.inputs]
        for name in shapes:
            if name not in names:
                raise UsageError(f"--shape {name}: the model has no such input{did_you_mean(name, names, 'it has')}")
        if batch is not None and batch < 1:
            raise UsageError(f"--batch {batch}: it must be at least 1")
        self._inputs: list[_Input] = []
        self._hints: Sizes = {}
        for info in session.inputs:
            shape = known[info.name].shape if info.name in known else info.shape
            if info.numpy is None and info.name in known and known[info.name] in model.graph.input_info:
                shape = contained(model.graph.input_info[known[info.name]])[2]
            demand = wanted.get(info.name, Demand())
            axes = None if shape is None else tuple(_axis(info.name, i, each) for i, each in enumerate(shape))
            self._inputs.append(_Input(info, axes, demand))
            for position, size in demand.sizes.items():
                if axes and -len(axes) <= position < len(axes) and not isinstance(axes[position], int):
                    self._hints.setdefault(axes[position], size)  # type: ignore[arg-type]  # not an int, says the line above
        self._fixed = self._given(batch)
        axes_of = [(each, i, axis) for each in self._inputs for i, axis in enumerate(each.axes or ())]
        unknown = [(each, i, axis) for each, i, axis in axes_of if not isinstance(axis, int)]
        self._sums = {a: _parts(a) for _, _, a in unknown if isinstance(a, str) and "+" in a and a not in self._fixed}
        free = dict.fromkeys(axis for _, _, axis in unknown if axis not in self._fixed and axis not in self._sums)
        self._batch = [key for key in free if self._is_batch(key)]
        self._free = [key for key in free if key not in self._batch]
        self._ranks = {key: max(len(each.axes or ()) for each, _, axis in unknown if axis == key) for key in free}
        self._ladder = tuple(dict.fromkeys((*LADDER, *sorted({*self._fixed.values()} - {0}))))

    def samples(self, count: int) -> list[dict[str, Any]]:
        """``count`` samples, or as many as there are combinations of values to go through."""
        start = perf_counter()
        turns = self._turns()
        found: list[tuple[dict[str, Any], Sizes, int | None]] = []
        for turn in turns:
            runs = self._first(turn, [sizes for _, sizes, _ in found], start)
            if runs is not None:
                found.append((turn, *runs))
        if not found:
            raise DataError(
                f"no generated input runs in this model: give --calib PATH, or --shape NAME=SIZES; "
                f"the last try: {self._reason}"
            )
        plans = [(turn, sizes, rank) for turn, base, rank in found for sizes in self._grown(turn, base, rank)]
        plans = [(turn, base, rank) for turn, base, rank in found] if len(found) >= count else plans
        if len(plans) > count > len(found):  # evenly spread, the smallest and the largest among them
            last = len(plans) - 1
            plans = [plans[round(i * last / max(count - 1, 1))] for i in range(count)]
        samples: list[dict[str, Any]] = []
        for number in range(max(count, len(plans))):
            turn, sizes, rank = plans[number % len(plans)]
            base = next(each for each in found if each[0] is turn)
            sample = self._try(turn, sizes, rank, number)
            if sample is None:  # these values do not run although others of this shape did
                sample = self._try(turn, base[1], base[2], 0)
            if sample is not None:
                samples.append(sample)
        return samples

    def _given(self, batch: int | None) -> Sizes:
        """Sizes of axes that --shape and --batch fix."""
        fixed: Sizes = {}
        for each in self._inputs:
            name = each.info.name
            if name not in self._shapes or each.axes is None:
                continue
            given = self._shapes[name]
            text = f"--shape {name}={'x'.join(map(str, given))}"
            if len(given) != len(each.axes):
                raise UsageError(f"{text}: the model's input has rank {len(each.axes)}")
            for axis, size in zip(each.axes, given, strict=True):
                if size < 0 or (isinstance(axis, int) and axis != size):
                    raise UsageError(f"{text}: {size} is not possible, the model takes {_shown(each.axes)}")
                if not isinstance(axis, int) and fixed.setdefault(axis, size) != size:
                    raise UsageError(f"{text}: axis {axis!r} is {fixed[axis]} elsewhere")
        if batch is not None:
            keys = [axis for each in self._inputs for axis in each.axes or () if not isinstance(axis, int)]
            for key in keys:
                if self._is_batch(key):
                    fixed.setdefault(key, batch)
        return fixed

    def _is_batch(self, key: Key) -> bool:
        """Named like a batch, or first axis of an input of rank 2 or more and not named like a length."""
        if isinstance(key, str) and (_BATCH.search(key) or _LENGTH.search(key)):
            return _BATCH.search(key) is not None
        return any(each.axes and each.axes[0] == key and len(each.axes) > 1 for each in self._inputs)

    def _turns(self) -> list[dict[str, Any]]:
        """Values that decide about branches, in all combinations up to a bound."""
        choices: dict[str, list[Any]] = {}
        for each in self._inputs:
            dtype, demand = each.info.numpy, each.demand
            scalar = each.axes is not None and all(axis == 1 for axis in each.axes)
            if dtype is None or dtype.kind == "O" or not (scalar or demand.decides) or is_mask(each.info, each.demand):
                continue
            if demand.argument is not None and not demand.decides:
                continue
            if dtype.kind == "b":
                choices[each.info.name] = [True, False]
            elif demand.compared and (demand.decides or dtype.kind in "iu"):
                values = _around(demand.compared, dtype)
                if demand.bounded:
                    values = [value for value in values if demand.bounded[0] <= value <= demand.bounded[1]]
                if values:
                    choices[each.info.name] = values
        turns = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
        if len(turns) > _MOST_TURNS:  # every value at least once rather than every combination
            longest = max(len(values) for values in choices.values())
            turns = [{name: values[i % len(values)] for name, values in choices.items()} for i in range(longest)]
        return turns[:_MOST_TURNS]

    def _first(self, turn: dict[str, Any], tried: list[Sizes], start: float) -> tuple[Sizes, int | None] | None:
        """The first sizes (and rank of inputs of unknown rank) at which the model runs."""
        ranks: tuple[int | None, ...] = (None,)
        if any(each.axes is None and each.info.name not in self._shapes for each in self._inputs):
            ranks = (1, 2, 0, 3, 4)
        for mode in ("random", "ones", "zeros"):
            combinations = [*tried, *self._combinations()]
            for sizes in combinations if mode == "random" else combinations[:40]:
                for rank in ranks:
                    if self._try(turn, sizes, rank, 0, mode) is not None:
                        self._mode = mode
                        return sizes, rank
                    if perf_counter() - start > _SECONDS:
                        return None
        return None

    _mode = "random"

    def _combinations(self) -> Iterator[Sizes]:
        """Sizes of unknown axes: first all alike with batch 1, then mixed, then other batches too."""
        ones = dict.fromkeys(self._batch, 1)
        done: set[tuple[int, ...]] = set()
        for hints in ({key: size for key, size in self._hints.items() if key in self._ranks}, {}):
            free = [key for key in self._free if key not in hints]
            rest = [key for key in self._batch if key not in hints]
            alike = ({**ones, **dict.fromkeys(free, size), **hints} for size in self._ladder)
            mixed = ({**ones, **dict(zip(free, each, strict=True)), **hints} for each in self._mixed(len(free)))
            batches = ({**dict.fromkeys((*free, *rest), size), **hints} for size in self._ladder)
            both = [*free, *rest]
            others = ({**dict(zip(both, each, strict=True)), **hints} for each in self._mixed(len(both)))
            for sizes in itertools.chain(alike, mixed, batches, others):
                mark = tuple(sizes.get(key, 0) for key in self._ranks)
                if mark not in done:
                    done.add(mark)
                    yield sizes

    def _mixed(self, axes: int) -> list[tuple[int, ...]]:
        """Combinations of ladder sizes, the ones with few and small sizes other than 1 first."""
        if axes < 2:
            return []
        ladder = self._ladder
        while len(ladder) > 2 and len(ladder) ** axes > 5000:
            ladder = ladder[::2] if len(ladder) > 4 else ladder[:-1]
        if len(ladder) ** axes > 100_000:
            return []
        places = {size: place for place, size in enumerate(ladder)}
        every = sorted(
            itertools.product(ladder, repeat=axes),
            key=lambda each: (sum(size != 1 for size in each), sum(places[size] for size in each)),
        )
        return every[:_MOST_COMBINATIONS]

    def _grown(self, turn: dict[str, Any], base: Sizes, rank: int | None) -> list[Sizes]:
        """``base``, and larger sizes of the axes that may have any: one size says little about the others."""
        grown = [base]
        growing = [key for key in self._free if key in base and self._hints.get(key) != base[key]]
        if len({base[key] for key in growing}) != 1:
            return grown
        largest = min(_LARGEST.get(self._ranks[key], 128) for key in growing)
        for size in self._ladder:
            if base[growing[0]] < size <= largest:
                sizes = {**base, **dict.fromkeys(growing, size)}
                if self._try(turn, sizes, rank, 0) is not None:
                    grown.append(sizes)
        return grown

    def _try(
        self, turn: dict[str, Any], sizes: Sizes, rank: int | None, number: int, mode: str | None = None
    ) -> dict[str, Any] | None:
        """The sample, if it runs."""
        every = {**self._fixed, **sizes}
        for key, parts in self._sums.items():
            every[key] = sum(part if isinstance(part, int) else every.get(part, 1) for part in parts)
        random = np.random.default_rng([self._seed, number])
        sample = {}
        for each in self._inputs:
            name = each.info.name
            if each.axes is None:
                small = every[next(iter(sizes))] if sizes else 2
                shape = tuple(self._shapes.get(name, (small,) * (rank or 0)))
            else:
                shape = tuple(axis if isinstance(axis, int) else every[axis] for axis in each.axes)
            value = make_value(each.info, each.demand, shape, turn.get(name), random, mode or self._mode, number)
            sample[name] = value if each.info.numpy is None else np.asarray(value)
        try:
            if self._aborts and any(np.size(value) == 0 for value in sample.values()):
                raise DataError("an input is empty, on which ONNX Runtime's LSTM and GRU end the process")
            self._session.run(sample)
        except InputError as error:
            shown = ", ".join(f"{name}: {_shown(np.shape(value))}" for name, value in sample.items())
            self._reason = f"{shown}: {error}"
            return None
        return sample


def _around(compared: set[tuple[str, float]], dtype: np.dtype[Any]) -> list[Any]:
    """The constants themselves, then values on their other sides."""
    constants = sorted({value for _, value in compared})
    others: list[float] = []
    for op, value in sorted(compared, key=lambda each: each[1]):
        if op == "Equal" and value == constants[-1]:
            others.append(value + 1)
        elif op not in {"Equal", "If"}:
            others += [value - 1, value + 1]
    values = list(dict.fromkeys([*constants, *others]))
    if dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return [int(value) for value in values if float(value).is_integer() and low <= value <= high]
    return values


def _axis(name: str, position: int, size: Any) -> Axis:
    if isinstance(size, int) and size >= 0:
        return size
    if isinstance(size, str) and size:
        return size
    return (name, position)


def _parts(symbol: str) -> list[int | str]:
    """The parts of "past + sequence" or "past + 1", as exporters name an axis that is a sum of others."""
    words = [word.strip() for word in symbol.split("+")]
    return [int(word) if word.isdigit() else word for word in words]


def _shown(axes: Sequence[Any]) -> str:
    return "x".join(str(axis) if isinstance(axis, int | str) else "?" for axis in axes) or "a scalar"
