"""Rules of operators with weights, and of attention. In: a Coupling and a node. Out: edges, pins, makers, readers."""

from __future__ import annotations

import numpy as np

from onnxc.coupling.common import fixed, given, is_constant, made, read
from onnxc.coupling.graph import Axis, Coupling, Indices
from onnxc.model import Node, Tensor


def convolution(coupling: Coupling, node: Node) -> None:
    """Inputs are groups x channels, outputs groups x channels; a depthwise one has as many groups as channels."""
    source, weight, result = node.inputs[0], node.inputs[1], node.outputs[0]
    transposed = node.op == "ConvTranspose"
    shape, groups = coupling.shape(weight), int(node.attrs.get("group", 1))
    inputs, outputs = (shape[0] // groups, shape[1]) if transposed else (shape[1], shape[0] // groups)
    group = coupling.factor(f"{node.name} as factors", 0, groups)
    wide = coupling.factor(f"{node.name} as factors", 1, inputs)
    made_ = coupling.factor(f"{node.name} as factors", 2, outputs)
    coupling.link(coupling.node(source, 0), coupling.node(result, 0))
    coupling.product(coupling.node(source, 1), [group, wide])
    coupling.product(coupling.node(weight, 0), [group, wide if transposed else made_])
    coupling.product(coupling.node(weight, 1), [made_ if transposed else wide])
    coupling.product(coupling.node(result, 1), [group, made_])
    bias = given(node, 2)
    if bias is not None:
        coupling.product(coupling.node(bias, 0), [group, made_])
    made(coupling, coupling.node(weight, 1 if transposed else 0), node)
    if not transposed or groups == 1:
        read(coupling, coupling.node(weight, 0 if transposed else 1), node, source)
    fixed(coupling, (source, weight, result), 2, "they are positions of a convolution")


def product(coupling: Coupling, node: Node) -> None:
    """MatMul: the last axis of the first goes with the last but one of the second; the rest is broadcast."""
    first, second, result = node.inputs[0], node.inputs[1], node.outputs[0]
    ranks = len(coupling.shape(first)), len(coupling.shape(second))
    rank = len(coupling.shape(result))
    inner = coupling.node(second, 0 if ranks[1] == 1 else -2)
    coupling.link(coupling.node(first, -1), inner)
    if ranks[0] > 1:
        rows = coupling.node(first, -2)
        coupling.link(rows, coupling.node(result, -1 if ranks[1] == 1 else -2))
        if is_constant(first):
            made(coupling, rows, node)
    if ranks[1] > 1:
        coupling.link(coupling.node(second, -1), coupling.node(result, -1))
        if is_constant(second):
            made(coupling, coupling.node(second, -1), node)
            if ranks[1] == 2:
                read(coupling, inner, node, first)
    for tensor, size in zip((first, second), ranks, strict=True):
        for axis in range(size - 2):
            mine, other = coupling.node(tensor, axis), coupling.node(result, axis - size + rank)
            if mine is not None:
                coupling.link(mine, other)
                if not is_constant(first) and not is_constant(second) and other is not None:
                    coupling.batches.add(other)


def gemm(coupling: Coupling, node: Node) -> None:
    """A matrix product with a bias that is broadcast."""
    first, second, result = node.inputs[0], node.inputs[1], node.outputs[0]
    turned = int(node.attrs.get("transA", 0)), int(node.attrs.get("transB", 0))
    inner = coupling.node(second, turned[1])
    coupling.link(coupling.node(first, 1 - turned[0]), inner)
    coupling.link(coupling.node(first, turned[0]), coupling.node(result, 0))
    coupling.link(coupling.node(second, 1 - turned[1]), coupling.node(result, 1))
    bias = given(node, 2)
    if bias is not None:
        size = len(coupling.shape(bias))
        for axis in range(size):
            mine = coupling.node(bias, axis)
            if mine is not None:
                coupling.link(mine, coupling.node(result, axis - size))
    if is_constant(second):
        made(coupling, coupling.node(second, 1 - turned[1]), node)
        read(coupling, inner, node, first)


def einsum(coupling: Coupling, node: Node) -> None:
    """Axes of one letter go together; a letter in both operands and in the result is a batch."""
    equation = str(node.attrs["equation"]).replace(" ", "")
    terms, _, out = equation.partition("->")
    operands = terms.split(",")
    if "." in equation or not out or any(len(set(term)) < len(term) for term in (*operands, out)):
        for tensor in (*node.inputs, *node.outputs):
            coupling.pin_all(tensor, f"Einsum '{node.name}' has a form that is not followed")
        return
    places: dict[str, Axis] = {}
    for term, tensor in zip((*operands, out), (*node.inputs, node.outputs[0]), strict=True):
        for axis, letter in enumerate(term):
            mine = coupling.node(tensor, axis)
            if mine is not None:
                coupling.link(places.setdefault(letter, mine), mine)
    constants = [is_constant(tensor) for tensor in node.inputs]
    for term, tensor, known in zip(operands, node.inputs, constants, strict=True):
        for axis, letter in enumerate(term):
            mine = coupling.node(tensor, axis)
            if mine is None:
                continue
            if known and letter in out:
                made(coupling, mine, node)
            if not any(constants) and len(operands) == 2 and letter in out and all(letter in each for each in operands):
                coupling.batches.add(mine)


def recurrent(coupling: Coupling, node: Node) -> None:
    """LSTM, GRU, RNN: weights [directions, gates x hidden, inputs]; one hidden size for all directions."""
    weight, hidden = node.inputs[1], node.inputs[2]
    size = coupling.shape(hidden)[2]
    unit = coupling.factor(f"{node.name} as factors", 0, size)
    later = int(node.attrs.get("layout", 0))

    def gated(tensor: Tensor | None, axis: int) -> None:
        """``axis`` is some number of gates x hidden units."""
        mine = coupling.node(tensor, axis) if tensor is not None else None
        if mine is not None and size > 1:
            index: Indices = np.arange(coupling.size(mine), dtype=np.int64)
            coupling.link(mine, unit.axis, index, index % size)

    source = node.inputs[0]
    for tensor in (weight, hidden, given(node, 3), given(node, 7)):
        gated(tensor, 1)
        if tensor is not None:
            coupling.pin(coupling.node(tensor, 0), f"they are directions of '{node.name}'")
    gated(hidden, 2)
    coupling.link(coupling.node(source, 2), coupling.node(weight, 2))
    for tensor in (given(node, 5), given(node, 6), *node.outputs):
        if tensor is not None and tensor.name and tensor.name in coupling.shapes:
            gated(tensor, -1)
    batch = coupling.node(source, 1 - later)
    for tensor in (given(node, 4), given(node, 5), given(node, 6), *node.outputs):
        if tensor is None or tensor.name not in coupling.shapes:
            continue
        rank = len(coupling.shape(tensor))
        where = {1: 0, 3: 1 - later, 4: 0 if later else 2}[rank]
        coupling.link(batch, coupling.node(tensor, where))
        if rank == 4:
            coupling.link(coupling.node(source, later), coupling.node(tensor, later))
        if rank > 1:
            directions = {3: later, 4: 2 if later else 1}[rank]
            coupling.pin(coupling.node(tensor, directions), f"they are directions of '{node.name}'")
    made(coupling, coupling.node(weight, 1), node)
    if is_constant(weight):
        read(coupling, coupling.node(weight, 2), node, source)
    result = node.outputs[0]
    if is_constant(hidden) and result.name and not later:
        read(coupling, coupling.node(hidden, 2), node, result, "hidden")


def attention(coupling: Coupling, node: Node) -> None:
    """Attention (opset 23) on [batch, heads, tokens, width] or [batch, tokens, heads x width], also with groups of
    query heads to one head of keys and values.
    """
    query, key, value, result = *node.inputs[:3], node.outputs[0]
    if any(given(node, position) is not None for position in (4, 5)) or len([t for t in node.outputs if t.name]) > 1:
        for tensor in (*node.inputs, *node.outputs):
            coupling.pin_all(tensor, f"Attention '{node.name}' with a cache is not followed")
        return
    flat = len(coupling.shape(query)) == 3
    heads = int(node.attrs["q_num_heads"]) if flat else coupling.shape(query)[1]
    shared = int(node.attrs["kv_num_heads"]) if flat else coupling.shape(key)[1]
    head = coupling.factor(f"{node.name} as factors", 0, shared)
    times = coupling.factor(f"{node.name} as factors", 1, heads // shared)
    if head.size > 1:
        coupling.batches.add(head.axis)
    coupling.pin(times.axis if times.size > 1 else None, "they share one head of keys")
    for number, tensor in enumerate((query, key, value, result)):
        many = [head, times] if tensor in (query, result) else [head]
        coupling.link(coupling.node(query, 0), coupling.node(tensor, 0))
        tokens = key if tensor in (key, value) else query
        coupling.link(coupling.node(tokens, -2), coupling.node(tensor, -2))
        if flat:
            width = coupling.shape(tensor)[2] // (shared if tensor in (key, value) else heads)
            inner = coupling.factor(f"{node.name} as factors", 2 + number // 2, width)
            coupling.product(coupling.node(tensor, 2), [*many, inner])
        else:
            coupling.product(coupling.node(tensor, 1), many)
            coupling.link(coupling.node(query if number < 2 else value, 3), coupling.node(tensor, 3))
    mask = given(node, 3)
    if mask is not None:
        coupling.pin_all(mask, f"they are the mask of '{node.name}'")
