"""Sums and products of a graph as polynomials. In: a tensor and what it is thought to depend on. Out: coefficients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxc.model import Model, Node, Tensor

from .facts import Borders, given, number, producer, standard

RULES = ("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Reciprocal")
HIGHEST = 4  # power
Monomial = tuple[tuple[str, int], ...]  # (atom, power), sorted; () is the constant
Polynomial = dict[Monomial, float]


def close(found: Polynomial | None, wanted: Polynomial) -> bool:
    """Whether the coefficients are the same, as far as float32 can tell."""
    if found is None:
        return False
    every = found.keys() | wanted.keys()
    return all(abs(found.get(key, 0.0) - wanted.get(key, 0.0)) <= 1e-5 for key in every)


class Expansion:
    """Tensors as polynomials of a few atoms.

    Args:
        atoms: the letter of a tensor that is not expanded any further, None of any other.
        most: nodes to look at.
        further: the polynomial of a node of any other operator, None where it has none.

    Attributes:
        nodes: what was expanded, by identity.
    """

    def __init__(
        self,
        model: Model,
        borders: Borders,
        atoms: Callable[[Tensor], str | None],
        most: int = 12,
        further: Callable[[Expansion, Node], Polynomial | None] = lambda expansion, node: None,
    ) -> None:
        self.model, self.borders, self.atoms, self.most, self.further = model, borders, atoms, most, further
        self.nodes: dict[int, Node] = {}
        self.known: dict[int, Polynomial | None] = {}

    def of(self, tensor: Tensor) -> Polynomial | None:
        """The polynomial; None where it depends on anything else, or is of a power above HIGHEST."""
        if id(tensor) not in self.known:
            self.known[id(tensor)] = self._of(tensor)
        return self.known[id(tensor)]

    def _of(self, tensor: Tensor) -> Polynomial | None:
        if (letter := self.atoms(tensor)) is not None:
            return {((letter, 1),): 1.0}
        if (value := number(self.model, self.borders, tensor)) is not None:
            return {(): float(value)} if np.issubdtype(type(value), np.floating) else None
        node = producer(tensor)
        if node is None or len(self.nodes) > self.most:
            return None
        self.nodes[id(node)] = node
        if not standard(node, *RULES):
            return self.further(self, node)
        a = self.of(node.inputs[0])
        if a is None or node.op == "Neg":
            return None if a is None else added({}, a, -1)
        if node.op == "Reciprocal":
            return inverse(a)
        if node.op == "Pow" and number(self.model, self.borders, given(node, 1)) in (2, 3):
            power = number(self.model, self.borders, given(node, 1))
            return product(a, a if power == 2 else product(a, a))
        if node.op == "Pow":
            return self.further(self, node)
        b = self.of(node.inputs[1])
        if b is None:
            return None
        if node.op in ("Add", "Sub"):
            return added(a, b, 1 if node.op == "Add" else -1)
        return product(a, b if node.op == "Mul" else inverse(b))


def letters(**tensors: Tensor) -> Callable[[Tensor], str | None]:
    """Atoms that are these tensors."""
    names = {id(tensor): letter for letter, tensor in tensors.items()}
    return lambda tensor: names.get(id(tensor))


def added(a: Polynomial, b: Polynomial, sign: int = 1) -> Polynomial:
    """The sum of a and sign times b."""
    return {key: a.get(key, 0.0) + sign * b.get(key, 0.0) for key in a.keys() | b.keys()}


def product(a: Polynomial | None, b: Polynomial | None) -> Polynomial | None:
    """The product; None where a power gets higher than HIGHEST."""
    if a is None or b is None:
        return None
    made: Polynomial = {}
    for left, x in a.items():
        for right, y in b.items():
            powers = dict(left)
            for atom, power in right:
                powers[atom] = powers.get(atom, 0) + power
            key = tuple(sorted((atom, power) for atom, power in powers.items() if power))
            made[key] = made.get(key, 0.0) + x * y
    return made if all(abs(power) <= HIGHEST for key in made for _, power in key) else None


def inverse(a: Polynomial | None) -> Polynomial | None:
    """1 / a, of a single term."""
    if a is None or len(a) != 1:
        return None
    ((key, value),) = a.items()
    return {tuple((atom, -power) for atom, power in key): 1 / value} if value else None
