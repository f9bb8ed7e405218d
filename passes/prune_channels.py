"""Whole channels and attention heads are cut, and the layers after them refitted: a smaller dense model.

    x ── Conv [64, 32, 3, 3] ── Relu ── Conv [64, 64, 3, 3] ──
    becomes   x ── Conv [32, 32, 3, 3] ── Relu ── Conv [64, 32, 3, 3], solved anew ──

In: a model and data. Out: levels of 10, 20, 30 ... % fewer multiply-adds, or the one that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxc.contract.context import Context
from onnxc.contract.fields import Between
from onnxc.contract.passes import Level, Offer, Offers, StructuralPass
from onnxc.coupling.pruning import Channels, Importance
from onnxc.coupling.selection import allocate, evenly, uniform

from .prune_weights import gradient_samples

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Share = Annotated[float, Between(0, 1, open_low=True, open_high=True)]
CAUTION = 0.1  # of its estimated cost has to be saved: later layers make good what earlier ones lost


@dataclass(frozen=True)
class PruneChannels(StructuralPass):
    """Fewer channels, hidden units and attention heads, with the layers behind them refitted.

    1. Channels, hidden units and heads that must go together are one unit (onnxc/coupling): through residual sums,
       concatenations, reshapes, attention. Sizes that stay are multiples of 16 in wide layers, at least 4.
    2. ``macs`` or ``parameters``, with data: every group loses so many units that the whole saves that fraction at the
       least error of the layers behind; the units of a group by ``importance``. Without data: the same fraction
       of every group, by the norm of the weights.
    3. ``fraction``: that part of every group.
    4. The weights behind a cut are refitted by least squares, in order, on what the smaller model really feeds them.
    5. It does not act on channels that are inputs or outputs of the model or behind an operator that it cannot follow;
       the notes name them.

    Attributes:
        fraction, macs, parameters: how much to cut; one of them.
        importance: "obs" the error after a refit, "variance" of activations, "norm" of weights, or "gradient": what
            removing them does to the outputs to first order, which needs data and PyTorch.
        rounding: sizes that stay are multiples of at most this.
        heads, residual: whether attention heads, and the width of residual streams, are cut too.
        refit: whether the layers behind are solved anew.
    """

    name: ClassVar[str] = "prune-channels"
    unasked: ClassVar[bool] = True
    fraction: Share = 0.0
    macs: Share = 0.0
    parameters: Share = 0.0
    importance: Importance = "obs"
    rounding: Annotated[int, Between(1)] = 16
    heads: bool = True
    residual: bool = True
    refit: bool = True

    def wanted(self) -> dict[str, float]:
        """What to cut of what, as the fields say."""
        asked = {"fraction": self.fraction, "macs": self.macs, "parameters": self.parameters}
        return {word: value for word, value in asked.items() if value}

    def contradiction(self) -> str:
        """No amount, or more than one."""
        ways = len(self.wanted())
        return "" if ways == 1 else f"it needs one of fraction, macs and parameters, as {self.name}:macs=0.3"

    def levels(self, context: Context) -> Iterator[Level]:
        """Levels by multiply-adds, each cut from the whole model; told, the one that was asked for."""
        wanted = self.wanted()
        assert context.samples is not None
        kinds = [kind for kind, allowed in (("heads", self.heads), ("residual", self.residual)) if allowed]
        channels = Channels.of(context.model, context.samples, context.options, self.rounding, kinds)
        if not channels.groups:
            return
        effects = self.effects(channels, context) if self.importance == "gradient" else []
        channels.measure(self.importance, self.fraction or 1.0, effects)
        done: Mapping[int, int] = {}
        for word, value in wanted.items() if context.told else [("macs", level) for level in LEVELS]:
            removed = self.removed(channels, word, value)
            if not any(removed.values()) or removed == done:
                continue
            done = removed
            yield self.level(channels, removed, wanted if context.told else {"macs": value})

    def offers(self, context: Context) -> Offers:
        """Cuts by what bytes and time are worth to a plan, those that may save more than their damage costs it."""
        assert context.samples is not None
        assert context.stakes is not None
        stakes = context.stakes
        channels = Channels.of(context.model, context.samples, context.options, self.rounding, ("heads", "residual"))
        channels.measure(self.importance, stakes=stakes)
        count = partial(channels.count_stakes, stakes)
        total, done, found, least = count({}), dict[int, int](), list[Offer](), math.inf
        for value in LEVELS:
            removed = allocate(channels.groups, channels.damages, count, value, self.rounding)
            if not any(removed.values()) or removed == done:
                continue
            done = removed
            cost = sum(float(channels.damages[number].errors[units]) for number, units in removed.items())
            saved = total - count(removed)
            least = min(least, cost / max(saved, 1e-12))
            if saved > CAUTION * cost:
                found.append(
                    Offer(saved / stakes.total, cost / stakes.total, partial(self.level, channels, removed, {}))
                )
        reason = "" if found else channels.short or "nothing can be cut"
        if not found and math.isfinite(least):
            reason = f"with the bits that would make it good, any cut costs at least {least:.1f} times what it saves"
        return Offers(tuple(found), reason)

    def effects(self, channels: Channels, context: Context) -> list[NDArray[np.float64]]:
        """Per group, what its units do to the outputs to first order."""
        some = gradient_samples(self.name, context)  # says what is missing: data, or PyTorch
        from onnxc.training.importance import first_order_of_units

        read = [{(each.weight, each.axis) for each in group.readers} for group in channels.groups]
        both = zip(channels.groups, read, strict=True)
        members = [{axis: group.members[axis] for axis in axes & group.members.keys()} for group, axes in both]
        seed, threads = context.recipe.seed, context.options.threads
        return first_order_of_units(channels.model, some, members, seed=seed, threads=threads)

    def removed(self, channels: Channels, word: str, value: float) -> dict[int, int]:
        """Units to remove of every group."""
        if word == "fraction":
            return uniform(channels.groups, value, self.rounding)
        count = channels.count_macs if word == "macs" else channels.count_parameters
        if any(damage.measured for damage in channels.damages):
            return allocate(channels.groups, channels.damages, count, value, self.rounding)
        return evenly(channels.groups, count, value, self.rounding)

    def level(self, channels: Channels, removed: Mapping[int, int], wanted: Mapping[str, float]) -> Level:
        """The smaller model, and what is said of it."""
        model, fitted = channels.cut(removed, again=self.refit)
        macs = 1 - channels.count_macs(removed) / max(channels.count_macs({}), 1.0)
        parameters = 1 - channels.count_parameters(removed) / max(channels.count_parameters({}), 1.0)
        count = sum(1 for units in removed.values() if units)
        notes = list(channels.notes())
        if channels.samples.generated:
            notes.insert(0, "without calibration data channels go by the norm of their weights and nothing is refitted")
        for word, value in wanted.items():
            reached = macs if word == "macs" else parameters if word == "parameters" else 1.0
            if reached < value - 1e-6:
                notes.insert(0, f"{word}={value:g} cannot be reached: {reached:.1%} is the most that can be cut")
        text = (
            f"{macs:.1%} of the multiply-adds and {parameters:.1%} of the parameters cut in {count} groups of channels"
        )
        return Level(model, f"{text}, {fitted} weights refitted", tuple(notes))
