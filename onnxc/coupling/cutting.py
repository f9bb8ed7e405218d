"""The cut itself. In: a Model, groups, and which of their units stay. Out: the Model, smaller, with sizes that agree.

    Conv.weight [64, 3, 3, 3]   becomes   [48, 3, 3, 3]      Reshape to [0, -1, 12, 32]   becomes   [0, -1, 8, 32]

Weights lose slices; what operators say of sizes is written anew: shapes of Reshape, sizes of Split, bounds of Slice,
groups of Conv, heads of Attention, hidden sizes of LSTM. Constants that others read too stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.coupling.common import constant, given
from onnxc.coupling.graph import Axis, Coupling, Group, Indices
from onnxc.coupling.movement import slice_bounds
from onnxc.errors import ModelError
from onnxc.model import Constant, Model, Node, Tensor, Variable


@dataclass(frozen=True)
class Cut:
    """What stays of every axis that is cut.

    Attributes:
        coupling: the graph of axes of the whole model.
        kept: axis -> the indices that stay, ascending.
    """

    coupling: Coupling
    kept: Mapping[Axis, Indices]

    @classmethod
    def of(cls, coupling: Coupling, stays: Sequence[tuple[Group, NDArray[np.bool_]]]) -> Cut:
        """From groups with, for each of their units, whether it stays [units]."""
        masks: dict[Axis, NDArray[np.bool_]] = {}
        for group, stay in stays:
            if stay.all():
                continue
            for axis, units in group.members.items():
                mask = masks.setdefault(axis, np.ones(len(units), np.bool_))
                mask &= np.append(stay, True)[units]
        return cls(coupling, {axis: np.flatnonzero(mask) for axis, mask in masks.items()})

    def of_axis(self, tensor: Tensor, axis: int) -> Indices | None:
        """What stays of an axis of ``tensor``; None if all."""
        rank = len(self.coupling.shapes.get(tensor.name, ()))
        return self.kept.get((tensor.name, axis % rank)) if rank else None

    def size(self, tensor: Tensor, axis: int) -> int:
        """The new size of an axis."""
        kept = self.of_axis(tensor, axis)
        return self.coupling.shape(tensor)[axis] if kept is None else len(kept)

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The new shape of ``tensor`` in the run that gave the shapes."""
        return tuple(self.size(tensor, axis) for axis in range(len(self.coupling.shape(tensor))))


def apply(cut: Cut, model: Model) -> None:
    """Make ``model``, a copy of the coupling's, smaller in place."""
    tensors: dict[str, Tensor] = {}
    for node in model.graph.nodes:
        fixer = FIXERS.get(node.op)
        if fixer is not None and node.domain in {None, "", "ai.onnx", "com.microsoft"}:
            fixer(cut, model, node)
    for node in model.graph.nodes:
        for tensor in (*node.inputs, *node.outputs):
            tensors.setdefault(tensor.name, tensor)
    touched = {name for name, _ in cut.kept}
    for name in sorted(touched & tensors.keys()):
        tensor = tensors[name]
        axes = {axis: kept for (each, axis), kept in cut.kept.items() if each == name}
        if isinstance(tensor, Constant):
            values = np.asarray(tensor.values)
            for axis, kept in sorted(axes.items()):
                values = np.take(values, kept, axis)
            tensor.values = np.ascontiguousarray(values)
        elif tensor.shape is not None:
            tensor.shape = [len(axes[axis]) if axis in axes else size for axis, size in enumerate(tensor.shape)]
    model.tidy()


def replaced(model: Model, node: Node, position: int, values: Any) -> None:
    """A constant of the node's own at an input."""
    old = node.inputs[position]
    values = np.asarray(values)
    node.inputs[position] = model.constant(old.name or f"{node.name}_sizes", values)


def changed(cut: Cut, tensor: Tensor) -> list[int]:
    """The axes of ``tensor`` that are cut."""
    rank = len(cut.coupling.shapes.get(tensor.name, ()))
    return [axis for axis in range(rank) if (tensor.name, axis) in cut.kept]


