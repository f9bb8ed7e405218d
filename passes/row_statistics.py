"""What is normalized, and how, told from the arithmetic. In: a graph, and a tensor it may be. Out: polynomials.

Means over the last axis are atoms: m of x, q of its square; r is 1 / Sqrt(q - m m + epsilon). The mean of squared
differences is q - m m like any other way to write the variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from onnxc.model import Constant, Model, Node, Tensor
from onnxc.shapes import TensorType

from .facts import Borders, axes_of, given, number, standard
from .polynomials import RULES, Expansion, Monomial, Polynomial, added, close

MOVES = ("Reshape", "Expand", "Unsqueeze", "Squeeze", "Identity")  # of one number per row
FOLLOWED = (*RULES, *MOVES, "Max", "Relu", "Sqrt")
REDUCE = ("ReduceMean", "ReduceSum")
MEAN, SQUARE, INVERSE = "m", "q", "r"  # mean of x, mean of its square, 1 / standard deviation
VARIANCE: Polynomial = {((SQUARE, 1),): 1.0, ((MEAN, 2),): -1.0}


@dataclass
class Norm:
    """One attempt: that ``x`` is what is normalized.

    Attributes:
        vectors: letter -> constant along the last axis.
        epsilon: what is added to the variance, once that was seen.
    """

    model: Model
    borders: Borders
    types: Mapping[str, TensorType]
    x: Tensor
    vectors: dict[str, Constant] = field(default_factory=dict)
    epsilon: float = 0.0

    @property
    def width(self) -> int | None:
        known = self.types.get(self.x.name)
        return known.shape[-1] if known is not None and known.shape else None

    def letter(self, tensor: Tensor) -> str | None:
        if tensor is self.x:
            return "x"
        if self.borders.fixed(tensor) and tensor.shape and tensor.shape[-1] == self.width == prod(tensor.shape):
            self.vectors[f"v {tensor.name}"] = tensor
            return f"v {tensor.name}"
        return None

    def of(self, expansion: Expansion, node: Node) -> Polynomial | None:
        """What sums and products do not cover."""
        inner = expansion.of(node.inputs[0])
        if inner is None:
            return None
        atoms = {atom for key in inner for atom, _ in key}
        if node.op in MOVES:
            return inner if atoms <= {MEAN, SQUARE, INVERSE} else None
        if node.op == "Relu":
            return inner if close(inner, VARIANCE) else None
        if node.op == "Max" and len(node.inputs) == 2:  # a variance is never negative, but for rounding
            both = [inner, expansion.of(node.inputs[1])]
            return next((dict(VARIANCE) for each in both if close(each, VARIANCE)), None) if {(): 0.0} in both else None
        if node.op in REDUCE:
            return self.reduced(node, inner)
        if deviates(self.model, self.borders, node):
            self.epsilon = inner.get((), 0.0)
            if not close(added(inner, {(): self.epsilon}, -1), VARIANCE):
                return None
            return {((INVERSE, -1 if node.op == "Sqrt" else 1),): 1.0}
        return None

    def reduced(self, node: Node, inner: Polynomial) -> Polynomial | None:
        """The mean or sum over the last axis."""
        known = self.types.get(self.x.name)
        rank = len(known.shape) if known is not None and known.shape is not None else None
        axes = axes_of(self.model, self.borders, node)
        if axes not in ([-1], [rank and rank - 1]) or (node.op == "ReduceSum" and not self.width):
            return None
        times = float(self.width or 1) if node.op == "ReduceSum" else 1.0
        made: Polynomial = {}
        for key, value in inner.items():
            powers = dict(key)
            taken = {0: (), 1: ((MEAN, 1),), 2: ((SQUARE, 1),)}.get(powers.pop("x", 0))
            if taken is None or not powers.keys() <= {MEAN, SQUARE, INVERSE}:
                return None
            for atom, power in taken:
                powers[atom] = powers.get(atom, 0) + power
            term: Monomial = tuple(sorted(powers.items()))
            made[term] = made.get(term, 0.0) + times * value
        return made


def deviates(model: Model, borders: Borders, node: Node) -> bool:
    """Whether ``node`` makes a standard deviation of a variance, or its inverse."""
    return standard(node, "Sqrt") or (standard(node, "Pow") and number(model, borders, given(node, 1)) == -0.5)
