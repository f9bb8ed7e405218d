"""Prices of every candidate, measured on whole models. In: a simplified model and its proposals. Out: Prices."""

from __future__ import annotations

from collections.abc import Callable

from onnxc.cost import FLOAT, PriceFile, Prices, measure
from onnxc.data import Calibration
from onnxc.judge import build
from onnxc.model import Model
from onnxc.planner import Plan
from onnxc.propose import CodeBook, Proposals
from onnxc.rewrite import Context
from onnxc.session import Options


def priced(
    context: Context,
    proposals: Proposals,
    codes: CodeBook,
    samples: Calibration,
    options: Options,
    prices: PriceFile,
) -> Prices:
    """Build the model once per compute mode, with every candidate of the mode applied, and measure them together."""
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
        variants[mode] = lambda plan=plan: build(context.model, plan, codes)
    return measure(
        variants,
        context.sites,
        applied,
        samples.take(1)[0],
        context.observations.shapes,
        options,
        prices,
    )
