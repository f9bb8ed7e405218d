"""Rules of operators that move entries: shapes, parts, look-ups. In: a Coupling and a node. Out: edges and pins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxc.coupling.common import constant, fixed, given, made
from onnxc.coupling.graph import Coupling
from onnxc.model import Constant, Node, Tensor


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


def concatenation(coupling: Coupling, node: Node) -> None:
    """Along its axis an offset per input."""
    result = node.outputs[0]
    along = int(node.attrs.get("axis", 1)) % len(coupling.shape(result))
    pieces(coupling, result, node.inputs, along, f"a single index is concatenated at '{node.name}'")


def split(coupling: Coupling, node: Node) -> None:
    """Along its axis an offset per output."""
    source = node.inputs[0]
    along = int(node.attrs.get("axis", 0)) % len(coupling.shape(source))
    if given(node, 1) is not None and constant(node, 1) is None:
        coupling.pin(coupling.node(source, along), f"Split '{node.name}' computes its sizes")
    pieces(coupling, source, node.outputs, along, f"Split '{node.name}' takes a single index")


def pieces(coupling: Coupling, whole: Tensor, parts: Sequence[Tensor], along: int, reason: str) -> None:
    """``parts`` lie one after the other along an axis of ``whole``; one of a single index is pinned for ``reason``."""
    offset = 0
    for part in parts:
        for axis, size in enumerate(coupling.shape(part)):
            mine, other = coupling.node(part, axis), coupling.node(whole, axis)
            if axis != along:
                coupling.link(mine, other)
            elif mine is not None:
                coupling.link(mine, other, np.arange(size), offset + np.arange(size))
            elif size == 1:
                coupling.pin(other, reason, np.array([offset]))
        offset += coupling.shape(part)[along]


def slice_bounds(coupling: Coupling, node: Node) -> dict[int, tuple[int, int, int] | None]:
    """Axis -> (start, end, step) as they clamp to its size; None where they are computed."""
    shape = coupling.shape(node.inputs[0])
    if len(node.inputs) < 2:
        starts, ends = node.attrs["starts"], node.attrs["ends"]
        axes, steps = node.attrs.get("axes"), None
    else:
        starts, ends = constant(node, 1), constant(node, 2)
        axes, steps = constant(node, 3), constant(node, 4)
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
    known = constant(node, 1)
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


def stretched(coupling: Coupling, node: Node) -> None:
    """Resize, Pad, Tile, Expand, CumSum, Trilu: axes that keep their size and content go on, other ones are pinned."""
    source, result = node.inputs[0], node.outputs[0]
    before, after = coupling.shape(source), coupling.shape(result)
    pads = node.attrs.get("pads") if node.op == "Pad" else None
    if node.op == "Pad" and pads is None:
        pads = constant(node, 1)
    if node.op == "Pad" and (pads is None or given(node, 3) is not None):
        pads = np.ones(2 * len(before), np.int64)
    for axis in range(len(after)):
        old = axis - len(after) + len(before)
        mine, other = (coupling.node(source, old) if old >= 0 else None), coupling.node(result, axis)
        same = old >= 0 and before[old] == after[axis]
        if node.op == "Pad" and pads is not None:
            same = same and not pads[axis] and not pads[axis + len(after)]
        if node.op == "CumSum":
            where = constant(node, 1)
            same = where is not None and int(where.reshape(-1)[0]) % len(after) != axis
        if node.op == "Trilu":
            same = same and axis < len(after) - 2
        if same:
            coupling.link(mine, other)
        else:
            for each in (mine, other):
                coupling.pin(each, f"{node.op} '{node.name}' changes their number")


def filled(coupling: Coupling, node: Node) -> None:
    """ConstantOfShape: the axes that constants of its shape give are its own; those that are computed are pinned."""
    if constant(node, 0) is not None:
        return
    maker = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    pieces = list(maker.inputs) if maker is not None and maker.op == "Concat" else []
    known = [isinstance(piece, Constant) for piece in pieces for _ in range(coupling.shapes.get(piece.name, (1,))[0])]
    for axis in range(len(coupling.shape(node.outputs[0]))):
        if len(known) <= axis or not known[axis]:
            coupling.pin(coupling.node(node.outputs[0], axis), f"ConstantOfShape '{node.name}' computes their number")


def nothing(coupling: Coupling, node: Node) -> None:
    """Shape, Size and Constant: what they give follows the model by itself."""
