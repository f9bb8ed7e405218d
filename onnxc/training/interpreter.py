"""An ONNX graph as a torch function. In: a Model. Out: a Program that computes its outputs, differentiably.

feeds + weights --node by node--> outputs        whatever depends on fixed constants only is computed once
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch

from onnxc.errors import ModelError
from onnxc.file import editing
from onnxc.file.shell import is_constant
from onnxc.model import Graph, Model, Node, Tensor
from onnxc.training.fusing import Fused, fused, idle
from onnxc.training.operators import OPERATORS
from onnxc.training.operators.table import Call, Value, from_numpy

Scope = dict[Tensor, Value]


def domain_of(node: Node) -> str:
    """The domain of a node's operator, "" for the default one."""
    return "" if node.domain in {None, "", "ai.onnx"} else str(node.domain)


def unsupported(nodes: Collection[Node]) -> Node | None:
    """The first node, bodies included, whose operator has no torch function."""
    for node in nodes:
        if (domain_of(node), node.op) not in OPERATORS:
            return node
        for body in node.bodies():
            if (found := unsupported(body.nodes)) is not None:
                return found
    return None


class Program:
    """A model that torch computes.

    Args:
        model: is read, never changed.
        trainable: tensors whose values are given at every call; all other constants are fixed. A variable among them
            takes the place of what its node would make.
        outputs: names of the outputs to compute; all of them by default. What they do not need is left out.
        device: where everything is computed.

    Raises:
        ModelError: an operator has no torch function; names it, and a node.
    """

    def __init__(
        self,
        model: Model,
        *,
        trainable: Collection[Tensor] = (),
        outputs: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        self.opsets = model.opsets
        self.outputs = [each for each in model.graph.outputs if outputs is None or each.name in outputs]
        self.trainable = frozenset(trainable)
        self.nodes = needed(model, self.outputs)
        if (node := unsupported(self.nodes)) is not None:
            name = f"{domain_of(node)}.{node.op}".lstrip(".")
            raise ModelError(f"node {node.name!r}: operator {name} cannot be trained through")
        self._constants: Scope = {}
        self.fused: dict[Node, Fused] = {}
        self._folded = self._fold()
        self.fused = fused([each for each in self.nodes if each not in self._folded], self.folded, set(self.outputs))
        self._done = self._folded | idle(self.fused)

    def _fold(self) -> frozenset[Node]:
        """Compute once what depends on fixed constants only."""
        known: set[Tensor] = set()
        folded = set()
        with torch.no_grad():
            for node in self.nodes:
                if any(each in self.trainable for each in node.outputs):
                    continue
                reads = [each for each in editing.reads(node) if each.name or is_constant(each)]
                inner = {item for body in bodies(node) for item in body.tensors_inside()}
                outside = [each for each in reads if each not in inner]
                fixed = all(
                    (each in known) or (is_constant(each) and each not in self.trainable) for each in outside
                ) and not any(each in self.trainable for each in (*reads, *inner))
                if fixed and node.op not in RANDOM:
                    self.compute(node, self._constants)
                    folded.add(node)
                    known.update(node.outputs)
        return frozenset(folded)

    def __call__(
        self, feeds: Mapping[str, object], weights: Mapping[Tensor, torch.Tensor] | None = None
    ) -> dict[str, Value]:
        """Outputs by name.

        Args:
            feeds: arrays or tensors by input name.
            weights: the values of the trainable tensors; those of the file where one is missing.
        """
        scope = self.start(feeds, weights)
        self.run(0, len(self.nodes), scope, keep=self.outputs)
        return {each.name: self.value(each, scope) for each in self.outputs}

    def start(self, feeds: Mapping[str, object], weights: Mapping[Tensor, torch.Tensor] | None = None) -> Scope:
        """The scope before the first node: inputs and weights."""
        scope: Scope = dict(weights or {})
        for tensor in self.model.graph.inputs:
            if tensor.name in feeds:
                scope[tensor] = self.moved(feeds[tensor.name])
        for tensor in self.model.graph.weights:  # an initializer that is an input too
            if tensor.name in feeds and tensor not in scope:
                scope[tensor] = self.moved(feeds[tensor.name])
        return scope

    def moved(self, value: object) -> Value:
        """An array, a tensor or a list of them as tensors on the device."""
        if isinstance(value, list | tuple):
            return [self.moved(each) for each in value]
        return value.to(self.device) if isinstance(value, torch.Tensor) else from_numpy(np.asarray(value), self.device)

    def run(self, start: int, stop: int, scope: Scope, keep: Collection[Tensor] = ()) -> None:
        """Compute nodes ``start`` to ``stop`` in place; values that no later node reads and nobody keeps go."""
        last = self.last_readers()
        kept = set(keep)
        for index in range(start, stop):
            node = self.nodes[index]
            if node not in self._done:
                self.compute(node, scope)
            for tensor in last.get(index, ()):
                if tensor not in kept and tensor not in self.trainable and not is_constant(tensor):
                    scope.pop(tensor, None)

    def run_nodes(self, nodes: Sequence[Node], scope: Scope) -> None:
        """Compute some nodes in order; everything stays in ``scope``."""
        for node in nodes:
            if node not in self._done:
                self.compute(node, scope)

    def from_data(self) -> set[Tensor]:
        """The tensors of the main graph that depend on the inputs."""
        reached: set[Tensor] = set(self.model.graph.inputs)
        for node in self.nodes:
            if any(each in reached for each in editing.reads(node)):
                reached.update(node.outputs)
        return reached

    def last_readers(self) -> dict[int, list[Tensor]]:
        """Index of a node -> the tensors that nobody reads after it."""
        if not hasattr(self, "_last"):
            final = set(self.outputs)
            where = {each: index for index, node in enumerate(self.nodes) for each in editing.reads(node)}
            for index, node in enumerate(self.nodes):
                if node in self.fused:
                    where[self.fused[node].source] = max(index, where[self.fused[node].source])
            self._last: dict[int, list[Tensor]] = {}
            for tensor, index in where.items():
                if tensor not in final:
                    self._last.setdefault(index, []).append(tensor)
        return self._last

    def folded(self, tensor: Tensor) -> Value:
        """The value of a tensor that depends on fixed constants only; None when it does not."""
        if is_constant(tensor) and tensor not in self.trainable:
            return self.value(tensor, {})
        return self._constants.get(tensor)

    def value(self, tensor: Tensor, scope: Scope) -> Value:
        """The value of a tensor in ``scope``, or of a constant.

        Raises:
            ModelError: nobody made it.
        """
        if tensor in scope:
            return scope[tensor]
        if tensor not in self._constants:
            if not is_constant(tensor):
                raise ModelError(f"input {tensor.name!r} of the model has no value")
            self._constants[tensor] = from_numpy(tensor.values, self.device)
        return self._constants[tensor]

    def compute(self, node: Node, scope: Scope) -> None:
        """Run one node in ``scope``."""
        if node.outputs and node.outputs[0] in self.trainable and node.outputs[0] in scope:
            return

        if node in self.fused:
            scope[node.outputs[0]] = self.fused[node].function(self.value(self.fused[node].source, scope))
            return

        def body(graph: Graph, values: Sequence[Value]) -> list[Value]:
            inner = _Layer(scope)
            inner.update(zip(graph.inputs, values, strict=True))
            for each in graph.nodes:
                self.compute(each, inner)
            return [self.value(each, inner) for each in graph.outputs]

        call = Call(node, self.opsets.get(domain_of(node), 1), self.device, body)
        arguments = [self.value(each, scope) if each.name or is_constant(each) else None for each in node.inputs]
        while arguments and arguments[-1] is None:
            arguments.pop()
        try:
            made = OPERATORS[domain_of(node), node.op](call, *arguments)
        except (ModelError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError, NotImplementedError) as error:
            text = " ".join(str(error).split())[:160]
            raise ModelError(f"node {node.name!r} ({node.op}) cannot be computed by torch: {text}") from error
        results = made if isinstance(made, tuple) else (made,)
        scope.update(zip(node.outputs, results, strict=False))


class _Layer(dict[Tensor, Value]):
    """The scope of a body: what is not in it is looked up around it."""

    def __init__(self, around: Scope) -> None:
        super().__init__()
        self.around = around

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, key) or key in self.around

    def __missing__(self, key: Tensor) -> Value:
        return self.around[key]


RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def bodies(node: Node) -> Iterator[Graph]:
    """All graphs inside a node, however deep."""
    for graph in node.bodies():
        yield graph
        for each in graph.nodes:
            yield from bodies(each)


def needed(model: Model, outputs: Sequence[Tensor]) -> list[Node]:
    """The nodes of the main graph that ``outputs`` depend on, in order."""
    wanted: set[Tensor] = set(outputs)
    chosen = []
    for node in reversed(model.graph.nodes):
        if any(each in wanted for each in node.outputs):
            chosen.append(node)
            wanted.update(editing.reads(node))
    return chosen[::-1]
