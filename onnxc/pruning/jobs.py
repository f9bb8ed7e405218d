"""A model's weights pruned, stage by stage. In: a model, what to prune, by how much. Out: the model with zeros.

A stage is a set of weights none of which lies behind another. Each is solved on what the part already pruned makes of
the samples, and what the original made of them, so that later weights repair what earlier ones lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.moments import weight_moments
from onnxc.contract.context import Context
from onnxc.errors import DataError, ModelError
from onnxc.model import Constant, Model
from onnxc.observe import patches, rows_key, sampled_rows
from onnxc.pruning.masks import (
    Curvature,
    Importance,
    Matrix,
    Meeting,
    Pattern,
    grouped,
    kth_smallest,
    prune,
    refit,
    survivors,
    ungrouped,
)
from onnxc.sequential import Reading, Walk, stages, statistics
from onnxc.sites import RECURRENT_INPUTS, Site, Weight, matrix_axes

ROWS = 8192  # of inputs that a weight sees, over all samples
SHRINKAGE = 0.3  # of the mean effect of a weight, for its size, added to that of every entry
RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Amount:
    """How much of a weight goes, and which: the fields of the pass prune-weights."""

    threshold: float
    fraction: float
    pattern: Pattern
    importance: Importance
    refit: bool

    @property
    def chosen_alone(self) -> bool:
        """Whether zeros are chosen without what the survivors can make up for."""
        return self.threshold > 0 or self.importance != "second-order"

    @property
    def solves(self) -> bool:
        """Whether inputs have to be known."""
        return self.refit or (not self.threshold and self.importance not in {"magnitude", "gradient"})


@dataclass(frozen=True, eq=False)
class Job:
    """One weight to prune.

    Attributes:
        weight: read by ``sites``, in ``groups`` of a convolution.
        reading: how its inputs are observed, those of the first site where it is tied; None where they cannot be.
        bias: name of the constant bias that only its one site adds, None where there is none.
        effects: the importance of every entry, in the weight's shape, where gradients told it.
    """

    weight: Weight
    sites: tuple[Site, ...]
    groups: int
    reading: Reading | None
    bias: str | None
    effects: NDArray[np.float64] | None = None

    def judged_by(self, effects: Mapping[str, NDArray[np.float64]], model: Model) -> Job:
        """The job whose entries are chosen by ``effects``, by the name of the weight; as it is where there are none.

        Slopes are of a few samples, and change when half of a weight goes: a share of their mean is added to each.
        """
        found = effects.get(self.weight.name)
        if found is None:
            return replace(self, effects=None)
        squares = np.square(np.asarray(model.values(self.weight.tensor), np.float64))
        return replace(self, effects=found + SHRINKAGE * squares * (found.sum() / max(squares.sum(), 1e-30)))

    @property
    def costs(self) -> Matrix | None:
        """[G, K, N], the share of the outputs' power that a zero costs, where gradients told it."""
        if self.effects is None:
            return None
        return grouped(self.effects.astype(np.float32), self.weight.channel_axis, self.groups)

    @classmethod
    def of(cls, weight: Weight, context: Context, *, embeddings: bool) -> Job | None:
        """The job of a weight of linear, convolution and recurrent operators, or of an embedding; None for others."""
        sites = tuple(site for site in context.sites if site.weight is weight)
        recurrent = any(node.op in RECURRENT and place in RECURRENT_INPUTS for node, place in weight.readers)
        kinds = {site.kind for site in sites}
        if len(weight.shape) < 2 or not (kinds & {"linear", "convolution"} or recurrent or (embeddings and kinds)):
            return None
        groups = {int(site.node.attrs.get("group", 1)) for site in sites if site.operator == "Conv"} or {1}
        seen = len(groups) == 1 and len(sites) == len(weight.readers)
        once = context.sites.once
        seen = seen and all(site.node in once and observable(site) for site in sites)
        count = len(context.samples) if context.samples is not None else 1
        reading = reading_of(sites[0], -(-ROWS // max(count, 1))) if seen else None
        return cls(weight, sites, groups.pop() if seen else 1, reading, own_bias(sites))


def observable(site: Site) -> bool:
    """Whether rows of inputs meet the weight as a matrix that has one scale per output along its own axis."""
    if (
        site.kind not in ("linear", "convolution")
        or site.operator == "ConvTranspose"
        or isinstance(site.input, Constant)
    ):
        return False
    axes = matrix_axes(site)
    return axes is not None and site.weight is not None and site.weight.channel_axis == axes[1]


def reading_of(site: Site, quota: int) -> Reading:
    """Up to ``quota`` rows [R, G, K] of every sample."""

    def rows(values: NDArray[Any], seed: int) -> Matrix | None:
        if site.kind == "convolution":
            return patches(np.asarray(values, np.float32), site, quota, np.random.default_rng(seed))
        found = sampled_rows(site, values, quota, seed)
        return None if found is None else found[:, None]

    return Reading(site.input.name, rows_key(site), rows)


def own_bias(sites: Sequence[Site]) -> str | None:
    """The constant bias of the only site of a weight, where nobody else reads it and it is added as it is."""
    if len(sites) != 1 or not isinstance(sites[0].bias, Constant) or len(sites[0].bias.outputs) != 1:
        return None
    attributes = sites[0].node.attrs
    plain = all(attributes.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    weight, size = sites[0].weight, int(np.prod(sites[0].bias.shape, dtype=np.int64))
    fits = weight is not None and weight.channel_axis is not None and size == weight.shape[weight.channel_axis]
    return str(sites[0].bias.name) if plain and fits else None


def pruned(context: Context, jobs: Sequence[Job], amount: Amount, shares: Mapping[str, float]) -> tuple[Model, int]:
    """A copy of the model with every job done, and how many of them were solved on observed inputs.

    Args:
        shares: weight name -> share of it that goes.
    """
    model, solved = context.model.copy(), 0
    tensors = {t.name: t for node in model.nodes() for t in node.inputs if isinstance(t, Constant)}
    todo = {job.weight.name: job for job in jobs}
    if amount.solves and context.samples is not None and not context.samples.generated:
        walks = [Walk(each, context.samples, context.options, context.sites.types) for each in (model, context.model)]
        units = {name: [site.name for site in job.sites] for name, job in todo.items() if job.reading is not None}
        for stage in stages(context.model, units):
            try:
                seen = statistics(walks[0], [r for name in stage if (r := todo[name].reading) is not None], walks[1])
            except (ModelError, DataError):  # a part of the model does not run alone
                break
            for name in stage:
                job = todo.pop(name)
                met = Meeting.of(seen[job.reading.key], centred=job.bias is not None) if job.reading else None
                solved += met is not None
                solve(job, amount, shares[name], met, tensors)
    for name, job in todo.items():
        solve(job, amount, shares[name], None, tensors)
    return model, solved


def solve(job: Job, amount: Amount, share: float, met: Meeting | None, tensors: Mapping[str, Constant]) -> None:
    """Write the zeros of one weight, and where its inputs are known the survivors and the bias, into ``tensors``."""
    tensor = tensors[job.weight.name]
    weight = grouped(tensor.values, job.weight.channel_axis, job.groups)
    if amount.threshold:
        made = weight * (np.abs(weight) >= np.float32(amount.threshold))
    elif met is not None and amount.importance == "second-order":
        made = prune(weight, met, share, amount.pattern)
    else:
        price = met.curvature.diagonal if met is not None and amount.importance == "activation" else np.float32(1)
        cost = job.costs
        made = weight * survivors(np.square(weight) * price if cost is None else cost, share, amount.pattern)
    if met is not None and amount.refit and amount.chosen_alone:
        made = refit(made, met.curvature.moment, met.wanted(weight))
    if met is not None and job.bias is not None and (amount.refit or not amount.chosen_alone):
        bias = tensors[job.bias]
        shift = met.shift(weight, made)
        old = np.asarray(bias.values, np.float32)
        bias.values = old + shift.reshape(old.shape)
    tensor.values = ungrouped(made, tensor.values.shape, job.weight.channel_axis)


def model_shares(context: Context, jobs: Sequence[Job], amount: Amount) -> dict[str, float]:
    """Weight name -> its share, where ``amount.fraction`` is of all weights together: the least important go, measured
    by magnitude, by what they cost as a share of the power of their site's output, or by gradients of the model's.
    """
    prices = {job.weight.name: unit_price(context, job, amount.importance) for job in jobs}

    def costs() -> Iterator[Matrix]:
        for job in jobs:
            if (told := job.costs) is not None:
                yield told
                continue
            values = np.asarray(context.model.values(job.weight.tensor), np.float32)
            weight = grouped(values, job.weight.channel_axis, job.groups)
            yield np.square(weight) * prices[job.weight.name]

    count = round(amount.fraction * sum(job.weight.elements for job in jobs))
    limit = kth_smallest(costs, count) if count else -1.0
    return {job.weight.name: float((cost <= limit).mean()) for job, cost in zip(jobs, costs(), strict=True)}


def unit_price(context: Context, job: Job, importance: Importance) -> Matrix:
    """[G, K, 1], what the square of a weight costs at each of its inputs."""
    seen = weight_moments(job.weight, context.sites, context.observations) if importance != "magnitude" else None
    values = np.asarray(context.model.values(job.weight.tensor), np.float32)
    weight = grouped(values, job.weight.channel_axis, job.groups)
    if seen is None or seen.shape[:2] != weight.shape[:2]:
        power = 1.0 if importance == "magnitude" else max(float(np.square(weight).sum()), 1e-30)
        return np.full((1, 1, 1), 1 / power, np.float32)
    curvature = Curvature.of(seen)
    power = max(float(((curvature.moment @ weight) * weight).sum()), 1e-30)
    price = curvature.prices if importance == "second-order" else curvature.diagonal
    return np.asarray(price / power, np.float32)
