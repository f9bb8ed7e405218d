"""The best plan whose predicted noise is at most so much. In: a problem, a noise. Out: a plan.

Lagrange multipliers on the convex hull of all plans, then local repair between two of its neighbours; where plans have
to load in time, loading gets dearer until they do.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np

from onnxc.codes.formats import FLOATS, parse_format
from onnxc.fewer_formats import fewer_formats, one_format, small_formats
from onnxc.limits import distance, in_time, within, worth
from onnxc.overheads import chain_bytes
from onnxc.planner import plan
from onnxc.predictions import predicted_noise, stored_bytes
from onnxc.problem import Plan, Problem
from onnxc.sensitivity import activation_key

REPAIRS, LOUDEST = 24, 12
MANY = 500  # weights: where other formats for some of them use up the noise, nothing is repaired
FULL_ENOUGH, CLOSED = 0.99, 1.02  # of the noise aimed at; ratio of two prices between which plans hardly differ
DEARER, STEPS, DEAREST = 4.0, 6, 1e9  # of the price of loading, where a plan would take too long
CHEAP, HALVINGS = 0.1, 5  # the least price of loading; steps towards the least that makes a plan load in time


def light(problem: Problem, noise: float) -> Plan:
    """As under(), in as few formats as pays, and predicted to load in time if a plan is: without integer kernels, where
    none is with them and it is known what they take to be made ready.
    """
    price, found = problem.load_price, loading_in_time(problem, noise)
    if in_time(problem, found) or not (found.integers and problem.site_loading):
        return found
    other = replace(problem.in_floats(), load_price=price)
    floats = loading_in_time(other, noise)
    if not in_time(problem, floats):
        return found
    problem.load_price = other.load_price
    return floats


def loading_in_time(problem: Problem, noise: float) -> Plan:
    """A plan predicted to load in time: seconds of loading get dearer until it is, or STEPS times, and no dearer than
    that takes; or one of few formats that is better.
    """
    found = plain(problem, noise)
    plans = one_format(problem, found, noise) if problem.hurried else []
    for _ in range(STEPS):
        if in_time(problem, found) or problem.load_price >= DEAREST:
            break
        problem.load_price *= DEARER
        found = plain(problem, noise)
    return min([unhurried(problem, found, noise), *plans], key=partial(with_chains, problem))


def plain(problem: Problem, noise: float) -> Plan:
    """As under(), in as few formats as pays: what these leave of the noise goes into fewer bits of others."""
    found = under(problem, noise)
    problem.hurried |= not in_time(problem, found)
    fewer = fewer_formats(problem, found, noise)
    if fewer is found:
        return found
    again = under(problem.only(small_formats(fewer)), noise)
    return min([fewer, again], key=partial(with_chains, problem))


def chains_of(found: Plan) -> float:
    """Bytes of the nodes that unfold the formats of a plan."""
    return sum(chain_bytes(parse_format(mode)) for mode in sorted(small_formats(found)))


def with_chains(problem: Problem, found: Plan) -> tuple[float, bool, float]:
    """What is least for the best plan."""
    return *distance(problem, found), worth(problem, found, chains_of(found))


def unhurried(problem: Problem, found: Plan, noise: float) -> Plan:
    """``found``, or a better plan that loading is cheaper for and that still loads in time."""
    low, high = CHEAP, problem.load_price
    if problem.most_loading is None or high <= low or not in_time(problem, found):
        return found
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        tried = fewer_formats(problem, within(replace(problem, load_price=middle), found.price), noise)
        low, high = (low, middle) if in_time(problem, tried) else (middle, high)
    if high == problem.load_price:
        return found
    slower = plain(replace(problem, load_price=high), noise)
    if not in_time(problem, slower) or worth(problem, slower) > worth(problem, found):
        return found
    problem.load_price = high
    return slower


def under(problem: Problem, noise: float) -> Plan:
    """The best plan found whose predicted noise is at most ``noise``.

    A search over the price of noise gives the two plans of the convex hull on either side; between them the noisier
    one is repaired: what brings least for its noise is put back until the rest fits. Where there are so many weights
    that next to none of the noise is left unused, there is nothing to repair.
    """
    low, high = 1e-5, 1e9
    below, above = within(problem, high), within(problem, low)
    if above.noise <= noise:
        return above
    for attempt in range(40):
        if below.noise >= noise * FULL_ENOUGH or high / low < CLOSED:
            break
        share = 0.5 if attempt % 2 else crossed(above.noise, below.noise, noise)
        middle = low * (high / low) ** share
        candidate = within(problem, middle)
        if candidate.noise <= noise:
            below, high = candidate, middle
        else:
            above, low = candidate, middle
    if below.noise >= noise * FULL_ENOUGH:
        return below
    made = [filled(problem, each, below, above, noise) for each in (below, above)]
    between = [below, *(each for each in made if each is not None)]
    if len(problem.found.weights) < MANY or all(each.noise < noise * FULL_ENOUGH for each in between):
        repaired = repair(problem, above, noise)
        between += [repaired] if repaired is not None else []
    return min(between, key=lambda each: worth(problem, each))


def filled(problem: Problem, computing: Plan, below: Plan, above: Plan, noise: float) -> Plan | None:
    """Where ``computing`` does, every weight in the quieter of its formats in two neighbours of the convex hull, then
    in the smaller one where that saves most bytes for its noise, as long as the noise fits; None where it never does.
    """
    needed = {name for candidate in computing.compute.values() for name in candidate.weights}
    needed |= {site.weight.name for site in problem.found if site.name in computing.compute and site.weight is not None}
    weights, stored, steps = {weight.name: weight for weight in problem.found.weights}, dict[str, str](), []
    for name in sorted({*below.stored, *above.stored}):
        modes = [found.stored.get(name) for found in (below, above)]
        if name in needed:
            modes = [mode for mode in modes if mode is not None and mode not in FLOATS]
        ways = [
            (0.0 if mode is None else problem.weight_noise(name, mode), problem.bytes_of(weights[name], mode), mode)
            for mode in dict.fromkeys(modes)
        ]
        quiet, loud = min(ways, key=lambda way: way[:2]), max(ways, key=lambda way: way[:2])
        if quiet[2] is not None:
            stored[name] = quiet[2]
        if (saved := quiet[1] - loud[1]) > 0 and loud[2] is not None:
            steps.append(((loud[0] - quiet[0]) / saved, loud[0] - quiet[0], name, loud[2]))
    heard = predicted_noise(problem, computing.compute, stored)
    if heard > noise:
        return None
    for _, added, name, mode in sorted(steps):
        if heard + added <= noise:
            heard, stored[name] = heard + added, mode
    made = replace(computing, stored=stored, noise=predicted_noise(problem, computing.compute, stored))
    fitting = problem.most_bytes is None or stored_bytes(problem, stored) <= problem.most_bytes
    return made if fitting and made.noise <= noise else None


def crossed(above: float, below: float, wanted: float) -> float:
    """Where between two prices the noise would be the wanted one, were it a power of the price; 0.1 to 0.9."""
    if below <= 0 or wanted <= 0:
        return 0.5
    return float(np.clip(math.log(above / wanted) / math.log(above / below), 0.1, 0.9))


def noisiest(problem: Problem, current: Plan) -> list[str]:
    """The sites and weights of a plan whose own roundings are loudest: a plan for each of them is tried."""
    loud = {name: problem.weight_noise(name, current.stored[name]) for name in sorted(current.stored)}
    for name, candidate in current.compute.items():
        activations = (*candidate.reads, *((candidate.writes,) if candidate.writes else ()))
        loud[name] = max((problem.activation_noise(activation_key(each)) for each in activations), default=0.0)
    return sorted(loud, key=lambda name: -loud[name])[:LOUDEST]


def repair(problem: Problem, start: Plan, noise: float) -> Plan | None:
    """Put sites and weights of ``start`` back, one after another, until its predicted noise fits; None if it never
    does. Each step takes what loses least for the noise that goes.
    """
    forbidden, current = set(problem.forbidden), start
    told = problem.told | {s.weight.name for s in problem.found if s.name in problem.told and s.weight is not None}
    told |= {name for site in problem.told & set(start.compute) for name in start.compute[site].weights}
    for _ in range(REPAIRS):
        if current.noise <= noise:
            return current
        cheapest: tuple[float, Plan, str] | None = None
        for name in noisiest(problem, current):
            if name in told:
                continue
            without = plan(replace(problem, forbidden=forbidden | {name}), start.price)
            if problem.most_bytes and stored_bytes(problem, without.stored) > problem.most_bytes:
                continue
            gone = current.noise - without.noise
            if gone <= 0:
                continue
            loss = max(worth(problem, without) - worth(problem, current), 1e-9) / min(
                gone, current.noise - noise * 0.999
            )
            if cheapest is None or loss < cheapest[0]:
                cheapest = (loss, without, name)
        if cheapest is None:
            return None
        forbidden.add(cheapest[2])
        current = cheapest[1]
    return None