def target(cut: Cut, model: Model, node: Node, position: int = 1) -> None:
    """A shape that is an input: the entries of the axes that are cut get their new sizes; 0 and -1 stay where they say
    the same.
    """
    result, source = node.outputs[0], node.inputs[0]
    axes = changed(cut, result)
    wanted = given(node, position)
    if not axes and not (node.op == "Reshape" and changed(cut, source)):
        return
    if wanted is None:
        if node.op == "Reshape" and "shape" in node.attrs:
            shape = [int(size) for size in node.attrs["shape"]]
            node.attrs["shape"] = [cut.size(result, a) if a in axes and s > 0 else s for a, s in enumerate(shape)]
        return
    rank = len(cut.coupling.shape(result))
    new = {axis: cut.size(result, axis) for axis in axes}
    known = constant(node, position)
    if known is not None:
        shape = [int(size) for size in known.reshape(-1)]
        lead = rank - len(shape)  # Expand may leave out the first axes
        for axis, size in new.items():
            if axis >= lead and shape[axis - lead] > 1:
                shape[axis - lead] = size
        if shape != list(known.reshape(-1)):
            replaced(model, node, position, np.asarray(shape, known.dtype))
        return
    computed(model, node, position, new)


def computed(model: Model, node: Node, position: int, new: Mapping[int, int]) -> None:
    """The same for a shape that is computed: the constant pieces of its Concat; the other ones follow by themselves."""
    wanted = node.inputs[position]
    maker = wanted.inputs[0] if isinstance(wanted, Variable) and wanted.inputs else None
    if maker is not None and maker.op == "Concat":
        pieces: list[Tensor] = list(maker.inputs)
        sizes = [np.asarray(piece.values).size if isinstance(piece, Constant) else 1 for piece in pieces]
        starts = np.cumsum([0, *sizes])
        for place, piece in enumerate(pieces):
            if not isinstance(piece, Constant):
                continue
            values = np.array(piece.values).reshape(-1)
            before = values.copy()
            for axis, size in new.items():
                if starts[place] <= axis < starts[place + 1] and values[axis - starts[place]] > 1:
                    values[axis - starts[place]] = size
            if not np.array_equal(values, before):
                pieces[place] = model.constant(piece.name, values)
        if any(piece is not old for piece, old in zip(pieces, maker.inputs, strict=True)):
            made = model.insert("Concat", pieces, [wanted.name], name=maker.name, axis=0)
            node.inputs[position] = made.outputs[0]


def split_sizes(cut: Cut, model: Model, node: Node) -> None:
    """Split: the sizes of its outputs."""
    axis = int(node.attrs.get("axis", 0)) % len(cut.coupling.shape(node.inputs[0]))
    if cut.of_axis(node.inputs[0], axis) is None:
        return
    sizes = [cut.size(result, axis) for result in node.outputs]
    if model.opset < 13:
        node.attrs["split"] = sizes
        return
    node.attrs.pop("num_outputs", None)
    if len(node.inputs) < 2:
        node.inputs.append(model.constant(f"{node.name}_sizes", np.asarray(sizes, np.int64)))
    else:
        replaced(model, node, 1, np.asarray(sizes, np.int64))


def slice_limits(cut: Cut, model: Model, node: Node) -> None:
    """Slice: bounds count what stays before them."""
    source = node.inputs[0]
    bounds = slice_bounds(cut.coupling, node)
    new = dict(bounds)
    for axis, bound in bounds.items():
        kept = cut.of_axis(source, axis)
        if kept is not None and bound is not None:
            new[axis] = (int((kept < bound[0]).sum()), int((kept < bound[1]).sum()), 1)
    if new == bounds:
        return
    rows = [(axis, *bound) for axis, bound in new.items() if bound is not None]
    if len(node.inputs) < 2:
        node.attrs |= {
            "axes": [axis for axis, *_ in rows], "starts": [row[1] for row in rows], "ends": [row[2] for row in rows]
        }  # fmt: skip
        return
    columns = [np.asarray([row[column] for row in rows], np.int64) for column in (1, 2, 0, 3)]
    while len(node.inputs) > 1:
        del node.inputs[-1]
    for word, values in zip(("starts", "ends", "axes", "steps"), columns, strict=True):
        node.inputs.append(model.constant(f"{node.name}_{word}", values))


def gathered(cut: Cut, model: Model, node: Node) -> None:
    """Gather with constant indices: those that stay, counted among what stays."""
    source, result = node.inputs[0], node.outputs[0]
    rank = len(cut.coupling.shape(source))
    axis = int(node.attrs.get("axis", 0)) % max(rank, 1)
    kept, left = cut.of_axis(source, axis), cut.of_axis(result, axis)
    known = constant(node, 1)
    if kept is None or known is None:
        return
    where = known.reshape(-1) % cut.coupling.shape(source)[axis]
    where = where if left is None else where[left]
    replaced(model, node, 1, np.searchsorted(kept, where).astype(known.dtype))


