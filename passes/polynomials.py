"""Sums and products of a graph as polynomials. In: a tensor and what it is thought to depend on. Out: coefficients."""

from __future__ import annotations

import numpy as np

from onnxc.model import Model, Node, Tensor

from .facts import Borders, given, number, producer, standard

DEGREE = 4
MOST_NODES = 12
Polynomial = dict[tuple[int, int], float]  # powers of x and of the other tensor -> coefficient
RULES = ("Add", "Sub", "Mul", "Div", "Pow", "Neg")


class Expansion:
    """Tensors as polynomials of ``x`` and one other tensor, where there is one.

    Attributes:
        nodes: what was expanded, by identity.
    """

    def __init__(self, model: Model, borders: Borders, x: Tensor, other: Tensor | None) -> None:
        self.model, self.borders, self.x, self.other = model, borders, x, other
        self.nodes: dict[int, Node] = {}

    def of(self, tensor: Tensor) -> Polynomial | None:
        """The polynomial; None where it depends on anything else, or is of a higher degree than DEGREE."""
        if tensor is self.x:
            return {(1, 0): 1.0}
        if tensor is self.other:
            return {(0, 1): 1.0}
        if (value := number(self.model, self.borders, tensor)) is not None:
            return {(0, 0): float(value)} if np.issubdtype(type(value), np.floating) else None
        node = producer(tensor)
        if node is None or not standard(node, *RULES) or len(self.nodes) > MOST_NODES:
            return None
        self.nodes[id(node)] = node
        a = self.of(node.inputs[0])
        if a is None or node.op == "Neg":
            return None if a is None else _sum({}, a, -1)
        if node.op == "Pow":
            power = number(self.model, self.borders, given(node, 1))
            return _product(a, a if power == 2 else _product(a, a)) if power in (2, 3) else None
        b = self.of(node.inputs[1])
        if b is None:
            return None
        if node.op in ("Add", "Sub"):
            return _sum(a, b, 1 if node.op == "Add" else -1)
        if node.op == "Div":
            return _product(a, {(0, 0): 1 / b[0, 0]}) if b.keys() == {(0, 0)} and b[0, 0] else None
        return _product(a, b)


def _sum(a: Polynomial, b: Polynomial, sign: int) -> Polynomial:
    return {key: a.get(key, 0.0) + sign * b.get(key, 0.0) for key in a.keys() | b.keys()}


def _product(a: Polynomial | None, b: Polynomial | None) -> Polynomial | None:
    if a is None or b is None:
        return None
    made: Polynomial = {}
    for (i, j), left in a.items():
        for (k, m), right in b.items():
            made[i + k, j + m] = made.get((i + k, j + m), 0.0) + left * right
    return made if all(sum(key) <= DEGREE for key in made) else None
