"""Prices of every candidate, measured on whole models. In: a simplified model and its proposals. Out: Prices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from onnxc.cost import FLOAT, PriceFile, Prices, measure
from onnxc.data import Calibration
from onnxc.errors import DataError, ModelError
from onnxc.judge import build
from onnxc.model import Model
from onnxc.planner import Plan
from onnxc.propose import CodeBook, Proposals
from onnxc.rewrite import Context, Refusal
from onnxc.session import Options, Session


def priced(
    context: Context,
    proposals: Proposals,
    codes: CodeBook,
    samples: Calibration,
    options: Options,
    prices: PriceFile,
) -> Prices:
    """Build the model once per compute mode, with every candidate of the mode applied, and measure them together.

    A mode in which the model does not run is struck from the proposals.
    """
    modes = sorted({c.mode for found in proposals.compute.values() for c in found} - {"rows"})
    if not modes:
        return Prices({}, 1.0)
    variants: dict[str, Callable[[], Model]] = {FLOAT: lambda: context.model}
    applied: dict[str, set[str]] = {}
    for mode in modes:
        compute = {
            name: candidate
            for name, found in proposals.compute.items()
            for candidate in found
            if candidate.mode == mode
        }
        applied[mode] = set(compute)
        stored = {site.weight.name for site in context.sites if site.name in compute and site.weight is not None}
        stored |= {weight for candidate in compute.values() for weight in candidate.weights}
        plan = Plan(compute, frozenset(stored))
        variants[mode] = partial(build, context.model, plan, codes)
    sample = samples.take(1)[0]
    try:
        return measure(variants, context.sites, applied, sample, context.observations.shapes, options, prices)
    except (ModelError, DataError):
        broken = {m: reason for m in modes if (reason := failure(variants[m], sample, options)) is not None}
        if not broken:
            raise
    for name, found in proposals.compute.items():
        lost = [candidate for candidate in found if candidate.mode in broken]
        proposals.refusals += [Refusal(c.pass_name, name, f"the model would not run: {broken[c.mode]}") for c in lost]
        found[:] = [candidate for candidate in found if candidate not in lost]
    return priced(context, proposals, codes, samples, options, prices)


def failure(variant: Callable[[], Model], sample: Mapping[str, Any], options: Options) -> str | None:
    """Why a variant does not run, None if it does."""
    try:
        Session(variant(), options).run(sample)
    except (ModelError, DataError) as error:
        return str(error)
    return None
