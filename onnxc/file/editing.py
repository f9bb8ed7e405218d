"""Editing a graph safely: who reads what across bodies, sorting, and removing what edits left behind.

In: a Model. Out: the same Model, changed; names of graph inputs and outputs never change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from onnxc.errors import ModelError
from onnxc.file.shell import ConstantShell, is_bodies, is_constant, is_graph

if TYPE_CHECKING:
    from onnxc.model import Constant, Graph, Model, Node, Tensor


def scopes(model: Model) -> Iterator[tuple[Graph, tuple[Graph, ...]]]:
    """Every graph with the graphs around it, depth first, outer before inner."""
    stack: list[tuple[Graph, tuple[Graph, ...]]] = [(model.graph, ())]
    while stack:
        graph, around = stack.pop()
        yield graph, around
        bodies = [body for node in graph.nodes if node.attrs for body in node.bodies()]
        stack += [(body, (*around, graph)) for body in reversed(bodies)]


def reads(node: Node) -> Iterator[Tensor]:
    """What a node reads: its inputs, and what its bodies read and give back, their own tensors included."""
    nodes = [node]
    while nodes:
        node = nodes.pop()
        yield from node.inputs
        if node.attrs:
            for body in node.bodies():
                nodes += body.nodes
                yield from body.outputs


def in_order(graph: Graph, label: str = "the model") -> list[Node]:
    """The nodes sorted so that each follows those it reads from; one that already does keeps its place.

    A node that is out of place goes right before its first reader. The walk is iterative: chains may be long.

    Raises:
        ModelError: nodes wait for each other in a circle.
    """
    maker = {tensor: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    done: set[Node] = set()
    waiting: set[Node] = set()
    ordered: list[Node] = []
    for start in graph.nodes:
        stack = [start]
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            before = [maker[item] for item in reads(node) if item in maker and maker[item] not in done]
            if not before:
                done.add(node)
                waiting.discard(node)
                ordered.append(node)
                stack.pop()
            elif node in waiting:
                raise ModelError(f"{label}: node {node.name!r} ({node.op}) waits for its own result")
            else:
                waiting.add(node)
                stack += reversed(before)
    return ordered


def mark_kept(model: Model) -> None:
    """Note what nobody reads in the file, so that ``tidy`` leaves it alone."""
    read = _readers(model)
    for graph in model.graphs():
        for node in graph.nodes:
            node.kept = not any(read[tensor] for tensor in node.outputs)
        for tensor in graph.weights:
            tensor.kept = not read[tensor]


def _readers(model: Model) -> Counter[Tensor]:
    """How often each tensor is read, as an output of a graph too."""
    count: Counter[Tensor] = Counter()
    for graph in model.graphs():
        count.update(graph.outputs)
        for node in graph.nodes:
            count.update(node.inputs)
    return count


def homeless(model: Model) -> list[Constant]:
    """Constants that no graph owns, or that are read outside the graph owning them."""
    owner = {tensor: graph for graph in model.graphs() for tensor in graph.weights}
    found: dict[Constant, None] = {}
    for graph, around in scopes(model):
        for tensor in (item for node in graph.nodes for item in node.inputs):
            if isinstance(tensor, ConstantShell):
                home = owner.get(tensor)
                if home is not graph and home not in around:
                    found[tensor] = None
        for tensor in graph.outputs:
            if isinstance(tensor, ConstantShell) and tensor not in owner:
                found[tensor] = None
    return list(found)


class Names:
    """The names in use in a model."""

    def __init__(self, model: Model) -> None:
        self._used: set[str] = set()
        self._next: Counter[str] = Counter()
        for graph in model.graphs():
            self._used.update(tensor.name for tensor in graph.tensors_inside())
            for node in graph.nodes:
                self._used.add(node.name)
                self._used.update(tensor.name for tensor in node.inputs)

    def take(self, name: str) -> str:
        """``name``, or with a number behind it, unused until now."""
        free = name
        while not free or free in self._used:
            self._next[name] += 1
            free = f"{name}_{self._next[name]}"
        self._used.add(free)
        return free


def redirect(model: Model, old: Tensor, new: Tensor, only: Collection[Node] | None) -> None:
    """See ``Model.redirect``."""
    if old is new:
        return
    chosen = None if only is None else {id(node) for node in only}
    sources = _made_from(new)
    for node in dict.fromkeys(old.outputs):
        if node in sources or (chosen is not None and id(node) not in chosen):
            continue
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
    if only is not None:
        return
    for graph in model.graphs():
        for index, tensor in enumerate(graph.outputs):
            if tensor is old and old not in graph.inputs:
                _redirect_output(model, graph, index, new)


def _made_from(tensor: Tensor) -> set[Node]:
    """The node that makes a tensor, and new nodes before it: they must not read what they make."""
    found: set[Node] = set()
    stack = list(tensor.inputs)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += [maker for item in reads(node) for maker in item.inputs if maker.origin is None]
    return found


def _redirect_output(model: Model, graph: Graph, index: int, new: Tensor) -> None:
    """Give output ``index`` of a graph the values of ``new``, under its old name."""
    old = graph.outputs[index]
    name = old.name
    local = any(new is tensor for node in graph.nodes for tensor in node.outputs)
    if new.is_constant() or not local or new in graph.outputs:
        result = model.insert("Identity", [new], [f"{name}_out"], graph=graph).outputs[0]
    else:
        result = new
    old.name = model.unique(f"{name}_old")
    result.name = name
    if not isinstance(old, ConstantShell) and not isinstance(result, ConstantShell):
        result.describe_as(old)
    info = graph.output_info.pop(old, None)
    if info is not None:
        graph.output_info[result] = info
    graph.outputs[index] = result


def tidy(model: Model) -> None:
    """See ``Model.tidy``."""
    count = _readers(model)
    maker = {tensor: node for node in model.nodes() for tensor in node.outputs if tensor.name}
    dead: set[Node] = set()
    stack = list(model.nodes())  # also those whose results a rewrite gave to another node
    while stack:
        node = stack.pop()
        if node in dead or node.kept or any(count[tensor] for tensor in node.outputs):
            continue
        inner = [item for item in (node, *_inside(node)) if item not in dead]  # each is taken off once
        dead.update(inner)
        for item in inner:
            for body in item.bodies():
                count.subtract(body.outputs)
            count.subtract(item.inputs)
            stack += [maker[tensor] for tensor in item.inputs if tensor in maker]
    for graph in list(model.graphs()):
        graph.nodes = [node for node in graph.nodes if node not in dead]
    for node in dead:
        node.inputs.clear()
        node.outputs.clear()
    for tensor in homeless(model):
        for graph in model.graphs():
            graph.weights = [item for item in graph.weights if item is not tensor]
        model.graph.weights.append(tensor)
    for graph in model.graphs():
        graph.weights = [tensor for tensor in graph.weights if tensor.kept or count[tensor] > 0]
        graph.nodes = in_order(graph)


def _inside(node: Node) -> list[Node]:
    """All nodes in the bodies of a node."""
    found: list[Node] = []
    stack = node.bodies()
    while stack:
        for inner in stack.pop().nodes:
            found.append(inner)
            stack += inner.bodies()
    return found


def copy(graph: Graph, twins: dict[Tensor, Tensor]) -> Graph:
    """A graph of new objects that share weights and messages.

    Args:
        graph: what to copy; its classes are those of the copy.
        twins: old tensor to new tensor, those of the graphs around it; grows.
    """
    other = type(graph)(graph.name, graph.doc_string, graph.origin)

    def twin(tensor: Tensor) -> Tensor:
        if isinstance(tensor, ConstantShell):
            return twins.get(tensor) or twins.setdefault(tensor, tensor.copy())
        if tensor not in twins or not tensor.name:
            twins[tensor] = fresh = type(tensor)(tensor.name)
            fresh.describe_as(tensor)
        return twins[tensor]

    def value_of(value: Any) -> Any:
        if is_graph(value):
            return copy(value, twins)
        if is_constant(value):
            return value.copy()
        if isinstance(value, list):
            return [copy(body, twins) for body in value] if is_bodies(value) else list(value)
        return value

    for node in graph.nodes:
        attrs = {name: value_of(value) for name, value in node.attrs.items()}
        inputs, outputs = [twin(item) for item in node.inputs], [twin(item) for item in node.outputs]
        new = type(node)(node.op, node.name, attrs, inputs, outputs, node.domain)
        new.origin, new.kept, new.given = node.origin, node.kept, node.given
        other.nodes.append(new)
    other.inputs = [twin(item) for item in graph.inputs]
    other.outputs = [twin(item) for item in graph.outputs]
    other.listed = [twin(item) for item in graph.listed]
    for item in graph.weights:
        copied = twin(item)
        assert isinstance(copied, ConstantShell)
        other.weights.append(copied)
    other.input_info = {twin(item): info for item, info in graph.input_info.items()}
    other.output_info = {twin(item): info for item, info in graph.output_info.items()}
    other.value_info = [(item and twin(item), info) for item, info in graph.value_info]
    other.annotations = [(item and twin(item), note) for item, note in graph.annotations]
    return other
