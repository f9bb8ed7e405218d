"""Least squares after a cut. In: the original, the smaller model, data. Out: the smaller model, its consumers refitted.

Each weight that lost inputs is solved anew, in the order of the nodes, with the inputs x that the smaller model really
produces by then, against what the original's layer gave on the same samples: min |x' W' + b' - (x W + b)|^2, drawn a
little to the weight as it was. How much is chosen by what fits the other half of the samples. After ThiNet (Luo, Wu
and Lin, 2017) and He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from onnxc.coupling.consumers import (
    WIDEST,
    Consumer,
    Moments,
    Wide,
    consumers,
    fed,
    geometry,
    quota_of,
    rows,
    second_moments,
    stored,
    until,
)
from onnxc.coupling.graph import Reader
from onnxc.model import Model
from onnxc.session import Options

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean of H's diagonal


def refit(
    original: Model,
    smaller: Model,
    readers: Sequence[Reader],
    kept: Mapping[Reader, np.ndarray],
    samples: Iterable[Mapping[str, np.ndarray]],
    count: int,
    options: Options,
    say: Callable[[str], None] = lambda message: None,
) -> int:
    """Refit the weights of ``readers`` in ``smaller``, in place.

    Args:
        kept: reader -> the outputs of its weight that are left, [N'] per group of inputs.
        samples: re-iterable; count: how many there are.

    Returns:
        How many weights were refitted.
    """
    before = {consumer.reader: consumer for consumer in consumers(original, readers)}
    done = 0
    for batch in batches([consumer for consumer in consumers(smaller, readers) if consumer.reader in before]):
        pairs = [(consumer, before[consumer.reader]) for consumer in batch if consumer.matrix.shape[1] <= WIDEST]
        halves = both_moments(original, smaller, pairs, samples, count, options)
        for consumer, old in pairs:
            solve(smaller, consumer, old, halves[consumer.reader], kept.get(consumer.reader))
            done += 1
    return done


def batches(wanted: Sequence[Consumer]) -> list[list[Consumer]]:
    """Consumers of one tensor are refitted together."""
    found: dict[str, list[Consumer]] = {}
    for consumer in wanted:
        found.setdefault(consumer.source, []).append(consumer)
    return list(found.values())


def both_moments(
    original: Model,
    smaller: Model,
    pairs: Sequence[tuple[Consumer, Consumer]],
    samples: Iterable[Mapping[str, np.ndarray]],
    count: int,
    options: Options,
) -> dict[Reader, tuple[Moments, Moments]]:
    """Moments of the inputs in the smaller model and with those in the original, of even and of odd samples."""
    found: dict[tuple[Reader, int], Moments] = {}
    if not pairs:
        return {}
    source, old_source = pairs[0][0].source, pairs[0][1].source
    new_session, old_session = until(smaller, [source], options), until(original, [old_source], options)
    for number, sample in enumerate(samples):
        new = new_session.run(fed(new_session, sample), [source])[source]
        old = old_session.run(fed(old_session, sample), [old_source])[old_source]
        shared: dict[tuple[str, ...], Moments] = {}
        for consumer, before in pairs:
            key = geometry(before)
            if key not in shared:
                quota = quota_of(before, count)
                shared[key] = second_moments(rows(consumer, new, quota, number), rows(before, old, quota, number))
            place = consumer.reader, number % 2
            found.setdefault(place, Moments.like(shared[key])).add(shared[key])
    result = {}
    for consumer, _ in pairs:
        even = found[consumer.reader, 0]
        result[consumer.reader] = even, found.get((consumer.reader, 1), even)
    return result


def solve(
    model: Model, consumer: Consumer, old: Consumer, halves: tuple[Moments, Moments], outputs: np.ndarray | None
) -> None:
    """Write the refitted weight and bias of ``consumer`` into ``model``."""
    target = old.matrix.astype(np.float64)
    target = target if outputs is None else target[:, :, outputs]
    start = consumer.matrix.astype(np.float64)
    free = consumer.bias is not None
    problems = [squares(half, target, free=free) for half in halves]
    best, least = RIDGES[-1], np.inf
    for ridge in RIDGES:
        error = sum(held_out(fit(*mine, start, ridge), *other) for mine, other in (problems, problems[::-1]))
        if error < least:
            best, least = ridge, error
    both = halves[0] if halves[0] is halves[1] else halves[0] + halves[1]
    whole = squares(both, target, free=free)
    matrix = fit(*whole, start, best)
    if not np.isfinite(matrix).all() or held_out(matrix, *whole) > held_out(start, *whole):
        matrix = start
    weight = consumer.weight
    weight.values = stored(consumer, matrix.astype(np.float32), tuple(weight.shape))
    if consumer.bias is None:
        return
    node, position = consumer.bias
    means, old_means = mean_of(both)
    shift = np.einsum("gk,gkn->gn", old_means, target) - np.einsum("gk,gkn->gn", means, matrix)
    bias = np.asarray(node.inputs[position].values, np.float64) + shift.reshape(-1)
    node.inputs[position] = model.constant(node.inputs[position].name, bias.astype(np.float32))


def mean_of(moments: Moments) -> tuple[Wide, Wide]:
    """The mean inputs of the smaller model and of the original, [G, K'] and [G, K]."""
    assert moments.cross is not None
    count = moments.own[:, -1, -1:]
    return moments.own[:, -1, :-1] / count, moments.cross[:, -1, :-1] / count


def squares(moments: Moments, target: Wide, *, free: bool) -> tuple[Wide, Wide]:
    """E[x xT] [G, K', K'] and E[x x'T] W [G, K', N'], without their means where the bias is ``free`` to take them."""
    assert moments.cross is not None
    count = moments.own[:, -1:, -1:]
    own, cross = moments.own[:, :-1, :-1] / count, moments.cross[:, :-1, :-1] / count
    if free:
        means, old_means = mean_of(moments)
        own -= means[:, :, None] * means[:, None, :]
        cross -= means[:, :, None] * old_means[:, None, :]
    return own, cross @ target


def fit(own: Wide, wanted: Wide, start: Wide, ridge: float) -> Wide:
    """W' [G, K', N'] of the least squares problem, with ``ridge`` on its distance from ``start``."""
    depth = own.shape[1]
    damped = own.copy()
    mean = np.maximum(np.trace(own, axis1=1, axis2=2) / depth, 1e-12)
    damped[:, np.arange(depth), np.arange(depth)] += ridge * mean[:, None]
    return np.asarray(start + np.linalg.solve(damped, wanted - own @ start))


def held_out(matrix: Wide, own: Wide, wanted: Wide) -> float:
    """The squared error of W' on these moments, up to a constant."""
    return float((matrix * (own @ matrix - 2 * wanted)).sum())
