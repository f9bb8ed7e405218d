"""Fewer formats in a plan. In: a problem, a plan, a noise. Out: a plan within that noise whose file takes less, or it.

Weights of one format unfold together, in a chain of nodes of its own, and every node takes time at load. Found weight
by weight, a plan of a small model has a format for every taste: the chains can take a third of the file. So formats are
given up, one after another that which saves most, whose weights take others that the plan has.
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


def fewer_formats(problem: Problem, found: Plan, noise: float) -> Plan:
    """``found`` with formats given up as long as its file is expected to take fewer bytes; its predicted noise stays
    within ``noise``, and what limits of size and loading allow stays so.
    """
    used = {mode for mode in found.stored.values() if is_small(mode)}
    chains = {mode: chain_bytes(parse_format(mode)) for mode in sorted(used)}
    if len(used) < 2 or sum(chains.values()) < WORTH * stored_bytes(problem, found.stored):
        return found
    formats = problem.formats
    noises = problem.heard[1] * formats.noises(problem.noise, problem.ratios)
    formed = {name for name, candidate in found.compute.items() if candidate.form}
    bound = problem.told | {s.weight.name for s in problem.found if s.name in formed and s.weight is not None}
    names = [name for name in formats.rows if name in found.stored and name not in bound]
    bound_modes = {found.stored[name] for name in bound if name in found.stored}
    modes = [[way.mode for way in formats.ways[formats.rows[name]]] for name in names]
    rows = np.array([formats.rows[name] for name in names], np.intp)
    now = [found.stored[name] for name in names]
    heard, loading = predicted_noise(problem, found.compute, found.stored), predicted_loading(problem, found)
    most = max(loading, math.inf if problem.most_loading is None else problem.most_loading)
    plan = found
    while len(used) > 1:
        best: tuple[float, Plan, str, float, list[str]] | None = None
        for mode in sorted(used - bound_modes):
            members = [at for at, each in enumerate(now) if each == mode]
            if not members or any(mode not in modes[at] for at in members):
                continue
            moves = moves_of(formats.bytes, noises, rows, members, modes, now, used - {mode})
            chosen = moves.within(max(noise, heard) - heard)
            if chosen is None:
                continue
            at = np.arange(len(members))
            saved = chains[mode] - float(moves.bytes[at, chosen].sum())
            if saved <= (best[0] if best is not None else 0.0):
                continue
            after = list(now)
            for member, way in zip(members, chosen.tolist(), strict=True):
                after[member] = modes[member][way]
            stored = {**plan.stored, **dict(zip(names, after, strict=True))}
            made = replace(plan, stored=stored, noise=predicted_noise(problem, plan.compute, stored))
            if predicted_loading(problem, made) <= most and (fits(problem, made) or not fits(problem, plan)):
                best = saved, made, mode, heard + float(moves.noise[at, chosen].sum()), after
        if best is None:
            break
        _, plan, gone, heard, now = best
        used.discard(gone)
    return plan


def moves_of(
    sizes: np.ndarray,
    noises: np.ndarray,
    rows: np.ndarray,
    members: list[int],
    modes: list[list[str]],
    now: list[str],
    allowed: set[str],
) -> Moves:
    """What moving ``members`` to formats that are ``allowed``, or that need no chain, costs."""
    some = rows[members]
    own = np.array([modes[at].index(now[at]) for at in members])
    at = np.arange(len(members))
    more = sizes[some] - sizes[some][at, own][:, None]
    louder = noises[some] - noises[some][at, own][:, None]
    for place, member in enumerate(members):
        barred = [way for way, mode in enumerate(modes[member]) if is_small(mode) and mode not in allowed]
        more[place, barred] = np.inf
        more[place, len(modes[member]) :] = np.inf
    return Moves(more, louder)
