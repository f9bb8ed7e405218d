"""What every operator does with the indices of its axes. In: a Coupling and a node. Out: edges and pins.

Operators that are not in RULES, and tensors that bodies of If, Loop and Scan read, are pinned by graph.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxc.coupling.graph import Axis, Coupling, Indices, Reader, Rule
from onnxc.model import Constant, Node, Tensor

# fmt: off
ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BiasGelu", "BitShift", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div",
    "Dropout", "Elu", "Equal", "Erf", "Exp", "FastGelu", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LRN", "LeakyRelu", "Less", "LessOrEqual", "Log", "LpNormalization",
    "Max", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "SkipLayerNormalization", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh",
    "ThresholdedRelu", "Where", "Xor",
)
# fmt: on
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
AVERAGES = ("ReduceMean", "ReduceL2", "ReduceSumSquare")  # what normalization is made of
REDUCTIONS = (*AVERAGES, "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceLogSum",
              "ReduceLogSumExp", "ArgMax", "ArgMin")  # fmt: skip
MIXING = ("Softmax", "LogSoftmax", "Hardmax")
RECURRENT = ("LSTM", "GRU", "RNN")


def constant(coupling: Coupling, node: Node, position: int) -> Any:
    """The array at an input, None where there is none or it is computed."""
    tensor = given(node, position)
    return np.asarray(tensor.values) if isinstance(tensor, Constant) else None


def given(node: Node, position: int) -> Tensor | None:
    """The tensor at an input, None where it is left out."""
    return node.inputs[position] if len(node.inputs) > position and node.inputs[position].name else None


def is_constant(tensor: Tensor) -> bool:
    """Whether ``tensor`` is an initializer, or filled with one value at run time."""
    return isinstance(tensor, Constant) or bool(tensor.inputs and tensor.inputs[0].op == "ConstantOfShape")


def made(coupling: Coupling, axis: Axis | None, node: Node) -> None:
    """``axis`` of a weight makes channels."""
    if axis is not None:
        coupling.made.setdefault(axis, node.name)


def read(coupling: Coupling, axis: Axis | None, node: Node, source: Tensor, role: str = "weight") -> None:
    """``axis`` of a weight meets the channels of ``source``."""
    if axis is not None:
        coupling.readers.setdefault(axis, []).append(Reader(node.name, axis[0], axis[1], source.name, role))


def elementwise(coupling: Coupling, node: Node) -> None:
    """Axes of equal size go together, aligned at the last one; an axis of size 1 is stretched."""
    for result in node.outputs:
        if result.name and result.name in coupling.shapes:
            rank = len(coupling.shape(result))
            summed: list[Axis] = []
            for tensor in node.inputs:
                if not tensor.name:
                    continue
                size = len(coupling.shape(tensor))
                for axis in range(size):
                    mine, other = coupling.node(tensor, axis), coupling.node(result, axis - size + rank)
                    if mine is not None:
                        coupling.link(mine, other)
                        if other is not None and not is_constant(tensor):
                            summed.append(other)
            if node.op in {"Add", "Sum", "Sub", "SkipLayerNormalization"}:
                coupling.sums |= {axis for axis in summed if summed.count(axis) > 1}


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


def fixed(coupling: Coupling, tensors: Sequence[Tensor], first: int, reason: str) -> None:
    """Pin the axes from ``first`` on."""
    for tensor in tensors:
        for axis in range(first, len(coupling.shape(tensor))):
            coupling.pin(coupling.node(tensor, axis), reason)


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


def channelwise(coupling: Coupling, node: Node) -> None:
    """BatchNormalization and InstanceNormalization: axis 1 goes with every parameter."""
    source, result = node.inputs[0], node.outputs[0]
    for axis in range(len(coupling.shape(source))):
        coupling.link(coupling.node(source, axis), coupling.node(result, axis))
    for tensor in node.inputs[1:]:
        if len(coupling.shape(source)) > 1:
            coupling.link(coupling.node(source, 1), coupling.node(tensor, 0))


def group_normalization(coupling: Coupling, node: Node) -> None:
    """Channels are groups x channels; the parameters are per channel, before opset 21 per group."""
    source, result = node.inputs[0], node.outputs[0]
    channels, count = coupling.shape(source)[1], int(node.attrs["num_groups"])
    group = coupling.factor(f"{node.name} as factors", 0, count)
    inner = coupling.factor(f"{node.name} as factors", 1, channels // count)
    for axis in range(len(coupling.shape(source))):
        coupling.link(coupling.node(source, axis), coupling.node(result, axis))
    coupling.product(coupling.node(source, 1), [group, inner])
    for tensor in node.inputs[1:3]:
        per_channel = coupling.shape(tensor)[0] == channels
        coupling.product(coupling.node(tensor, 0), [group, inner] if per_channel else [group])


def layer_normalization(coupling: Coupling, node: Node) -> None:
    """Every axis goes on; scale and bias belong to the last ones."""
    source, result = node.inputs[0], node.outputs[0]
    rank = len(coupling.shape(source))
    for axis in range(rank):
        coupling.link(coupling.node(source, axis), coupling.node(result, axis))
    for tensor in node.inputs[1:]:
        if tensor.name:
            size = len(coupling.shape(tensor))
            for axis in range(size):
                mine = coupling.node(tensor, axis)
                if mine is not None:
                    coupling.link(coupling.node(source, axis - size + rank), mine)


def mixing(coupling: Coupling, node: Node) -> None:
    """Softmax: the axis that it normalizes is pinned; before opset 13 every axis from there on."""
    source, result = node.inputs[0], node.outputs[0]
    rank = len(coupling.shape(source))
    old = coupling.model.opset < 13
    start = int(node.attrs.get("axis", 1 if old else -1)) % max(rank, 1)
    for axis in range(rank):
        coupling.link(coupling.node(source, axis), coupling.node(result, axis))
        if axis == start or (old and axis > start):
            coupling.pin(coupling.node(source, axis), f"{node.op} '{node.name}' normalizes over them")


def spatial(coupling: Coupling, node: Node) -> None:
    """Pooling: batch and channels go on, positions are pinned."""
    for result in node.outputs:
        if result.name and result.name in coupling.shapes:
            for axis in (0, 1):
                coupling.link(coupling.node(node.inputs[0], axis), coupling.node(result, axis))
            fixed(coupling, (node.inputs[0], result), 2, f"they are positions of {node.op}")


def stretched(coupling: Coupling, node: Node) -> None:
    """Resize, Pad, Tile, Expand, CumSum, Trilu: axes that keep their size and content go on, other ones are pinned."""
    source, result = node.inputs[0], node.outputs[0]
    before, after = coupling.shape(source), coupling.shape(result)
    pads = node.attrs.get("pads") if node.op == "Pad" else None
    if node.op == "Pad" and pads is None:
        pads = constant(coupling, node, 1)
    if node.op == "Pad" and (pads is None or given(node, 3) is not None):
        pads = np.ones(2 * len(before), np.int64)
    for axis in range(len(after)):
        old = axis - len(after) + len(before)
        mine, other = (coupling.node(source, old) if old >= 0 else None), coupling.node(result, axis)
        same = old >= 0 and before[old] == after[axis]
        if node.op == "Pad" and pads is not None:
            same = same and not pads[axis] and not pads[axis + len(after)]
        if node.op == "CumSum":
            where = constant(coupling, node, 1)
            same = where is not None and int(where.reshape(-1)[0]) % len(after) != axis
        if node.op == "Trilu":
            same = same and axis < len(after) - 2
        if same:
            coupling.link(mine, other)
        else:
            for each in (mine, other):
                coupling.pin(each, f"{node.op} '{node.name}' changes their number")


def reduction(coupling: Coupling, node: Node) -> None:
    """Axes that stay go on; over channels only averages may be taken, which are about the same of fewer of them."""
    source, result = node.inputs[0], node.outputs[0]
    rank = len(coupling.shape(source))
    axes = node.attrs.get("axes", node.attrs.get("axis", 0) if node.op.startswith("Arg") else None)
    if given(node, 1) is not None:
        axes = constant(coupling, node, 1)
        if axes is None:
            for tensor in (source, result):
                coupling.pin_all(tensor, f"{node.op} '{node.name}' computes its axes")
            return
    empty = axes is None or not np.size(axes)
    if empty and int(node.attrs.get("noop_with_empty_axes", 0)):
        elementwise(coupling, node)
        return
    gone = set(range(rank)) if axes is None or empty else {int(axis) % rank for axis in np.reshape(axes, -1)}
    kept = int(node.attrs.get("keepdims", 1))
    position = 0
    for axis in range(rank):
        mine = coupling.node(source, axis)
        if axis not in gone:
            coupling.link(mine, coupling.node(result, position))
        elif node.op not in AVERAGES:
            coupling.pin(mine, f"{node.op} '{node.name}' is taken over them")
        position += 1 if axis not in gone or kept else 0


def concatenation(coupling: Coupling, node: Node) -> None:
    """Along its axis an offset per input."""
    result = node.outputs[0]
    rank = len(coupling.shape(result))
    along, offset = int(node.attrs.get("axis", 1)) % rank, 0
    for tensor in node.inputs:
        for axis in range(rank):
            mine, other = coupling.node(tensor, axis), coupling.node(result, axis)
            size = coupling.shape(tensor)[axis]
            if axis != along:
                coupling.link(mine, other)
                continue
            if mine is not None:
                coupling.link(mine, other, np.arange(size), offset + np.arange(size))
            elif size == 1:
                coupling.pin(other, f"a single index is concatenated at '{node.name}'", np.array([offset]))
            offset += size


def split(coupling: Coupling, node: Node) -> None:
    """Along its axis an offset per output."""
    source = node.inputs[0]
    rank = len(coupling.shape(source))
    along, offset = int(node.attrs.get("axis", 0)) % rank, 0
    if given(node, 1) is not None and constant(coupling, node, 1) is None:
        coupling.pin(coupling.node(source, along), f"Split '{node.name}' computes its sizes")
    for result in node.outputs:
        for axis in range(rank):
            mine, other = coupling.node(source, axis), coupling.node(result, axis)
            size = coupling.shape(result)[axis]
            if axis != along:
                coupling.link(mine, other)
                continue
            if other is not None:
                coupling.link(mine, other, offset + np.arange(size), np.arange(size))
            elif size == 1:
                coupling.pin(mine, f"Split '{node.name}' takes a single index", np.array([offset]))
            offset += size


def slice_bounds(coupling: Coupling, node: Node) -> dict[int, tuple[int, int, int] | None]:
    """Axis -> (start, end, step) as they clamp to its size; None where they are computed."""
    shape = coupling.shape(node.inputs[0])
    if len(node.inputs) < 2:
        starts, ends = node.attrs["starts"], node.attrs["ends"]
        axes, steps = node.attrs.get("axes"), None
    else:
        starts, ends = constant(coupling, node, 1), constant(coupling, node, 2)
        axes, steps = constant(coupling, node, 3), constant(coupling, node, 4)
        if axes is None and given(node, 3) is not None:
            return dict.fromkeys(range(len(shape)))
    count = len(starts) if starts is not None else len(ends) if ends is not None else len(shape)
    axes = range(count) if axes is None else [int(axis) % len(shape) for axis in axes]
    if starts is None or ends is None or (steps is None and given(node, 4) is not None):
        return dict.fromkeys(axes)
    steps = [1] * len(axes) if steps is None else [int(step) for step in steps]
    return {
        axis: slice(int(start), int(end) if end > -(2**62) else None, step).indices(shape[axis])
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


def sliced(coupling: Coupling, node: Node) -> None:
    """Slice with constant bounds and step 1 is an offset; other ones are pinned."""
    source, result = node.inputs[0], node.outputs[0]
    bounds = slice_bounds(coupling, node)
    if None in bounds.values():
        bounds = dict.fromkeys(bounds)
    for axis, size in enumerate(coupling.shape(source)):
        mine, other = coupling.node(source, axis), coupling.node(result, axis)
        bound = bounds.get(axis, (0, size, 1))
        if bound == (0, size, 1):
            coupling.link(mine, other)
        elif bound is None or bound[2] != 1 or other is None:
            for each in (mine, other):
                coupling.pin(each, f"Slice '{node.name}' takes a part that is not followed")
        else:
            coupling.link(mine, other, np.arange(*bound), np.arange(len(range(*bound))))


def gather(coupling: Coupling, node: Node) -> None:
    """A constant list of indices is a map; rows that are looked up by value are pinned, their columns go on."""
    source, result = node.inputs[0], node.outputs[0]
    shape = coupling.shape(source)
    if not shape:
        return
    along = int(node.attrs.get("axis", 0)) % len(shape)
    indices = coupling.shape(node.inputs[1])
    rank = len(indices)
    for axis in range(len(shape)):
        if axis != along:
            mine = coupling.node(source, axis)
            coupling.link(mine, coupling.node(result, axis if axis < along else axis + rank - 1))
            if isinstance(source, Constant) and source.dtype is not None and np.dtype(source.dtype).kind == "f":
                made(coupling, mine, node)
    known = constant(coupling, node, 1)
    mine = coupling.node(source, along)
    if known is not None and rank == 1 and mine is not None:
        other = coupling.node(result, along)
        where = known.reshape(-1).astype(np.int64) % shape[along]
        if other is not None:
            coupling.link(mine, other, where, np.arange(len(where)))
            rest = np.setdiff1d(np.arange(shape[along]), where)
            coupling.pin(mine, f"Gather '{node.name}' leaves them out", rest)
            return
    coupling.pin(mine, f"Gather '{node.name}' looks them up")
    for axis in range(rank):
        other = coupling.node(result, along + axis)
        if known is not None:
            coupling.pin(other, f"Gather '{node.name}' looks them up")
        else:
            coupling.link(coupling.node(node.inputs[1], axis), other)


def transpose(coupling: Coupling, node: Node) -> None:
    """Axes change places."""
    source, result = node.inputs[0], node.outputs[0]
    rank = len(coupling.shape(source))
    order = node.attrs.get("perm") or range(rank)[::-1]
    for axis, old in enumerate(order):
        coupling.link(coupling.node(source, int(old)), coupling.node(result, axis))


def refined(before: Sequence[int], after: Sequence[int]) -> tuple[list[list[int]], list[list[int]], list[int]] | None:
    """The common factors of two shapes of the same elements.

    Returns:
        per axis of either shape the numbers of its factors, outermost first, and the factors' sizes; None where the
        axes do not nest, as of (4, 6) and (6, 4).
    """
    if 0 in (*before, *after):
        return None
    sizes: list[int] = []
    parts: tuple[list[list[int]], list[list[int]]] = ([[] for _ in before], [[] for _ in after])
    rest, place = [list(before), list(after)], [0, 0]
    while True:
        for side in (0, 1):
            while place[side] < len(rest[side]) and rest[side][place[side]] == 1:
                place[side] += 1
        done = [place[side] == len(rest[side]) for side in (0, 1)]
        if any(done):
            return (*parts, sizes) if all(done) else None
        found = [rest[side][place[side]] for side in (0, 1)]
        step = min(found)
        if max(found) % step:
            return None
        for side in (0, 1):
            parts[side][place[side]].append(len(sizes))
            rest[side][place[side]] //= step
        sizes.append(step)


def reshaped(coupling: Coupling, node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes are products of common factors."""
    source, result = node.inputs[0], node.outputs[0]
    found = refined(coupling.shape(source), coupling.shape(result))
    if found is None:
        for tensor in (source, result):
            coupling.pin_all(tensor, f"the shapes around {node.op} '{node.name}' do not nest")
        return
    before, after, sizes = found
    factors = [coupling.factor(f"{node.name} as factors", number, size) for number, size in enumerate(sizes)]
    for tensor, parts in ((source, before), (result, after)):
        for axis, numbers in enumerate(parts):
            coupling.product(coupling.node(tensor, axis), [factors[number] for number in numbers])


