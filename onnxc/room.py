"""What a limit of size leaves is spent on accuracy. In: a problem, a plan within the limit. Out: a quieter one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from onnxc.codes.formats import parse_format
from onnxc.limits import LEAST, MOST, fits, within
from onnxc.predictions import predicted_loading, predicted_noise, stored_bytes
from onnxc.problem import Plan, Problem

ALIKE, STEPS = 1.01, 10  # of the seconds of a plan, what another may take that is chosen for its noise; prices tried


def quietest(problem: Problem, found: Plan) -> Plan:
    """The least noisy plan that is as good as ``found`` by all that is limited: of a size limit alone one as fast, but
    for ALIKE, with the bytes that the limit leaves. ``found`` itself where size has no limit, or does not hold.
    """
    if problem.most_bytes is None or not fits(problem, found):
        return found
    most = math.inf if problem.most_seconds is not None else found.seconds * ALIKE
    loading = time_allowed(problem, found)
    low, high = max(found.price, LEAST), MOST
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        tried = within(problem, middle)
        if fits(problem, tried) and tried.seconds <= most and predicted_loading(problem, tried) <= loading:
            low, found = middle, min(found, tried, key=lambda each: each.noise)
        else:
            high = middle
    return finer(problem, found, loading)


def time_allowed(problem: Problem, found: Plan) -> float:
    """Seconds in which the weights of a plan that is made of ``found`` may unfold."""
    allowed = math.inf if problem.most_loading is None else problem.most_loading
    return max(predicted_loading(problem, found), allowed)


def rounded_off(problem: Problem, found: Plan, weigh: Callable[[Plan], bool]) -> Plan:
    """``found``, of which it is known what its file takes beside the weights, with what the limit of size still leaves
    spent: on any formats, or, where ``weigh`` says that the file gets too large, on those that it has.
    """
    if problem.most_bytes is None or not fits(problem, found):
        return found
    most = problem.most_bytes
    for alike in (False, True):
        problem.most_bytes = most
        made = finer(problem, found, time_allowed(problem, found), alike=alike)
        if made.key == found.key or not weigh(made):
            return made
    problem.most_bytes = most
    return found


def finer(problem: Problem, found: Plan, loading: float = math.inf, *, alike: bool = False) -> Plan:
    """``found`` with weights in finer formats, one step after another the one that takes most noise away for its bytes,
    until no step fits the limit of size and ``loading``, the seconds in which all weights may unfold.

    The convex hull, on which plans are found, skips formats that lie above it: of one large weight a whole percent.

    Args:
        alike: only formats that some weight has already: others bring nodes and tables of their own.
    """
    assert problem.most_bytes is not None
    used, kinds = set(found.stored.values()), dict[str, list[tuple[int, int]]]()
    formats = problem.formats
    noises = problem.heard[1] * formats.noises(problem.noise, problem.ratios)
    bound = problem.bound(found)
    now, barred = np.full(len(formats.ways), -1), np.zeros(formats.bytes.shape, bool)
    for name, row in formats.rows.items():
        modes = [way.mode for way in formats.ways[row]]
        for way, mode in enumerate(modes):
            if mode not in used:
                barred[row, way] = alike
                kinds.setdefault(mode, []).append((row, way))
        if found.stored.get(name) in modes and name not in bound:
            now[row] = modes.index(found.stored[name])
    rows = np.flatnonzero(now >= 0)
    first = np.zeros(formats.bytes.shape)  # seconds that the first weight of a format takes more
    sizes = [problem.found.elements.get(name, 0) for name in formats.rows]
    for mode, places in kinds.items():
        largest = max(sizes[row] for row, _ in places)
        first[tuple(zip(*places, strict=True))] = parse_format(mode).chain_seconds(largest)
    room, time = problem.most_bytes - stored_bytes(problem, found.stored), loading - predicted_loading(problem, found)
    while len(rows):
        at = rows, now[rows]
        more = formats.bytes[rows] - formats.bytes[at][:, None] + formats.absent[rows]
        gone = noises[at][:, None] - noises[rows]
        longer = formats.loading[rows] + first[rows] - formats.loading[at][:, None]
        fitting = (gone > 0) & (more <= room) & (longer <= np.maximum(time, 0)) & ~barred[rows]
        gain = np.where(fitting, gone / np.maximum(more, 1), 0.0)
        place, way = (int(each) for each in np.unravel_index(int(np.argmax(gain)), gain.shape))
        if gain[place, way] <= 0:
            break
        room, time, now[rows[place]] = room - more[place, way], time - longer[place, way], way
        if first[rows[place], way]:
            first[tuple(zip(*kinds[formats.ways[rows[place]][way].mode], strict=True))] = 0.0
    names = list(formats.rows)
    stored = {**found.stored, **{names[row]: formats.ways[row][now[row]].mode for row in rows}}
    return replace(found, stored=stored, noise=predicted_noise(problem, found.compute, stored))
