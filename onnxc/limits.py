"""Plans and the limits of size and speed asked for. In: a problem. Out: which of two is nearer, and one within."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from onnxc.codes.formats import FLOATS
from onnxc.planner import plan
from onnxc.predictions import predicted_loading, predicted_noise, stored_bytes, stored_share
from onnxc.problem import Plan, Problem

ALIKE = 0.97  # of what a plan is worth: another within it is worth as much
STEP, HALVINGS, LEAST, MOST = 8.0, 4, 1e-9, 1e9  # of the price of what is limited


def fits(problem: Problem, found: Plan) -> bool:
    """Whether a plan holds the limits of size and speed, where there are any."""
    limited = problem.most_bytes is not None or problem.most_seconds is not None
    return limited and shortfall(problem, found) <= 1


def shortfall(problem: Problem, found: Plan) -> float:
    """How many times over a limit of size or speed a plan is; 1 within them."""
    return over((limited_bytes(problem, found), problem.most_bytes), (found.seconds, problem.most_seconds))


def limited_bytes(problem: Problem, found: Plan) -> float:
    """Bytes to hold against the limit: those of the weights, and of a plan that was built what its file holds beside
    them more than the limit was drawn for.
    """
    return stored_bytes(problem, found.stored) + (problem.beside.get(found.key, 0.0) if problem.beside else 0.0)


def over(*limited: tuple[float, float | None]) -> float:
    """How many times over its limit the worst of some amounts is, each given with its limit, if any; 1 within all."""
    return max([1.0, *(amount / most for amount, most in limited if most is not None)])


def better(
    problem: Problem, first: Plan, second: Plan, share: float = 1.0, others: tuple[float, float] = (0.0, 0.0)
) -> bool:
    """Whether ``first`` is nearer to the limits, or as near and worth more; ``share`` of the other's worth at most.
    What loads in time is nearer to the limits than what does not.

    Args:
        others: bytes of the file of each besides its weights, where they are known: formats take some too.
    """
    near, far = (distance(problem, each) for each in (first, second))
    if near != far:
        return near < far
    return worth(problem, first, others[0]) < worth(problem, second, others[1]) * share


def worth(problem: Problem, candidate: Plan, others: float = 0.0) -> float:
    """What is to be least. Nothing limited: predicted bytes, with those of ``others``, times seconds, each as a share
    of the original's. A limit of size alone: the seconds; of speed alone: the bytes; of both: the noise.
    """
    if problem.most_bytes is not None and problem.most_seconds is not None:
        return predicted_noise(problem, candidate.compute, candidate.stored)  # by what is known now, of old plans too
    time = candidate.seconds / max(problem.prices.total, 1e-9)
    size = stored_share(problem, candidate) + others / (sum(weight.bytes for weight in problem.found.weights) or 1)
    return time if problem.most_bytes is not None else size if problem.most_seconds is not None else size * time


def distance(problem: Problem, found: Plan) -> tuple[float, bool]:
    """How far a plan is from the limits of size and speed, and whether it is predicted to load too late."""
    return shortfall(problem, found), not in_time(problem, found)


def in_time(problem: Problem, found: Plan) -> bool:
    """Whether a plan is predicted to load fast enough, as far as that is known."""
    return problem.most_loading is None or predicted_loading(problem, found) <= problem.most_loading


def nearest_first(problem: Problem, plans: Sequence[Plan]) -> list[Plan]:
    """``plans``, those first that are nearest to the limits and load in time, of these what is worth most, and of those
    that are worth as much the quietest.
    """
    far = partial(distance, problem)
    nearest = min(map(far, plans))
    most = min(worth(problem, each) for each in plans if far(each) == nearest) / ALIKE
    return sorted(plans, key=lambda each: (far(each), max(worth(problem, each), most), each.noise))


def within(problem: Problem, price: float) -> Plan:
    """The plan for a price of noise that holds the limits of size and speed, if any does.

    What is limited counts as little as the limit allows: of a size limit alone the fastest plan is wanted, of a speed
    limit alone the smallest, of both the least noisy. The problem keeps the last price: the next one is near.
    """
    if problem.most_bytes is None and problem.most_seconds is None:
        return plan(problem, price)

    def at(limited: float) -> Plan:
        prices = (limited if problem.most_bytes else 1.0, limited if problem.most_seconds else 1.0)
        loading = problem.load_price * limited
        return plan(replace(problem, byte_price=prices[0], time_price=prices[1], load_price=loading), price)

    low = high = problem.limited
    found, over = at(high), None
    if fits(problem, found):
        while low > LEAST and fits(problem, lesser := at(low / STEP)):
            low, found = low / STEP, lesser
        low, high = low / STEP, low
    else:
        while high < MOST and not fits(problem, found):
            low, high, over = high, high * STEP, found
            found = at(high)
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        if fits(problem, tried := at(middle)):
            high, found = middle, tried
        else:
            low, over = middle, tried
    problem.limited = high
    return filled_up(problem, found, over) if over is not None and fits(problem, found) else found


def filled_up(problem: Problem, found: Plan, over: Plan) -> Plan:
    """``found`` with what the limit of size leaves room for: weights as in ``over``, which exceeds it, those first
    whose bytes take most noise away.
    """
    if problem.most_bytes is None:
        return found
    weights = {weight.name: weight for weight in problem.found.weights}
    needed = {name for candidate in found.compute.values() for name in candidate.weights}
    needed |= {site.weight.name for site in problem.found if site.name in found.compute and site.weight is not None}
    stored, room, steps = dict(found.stored), problem.most_bytes - stored_bytes(problem, found.stored), []
    for name in sorted(stored):
        old, new = stored[name], over.stored.get(name)
        if new is None or new == old or (name in needed and new in FLOATS):
            continue
        more = problem.bytes_of(weights[name], new) - problem.bytes_of(weights[name], old)
        gone = problem.weight_noise(name, old) - problem.weight_noise(name, new)
        if more > 0 and gone > 0:
            steps.append((more / gone, more, name, new))
    for _, more, name, new in sorted(steps):
        if more <= room:
            stored[name], room = new, room - more
    return replace(found, stored=stored, noise=predicted_noise(problem, found.compute, stored))