def groups(cut: Cut, model: Model, node: Node) -> None:
    """Conv, ConvTranspose: the number of groups, where whole groups are cut."""
    count = int(node.attrs.get("group", 1))
    if count > 1:
        node.attrs["group"] = factor_size(cut, node, 0, count)


def factor_size(cut: Cut, node: Node, number: int, size: int) -> int:
    """The new size of a factor of the node's axes."""
    kept = cut.kept.get((f"{node.name} as factors", number))
    return size if kept is None else len(kept)


def normalization_groups(cut: Cut, model: Model, node: Node) -> None:
    """GroupNormalization: the number of groups, where whole groups are cut."""
    node.attrs["num_groups"] = factor_size(cut, node, 0, int(node.attrs["num_groups"]))


def hidden_size(cut: Cut, model: Model, node: Node) -> None:
    """LSTM, GRU, RNN: their hidden size."""
    if "hidden_size" in node.attrs:
        node.attrs["hidden_size"] = factor_size(cut, node, 0, int(node.attrs["hidden_size"]))


def heads(cut: Cut, model: Model, node: Node) -> None:
    """Attention: the number of heads."""
    if "q_num_heads" in node.attrs:
        shared = int(node.attrs["kv_num_heads"])
        times = int(node.attrs["q_num_heads"]) // shared
        node.attrs["kv_num_heads"] = factor_size(cut, node, 0, shared)
        node.attrs["q_num_heads"] = node.attrs["kv_num_heads"] * times


def resized(cut: Cut, model: Model, node: Node) -> None:
    """Resize to given sizes: those of the axes that are cut."""
    if len(node.inputs) > 3:
        target(cut, model, node, 3)


def shaped(cut: Cut, model: Model, node: Node) -> None:
    """ConstantOfShape: its shape."""
    target(cut, model, node, 0)


Fixer = Callable[[Cut, Model, Node], None]
FIXERS: dict[str, Fixer] = {
    "Reshape": target,
    "Expand": target,
    "Resize": resized,
    "ConstantOfShape": shaped,
    "Split": split_sizes,
    "Slice": slice_limits,
    "Gather": gathered,
    "Conv": groups,
    "ConvTranspose": groups,
    "GroupNormalization": normalization_groups,
    "LSTM": hidden_size,
    "GRU": hidden_size,
    "RNN": hidden_size,
    "Attention": heads,
}


def untied(model: Model) -> dict[str, str]:
    """Let every reader of a vector, or of a tensor that is filled with one value, have its own: vectors that are equal
    by chance, as zero biases are, tie no layers. Larger weights that several nodes read stay tied. What Constant nodes
    hold becomes initializers.

    Returns:
        new name -> old name; ``tied`` takes it back where nothing was cut.
    """
    names: dict[str, str] = {}
    for node in list(model.graph.nodes):
        if node.op == "Constant" and node.outputs[0] not in model.graph.outputs:
            with suppress(ModelError):  # strings and the like stay as they are
                model.redirect(node.outputs[0], model.constant(node.outputs[0].name, model.values(node.outputs[0])))
    for node in list(model.graph.nodes):
        for position, tensor in enumerate(node.inputs):
            if len({id(reader) for reader in tensor.outputs}) < 2 or tensor in model.graph.outputs:
                continue
            if isinstance(tensor, Constant):
                vector = len(tensor.shape) == 1 and tensor.shape[0] > 1 and np.dtype(tensor.dtype).kind == "f"
                if vector and tensor in model.graph.weights:
                    node.inputs[position] = model.constant(tensor.name, tensor.values)
                    names[node.inputs[position].name] = tensor.name
            elif tensor.inputs and tensor.inputs[0].op == "ConstantOfShape":
                maker = tensor.inputs[0]
                made = model.insert(maker.op, maker.inputs, [tensor.name], name=maker.name, **maker.attrs)
                made.outputs[0].dtype, made.outputs[0].shape = tensor.dtype, tensor.shape
                node.inputs[position] = made.outputs[0]
    model.tidy()
    return names


def tied(model: Model, names: Mapping[str, str]) -> None:
    """Vectors that ``untied`` made out of one and that are equal still are one again."""
    first: dict[tuple[str, bytes], Constant] = {}
    for tensor in list(model.graph.weights):
        origin = names.get(tensor.name, tensor.name if tensor.name in names.values() else "")
        if origin:
            kept = first.setdefault((origin, np.asarray(tensor.values).tobytes()), tensor)
            model.redirect(tensor, kept)
    model.tidy()
