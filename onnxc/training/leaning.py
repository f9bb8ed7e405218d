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
    near: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # of a weight the last form that is made of it
    for tensor in [each for node in nodes for each in node.outputs if each in scope]:
        value = scope[tensor]
        name = _closest(tensor.name, value, exact)
        if name is not None and value.requires_grad:
            weight = from_numpy(np.asarray(exact[name].values).astype(np.float32), value.device)
            near[name] = value, (weight - value).detach()
    count, parameters = 0, [each.parameter for each in coded]
    if near and parameters:  # a code is of one weight: one backward pass for all of them
        whole = torch.stack([value.sum() for value, _ in near.values()]).sum()
        toward = torch.stack([(value * rest).sum() for value, rest in near.values()]).sum()
        slopes = torch.autograd.grad(whole, parameters, retain_graph=True, allow_unused=True)
        pulls = torch.autograd.grad(toward, parameters, allow_unused=True)
        with torch.no_grad():
            for latent, slope, pull in zip(coded, slopes, pulls, strict=True):
                if slope is None or pull is None:
                    continue
                step = torch.round(latent.parameter) + (pull / (slope * slope)).nan_to_num(0.0).clamp(-0.49, 0.49)
                latent.parameter.copy_(torch.where(slope == 0, latent.parameter, step))
                count += int((slope != 0).sum())
    for latent in coded:
        latent.parameter.requires_grad_(False)
    return count


def _weights_of(original: Model) -> dict[str, Constant]:
    return {each.name: each for graph in original.graphs() for each in graph.weights if each.dtype.name in FLOATS}


def _closest(name: str, value: torch.Tensor, exact: Mapping[str, Constant]) -> str | None:
    """The name of the original weight that ``value``, called ``name``, is a rounded form of."""
    names = [each for each in exact if name.startswith(each) and exact[each].shape == tuple(value.shape)]
    if not names or not value.dtype.is_floating_point:
        return None
    found = max(names, key=len)
    weight = from_numpy(np.asarray(exact[found].values).astype(np.float32), value.device)
    apart = (weight - value.detach()).square().sum() / weight.square().sum().clamp(min=1e-30)
    return found if float(apart) < ROUNDED else None
