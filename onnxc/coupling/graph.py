"""Which channels must be cut together. In: a Model and the shape of every tensor. Out: groups of channels.

A node of the graph is one axis of one tensor; an edge says which index of one axis stands for which index of another:
a concatenation is an offset, a reshape a digit of a mixed radix number. Indices that are connected are one *unit*:
they stay or go together. Units that touch the same axes equally often are exchangeable and make one *group*, within
which any number of them may be cut.

    Conv.weight axis 0 ──┬── Conv output axis 1 ── Relu output axis 1 ──┬── next Conv.weight axis 1
    Conv.bias axis 0 ────┘                                              └── Concat output axis 1, from index 64

An axis that is a product (heads x width of a head, channels x positions) is followed along one of its factors: that
of whole heads where the axis is a batch of a product of activations, else the longest that is free. What may not be
cut is *pinned*, with the reason; a pin holds for every unit that reaches it. After Fang et al., "DepGraph: Towards Any
Structural Pruning" (2023), with index maps in place of layer pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from onnxc.model import Constant, Model, Node, Tensor

Axis = tuple[str, int]
Indices = NDArray[np.int64]
Rule = Callable[["Coupling", Node], None]


@dataclass(frozen=True)
class Factor:
    """One factor of an axis: its own node in the graph."""

    axis: Axis
    size: int


@dataclass(frozen=True)
class Reader:
    """A weight that is multiplied with channels: ``axis`` of ``weight`` is contracted with ``source``.

    Attributes:
        role: "weight", or "hidden" for the recurrent weight of an LSTM, GRU or RNN.
    """

    node: str
    weight: str
    axis: int
    source: str
    role: str = "weight"


@dataclass(eq=False)
class Group:
    """Exchangeable units of channels.

    Attributes:
        name: the node that makes them.
        kind: "heads", "residual" (a stream that layers add to), "hidden" (of a recurrent layer) or "channels".
        units: how many there are.
        members: axis -> unit of every index, -1 where the index belongs to another group; [size].
        width: how many channels of a layer that makes or reads it one unit has: of a head, its width.
        readers: the weights that they meet.
        pinned: why none may be cut; empty if they may.
    """

    name: str
    kind: str
    units: int
    members: dict[Axis, Indices]
    width: int = 1
    readers: list[Reader] = field(default_factory=list)
    pinned: str = ""

    def per_unit(self, axis: Axis) -> int:
        """How many indices of ``axis`` one unit has."""
        return int(np.count_nonzero(self.members[axis] == 0)) if axis in self.members else 0


class Coupling:
    """The graph of axes of one model.

    Args:
        model: not changed.
        shapes: tensor name -> shape, from a run; what is missing is not followed.
        rules: operator -> function that adds its edges; see operators.py.
    """

    def __init__(self, model: Model, shapes: Mapping[str, Sequence[int]], rules: Mapping[str, Rule]) -> None:
        self.model = model
        self.shapes = {name: tuple(int(size) for size in shape) for name, shape in shapes.items()}
        self.axes: nx.Graph[Axis] = nx.Graph()
        self.pins: dict[Axis, list[tuple[str, Indices | None]]] = {}
        self.products: list[tuple[Axis, list[Factor]]] = []
        self.batches: set[Axis] = set()
        self.sums: set[Axis] = set()
        self.made: dict[Axis, str] = {}
        self.readers: dict[Axis, list[Reader]] = {}
        self.grouped = {node.name: int(node.attrs.get("group", 1)) for node in model.graph.nodes if node.op == "Conv"}
        for graph in model.graphs():
            for node in graph.nodes:
                for tensor in node.inputs:
                    if isinstance(tensor, Constant):
                        self.shapes[tensor.name] = tuple(int(size) for size in tensor.shape)
        for tensor in model.graph.inputs:
            self.pin_all(tensor, f"they are the model's input '{tensor.name}'")
        for tensor in model.graph.outputs:
            self.pin_all(tensor, f"they reach the model's output '{tensor.name}'")
        for graph in model.graphs():
            if graph is not model.graph:
                for node in graph.nodes:
                    for tensor in node.inputs:
                        self.pin_all(tensor, f"the body that holds node '{node.name}' reads them")
        for node in model.graph.nodes:
            rule = rules.get(node.op) if node.domain in {None, "", "ai.onnx", "com.microsoft"} else None
            known = all(not tensor.name or tensor.name in self.shapes for tensor in (*node.inputs, *node.outputs[:1]))
            if rule is None or not known or node.bodies():
                what = "is not followed" if known or rule is None else "has tensors of unknown shape"
                for tensor in (*node.inputs, *node.outputs):
                    self.pin_all(tensor, f"operator {node.op} of node '{node.name}' {what}")
            else:
                rule(self, node)
        self.resolve()

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape of ``tensor`` in the run."""
        return self.shapes[tensor.name]

    def size(self, axis: Axis) -> int:
        """The number of indices of an axis or factor."""
        return int(self.axes.nodes[axis]["size"])

    def add(self, axis: Axis, size: int) -> bool:
        """Make sure that ``axis`` is in the graph; False for an axis of one index, which is never cut."""
        if size > 1 and axis not in self.axes:
            self.axes.add_node(axis, size=size)
        return size > 1

    def node(self, tensor: Tensor, axis: int) -> Axis | None:
        """The node of an axis of ``tensor``, None if it has one index."""
        shape = self.shape(tensor)
        key = (str(tensor.name), axis % len(shape))
        return key if self.add(key, shape[key[1]]) else None

    def link(
        self, first: Axis | None, second: Axis | None, left: Indices | None = None, right: Indices | None = None
    ) -> None:
        """Index ``left[i]`` of the first axis goes with ``right[i]`` of the second; by default all in order.

        Axes of different size without a map cannot be followed and are pinned.
        """
        if first is None or second is None or first == second:
            for axis in {first, second} - {None}:
                if left is None and first != second:
                    self.pin(axis, "an axis of another size meets them")
            return
        if left is None and self.size(first) != self.size(second):
            for axis in (first, second):
                self.pin(axis, "an axis of another size meets them")
            return
        whole: Indices = np.arange(self.size(first), dtype=np.int64)
        ends = (first, whole if left is None else left, second, whole if right is None else right)
        if not self.axes.has_edge(first, second):
            self.axes.add_edge(first, second, maps=[])
        self.axes.edges[first, second]["maps"].append(ends)

    def pin(self, axis: Axis | None, reason: str, indices: Indices | None = None) -> None:
        """``indices`` of an axis (all of them) may not be cut, because of ``reason``: "<they> ..."."""
        if axis is not None:
            self.pins.setdefault(axis, []).append((reason, indices))

    def pin_all(self, tensor: Tensor, reason: str) -> None:
        """Pin every axis of ``tensor``; one of unknown shape has none."""
        for axis in range(len(self.shapes.get(tensor.name, ()))):
            self.pin(self.node(tensor, axis), reason)

    def factor(self, name: str, number: int, size: int) -> Factor:
        """A factor of its own, called after the operator that splits or merges axes."""
        self.add((name, number), size)
        return Factor((name, number), size)

    def product(self, axis: Axis | None, factors: Sequence[Factor]) -> None:
        """``axis`` is the product of ``factors``, outermost first."""
        real = [factor for factor in factors if factor.size > 1]
        if axis is None or not real:
            return
        if len(real) == 1:
            self.link(axis, real[0].axis)
        else:
            self.products.append((axis, real))

    def resolve(self) -> None:
        """Choose, for every axis that is a product, the factor that it is followed along; pin the other ones."""
        home: dict[Axis, int] = {}
        free: list[bool] = []
        heads: list[bool] = []
        for number, component in enumerate(nx.connected_components(self.axes)):
            home |= dict.fromkeys(component, number)
            units, _, pinned = self.units(component)
            free.append(bool(len(units)) and not pinned.all())
            heads.append(bool(self.batches & component))
        chosen: set[int] = set()
        refused: set[int] = set()
        order = sorted(self.products, key=lambda item: not any(heads[home[factor.axis]] for factor in item[1]))
        for axis, factors in order:
            numbers = [home[factor.axis] for factor in factors]
            open_to = [i for i, number in enumerate(numbers) if free[number] and number not in refused]
            if not open_to:
                self.pin(axis, self.reason(factors))
                continue
            best = max(open_to, key=lambda i: (heads[numbers[i]], numbers[i] in chosen, factors[i].size, i))
            chosen.add(numbers[best])
            inner = int(np.prod([factor.size for factor in factors[best + 1 :]]))
            index = np.arange(self.size(axis), dtype=np.int64)
            self.link(axis, factors[best].axis, index, index // inner % factors[best].size)
            for i, number in enumerate(numbers):
                if i != best and number != numbers[best]:
                    refused.add(number)
                    self.pin(factors[i].axis, "the axis that they are a factor of is cut along another factor")

    def reason(self, factors: Iterable[Factor]) -> str:
        """Why none of ``factors`` may be cut."""
        for factor in factors:
            for axis in nx.node_connected_component(self.axes, factor.axis):
                if axis in self.pins:
                    return self.pins[axis][0][0]
        return "every factor of their axis is fixed"

    def units(self, component: Iterable[Axis]) -> tuple[Indices, dict[Axis, slice], NDArray[np.bool_]]:
        """Units of a connected component of the graph.

        Returns:
            unit of every index of all axes one after the other [total], where each axis lies in it, and whether a
            unit is pinned [units].
        """
        places: dict[Axis, slice] = {}
        total = 0
        for axis in sorted(component):
            places[axis] = slice(total, total + self.size(axis))
            total += self.size(axis)
        lefts, rights = [], []
        for _, _, maps in self.axes.edges(places, data="maps"):
            for first, left, second, right in maps:
                lefts.append(left + places[first].start)
                rights.append(right + places[second].start)
        roots = connected(total, np.concatenate(lefts), np.concatenate(rights)) if lefts else np.arange(total)
        _, labels = np.unique(roots, return_inverse=True)
        labels = labels.astype(np.int64)
        pinned = np.zeros(int(labels.max(initial=-1)) + 1, np.bool_)
        for axis in places:
            for _, indices in self.pins.get(axis, ()):
                mine = labels[places[axis]]
                pinned[mine if indices is None else mine[indices]] = True
        return labels, places, pinned

    def groups(self) -> list[Group]:
        """Every group of units that some weight makes, in the order of the nodes; pinned ones with their reason."""
        order = {name: position for position, name in enumerate(dict.fromkeys(self.made.values()))}
        found: list[tuple[int, Group]] = []
        for component in nx.connected_components(self.axes):
            makers = [axis for axis in component if axis in self.made]
            if not makers:
                continue
            labels, places, pinned = self.units(component)
            random = np.random.default_rng(0)
            signature = np.zeros(len(pinned), np.uint64)
            for place in places.values():
                count = np.bincount(labels[place], minlength=len(pinned)).astype(np.uint64)
                signature += count * random.integers(1, 2**63, dtype=np.uint64)
            signature[pinned] ^= np.uint64(1)
            keys, group_of = np.unique(signature, return_inverse=True)
            within = np.zeros(len(pinned), np.int64)
            for number in range(len(keys)):
                mine = np.flatnonzero(group_of == number)
                within[mine] = np.arange(len(mine))
                members: dict[Axis, Indices] = {}
                for axis, place in places.items():
                    inside = group_of[labels[place]] == number
                    if inside.any():
                        members[axis] = np.where(inside, within[labels[place]], -1)
                names = sorted({self.made[axis] for axis in makers if axis in members}, key=order.__getitem__)
                if names:
                    group = Group(names[0], self.kind(members), len(mine), members)
                    ends = [axis for axis in members if axis in self.made or axis in self.readers]
                    group.width = min(group.per_unit(axis) * self.times(axis) for axis in ends)
                    group.readers = sorted(
                        {reader for axis in members for reader in self.readers.get(axis, ())},
                        key=lambda reader: (reader.node, reader.role),
                    )
                    group.pinned = self.why(members) if pinned[mine[0]] else ""
                    found.append((order[names[0]], group))
        return [group for _, group in sorted(found, key=lambda item: item[0])]

    def times(self, axis: Axis) -> int:
        """How many channels one index of ``axis`` stands for: one of every group of a convolution that reads it."""
        return max((self.grouped.get(reader.node, 1) for reader in self.readers.get(axis, ())), default=1)

    def kind(self, members: Mapping[Axis, Indices]) -> str:
        """What a group with these members is."""
        if any(reader.role == "hidden" for axis in members for reader in self.readers.get(axis, ())):
            return "hidden"
        if self.batches & members.keys():
            return "heads"
        return "residual" if self.sums & members.keys() else "channels"

    def why(self, members: Mapping[Axis, Indices]) -> str:
        """The reason of a pin that these members reach."""
        for axis, units in members.items():
            for reason, indices in self.pins.get(axis, ()):
                if indices is None or (units[indices] >= 0).any():
                    return reason
        return "they are fixed"


def connected(count: int, left: Indices, right: Indices) -> Indices:
    """The smallest index of the connected component of each of ``count`` indices, with edges left[i]-right[i].

    Labels hook onto the smaller root and are then compressed (Shiloach and Vishkin, "An O(log n) parallel connectivity
    algorithm", 1982), in rounds over whole arrays.
    """
    label: Indices = np.arange(count, dtype=np.int64)
    while True:
        first, second = label[left], label[right]
        if np.array_equal(first, second):
            return label
        low = np.minimum(first, second)
        np.minimum.at(label, np.concatenate([first, second]), np.concatenate([low, low]))
        while not np.array_equal(label, label[label]):
            label = label[label]
