"""A minimum cut of many small decisions. In: what separating vertices costs. Out: the vertices on the source's side.

Almost every decision of a plan is made by its neighbourhood, whatever the rest does. So the graph is reduced before it
is cut, and every step is exact: a vertex, or one with all that it requires, goes to the side that it wins on even in
the worst case (what is decided alone stays decided together: capacities are submodular); a vertex with one neighbour
is answered for both of that neighbour's sides and becomes a part of it. Only what is left is cut, component by
component. Hammer, Rosenberg and Rudeanu (1963), Crama, Hansen and Jaumard (1990) eliminate variables so; the side of a
variable that all minimizers share is the persistency of Hammer, Hansen and Simeone (1984).
"""

from __future__ import annotations

from math import inf

import networkx as nx

Vertex = tuple[str, str]
SOURCE: Vertex = ("source", "")
SINK: Vertex = ("sink", "")


class Flow:
    """The graph that is cut: edges with summed capacities, and requirements that must not be cut.

    Attributes:
        numbers: vertex -> its place in the lists.
        left_out, taken: what each vertex costs on the sink's side, and on the source's.
        after: vertex -> {other: cost of being on the source's side while the other is not}; before: the same backwards.
    """

    def __init__(self) -> None:
        self.numbers: dict[Vertex, int] = {}
        self.left_out: list[float] = []
        self.taken: list[float] = []
        self.after: list[dict[int, float]] = []
        self.before: list[dict[int, float]] = []

    def __contains__(self, vertex: Vertex) -> bool:
        return vertex in self.numbers

    def number(self, vertex: Vertex) -> int:
        """The place of ``vertex``, a new one if need be."""
        found = self.numbers.get(vertex)
        if found is None:
            found = self.numbers[vertex] = len(self.taken)
            self.left_out.append(0.0)
            self.taken.append(0.0)
            self.after.append({})
            self.before.append({})
        return found

    def edge(self, start: Vertex, end: Vertex, capacity: float) -> None:
        """``capacity`` is paid when ``start`` is on the source's side and ``end`` is not."""
        if capacity <= 0 or (start, end) == (SOURCE, SINK):
            return
        if start == SOURCE:
            self.left_out[self.number(end)] += capacity
        elif end == SINK:
            self.taken[self.number(start)] += capacity
        else:
            first, second = self.number(start), self.number(end)
            self.after[first][second] = self.before[second][first] = self.after[first].get(second, 0.0) + capacity

    def require(self, start: Vertex, end: Vertex) -> None:
        """If ``start`` is on the source's side so is ``end``."""
        self.edge(start, end, inf)

    def cut(self) -> set[Vertex]:
        """The vertices on the source's side of a minimum cut; of several, those of the largest."""
        sides = Reduction(self).solved()
        return {vertex for vertex, number in self.numbers.items() if sides[number]}