def blocks(coupling: Coupling, node: Node) -> None:
    """DepthToSpace and SpaceToDepth: channels are blocks x channels, in the order of the mode."""
    source, result = node.inputs[0], node.outputs[0]
    deep = node.op == "DepthToSpace"
    size = int(node.attrs["blocksize"]) ** 2
    many, few = (source, result) if deep else (result, source)
    block = coupling.factor(f"{node.name} as factors", 0, size)
    channels = coupling.factor(f"{node.name} as factors", 1, coupling.shape(few)[1])
    last = deep and node.attrs.get("mode", "DCR") == "CRD"
    coupling.product(coupling.node(many, 1), [channels, block] if last else [block, channels])
    coupling.product(coupling.node(few, 1), [channels])
    coupling.pin(block.axis if size > 1 else None, f"they are blocks of {node.op} '{node.name}'")
    coupling.link(coupling.node(source, 0), coupling.node(result, 0))
    fixed(coupling, (source, result), 2, f"they are positions of {node.op}")


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


def filled(coupling: Coupling, node: Node) -> None:
    """ConstantOfShape: the axes that constants of its shape give are its own; those that are computed are pinned."""
    if constant(coupling, node, 0) is not None:
        return
    maker = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    pieces = list(maker.inputs) if maker is not None and maker.op == "Concat" else []
    known = [isinstance(piece, Constant) for piece in pieces for _ in range(coupling.shapes.get(piece.name, (1,))[0])]
    for axis in range(len(coupling.shape(node.outputs[0]))):
        if len(known) <= axis or not known[axis]:
            coupling.pin(coupling.node(node.outputs[0], axis), f"ConstantOfShape '{node.name}' computes their number")


def nothing(coupling: Coupling, node: Node) -> None:
    """Shape, Size and Constant: what they give follows the model by itself."""


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(POOLS, spatial),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(MIXING, mixing),
    **dict.fromkeys(("Conv", "ConvTranspose"), convolution),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), channelwise),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), layer_normalization),
    **dict.fromkeys(("Resize", "Upsample", "Pad", "Tile", "Expand", "CumSum", "Trilu"), stretched),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshaped),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), blocks),
    **dict.fromkeys(RECURRENT, recurrent),
    **dict.fromkeys(("Shape", "Size", "Constant"), nothing),
    "MatMul": product,
    "Gemm": gemm,
    "Einsum": einsum,
    "GroupNormalization": group_normalization,
    "Concat": concatenation,
    "Split": split,
    "Slice": sliced,
    "Gather": gather,
    "Transpose": transpose,
    "Attention": attention,
    "ConstantOfShape": filled,
}
