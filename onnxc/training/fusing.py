"""Chains of small nodes that torch computes in one step. In: the nodes of a Program. Out: the last node -> what to do.

    x ── Div(sqrt 2) ── Erf ── Add(1) ── Mul(x) ── Mul(0.5) ──                         gelu(x)
    x ── ReduceMean ── Sub ── Pow(2) ── ReduceMean ── Add(epsilon) ── Sqrt ── Div ──   layer_norm(x)

Exporters write what they have no operator for in five or seven nodes, each of which reads and writes the largest
tensors of a transformer, once forward and twice backward. The tensors between are made no more, so a chain is fused
only where nothing else reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from onnxc.model import Node, Tensor
from onnxc.training.operators.table import Value

Constant = Callable[[Tensor], Value]  # the value of a tensor that depends on constants only, else None


@dataclass(frozen=True)
class Fused:
    """A chain that is computed as one.

    Attributes:
        source: what it reads. function: what it makes of it. nodes: the chain, its last node last.
    """

    source: Tensor
    function: Callable[[Value], Value]
    nodes: tuple[Node, ...]


def fused(nodes: Sequence[Node], constant: Constant, kept: Collection[Tensor]) -> dict[Node, Fused]:
    """The chains among ``nodes``, by their last node.

    Args:
        kept: tensors that must be made, whoever reads them.
    """
    found: dict[Node, Fused] = {}
    for node in nodes:
        chain = gelu(node, constant) if node.op == "Erf" else layer_norm(node, constant) if node.op == "Sqrt" else None
        if chain is None or not set(chain.nodes) <= set(nodes):
            continue
        inside = [tensor for each in chain.nodes[:-1] for tensor in each.outputs]
        if all(set(tensor.outputs) <= set(chain.nodes) and tensor not in kept for tensor in inside):
            found[chain.nodes[-1]] = chain
    return found


def gelu(erf: Node, constant: Constant) -> Fused | None:
    """GELU: x (1 + erf(x / sqrt 2)) / 2, the half at any place."""
    scaled = erf.inputs[0].inputs[0] if erf.inputs[0].inputs else None
    if scaled is None or scaled.op not in {"Div", "Mul"}:
        return None
    source, factor = operands(scaled, constant)
    wanted = math.sqrt(2) if scaled.op == "Div" else math.sqrt(0.5)
    if source is None or factor is None or abs(factor - wanted) > 1e-4 or scaled.inputs[0] is not source:
        return None
    added = reader(erf, "Add")
    if added is None or operands(added, constant)[1] != 1.0:
        return None
    chain, product = [scaled, erf, added], 1.0
    multiplied = False
    while not (multiplied and product == 0.5):
        following = reader(chain[-1], "Mul")
        if following is None or len(chain) > 4:
            return None
        other = next(each for each in (*following.inputs, None) if each not in chain[-1].outputs)
        half = operands(following, constant)[1]
        if other is source and not multiplied:
            multiplied = True
        elif half == 0.5 and product == 1.0:
            product = 0.5
        elif other is not None and not multiplied and product == 1.0 and halved(other, source, constant):
            chain.insert(0, other.inputs[0])
            multiplied, product = True, 0.5
        else:
            return None
        chain.append(following)
    return Fused(source, functional.gelu, tuple(chain))


def halved(tensor: Tensor, source: Tensor, constant: Constant) -> bool:
    """Whether a tensor is half of ``source``."""
    maker = tensor.inputs[0] if tensor.inputs else None
    return maker is not None and maker.op == "Mul" and operands(maker, constant) == (source, 0.5)


def layer_norm(root: Node, constant: Constant) -> Fused | None:
    """(x - mean) / sqrt(mean of (x - mean)^2 + epsilon) over the last axis."""
    added = root.inputs[0].inputs[0] if root.inputs[0].inputs else None
    if added is None or added.op != "Add":
        return None
    variance, epsilon = operands(added, constant)
    mean = variance.inputs[0] if variance is not None and variance.inputs else None
    power = mean.inputs[0].inputs[0] if mean is not None and mean.op == "ReduceMean" and mean.inputs[0].inputs else None
    if epsilon is None or mean is None or power is None or not last_axis(mean, constant):
        return None
    centred = power.inputs[0]
    squared = power.op == "Pow" and operands(power, constant) == (centred, 2.0)
    squared = squared or (power.op == "Mul" and power.inputs[1] is centred)
    center = centred.inputs[0] if centred.inputs else None
    if not squared or center is None or center.op != "Sub" or not center.inputs[1].inputs:
        return None
    source, first = center.inputs[0], center.inputs[1].inputs[0]
    if first.op != "ReduceMean" or first.inputs[0] is not source or not last_axis(first, constant):
        return None
    divided = reader(root, "Div")
    if divided is None or divided.inputs[0] is not centred or divided.inputs[1] is not root.outputs[0]:
        return None

    def normalized(x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], eps=epsilon)

    return Fused(source, normalized, (first, center, power, mean, added, root, divided))


def last_axis(node: Node, constant: Constant) -> bool:
    """Whether a ReduceMean is over the last axis, which it keeps."""
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        value = constant(node.inputs[1])
        axes = None if value is None else [int(each) for each in value.reshape(-1)]
    return list(axes or []) == [-1] and bool(node.attrs.get("keepdims", 1))


def operands(node: Node, constant: Constant) -> tuple[Tensor | None, float | None]:
    """What a node of two inputs computes with: the tensor, and the single number beside it."""
    for place in (0, 1):
        value = constant(node.inputs[1 - place])
        if value is not None and value.numel() == 1 and constant(node.inputs[place]) is None:
            return node.inputs[place], float(value)
    return None, None


def reader(node: Node, operator: str) -> Node | None:
    """The only node that reads what ``node`` makes, where it is of that operator."""
    readers = set(node.outputs[0].outputs)
    found = next(iter(readers)) if len(readers) == 1 else None
    return found if found is not None and found.op == operator else None


def idle(found: Mapping[Node, Fused]) -> set[Node]:
    """The nodes that are computed with the last one of their chain."""
    return {node for chain in found.values() for node in chain.nodes[:-1]}
