"""Least squares after a cut. In: the original, the smaller model, data. Out: the smaller model, its consumers refitted.

Each weight that lost inputs is solved anew, in the order of the nodes, with the inputs x that the smaller model really
produces by then, against what the original's layer gave on the same samples: min |x' W' + b' - (x W + b)|^2, drawn a
little to the weight as it was; how much is chosen by what fits the other half of the samples. Where the result is added
to a residual stream, it also makes good what the smaller model has got wrong in that stream so far. After ThiNet (Luo,
Wu and Lin, 2017) and He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxc.coupling.consumers import (
    WIDEST,
    Array,
    Consumer,
    Moments,
    Wide,
    consumers,
    output_rows,
    quota_of,
    rows,
    second_moments,
    stored,
)
from onnxc.coupling.graph import Reader
from onnxc.model import Model
from onnxc.sequential import Samples, Walk
from onnxc.session import Options
from onnxc.shapes import infer
from onnxc.sites import pruned

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean of H's diagonal
SOME = 96  # outputs on which they are tried


def refit(
    original: Model,
    smaller: Model,
    readers: Sequence[Reader],
    kept: Mapping[Reader, np.ndarray],
    samples: Samples,
    options: Options,
) -> int:
    """Refit the weights of ``readers`` in ``smaller``, in place.

    Args:
        kept: reader -> the outputs of its weight that are left, [N'] per group of inputs.

    Returns:
        How many weights were refitted.
    """
    before = {consumer.reader: consumer for consumer in consumers(original, readers)}
    wanted = [each for each in consumers(smaller, readers) if each.reader in before and each.matrix.shape[1] <= WIDEST]
    waiting = {consumer.reader.node for consumer in wanted}
    types = infer(original)
    walks = Walk(smaller, samples, options, types), Walk(original, samples, options, types)
    for batch in batches(wanted):
        pairs = [Pair(consumer, before[consumer.reader], kept.get(consumer.reader)) for consumer in batch]
        for pair in pairs:
            stream = pair.new.stream
            if stream is not None and not waiting & ancestors(smaller, stream[0]):
                pair.stream = stream[0]
        halves = both_moments(pairs, *walks)
        for pair in pairs:
            solve(smaller, pair, halves[pair.new.reader])
        if any(pair.new.reader.role == "hidden" for pair in pairs):  # they read what they make: it has to run again
            walks = Walk(smaller, samples, options, types), Walk(original, samples, options, types)
        waiting -= {pair.new.reader.node for pair in pairs}
    return len(wanted)


@dataclass
class Pair:
    """A weight in the smaller model and in the original.

    Attributes:
        outputs: those of the original's that are left, [N'] per group of inputs; None if all.
        stream: the residual stream that the result is added to, final by now: what went wrong in it is made good.
    """

    new: Consumer
    old: Consumer
    outputs: np.ndarray | None
    stream: str | None = None

    @property
    def target(self) -> Array:
        """The original weight's columns that are left, [G, K, N']."""
        return self.old.matrix if self.outputs is None else self.old.matrix[:, :, self.outputs]


def ancestors(model: Model, name: str) -> set[str]:
    """The nodes that the tensor called ``name`` depends on."""
    start = next((tensor for node in model.graph.nodes for tensor in node.outputs if tensor.name == name), None)
    found: set[str] = set()
    stack = list(start.inputs) if start is not None else []
    while stack:
        node = stack.pop()
        if node.name not in found:
            found.add(node.name)
            stack += [maker for tensor in node.inputs for maker in tensor.inputs]
    return found


def batches(wanted: Sequence[Consumer]) -> list[list[Consumer]]:
    """Consumers of one tensor are refitted together."""
    found: dict[str, list[Consumer]] = {}
    for consumer in wanted:
        found.setdefault(consumer.source, []).append(consumer)
    return list(found.values())


def both_moments(pairs: Sequence[Pair], smaller: Walk, original: Walk) -> dict[Reader, tuple[Moments, Moments]]:
    """Moments of the inputs in the smaller model with what the original makes of its own, of even and odd samples."""
    found: dict[tuple[Reader, int], Moments] = {}
    source = pairs[0].new.source, pairs[0].old.source
    streams = [pair.stream for pair in pairs if pair.stream is not None]
    olds = original.advance(list(dict.fromkeys([source[1], *streams])))
    for number, new in enumerate(smaller.advance(list(dict.fromkeys([source[0], *streams])))):
        old = next(olds)
        for pair in pairs:
            quota = quota_of(pair.old, len(smaller.samples))
            read = rows(pair.old, old[source[1]], quota, number).transpose(1, 0, 2)
            with np.errstate(over="ignore", invalid="ignore"):  # rows that are not finite are left out below
                wanted = np.matmul(read, pair.target).transpose(1, 0, 2)
            if pair.stream is not None and np.shape(old[pair.stream])[0] == np.shape(old[source[1]])[0]:
                drift = output_rows(pair.old, old[pair.stream], quota, number)
                drift = drift if pair.outputs is None else drift[:, :, pair.outputs]
                with np.errstate(over="ignore", invalid="ignore"):
                    drift = drift - output_rows(pair.new, new[pair.stream], quota, number)
                    wanted = wanted + drift if drift.shape == wanted.shape else wanted
            moments = second_moments(rows(pair.new, new[source[0]], quota, number), wanted)
            found.setdefault((pair.new.reader, number % 2), Moments.like(moments)).add(moments)
    next(olds, None)  # the last sample's tensors are put away
    result = {}
    for pair in pairs:
        even = found[pair.new.reader, 0]
        result[pair.new.reader] = even, found.get((pair.new.reader, 1), even)
    return result


def solve(model: Model, pair: Pair, halves: tuple[Moments, Moments]) -> None:
    """Write the refitted weight and bias of a pair into ``model``."""
    consumer = pair.new
    start = consumer.matrix.astype(np.float64)
    free = consumer.bias is not None
    some = np.unique(np.linspace(0, start.shape[2] - 1, SOME).astype(int))  # which ridge is best they tell as well
    problems = [(own, wanted[:, :, some]) for own, wanted in (squares(half, free=free) for half in halves)]
    best, least = RIDGES[-1], np.inf
    for ridge in RIDGES:
        pairs = (problems, problems[::-1])
        error = sum(held_out(fit(*mine, start[:, :, some], ridge), *other) for mine, other in pairs)
        if error < least:
            best, least = ridge, error
    both = halves[0] if halves[0] is halves[1] else halves[0] + halves[1]
    whole = squares(both, free=free)
    matrix = fit(*whole, start, best)
    if not np.isfinite(matrix).all() or held_out(matrix, *whole) > held_out(start, *whole):
        matrix = start
    weight = consumer.weight
    weight.values = stored(consumer, matrix.astype(np.float32), tuple(weight.shape))
    if consumer.bias is None:
        return
    node, position = consumer.bias
    means, wanted = mean_of(both)
    shift = wanted - np.einsum("gk,gkn->gn", means, matrix)
    bias = np.asarray(node.inputs[position].values, np.float64) + shift.reshape(-1)
    node.inputs[position] = model.constant(node.inputs[position].name, bias.astype(np.float32))


def mean_of(moments: Moments) -> tuple[Wide, Wide]:
    """The mean inputs and wanted outputs, [G, K'] and [G, N']."""
    assert moments.cross is not None
    count = moments.own[:, -1, -1:]
    return moments.own[:, -1, :-1] / count, moments.cross[:, -1] / count


def squares(moments: Moments, *, free: bool) -> tuple[Wide, Wide]:
    """E[x xT] [G, K', K'] and E[x yT] [G, K', N'], without their means where the bias is ``free`` to take them."""
    assert moments.cross is not None
    count = moments.own[:, -1:, -1:]
    own, cross = moments.own[:, :-1, :-1] / count, moments.cross[:, :-1] / count
    if free:
        means, wanted = mean_of(moments)
        own -= means[:, :, None] * means[:, None, :]
        cross -= means[:, :, None] * wanted[:, None, :]
    return own, cross


def fit(own: Wide, wanted: Wide, start: Wide, ridge: float) -> Wide:
    """W' [G, K', N'] of the least squares problem, with ``ridge`` on its distance from ``start``; zeros of one that was
    pruned stay.
    """
    depth = own.shape[1]
    damped = own.copy()
    mean = np.maximum(np.trace(own, axis1=1, axis2=2) / depth, 1e-12)
    damped[:, np.arange(depth), np.arange(depth)] += ridge * mean[:, None]
    left = wanted - own @ start
    if not pruned(start):
        return np.asarray(start + np.linalg.solve(damped, left))
    found = start.copy()
    for group, output in np.ndindex(start.shape[0], start.shape[2]):
        stays = np.flatnonzero(start[group, :, output])
        found[group, stays, output] += np.linalg.solve(damped[group][np.ix_(stays, stays)], left[group, stays, output])
    return found


def held_out(matrix: Wide, own: Wide, wanted: Wide) -> float:
    """The squared error of W' on these moments, up to a constant."""
    return float((matrix * (own @ matrix - 2 * wanted)).sum())
