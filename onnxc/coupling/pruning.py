"""A model's channels, ready to be cut to any size. In: a model and data. Out: smaller models, refitted.

Everything is measured once on the uncut model; every cut starts from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxc.contract.context import Stakes
from onnxc.coupling.consumers import WIDEST, Consumer, consumers, observed_moments
from onnxc.coupling.cutting import Cut, apply, tied, untied
from onnxc.coupling.graph import Coupling, Group, Reader
from onnxc.coupling.operators import RULES
from onnxc.coupling.refit import refit
from onnxc.coupling.selection import (
    Damage,
    Sizes,
    by_norm,
    by_variance,
    ordered,
    problem,
    second_order,
    steps,
)
from onnxc.coupling.tracing import traced
from onnxc.data import Calibration, Sample
from onnxc.errors import DataError, ModelError
from onnxc.model import Constant, Model
from onnxc.sequential import too_few
from onnxc.session import Options, Session

Importance = Literal["obs", "variance", "norm", "gradient"]
MOMENT_BYTES = 512 << 20  # of all second moments held at a time
MOST_SAMPLES = 256
SHOWN = 4  # places named per reason


@dataclass
class Channels:
    """The groups of one model that may be cut.

    Attributes:
        model: a copy of the original in which vectors are not shared.
        groups: what may be cut; refused: what may not, with the reason as their ``pinned``.
        sizes: parameters and multiply-adds for any cut.
        seen: the samples that were looked at; short: why the groups stay for which they are too few, empty if none do.
    """

    model: Model
    coupling: Coupling
    groups: list[Group]
    refused: list[Group]
    sizes: Sizes
    samples: Calibration
    options: Options
    names: Mapping[str, str]
    rounding: int
    damages: list[Damage] = field(default_factory=list)
    seen: list[Sample] = field(default_factory=list)
    short: str = ""

    @classmethod
    def of(
        cls, original: Model, samples: Calibration, options: Options, rounding: int, kinds: Iterable[str]
    ) -> Channels:
        """Follow the channels of ``original``; only groups of ``kinds`` may be cut.

        Raises:
            ModelError, DataError: the model does not run on its samples.
        """
        model = original.copy()
        names = untied(model)
        sample = samples.take(1)[0]
        coupling = Coupling(model, traced(model, sample, options), RULES)
        allowed = {"channels", "hidden", *kinds}
        groups: list[Group] = []
        refused: list[Group] = []
        strange = not_finite(model)
        for group in coupling.groups():
            if not group.pinned and strange & {name for name, _ in group.members}:
                group.pinned = "a weight that holds them has NaN or infinite values"
            if not group.pinned and group.kind not in allowed:
                group.pinned = f"{'residual streams' if group.kind == 'residual' else group.kind} were not asked for"
            if not group.pinned and len(steps(group, rounding)) < 2:
                group.pinned = whole(group, coupling)
            (refused if group.pinned else groups).append(group)
        made = cls(model, coupling, groups, refused, Sizes.of(coupling, groups), samples, options, names, rounding)
        made.check(sample)
        return made

    def check(self, sample: Sample) -> None:
        """Cut every group as far as it goes and run that; groups with which it does not run are refused."""
        everything = {number: int(steps(group, self.rounding)[-1]) for number, group in enumerate(self.groups)}
        if self.failure(everything, sample) is None:
            return
        bad = {number: found for number, units in everything.items()
               if (found := self.failure({number: units}, sample)) is not None}  # fmt: skip
        left = {number: units for number, units in everything.items() if number not in bad}
        while left and (found := self.failure(left, sample)) is not None:
            bad[last := max(left)] = found
            del left[last]
        for number, found in bad.items():
            self.groups[number].pinned = f"the smaller model does not run: {found}"
            self.refused.append(self.groups[number])
        self.keep([number for number in range(len(self.groups)) if number not in bad])

    def keep(self, numbers: Sequence[int]) -> None:
        """Of all groups that may be cut leave these."""
        self.groups = [self.groups[number] for number in numbers]
        self.damages = [self.damages[number] for number in numbers] if self.damages else []
        self.sizes = Sizes.of(self.coupling, self.groups)

    def failure(self, removed: Mapping[int, int], sample: Sample) -> str | None:
        """Why the model with the first units of groups cut does not do what it should; None if it does."""
        stays = []
        for number, units in removed.items():
            stay = np.ones(self.groups[number].units, np.bool_)
            stay[:units] = False
            stays.append((self.groups[number], stay))
        try:
            smaller = self.model.copy()
            apply(Cut.of(self.coupling, stays), smaller)
            found = Session(smaller, self.options).run(sample)
        except (ModelError, DataError) as error:
            return str(error)
        for tensor in self.model.graph.outputs:
            wanted = self.coupling.shapes.get(tensor.name)
            if wanted is not None and tuple(np.shape(found[tensor.name])) != wanted:
                return f"output '{tensor.name}' has another shape"
        return None

    def measure(
        self,
        importance: Importance,
        most: float = 1.0,
        effects: Sequence[NDArray[np.float64]] = (),
        stakes: Stakes | None = None,
    ) -> None:
        """Order the units of every group by what is known, about as far as ``most`` of them may go.

        Args:
            effects: for "gradient", the importance of every unit of every group.
            stakes: an error counts what it costs there, and groups of which nothing was measured are refused.
        """
        weights = float_weights(self.model)
        self.damages = [by_norm(group, weights) for group in self.groups]
        if self.samples.generated:
            return
        self.seen = self.few(self.samples)  # what is left is refitted on them, whatever the order
        if importance == "norm":
            return
        if importance == "gradient":
            self.damages = [ordered(each) for each in effects]
            return
        found = {consumer.reader: consumer for consumer in consumers(self.model, self.readers(range(len(self.groups))))}
        wanted = {
            number: [found[r] for r in group.readers if r in found and found[r].matrix.shape[1] <= WIDEST]
            for number, group in enumerate(self.groups)
        }
        for batch in self.batches(wanted):
            union = list(dict.fromkeys(consumer for number in batch for consumer in wanted[number]))
            moments = observed_moments(self.model, union, self.seen, len(self.seen), self.options)
            for number in batch:
                group, mine = self.groups[number], wanted[number]
                if importance == "variance":
                    self.damages[number] = by_variance(group, [(each, moments[each.reader]) for each in mine])
                else:
                    costs = [1.0 if stakes is None else stakes.cost(each.reader.weight) for each in mine]
                    met = [moments[each.reader] for each in mine]
                    reason = too_few((int(each.own[0, -1, -1]), each.own.shape[-1] - 1) for each in met)
                    if stakes is not None and reason is not None:
                        group.pinned = self.short = reason
                        self.refused.append(group)
                        continue
                    problems = [problem(group, *each) for each in zip(mine, met, costs, strict=True)]
                    allowed = steps(group, self.rounding)
                    far = int(allowed[min(int(np.searchsorted(allowed, most * group.units)) + 1, len(allowed) - 1)])
                    self.damages[number] = second_order(group, problems, far)
        if stakes is not None:
            self.keep([number for number, damage in enumerate(self.damages) if damage.measured])

    def few(self, samples: Calibration) -> list[Sample]:
        """As many of ``samples`` as are looked at."""
        return list(samples.take(min(len(samples), MOST_SAMPLES)))

    def batches(self, wanted: Mapping[int, Sequence[Consumer]]) -> list[list[int]]:
        """Groups whose moments are held together; those without a consumer that can be solved are left out."""
        found: list[list[int]] = [[]]
        used = 0
        for number, mine in wanted.items():
            if not mine:
                continue
            size = sum(8 * each.matrix.shape[0] * (each.matrix.shape[1] + 1) ** 2 for each in mine)
            if found[-1] and used + size > MOMENT_BYTES:
                found.append([])
                used = 0
            found[-1].append(number)
            used += size
        return [batch for batch in found if batch]

    def readers(self, numbers: Iterable[int]) -> list[Reader]:
        """The readers of some groups."""
        return list(dict.fromkeys(reader for number in numbers for reader in self.groups[number].readers))

    def count_macs(self, removed: Mapping[int, int]) -> float:
        """Multiply-adds of one run with so many units of every group removed."""
        return self.sizes.count(self.sizes.macs, removed)

    def count_parameters(self, removed: Mapping[int, int]) -> float:
        """Parameters with so many units of every group removed."""
        return self.sizes.count(self.sizes.parameters, removed)

    def count_stakes(self, stakes: Stakes, removed: Mapping[int, int]) -> float:
        """What the weights are worth with so many units of every group removed."""
        return self.sizes.count(self.sizes.shares(self.coupling, stakes.gains), removed)

    def cut(self, removed: Mapping[int, int], *, again: bool = True) -> tuple[Model, int]:
        """The model with so many units of every group removed, and how many of its weights were refitted."""
        stays = []
        for number, units in removed.items():
            stay = np.ones(self.groups[number].units, np.bool_)
            stay[self.damages[number].order[:units]] = False
            stays.append((self.groups[number], stay))
        cut = Cut.of(self.coupling, stays)
        smaller = self.model.copy()
        apply(cut, smaller)
        fitted = 0
        if again and self.seen:
            readers = self.readers(number for number, units in removed.items() if units)
            kept = {reader: left for reader in readers if (left := self.outputs(cut, reader)) is not None}
            fitted = refit(self.model, smaller, readers, kept, self.seen, self.options)
        tied(smaller, self.names)
        return smaller, fitted

    def outputs(self, cut: Cut, reader: Reader) -> NDArray[np.int64] | None:
        """Which outputs of a reader's weight are left, of one group of inputs; None if all."""
        node = next(node for node in self.model.graph.nodes if node.name == reader.node)
        shape = self.coupling.shapes[reader.weight]
        axis = {"Conv": 0, "Gemm": 0 if node.attrs.get("transB", 0) else 1}.get(node.op, 1)
        kept = cut.kept.get((reader.weight, axis))
        if kept is None:
            return None
        if node.op == "Conv":
            return kept[kept < shape[0] // int(node.attrs.get("group", 1))]
        if len(shape) == 3 and reader.role != "hidden":
            return np.concatenate([direction * shape[1] + kept for direction in range(shape[0])])
        return kept

    def notes(self) -> tuple[str, ...]:
        """What may not be cut, by reason, with real names."""
        reasons: dict[str, list[str]] = {}
        for group in self.refused:
            reasons.setdefault(group.pinned, []).append(group.name)
        told = []
        for reason, places in reasons.items():
            unique = list(Counter(places))
            more = f" and {len(unique) - SHOWN} more" if len(unique) > SHOWN else ""
            told.append(f"channels of {', '.join(unique[:SHOWN])}{more} stay: {reason}")
        return tuple(told)


def float_weights(model: Model) -> dict[str, NDArray[np.generic]]:
    """The float constants that the nodes of the main graph read, by name."""
    return {
        tensor.name: tensor.values
        for node in model.graph.nodes
        for tensor in node.inputs
        if isinstance(tensor, Constant) and tensor.dtype is not None and np.dtype(tensor.dtype).kind == "f"
    }


def not_finite(model: Model) -> set[str]:
    """Names of those that hold NaN or infinite values: no error can be told of what they make."""
    return {name for name, values in float_weights(model).items() if not np.isfinite(values).all()}


def whole(group: Group, coupling: Coupling) -> str:
    """Why a group that nothing pins has no unit to lose: too few channels, or ties. A grouped convolution ties what has
    one place in all its groups; where a channel shuffle of other groups stands before it, that may be everything.
    """
    most = max(len(units) for units in group.members.values())
    if most == 1 or group.units > 1:
        return f"they are {group.units * group.width}, too few to cut"
    name = next((reader.node for reader in group.readers if coupling.grouped.get(reader.node, 1) > 1), None)
    through = f", through a convolution of {coupling.grouped[name]} groups" if name is not None else ""
    return f"every one of them is tied to all others{through}"
