"""How much the outputs depend on weights. In: a model and samples. Out: an array per float initializer, or per group.

    importance of a weight  =  w^2 E[(r J)^2],              J = d outputs / d weights, r random signs over each
    importance of a unit    =  E[(sum of w (r J))^2]        output's size

which is the squared change of the outputs, over their power, that removing it alone makes to first order: the
diagonal of the Gauss-Newton matrix, estimated by random projections (Hutchinson, 1990), in the use of Molchanov et al.,
"Importance Estimation for Neural Network Pruning" (2019). No labels and no loss are needed. A unit is what goes
together, such as a channel: its weights act together, so that their effects are added before they are squared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from onnxc.data import Sample
from onnxc.errors import ModelError
from onnxc.model import Model
from onnxc.training.interpreter import Program
from onnxc.training.latents import FloatLatent, tensors_of, values_of
from onnxc.training.losses import matched
from onnxc.training.tuning import device, orderly
from onnxc.training.weights import latents

PROJECTIONS = 4  # of each sample
Members = Mapping[tuple[str, int], np.ndarray]


def first_order(model: Model, samples: Iterable[Sample], *, seed: int = 0, threads: int = 1) -> dict[str, np.ndarray]:
    """Importance of every weight, by the name of its initializer, in the weight's shape; float64.

    Raises:
        ModelError: an operator cannot be trained through, or there is no float weight.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0
    for effects in _effects(model, samples, seed, threads):
        count += 1
        for name, effect in effects.items():
            squared = effect.square()
            sums[name] = sums[name] + squared if name in sums else squared
    return {name: (total / max(count, 1)).cpu().numpy() for name, total in sums.items()}


def first_order_of_units(
    model: Model, samples: Iterable[Sample], groups: Sequence[Members], *, seed: int = 0, threads: int = 1
) -> list[np.ndarray]:
    """Importance of every unit of groups of channels, [units] each; float64.

    Args:
        groups: for each the weights that read it: (name, axis) -> unit of every index along that axis, -1 for none.

    Raises:
        ModelError: as first_order().
    """
    units = [{key: torch.as_tensor(np.asarray(each)) for key, each in members.items()} for members in groups]
    counts = [max((int(each.max()) + 1 for each in members.values()), default=0) for members in units]
    sums = [torch.zeros(count, dtype=torch.float64) for count in counts]
    projections = 0
    for effects in _effects(model, samples, seed, threads):
        projections += 1
        for place, members in enumerate(units):
            together = torch.zeros_like(sums[place])
            for (name, axis), places in members.items():
                if name in effects:
                    effect = effects[name].cpu().movedim(axis, 0).flatten(1).sum(1)
                    together.index_add_(0, places[places >= 0], effect[places >= 0])
            sums[place] += together.square()
    return [(total / max(projections, 1)).numpy() for total in sums]


def _effects(model: Model, samples: Iterable[Sample], seed: int, threads: int) -> Iterator[dict[str, torch.Tensor]]:
    """For every projection: weight times slope of the outputs, by the name of the initializer; float64."""
    outputs = [each.name for each in matched(model, model)]
    where = device()
    found = [each for each in latents(model, where) if isinstance(each, FloatLatent)]
    if not found:
        raise ModelError("the model has no float weight whose importance could be told")
    program = Program(model, trainable=tensors_of(found), outputs=outputs, device=where)
    parameters = [each.parameter.requires_grad_(True) for each in found]
    generator = torch.Generator().manual_seed(seed)
    with orderly(seed, threads):
        for sample in samples:
            got = program(sample, values_of(found))
            for _ in range(PROJECTIONS):
                total = torch.zeros((), device=where)
                for name in outputs:
                    value = got[name].float()
                    signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
                    total = total + (signs * value).sum() / value.detach().square().sum().sqrt().clamp(min=1e-12)
                slopes = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
                yield {
                    latent.tensors[0].name: (latent.parameter.detach() * slope).double()
                    for latent, slope in zip(found, slopes, strict=True)
                    if slope is not None
                }
