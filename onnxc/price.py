"""Prices of every candidate, measured on whole models. In: a simplified model and its proposals. Out: Prices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from onnxc.coder import Coder
from onnxc.codes.formats import INT8
from onnxc.contract.candidates import Refusal
from onnxc.contract.context import Context
from onnxc.cost import APART, Prices, measure, speed_up
from onnxc.data import Sample
from onnxc.errors import DataError, ModelError
from onnxc.islands import crossings
from onnxc.judge import build
from onnxc.macs import multiplications
from onnxc.model import Model
from onnxc.planner import plan
from onnxc.price_file import PriceFile
from onnxc.problem import Plan
from onnxc.profiling import FLOAT
from onnxc.propose import Proposals
from onnxc.session import Options, Session

CROSSING_FACTORS = (1.0, 1.6, 2.5, 4.0)  # times what the crossings of the static variant cost
ALIKE = 0.98  # of the speed of the fastest plan: no difference

MACS_PER_SECOND, BYTES_PER_SECOND = 2e10, 1e10  # of a float model on one core; only their ratio decides
ESTIMATED_SHARE = 0.9  # of the time that sites take


def priced(
    context: Context,
    proposals: Proposals,
    codes: Coder,
    sample: Sample,
    options: Options,
    prices: PriceFile,
) -> Prices:
    """Build the model once per compute mode, with every candidate of the mode applied, and measure them together.

    A mode in which the model does not run is struck from the proposals.
    """
    if not context.target.measured:
        return estimated(context, proposals)
    modes = sorted({c.mode for found in proposals.compute.values() for c in found} - {"rows"})
    if not modes:
        return Prices({}, 1.0)
    variants: dict[str, Callable[[], Model]] = {FLOAT: lambda: context.model}
    applied: dict[str, set[str]] = {}
    joints = {site.name for site in context.sites if site.kind == "joint"}
    if "static" in modes and joints & {name for name, found in proposals.compute.items() if found}:
        modes.append(APART)
    for mode in modes:
        compute = {
            name: candidate
            for name, found in proposals.compute.items()
            for candidate in found
            if candidate.mode == ("static" if mode == APART else mode) and not (mode == APART and name in joints)
        }
        applied[mode] = set(compute) if mode != APART else joints
        stored = {site.weight.name for site in context.sites if site.name in compute and site.weight is not None}
        stored |= {weight for candidate in compute.values() for weight in candidate.weights}
        formats = dict.fromkeys(sorted(stored), INT8.name)
        formats |= {s.weight.name: c.form for s in context.sites if s.weight and (c := compute.get(s.name)) and c.form}
        variants[mode] = partial(build, context.model, Plan(compute, formats), codes)
    shapes = context.observations.shapes
    try:
        measured = measure(variants, context.sites, applied, sample, shapes, options, prices)
        if "static" not in modes:
            return measured
        return crossed(measured, context, proposals, codes, sample, options, prices)
    except (ModelError, DataError):
        broken = {m: reason for m in modes if (reason := failure(variants[m], sample, options)) is not None}
        if not broken:
            raise
    for name, found in proposals.compute.items():
        lost = [candidate for candidate in found if candidate.mode in broken]
        proposals.refusals += [Refusal(c.pass_name, name, f"the model would not run: {broken[c.mode]}") for c in lost]
        found[:] = [candidate for candidate in found if candidate not in lost]
    return priced(context, proposals, codes, sample, options, prices)


def estimated(context: Context, proposals: Proposals) -> Prices:
    """Seconds from multiply-accumulates and bytes, for a target that this machine cannot run."""
    shapes, gain = context.observations.shapes, context.target.gain
    sites: dict[str, dict[str, float]] = {}
    for site in context.sites:
        if site.weight is not None:
            work = multiplications(site, shapes, context.sites)
            spent = (site.weight.elements if work is None else work) / MACS_PER_SECOND
            spent += site.weight.bytes / BYTES_PER_SECOND
        else:
            spent = 4 * float(np.prod(shapes.get(site.result.name, (1,)))) / BYTES_PER_SECOND
        ways = {candidate.mode: spent / gain for candidate in proposals.compute.get(site.name, ())}
        sites[site.name] = {FLOAT: spent} | ways
    total = sum(found[FLOAT] for found in sites.values()) / ESTIMATED_SHARE
    return Prices(sites, max(total, 1e-9), 2.0 / BYTES_PER_SECOND)


def crossed(
    found: Prices,
    context: Context,
    proposals: Proposals,
    codes: Coder,
    sample: Mapping[str, Any],
    options: Options,
    prices: PriceFile,
) -> Prices:
    """``found`` with crossings as dear as gives the fastest plan.

    Where a float operator meets an int8 one, changes of layout and fusions lost stand beside the Q or DQ, which no
    variant of one mode has: mixed plans are slower than the sum of their parts. So the plans that ever dearer crossings
    lead to are built and run; of those as fast as the fastest the one counts that is as fast as predicted.
    """
    measured: dict[str, float] = {}
    tried: list[tuple[float, float, Prices]] = []
    for factor in CROSSING_FACTORS:
        dearer = found.crossings_times(factor)
        problem = proposals.problem(context, dearer).in_full_codes()
        best = plan(problem)
        if factor == 1.0 and not crossings(problem, best.compute):
            return found
        key = hashlib.sha256(repr((best.key, sorted(found.sites.items()))).encode()).hexdigest()[:16]
        if key not in measured:
            built = build(context.model, best, codes)
            measured[key] = speed_up(context.model, built, sample, options, prices, key)
        tried.append((measured[key], abs(np.log(found.total / best.seconds / measured[key])), dearer))
    fastest = max(speed for speed, _, _ in tried)
    return min((each for each in tried if each[0] >= ALIKE * fastest), key=lambda each: each[1])[2]


def failure(variant: Callable[[], Model], sample: Mapping[str, Any], options: Options) -> str | None:
    """Why a variant does not run, None if it does."""
    try:
        Session(variant(), options).run(sample)
    except (ModelError, DataError) as error:
        return str(error)
    return None
