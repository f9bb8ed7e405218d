"""Fewer formats in a plan. In: a problem, a plan, a noise. Out: a plan within that noise whose file takes less, or it.

Weights of one format unfold together, in a chain of nodes of its own, and every node takes time at load. Found weight
by weight, a plan of a small model has a format for every taste: the chains can take a third of the file. So formats are
given up, one after another that which saves most, and their weights take others that the plan has. Where the plan would
load too long more of them are, those first that cost the fewest bytes for a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from onnxc.codes.formats import is_small, parse_format
from onnxc.limits import fits
from onnxc.overheads import chain_bytes
from onnxc.predictions import predicted_loading, predicted_noise, stored_bytes
from onnxc.problem import Plan, Problem

WORTH = 0.002  # of the bytes of all weights: where all chains together take less there is nothing to save
MANY = 64  # weights beside which the nodes of one more format are few


@dataclass(frozen=True)
class Moves:
    """What it costs to store weights in other formats.

    Attributes:
        bytes, noise: [weights, ways], more than now; infinite bytes where a way may not be taken.
    """

    bytes: np.ndarray
    noise: np.ndarray

    def within(self, slack: float) -> np.ndarray | None:
        """The way of every weight with the fewest bytes, then louder ones put back until all add at most ``slack``
        noise, each step that which takes most noise away for its bytes; None where they always add more.
        """
        rows = np.arange(len(self.bytes))
        chosen: np.ndarray = np.argmin(self.bytes, axis=1)
        if not np.isfinite(self.bytes[rows, chosen]).all():
            return None
        while (added := float(self.noise[rows, chosen].sum())) > slack:
            gone = self.noise[rows, chosen][:, None] - self.noise
            more = np.maximum(self.bytes - self.bytes[rows, chosen][:, None], 1.0)
            gain = np.where((gone > 0) & np.isfinite(more), np.minimum(gone, added - slack) / more, 0.0)
            place, way = np.unravel_index(int(np.argmax(gain)), gain.shape)
            if gain[place, way] <= 0:
                return None
            chosen[place] = way
        return chosen


@dataclass(frozen=True)
class Choices:
    """The formats that weights of a plan may have, those left out whose format is not free.

    Attributes:
        names: of the weights; modes: their formats; bytes, noise: [weights, ways] of each.
    """

    names: list[str]
    modes: list[list[str]]
    bytes: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(cls, problem: Problem, found: Plan) -> Choices:
        """Weights that were told their format, or whose operator reads it as it is, keep it."""
        formats = problem.formats
        bound = problem.bound(found)
        every = {name: [way.mode for way in formats.ways[row]] for name, row in formats.rows.items()}
        names = [name for name, modes in every.items() if name not in bound and found.stored.get(name) in modes]
        rows = np.array([formats.rows[name] for name in names], np.intp)
        noises = problem.heard[1] * formats.noises(problem.noise, problem.ratios)
        sizes = formats.bytes + formats.absent
        return cls(names, [every[name] for name in names], sizes[rows], noises[rows])

    def moves(self, members: list[int], stored: dict[str, str], allowed: set[str]) -> Moves:
        """What it costs to move ``members`` to formats that are ``allowed``, or that need no chain."""
        at, own = np.arange(len(members)), [self.modes[each].index(stored[self.names[each]]) for each in members]
        sizes, noise = self.bytes[members], self.noise[members]
        more, louder = sizes - sizes[at, own][:, None], noise - noise[at, own][:, None]
        for place, member in enumerate(members):
            barred = [way for way, mode in enumerate(self.modes[member]) if is_small(mode) and mode not in allowed]
            more[place, barred] = np.inf
        return Moves(more, louder)


def fewer_formats(problem: Problem, found: Plan, noise: float) -> Plan:
    """``found`` with formats given up as long as its file is expected to take fewer bytes, and until it is predicted to
    load in time; its predicted noise stays within ``noise``, and within limits of size and loading where it is.
    """
    used = small_formats(found)
    chains = {mode: chain_bytes(parse_format(mode)) for mode in sorted(used)}
    most = math.inf if problem.most_loading is None else problem.most_loading
    loading = predicted_loading(problem, found)
    if loading <= most and (len(used) < 2 or sum(chains.values()) < WORTH * stored_bytes(problem, found.stored)):
        return found
    choices = Choices.of(problem, found)
    free = used - {mode for name, mode in found.stored.items() if name not in choices.names}

    def without(plan: Plan, mode: str) -> tuple[float, float, Plan] | None:
        """The bytes that giving up ``mode`` saves, the seconds, and the plan; None where that cannot be."""
        stored = dict(plan.stored)
        members = [at for at, name in enumerate(choices.names) if stored[name] == mode]
        moves = choices.moves(members, stored, used - {mode})
        chosen = moves.within(max(noise - plan.noise, 0.0))
        if chosen is None:
            return None
        stored |= {choices.names[at]: choices.modes[at][way] for at, way in zip(members, chosen.tolist(), strict=True)}
        made = replace(plan, stored=stored, noise=predicted_noise(problem, plan.compute, stored))
        if fits(problem, plan) and not fits(problem, made):
            return None
        saved = chains[mode] - float(moves.bytes[np.arange(len(members)), chosen].sum())
        return saved, predicted_loading(problem, plan) - predicted_loading(problem, made), made

    plan = found
    while used:
        tried = [(mode, *made) for mode in sorted(used & free) if (made := without(plan, mode)) is not None]
        over = loading - most
        paying = [each for each in tried if each[1] > 0 and len(used) > 1 and each[2] >= min(0.0, over)]
        faster = [each for each in tried if each[2] > 0] if over > 0 else []
        if paying:
            chosen = max(paying, key=lambda each: each[1])
        elif faster:
            chosen = max(faster, key=lambda each: each[1] / min(each[2], over))
        else:
            break
        used.discard(chosen[0])
        plan, loading = chosen[3], predicted_loading(problem, chosen[3])
    return plan


def one_format(problem: Problem, found: Plan, noise: float) -> list[Plan]:
    """``found`` with every weight in full codes or in one format below 8 bits, of each format the plan with the fewest
    bytes within ``noise``, those that are predicted to load in time: weights change to the other of the two, those
    first that cost the fewest bytes for a second, until it does. None where there are many weights.
    """
    choices, plans = Choices.of(problem, found), list[Plan]()
    if len(choices.names) > MANY:
        return []
    most = math.inf if problem.most_loading is None else problem.most_loading
    members = list(range(len(choices.names)))

    def with_ways(ways: np.ndarray) -> Plan:
        stored = {name: choices.modes[at][ways[at]] for at, name in enumerate(choices.names)}
        return replace(found, stored={**found.stored, **stored})

    for mode in sorted({mode for modes in choices.modes for mode in modes if is_small(mode)}):
        moves = choices.moves(members, dict(found.stored), {mode})
        chosen = moves.within(max(noise - found.noise, 0.0))
        if chosen is None:
            continue
        loading, steps = predicted_loading(problem, with_ways(chosen)), list[tuple[float, int, int]]()
        for at in members if loading > most else ():
            for way in np.flatnonzero(np.isfinite(moves.bytes[at])).tolist():
                other = chosen.copy()
                other[at] = way
                saved = loading - predicted_loading(problem, with_ways(other))
                if saved > 0:
                    steps.append((float(moves.bytes[at, way] - moves.bytes[at, chosen[at]]) / saved, at, way))
        for _, at, way in sorted(steps):
            if loading <= most:
                break
            before, chosen[at] = chosen[at], way
            if predicted_noise(problem, found.compute, with_ways(chosen).stored) > noise:
                chosen[at] = before
            loading = predicted_loading(problem, with_ways(chosen))
        made = with_ways(chosen)
        made = replace(made, noise=predicted_noise(problem, made.compute, made.stored))
        if loading <= most and made.noise <= noise:
            plans.append(made)
    return plans


def small_formats(found: Plan) -> set[str]:
    """Those of a plan that have a chain of nodes."""
    return {mode for mode in found.stored.values() if is_small(mode)}
