"""Where codes start to learn. In: latents, and the model they were rounded from. Out: codes with what rounding lost.

A code that starts at a whole number needs half a step to change; one that leans to where the original weight lies
needs only the rest of the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from onnxc.model import Constant, Model
from onnxc.training.interpreter import Program
from onnxc.training.latents import Latent, values_of
from onnxc.training.operators.table import from_numpy
from onnxc.training.weights import FLOATS

WORD = 16  # most codes in a word, which may be filled up
ROUNDED = 0.5  # squared error over power up to which a weight is a rounded form of another


def lean(program: Program, found: Sequence[Latent], original: Model) -> int:
    """Let every code start where the original weight lies within its rounding; the number of codes that lean.

    What unfolds to a weight of the original is told by its name. A weight y depends on one code v each, so with
    g = dy / dv, which one backward pass gives for all of them, the code leans by (original - y) / g, less than a half.
    """
    exact, data = _weights_of(original), program.from_data()
    coded = [each for each in found if each.kind in {"codes", "words"}]
    for latent in coded:
        latent.parameter.requires_grad_(True)
    scope = dict(values_of(found))
    nodes = [node for node in program.nodes if not any(each in data for each in node.outputs)]
    program.run_nodes(nodes, scope)
    count = 0
    for tensor in [each for node in nodes for each in node.outputs if each in scope]:
        value = scope[tensor]
        weight = _closest(tensor.name, value, exact)
        some = [each for each in coded if 0 <= each.parameter.numel() - value.numel() < WORD]
        if weight is None or not some or not value.requires_grad:
            continue
        rest = (weight - value).detach()
        parameters = [each.parameter for each in some]
        slopes = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
        pulls = torch.autograd.grad((value * rest).sum(), parameters, retain_graph=True, allow_unused=True)
        with torch.no_grad():
            for latent, slope, pull in zip(some, slopes, pulls, strict=True):
                if slope is None or pull is None:
                    continue
                step = torch.where(slope == 0, torch.zeros_like(slope), pull / (slope * slope))
                latent.parameter.copy_(torch.round(latent.parameter) + step.nan_to_num(0.0).clamp(-0.49, 0.49))
                count += latent.parameter.numel()
    for latent in coded:
        latent.parameter.requires_grad_(False)
    return count


def _weights_of(original: Model) -> dict[str, Constant]:
    return {each.name: each for graph in original.graphs() for each in graph.weights if each.dtype.name in FLOATS}


def _closest(name: str, value: torch.Tensor, exact: Mapping[str, Constant]) -> torch.Tensor | None:
    """The original weight that ``value``, called ``name``, is a rounded form of."""
    names = [each for each in exact if name.startswith(each) and exact[each].shape == tuple(value.shape)]
    if not names or not value.dtype.is_floating_point:
        return None
    weight = from_numpy(np.asarray(exact[max(names, key=len)].values).astype(np.float32), value.device)
    apart = (weight - value.detach()).square().sum() / weight.square().sum().clamp(min=1e-30)
    return weight if float(apart) < ROUNDED else None
