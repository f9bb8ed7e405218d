"""What creating a session costs. In: model files. Out: seconds and peak memory of each, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxc.errors import ModelError, OnnxcError
from onnxc.runtime.diagnosis import load_failure
from onnxc.runtime.timing import LoadCost, child_load_cost
from onnxc.session import LEVELS, Options, check_providers

__all__ = ["LoadCost", "load_cost", "load_costs"]


def load_cost(path: Path | str, options: Options = Options()) -> LoadCost:
    """What creating a session costs in a fresh process; ModelError when it fails there."""
    check_providers(options.providers)
    cost = child_load_cost(
        str(path),
        providers=options.providers,
        threads=options.threads,
        level=LEVELS[options.level],
        custom_ops=options.custom_ops,
    )
    if isinstance(cost, str):
        why = load_failure(OnnxcError(cost), str(path), lambda: onnx.load(str(path), load_external_data=False))
        raise ModelError(why)
    return cost


def load_costs(
    a: Path | str, b: Path | str, options: Options = Options(), *, rounds: int = 1
) -> tuple[LoadCost, LoadCost]:
    """The load cost of two models, in fresh processes in turn: the least of ``rounds`` each. Raises as load_cost."""
    found: tuple[list[LoadCost], list[LoadCost]] = [], []
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            found[index].append(load_cost((a, b)[index], options))
    best = []
    for costs in found:
        peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
        best.append(LoadCost(min(cost.seconds for cost in costs), min(peaks, default=None)))
    return best[0], best[1]
