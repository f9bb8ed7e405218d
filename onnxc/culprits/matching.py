"""The sites that two models have in common. In: a reference, another form of it. Out: where each site begins and ends.

Sites are matched by the names of the tensors that they read and make, which most tools keep: between the two the other
model may quantize, unfold and fuse as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxc.model import Constant, Model, Node, Tensor, Variable
from onnxc.shapes import infer

SITES = {  # operator -> inputs that hold a weight
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
FOLLOWERS = ("Add", "BatchNormalization", "Relu", "Clip")
MOST_FOLLOWERS = 3


@dataclass(frozen=True, eq=False)
class Pair:
    """A site that both models have.

    Attributes:
        nodes: of the reference: the operator, and what follows it up to ``target``: a bias, an activation.
        source, target: names of the tensor that it reads and of the one that it makes, in both models.
    """

    nodes: tuple[Node, ...]
    source: str
    target: str

    @property
    def site(self) -> str:
        """The name of the operator's node."""
        return title(self.nodes[0])

    @property
    def operator(self) -> str:
        return str(self.nodes[0].op)


def title(node: Node) -> str:
    """What a report calls a node."""
    return str(node.name or f"{node.op} -> {node.outputs[0].name}")


def matched(reference: Model, new: Model) -> tuple[list[Pair], list[str]]:
    """The pairs of the main graph in file order, and the names of the sites without a counterpart."""
    old_names, new_names = tensors(reference), tensors(new)
    computed = {name for name, tensor in new_names.items() if tensor.inputs}
    found, missing = [], []
    for node in reference.graph.nodes:
        source = site_input(node)
        if source is None:
            continue
        nodes = followed(node)
        last = next((index for index, each in enumerate(nodes) if each.outputs[0].name in computed), None)
        if last is None or source.name not in new_names or source.name not in old_names:
            missing.append(title(node))
        else:
            found.append(Pair(tuple(nodes[: last + 1]), source.name, nodes[last].outputs[0].name))
    return found, missing


def tensors(model: Model) -> dict[str, Tensor]:
    """The tensors of the main graph by name."""
    graph = model.graph
    found = {t.name: t for node in graph.nodes for t in (*node.inputs, *node.outputs) if t.name}
    return found | {t.name: t for t in (*graph.inputs, *graph.outputs)}


def showing(model: Model, names: Sequence[str]) -> Model:
    """A copy whose outputs are the tensors ``names``."""
    copy = model.copy()
    found, types = tensors(copy), infer(model)
    copy.graph.outputs = [found[name] for name in names]
    for tensor in copy.graph.outputs:
        tensor.dtype = tensor.dtype or (types[tensor.name].dtype if tensor.name in types else None)
    return copy


def site_input(node: Node) -> Tensor | None:
    """The activation that the site reads; None when ``node`` is no site."""
    positions = SITES.get(node.op, ()) if node.domain in (None, "", "ai.onnx") else ()
    if not any(i < len(node.inputs) and isinstance(node.inputs[i], Constant) for i in positions):
        return None
    variables = [t for t in node.inputs[:2] if isinstance(t, Variable) and t.name]
    return variables[0] if len(variables) == 1 else None


def followed(node: Node) -> list[Node]:
    """``node`` and what makes something of its result alone: its bias, normalization and activation."""
    found = [node]
    while len(found) <= MOST_FOLLOWERS and len(found[-1].outputs[0].outputs) == 1:
        last = found[-1].outputs[0]
        follower = last.outputs[0]
        if follower.op not in FOLLOWERS or not all(
            t is last or isinstance(t, Constant) or not t.name for t in follower.inputs
        ):
            break
        found.append(follower)
    return found
