"""What creating a session costs. In: model files. Out: seconds and peak memory of each, in processes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import onnx

from onnxc.errors import ModelError, OnnxcError
from onnxc.runtime.diagnosis import load_failure
from onnxc.runtime.timing import LoadCost, child_load_costs
from onnxc.session import LEVELS, Options, check_providers

__all__ = ["LoadCost", "load_cost", "load_costs"]


SMALL = 0.1  # seconds: models that load faster are told apart by loading them in turn
FEWEST = 3  # processes for that


def load_cost(path: Path | str, options: Options = Options()) -> LoadCost:
    """What creating a session costs in a fresh process; ModelError when it fails there."""
    return in_a_process([path], options)[0]


def in_a_process(paths: Sequence[Path | str], options: Options) -> list[LoadCost]:
    """The load cost of models in turn in one fresh process, memory of the first alone; ModelError when one fails."""
    check_providers(options.providers)
    costs = child_load_costs(
        list(map(str, paths)),
        providers=options.providers,
        threads=options.threads,
        level=LEVELS[options.level],
        custom_ops=options.custom_ops,
    )
    if isinstance(costs, str):
        path = str(paths[0])
        raise ModelError(load_failure(OnnxcError(costs), path, lambda: onnx.load(path, load_external_data=False)))
    return costs


def load_costs(
    a: Path | str, b: Path | str, options: Options = Options(), *, rounds: int = 1
) -> tuple[LoadCost, LoadCost]:
    """The load cost of two models, in fresh processes in turn: the least of ``rounds`` each, and where they load fast
    the median ratio of many loads in turn in three processes or as many: a processor's pace changes, and processes
    differ by 6 %. Raises as load_cost.
    """
    found: tuple[list[LoadCost], list[LoadCost]] = [], []
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            found[index].append(load_cost((a, b)[index], options))
    best = [min(cost.seconds for cost in costs) for costs in found]
    if max(best) < SMALL:
        best = in_turn([in_a_process([a, b], options) for _ in range(max(rounds, FEWEST))])
    peaks = [[cost.peak_bytes for cost in costs if cost.peak_bytes is not None] for costs in found]
    first, second = (LoadCost(seconds, min(peak, default=None)) for seconds, peak in zip(best, peaks, strict=True))
    return first, second


def seconds_to_load(a: Path | str, b: Path | str, options: Options = Options()) -> list[float]:
    """Those of two models, without what they take of memory. Raises as load_cost."""
    first = in_a_process([a, b], options)
    if max(cost.seconds for cost in first) >= SMALL:
        return [cost.seconds for cost in load_costs(a, b, options)]
    return in_turn([first, *(in_a_process([a, b], options) for _ in range(FEWEST - 1))])


def in_turn(turns: Sequence[Sequence[LoadCost]]) -> list[float]:
    """The seconds of two models of which several processes each tell a median."""
    least = min(first.seconds for first, _ in turns)
    return [least, least * median(second.seconds / first.seconds for first, second in turns)]
