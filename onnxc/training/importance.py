"""How much the outputs depend on every single weight. In: a model and samples. Out: an array per float initializer.

    importance[i] = w[i]^2 E[(r J)[i]^2],    J = d outputs / d weights,    r random signs over each output's size

which is the squared change of the outputs, over their power, that removing w[i] alone makes to first order: the
diagonal of the Gauss-Newton matrix, estimated by random projections (Hutchinson, 1990), in the use of Molchanov et al.
(2019). No labels and no loss are needed. Sums over a channel are its importance.
"""

from __future__ import annotations

from collections.abc import Iterable

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


def first_order(model: Model, samples: Iterable[Sample], *, seed: int = 0, threads: int = 1) -> dict[str, np.ndarray]:
    """Importance of every weight, by the name of its initializer, in the weight's shape; float64.

    Raises:
        ModelError: an operator cannot be trained through, or there is no float weight.
    """
    outputs = [each.name for each in matched(model, model)]
    where = device()
    found = [each for each in latents(model, where) if isinstance(each, FloatLatent)]
    if not found:
        raise ModelError("the model has no float weight whose importance could be told")
    program = Program(model, trainable=tensors_of(found), outputs=outputs, device=where)
    sums = [torch.zeros_like(each.parameter, dtype=torch.float64) for each in found]
    parameters = [each.parameter.requires_grad_(True) for each in found]
    generator = torch.Generator().manual_seed(seed)
    count = 0
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
                for index, slope in enumerate(slopes):
                    if slope is not None:
                        sums[index] += slope.double().square()
                count += 1
    made = {}
    for latent, total in zip(found, sums, strict=True):
        value = latent.parameter.detach().double()
        made[latent.tensors[0].name] = (value.square() * total / max(count, 1)).cpu().numpy()
    return made