class Reduction:
    """One cut: lists of a Flow that shrink until nothing is undecided."""

    def __init__(self, flow: Flow) -> None:
        self.left_out, self.taken = list(flow.left_out), list(flow.taken)
        self.after, self.before = [dict(each) for each in flow.after], [dict(each) for each in flow.before]
        self.sides: list[bool | None] = [None] * len(self.taken)
        self.open = dict.fromkeys(range(len(self.taken)))  # undecided, in order
        self.folded: list[tuple[int, int, bool, bool]] = []  # vertex, its neighbour, side for each side of that one

    def solved(self) -> list[bool | None]:
        """The side of every vertex."""
        self.settle(list(self.open))
        while self.close():
            pass
        self.cut_rest()
        for vertex, neighbour, with_it, without in reversed(self.folded):
            self.sides[vertex] = with_it if self.sides[neighbour] else without
        return self.sides

    def decide(self, vertex: int, side: bool) -> list[int]:
        """Put ``vertex`` on a side; its neighbours, whose costs have changed."""
        self.sides[vertex] = side
        del self.open[vertex]
        following, preceding = self.after[vertex], self.before[vertex]
        for other, capacity in following.items():
            del self.before[other][vertex]
            if side:
                self.left_out[other] += capacity
        for other, capacity in preceding.items():
            del self.after[other][vertex]
            if not side:
                self.taken[other] += capacity
        return [*following, *preceding]

    def settle(self, waiting: list[int]) -> None:
        """Decide, or fold into its neighbour, whatever can be by itself, beginning with ``waiting``."""
        while waiting:
            vertex = waiting.pop()
            if vertex not in self.open:
                continue
            following, preceding = self.after[vertex], self.before[vertex]
            taken, left_out = self.taken[vertex], self.left_out[vertex]
            if left_out >= taken + sum(following.values()):
                waiting += self.decide(vertex, True)
            elif taken > left_out + sum(preceding.values()):
                waiting += self.decide(vertex, False)
            elif len(following) + len(preceding) == 1 or (len(following) == 1 and following.keys() == preceding.keys()):
                waiting.append(self.fold(vertex))

    def fold(self, vertex: int) -> int:
        """Make a vertex with one neighbour a part of it; the neighbour."""
        neighbour = next(iter(self.after[vertex] or self.before[vertex]))
        pull, push = self.before[vertex].get(neighbour, 0.0), self.after[vertex].get(neighbour, 0.0)
        taken, left_out = self.taken[vertex], self.left_out[vertex]
        with_it, without = min(taken, left_out + pull), min(taken + push, left_out)
        least = min(with_it, without)
        self.taken[neighbour] += with_it - least
        self.left_out[neighbour] += without - least
        self.folded.append((vertex, neighbour, taken <= left_out + pull, taken + push <= left_out))
        self.before[neighbour].pop(vertex, None)
        self.after[neighbour].pop(vertex, None)
        del self.open[vertex]
        return neighbour

    def close(self) -> bool:
        """Try every undecided vertex with all that it requires, and with all that requires it; whether one was decided.

        A set that costs less than nothing where nobody else is taken costs no more where others are, and a set that
        costs more than it is worth where everybody else is taken is worth no more where fewer are.
        """
        found = False
        for vertex in list(self.open):
            if vertex not in self.open:
                continue
            inside = required(vertex, self.after)
            cost = sum(self.taken[each] - self.left_out[each] for each in inside) + self.leaving(inside, self.after)
            if side := cost <= 0:
                group = inside
            else:
                group = required(vertex, self.before)
                cost = sum(self.left_out[each] - self.taken[each] for each in group)
                if cost + self.leaving(group, self.before) >= 0:
                    continue
            found, waiting = True, list[int]()
            for each in group:
                waiting += self.decide(each, side)
            self.settle(waiting)
        return found

    def leaving(self, group: dict[int, None], neighbours: list[dict[int, float]]) -> float:
        """Summed capacities from ``group`` to what is not in it."""
        return sum(capacity for each in group for other, capacity in neighbours[each].items() if other not in group)

    def cut_rest(self) -> None:
        """What the whole neighbourhood decides: one minimum cut per component.

        Boykov and Kolmogorov, "An experimental comparison of min-cut/max-flow algorithms" (2004).
        """
        rest = nx.Graph()
        rest.add_nodes_from(self.open)
        rest.add_edges_from((vertex, other) for vertex in self.open for other in self.after[vertex])
        for component in nx.connected_components(rest):
            graph = nx.DiGraph()
            graph.add_nodes_from(("source", "sink"))
            for vertex in sorted(component):
                graph.add_edge("source", vertex, capacity=self.left_out[vertex])
                graph.add_edge(vertex, "sink", capacity=self.taken[vertex])
                for other, capacity in self.after[vertex].items():
                    graph.add_edge(vertex, other, capacity=capacity)
            _, (chosen, _) = nx.minimum_cut(graph, "source", "sink", flow_func=nx.algorithms.flow.boykov_kolmogorov)
            for vertex in component:
                self.sides[vertex] = vertex in chosen


def required(vertex: int, neighbours: list[dict[int, float]]) -> dict[int, None]:
    """``vertex`` and all that is reached from it by edges that must not be cut, in order."""
    found, waiting = {vertex: None}, [vertex]
    while waiting:
        for other, capacity in neighbours[waiting.pop()].items():
            if capacity == inf and other not in found:
                found[other] = None
                waiting.append(other)
    return found
