"""Whose kernel is it? In: the float model, its sites, and a graph as ONNX Runtime runs it. Out: an owner per kernel.

A kernel belongs to the site whose node or tensor name its own name begins with (a fused kernel keeps the name of a
part, new nodes are named after what they replace). What ONNX Runtime adds for layout belongs to the site that reads it,
beside a Q or DQ to that crossing. A kernel of no site belongs to the nearest site before it: where int8 breaks a fusion
behind it (Gelu becomes Div, Erf, Add and Mul), that site has to answer for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from onnxc.model import Model
from onnxc.sites import Sites

CROSSINGS = frozenset({"QuantizeLinear", "DequantizeLinear"})
FUSED = "fused "  # before the name of a Gemm with the activation behind it
REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
LAYOUT_READERS = frozenset(
    {
        "Conv", "FusedConv", "QLinearConv", "ReorderInput", "ReorderOutput", "Transpose", "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearConcat",
        "QLinearGlobalAveragePool", "GlobalAveragePool", "Add", "Concat", "MaxPool",
    }
)  # fmt: skip


@dataclass
class Owners:
    """Kernel name -> owner.

    Attributes:
        sites: kernels that are a part of a site, or serve it alone.
        crossings: kernels at the border of an int8 island -> the Q or DQ there.
        followers: kernels of no site -> the nearest site before them.
    """

    sites: dict[str, str] = field(default_factory=dict)
    crossings: dict[str, str] = field(default_factory=dict)
    followers: dict[str, str] = field(default_factory=dict)


def owner_names(model: Model, found: Sites) -> dict[str, str]:
    """Node and tensor name -> name of the site that it is a part of, "" for the other nodes of ``model``."""
    names = {name: "" for node in model.nodes() for name in (node.name, *(t.name for t in node.outputs)) if name}
    for site in found:
        for node in (site.node, *site.tail):
            names[node.name] = site.name
            for tensor in node.outputs:
                names[tensor.name] = site.name
    return names


def owners_of(optimized: onnx.ModelProto, names: Mapping[str, str]) -> Owners:
    """The owner of every kernel of the graph that ONNX Runtime runs; what nobody owns is absent."""
    owners, found = Owners(), list(graphs(optimized.graph))
    constants = {tensor.name for graph in found for tensor in graph.initializer}
    for graph in found:
        own(graph, names, constants, owners)
    return owners


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and the bodies inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def own(graph: onnx.GraphProto, names: Mapping[str, str], constants: set[str], owners: Owners) -> None:
    """Fill ``owners`` from one graph, whose nodes are sorted."""
    makers = {output: node for node in graph.node for output in node.output if output}
    readers: dict[str, str] = {}
    borders: dict[str, str] = {}
    for node in reversed(graph.node):
        known = named_owner([node.name, *node.output], names)
        if node.op_type in CROSSINGS and node.input[0] not in constants:
            owners.crossings[node.name] = node.name
            borders |= dict.fromkeys(node.input[:1], node.name)
            continue
        border = next((borders[name] for name in node.output if name in borders), None)
        maker = next((makers[name] for name in node.input[:1] if name in makers), None)
        if border is None and maker is not None and maker.op_type in CROSSINGS:
            border = maker.name
        if border is not None and (node.op_type in REORDERS or (node.op_type == "Transpose" and known is None)):
            owners.crossings[node.name] = border
            continue
        reader = next((readers[name] for name in node.output if name in readers), None)
        if node.op_type in CROSSINGS or node.op_type == "DynamicQuantizeLinear" or (known is None and reader):
            known = reader
        if known:
            owners.sites[node.name] = known
            if node.op_type in LAYOUT_READERS:
                readers = dict.fromkeys(node.input, known) | readers
    before: dict[str, str] = {}
    for node in graph.node:
        nearest = next((before[name] for name in node.input if name in before), None)
        owner = owners.sites.get(node.name, nearest)
        if owner is not None:
            before |= dict.fromkeys(node.output, owner)
            if node.name not in owners.sites and node.name not in owners.crossings:
                owners.followers[node.name] = owner


def stems(name: str) -> Iterator[str]:
    """``name``, then ever shorter beginnings that end before a "_" or "/"."""
    while name:
        yield name
        cut = max(name.rfind("_"), name.rfind("/"))
        name = name[:cut] if cut > 0 else ""


def named_owner(candidates: list[str], names: Mapping[str, str]) -> str | None:
    """The site whose name one of ``candidates`` is, or begins with (``conv1_token_3`` belongs to ``conv1``, and so does
    ``fused conv1``, whose output is that of the activation behind it); "" for a node that is no part of a site, None
    where no name is known.
    """
    for candidate in candidates:
        for stem in stems(candidate.removeprefix(FUSED)):
            if stem in names:
                return names[stem]
    return None
