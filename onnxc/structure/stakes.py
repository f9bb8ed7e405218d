"""What fewer channels or ranks would be worth to a plan. In: a planned model. Out: Stakes of its weights.

A plan is found at a price of noise: so much more of bytes and time are paid for so much less of it. At that price every
damage has a cost, whatever did it: a structural pass need not plan anything to see that ten percent of a matrix's
inputs cost more bits elsewhere than they save.
"""

from __future__ import annotations

from onnxc.bracket import HEADROOM
from onnxc.cheapest import load_seconds
from onnxc.contract.context import Stakes
from onnxc.cost import KERNEL_OVERHEAD
from onnxc.planning import Planning
from onnxc.predictions import predicted_noise
from onnxc.problem import Plan, Problem, smallest_bytes
from onnxc.profiling import FLOAT


def stakes_of(planning: Planning, found: Plan) -> Stakes:
    """Gains and costs of every weight in the plan ``found``; both in shares of its bytes and its time, added, each
    multiplied with what the limits say that it counts.

    A plan that the time to load stopped has less noise than is allowed: there it costs less, in proportion.
    """
    problem = planning.problem
    byte_price = problem.limited if problem.most_bytes is not None else problem.byte_price
    time_price = problem.limited if problem.most_seconds is not None else problem.time_price
    unit, pace = smallest_bytes(problem), max(problem.pace or problem.prices.total, 1e-9)
    gains: dict[str, float] = {}
    for weight in problem.found.weights:
        mode = found.stored.get(weight.name)
        loading = load_seconds(mode, weight.elements) if mode is not None else 0.0
        gains[weight.name] = byte_price * problem.bytes_of(weight, mode) / unit + problem.load_price * loading
    times: list[float] = []
    for site in problem.found:
        if site.weight is not None:
            candidate = found.compute.get(site.name)
            times.append(problem.prices.of(site.name, candidate.mode if candidate is not None else FLOAT) or 0.0)
            gains[site.weight.name] += time_price * times[-1] / pace
    least = max(min((each for each in times if each > 0), default=0.0), KERNEL_OVERHEAD)
    costs, damages, price = dict[str, float](), dict[str, float](), found.price
    if problem.hurried:
        price *= min(predicted_noise(problem, found.compute, found.stored) / (planning.allowed * HEADROOM), 1.0)
    for name, known in planning.coder.noise_damages().items():
        mode = found.stored.get(name)
        costs[name] = price * sensitivity(problem, name, known)
        damages[name] = known.get(mode, 0.0) if mode is not None else 0.0
    return Stakes(gains, costs, damages, time_price * least / pace)


def sensitivity(problem: Problem, name: str, damages: dict[str, float]) -> float:
    """Noise of the outputs per damage of a weight's site, from the format in which most noise was predicted."""
    mode = max(damages, key=lambda each: damages[each])
    return problem.weight_noise(name, mode) / max(damages[mode], 1e-12)
