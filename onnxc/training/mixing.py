"""Samples mixed of two. In: samples. Out: inputs between them, never the same twice.

    x = share * a + (1 - share) * b,    share uniform from 0 to 1        teacher(x), student(x)

A student that sees the same few samples again and again learns them by heart. What it should learn is a function, and
the teacher tells its values anywhere, so that it is asked between samples too (mixup of Zhang et al., 2018; matched as
a function by Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", 2022).

Only quantities can be mixed. Ids, masks, lengths and rates stay as they are, and two samples that differ in one of
them are not mixed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from onnxc.model import Model
from onnxc.samples.inputs import Demand, demands
from onnxc.training.samples import Arrays, Shelf

FEW = 2  # values of an input that says yes or no
STREAM = 1  # sets its random numbers apart from those that put samples in order


@dataclass(frozen=True)
class Mixture:
    """A batch to learn from.

    Attributes:
        numbers: of its samples, those that are mixed first. partners: of what is mixed into each.
        shares: 0 to 1, of each sample itself; 1: it is not mixed.
    """

    numbers: list[int]
    partners: list[int]
    shares: list[float]

    @property
    def mixed(self) -> int:
        """How many samples are."""
        return sum(share < 1 for share in self.shares)


def told(model: Model) -> set[str]:
    """Names of the inputs that ``model`` looks up, compares with a constant, decides by, or that are an argument of an
    operator: ids, rates, masks and sizes, also as floats.
    """
    return {name for name, demand in demands(model).items() if _tells(demand)}


def _tells(demand: Demand) -> bool:
    found = demand.index or demand.bounded or demand.compared or demand.vocabulary or demand.argument
    return bool(found or demand.decides or demand.mask)


def quantities(rows: Shelf, numbers: Sequence[int], fixed: Collection[str]) -> frozenset[str]:
    """Names of the inputs that can be mixed: real numbers, all of them finite, of more than two values.

    Args:
        rows: the samples. numbers: of those that may be mixed.
        fixed: names of inputs that cannot be, whatever they hold.
    """
    seen: dict[str, set[float]] = defaultdict(set)
    out = set(fixed)
    for number in numbers:
        for name, array in rows[number].items():
            if name in out:
                continue
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                out.add(name)
            elif len(seen[name]) <= FEW:
                seen[name].update(np.unique(array)[: FEW + 1].tolist())
    return frozenset(name for name, values in seen.items() if len(values) > FEW and name not in out)


class Mixer:
    """Mixes samples of one shape that are alike in all that is no quantity.

    Args:
        rows: the samples. numbers: of those to learn from.
        names: of the inputs that can be mixed. share: 0 to 1, of the samples that are.
        seed: of the pairs and their shares, together with the number of an epoch.
    """

    def __init__(self, rows: Shelf, numbers: Sequence[int], names: frozenset[str], share: float, seed: int) -> None:
        self.rows, self.names, self.share, self.seed = rows, names, share, seed
        groups: dict[object, list[int]] = defaultdict(list)
        for number in numbers if names and share else ():
            groups[self._kept(rows[number])].append(number)
        self.groups = [group for group in groups.values() if len(group) > 1]

    def _kept(self, row: Arrays) -> object:
        """What must be equal in two samples to be mixed."""
        kinds = tuple(sorted((name, array.shape, array.dtype.str) for name, array in row.items()))
        return kinds, tuple(array.tobytes() for name, array in sorted(row.items()) if name not in self.names)

    @property
    def on(self) -> bool:
        """Whether there is anything to mix."""
        return bool(self.groups)

    @property
    def off(self) -> str | None:
        """Why nothing is mixed though it was asked for, in a sentence; None where it is, or was not asked for."""
        if self.on or not self.share:
            return None
        if not self.names:
            return "samples were not mixed: no input holds quantities alone"
        return "samples were not mixed: no two are of one shape and alike in all that is no quantity"

    def mixtures(self, batches: Sequence[list[int]], epoch: int) -> list[Mixture]:
        """The batches of an epoch, a partner and a share for every sample: of epoch and seed alone."""
        random = np.random.default_rng([self.seed, epoch, STREAM])
        partners: dict[int, int] = {}
        for group in self.groups:
            circle = [group[int(each)] for each in random.permutation(len(group))]
            partners.update(zip(circle, [*circle[1:], circle[0]], strict=True))
        made = []
        for batch in batches:
            chosen, drawn = random.random(len(batch)) < self.share, random.random(len(batch))
            shares = np.where(chosen & [number in partners for number in batch], drawn, 1.0)
            order = np.argsort(shares == 1, kind="stable")
            numbers = [batch[place] for place in order]
            made.append(Mixture(numbers, [partners.get(each, each) for each in numbers], shares[order].tolist()))
        return made

    def inputs(self, mixture: Mixture) -> list[dict[str, np.ndarray]]:
        """The inputs of a batch, sample by sample, in their own types."""
        made = []
        for number, partner, share in zip(mixture.numbers, mixture.partners, mixture.shares, strict=True):
            row, other = self.rows[number], self.rows[partner]
            made.append({name: self._between(name, array, other[name], share) for name, array in row.items()})
        return made

    def _between(self, name: str, array: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
        if name not in self.names or share == 1.0:
            return array
        return np.asarray(share * array + (1 - share) * other, array.dtype)
