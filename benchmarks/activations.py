"""What static uint8 activations cost, weights in float. In: a model, samples, other samples. Out: a table of SQNR.

    python benchmarks/activations.py MODEL.onnx --calib PATH --unseen PATH

Every tensor that a quantize-static candidate would round is rounded, nothing else; ranges come from --calib and are
judged on --unseen, in dB of the worst output. "chosen" is what the search takes; the lines after it leave the loudest
tensors in float, one after the other, until --floor is held. With --smooth factors are moved first, as the automatic
choice does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxc.compiler import observed, opened, simplified
from onnxc.contract.candidates import Activation
from onnxc.contract.context import Context
from onnxc.data import Calibration
from onnxc.naming import name_nodes
from onnxc.parts import Parts
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.passes.smooth_activations import SmoothActivations
from onnxc.price_file import PriceFile
from onnxc.propose import collect
from onnxc.recipe import Recipe
from onnxc.refining import RULES, refine
from onnxc.sensitivity import Meter, build_probe
from onnxc.session import Session

Limits = Mapping[str, tuple[float, float]]
MOST_FLOAT = 16


def contexts(model: str, calib: str, smooth: bool) -> tuple[Context, str]:
    """The observed model, and how it was smoothed."""
    run = opened(model, None, Recipe(), calib, None, {}, None, PriceFile.open(None), lambda message: None)
    context = observed(run, simplified(run))
    level = next(iter(SmoothActivations().levels(context)), None) if smooth else None
    if level is None:
        return context, "no factors moved"
    name_nodes(level.model)
    return observed(run, level.model), level.specification


def with_limits(activations: Sequence[Activation], limits: Limits) -> list[Activation]:
    """``activations`` in other ranges, where ``limits`` has one."""
    pairs = [(each, limits.get(each.tensor, (each.low, each.high))) for each in activations]
    return [replace(each, low=float(low), high=float(high)) for each, (low, high) in pairs]


def decibels(meter: Meter, activations: Sequence[Activation]) -> float:
    """SQNR of the worst output with all of ``activations`` rounded."""
    changes = {name: value for each in activations for name, value in meter.at(each).items()}
    return float(-10 * np.log10(max(meter.noise(changes), 1e-30)))


def rows(context: Context, unseen: Calibration, floor: float, most: int) -> Iterator[tuple[str, float, float]]:
    """(ranges, dB on the samples that they come from, dB on others)."""
    ranges = context.observations.ranges
    activations, _ = collect([(QuantizeStatic(), True)], context).roundings(context)
    assert context.samples is not None
    probe = build_probe(context.model, activations, {}, Parts(context.model, context.options))
    seen = Meter(probe, context.samples.take(most), context.options)
    others = Meter(probe, unseen.take(most), context.options)
    for method, percentile in (("mse", 100.0), *RULES, ("entropy", 100.0)):
        tried = with_limits(
            activations, {each.tensor: ranges[each.tensor].limits(method, percentile) for each in activations}
        )
        said = f"{method} {percentile:g}" if method == "percentile" else method
        yield said, decibels(seen, tried), decibels(others, tried)
    noise = {each.tensor: seen.noise(seen.at(each)) for each in activations}
    found = refine(seen, activations, noise, ranges, len(seen.samples), np.inf)
    chosen = with_limits(activations, found)
    reached = decibels(others, chosen)
    yield f"chosen, {len(chosen)} tensors", decibels(seen, chosen), reached
    loud = sorted(chosen, key=lambda each: -seen.noise(seen.at(each)))
    for count in range(1, min(MOST_FLOAT, len(loud) - 1) + 1):
        if reached >= floor:
            break
        reached = decibels(others, loud[count:])
        yield f"{count} in float, now '{loud[count - 1].tensor}'", decibels(seen, loud[count:]), reached


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calib", required=True, help="samples that ranges come from")
    parser.add_argument("--unseen", required=True, help="samples that judge them")
    parser.add_argument("--floor", type=float, default=20.0, help="dB at which no more tensors are left in float")
    parser.add_argument("--samples", type=int, default=64, help="of either kind that the model is run on, at most")
    parser.add_argument("--smooth", action="store_true", help="move factors first (SmoothQuant)")
    arguments = parser.parse_args()
    context, said = contexts(arguments.model, arguments.calib, arguments.smooth)
    session = Session(arguments.model)
    unseen = Calibration.open(arguments.unseen, session.inputs, optional=session.optional)
    print(f"{said}\n{'ranges':50} {'seen':>6} {'unseen':>6}", flush=True)
    for name, seen, others in rows(context, unseen, arguments.floor, arguments.samples):
        print(f"{name:50} {seen:6.1f} {others:6.1f}", flush=True)


if __name__ == "__main__":
    main()
