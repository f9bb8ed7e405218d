"""How much the outputs depend on weights. In: a model and samples. Out: an array per float initializer, or per group.

    importance of a weight  =  w^2 E[(r J)^2],              J = d scores / d weights, r random signs over each
    importance of a unit    =  E[(sum of w (r J))^2]        sample's scores, over their size

which is the squared change of the scores, over their power, that removing it alone makes to first order: the
diagonal of the Gauss-Newton matrix, estimated by random projections (Hutchinson, 1990), in the use of Molchanov et al.,
"Importance Estimation for Neural Network Pruning" (2019). No labels and no loss are needed. A unit is what goes
together, such as a channel: its weights act together, so that their effects are added before they are squared.

Scores are the outputs, and of a Softmax or Sigmoid what it reads: of a sample that a model is sure of no output has a
slope, so that a weight that only such samples need would seem to do nothing. What a Softmax reads is measured from its
mean over the classes, since what is added to all of them changes no answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from onnxc.data import Sample
from onnxc.errors import ModelError
from onnxc.model import Model, Tensor
from onnxc.training.devices import device, orderly, within_memory
from onnxc.training.interpreter import Program
from onnxc.training.latents import FloatLatent, tensors_of, values_of
from onnxc.training.losses import made_by, matched
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


@dataclass(frozen=True)
class Scores:
    """What changes are measured in, for one output.

    Attributes:
        tensor: the output, or what its Softmax or Sigmoid reads.
        softmax: the axis from which on entries are classes of one answer, and whether it is that axis only.
    """

    tensor: Tensor
    softmax: tuple[int, bool] | None = None

    @classmethod
    def of(cls, model: Model, name: str) -> Scores:
        """Those of the output ``name``."""
        output = next(each for each in model.graph.outputs if each.name == name)
        node = made_by(output)
        if node is None or node.op not in {"Softmax", "Sigmoid"}:
            return cls(output)
        new = model.opset >= 13
        axis = int(node.attrs.get("axis", -1 if new else 1))
        return cls(node.inputs[0], (axis, new) if node.op == "Softmax" else None)

    def centred(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` less their mean over the classes, where there are any."""
        if self.softmax is None:
            return values
        axis, alone = self.softmax
        axes = [axis] if alone else list(range(axis % values.ndim, values.ndim))
        return values - values.mean(axes, keepdim=True)


def _effects(model: Model, samples: Iterable[Sample], seed: int, threads: int) -> Iterator[dict[str, torch.Tensor]]:
    """For every projection: weight times slope of the scores, by the name of the initializer; float64."""
    names = [each.name for each in matched(model, model)]
    model = model.copy()
    scores = [Scores.of(model, name) for name in names]
    model.graph.outputs = list({each.tensor.name: each.tensor for each in scores}.values())
    where = device()
    with within_memory(where):
        yield from _measured(model, scores, samples, seed, threads, where)


def _measured(
    model: Model, scores: Sequence[Scores], samples: Iterable[Sample], seed: int, threads: int, where: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    found = [each for each in latents(model, where) if isinstance(each, FloatLatent)]
    if not found:
        raise ModelError("the model has no float weight whose importance could be told")
    program = Program(model, trainable=tensors_of(found), device=where)
    parameters = [each.parameter.requires_grad_(True) for each in found]
    generator = torch.Generator().manual_seed(seed)
    with orderly(seed, threads, where):
        for sample in samples:
            got = program(sample, values_of(found))
            for _ in range(PROJECTIONS):
                total = torch.zeros((), device=where)
                for each in scores:
                    value = each.centred(got[each.tensor.name].float())
                    signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
                    total = total + (signs * value).sum() / value.detach().square().sum().sqrt().clamp(min=1e-12)
                if not total.requires_grad:
                    continue
                slopes = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
                yield {
                    latent.tensors[0].name: (latent.parameter.detach() * slope).double()
                    for latent, slope in zip(found, slopes, strict=True)
                    if slope is not None
                }
