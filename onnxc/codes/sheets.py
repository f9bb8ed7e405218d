"""Where the nodes that unfold stored weights are written. In: arrays and operators. Out: tensors of a model.

Weights that unfold alike do so together, in one chain of nodes for all of them, and are split where the chain ends: a
node takes ONNX Runtime 30 to 80 microseconds at load and the file 50 bytes, a piece of a Split a third of both.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.model import Model, Node, Tensor

SIZES_OPSET, COUNT_OPSET = 13, 18  # of Split: sizes are an input; equal parts need their number
OVERHEAD = 16  # bytes of a weight among others in a file, beside its name
TOGETHER = 1 << 25  # entries that unfold in one chain: its floats and indices stay below 256 MB

Array = NDArray[Any]


@dataclass
class Sheet:
    """Writes nodes into a model.

    Attributes:
        known: tensors that all weights share, by name.
        floats: codes become floats before they are split, one Cast for all, where their form allows that; their type
            then says so.
        groups: where weights that lie in one tensor are told instead of being split from each other; None: they are
            split.
        made: the nodes that were written.
    """

    model: Model
    known: dict[str, Tensor] = field(default_factory=dict)
    floats: bool = False
    groups: list[Group] | None = None
    made: list[Node] = field(default_factory=list)

    def constant(self, name: str, values: Array) -> Tensor:
        """An initializer."""
        return self.model.constant(name, values)

    def shared(self, name: str, values: Array) -> Tensor:
        """An initializer that all weights of the model share."""
        if name not in self.known:
            self.known[name] = self.model.constant(name, values)
        known = self.known[name]
        assert (known.dtype, tuple(known.shape or ())) == (values.dtype, values.shape), f"two tensors are called {name}"
        return known

    def node(self, operator: str, inputs: Sequence[Tensor], name: str, **attributes: Any) -> Tensor:
        """A node with one output called ``name``; the output."""
        return self.nodes(operator, inputs, [name], **attributes)[0]

    def nodes(self, operator: str, inputs: Sequence[Tensor], names: Sequence[str], **attributes: Any) -> list[Tensor]:
        """A node whose outputs are called ``names``."""
        node = self.model.insert(operator, inputs, list(names), **attributes)
        node.name = ""  # its output says enough, and names take bytes
        self.made.append(node)
        return list(node.outputs)

    def name_steps(self) -> None:
        """Give tensors between nodes of this sheet short names, ``cast_3`` in place of one made of a weight's: they are
        written twice, and can be a tenth of a small file. What others read keeps its name.
        """
        own = set(map(id, self.made))
        kept = set(map(id, self.known.values()))
        kept.update(id(tensor) for graph in self.model.graphs() for tensor in graph.outputs)
        for node in self.made:
            for tensor in node.outputs:
                if id(tensor) not in kept and all(id(reader) in own for reader in tensor.outputs):
                    tensor.name = self.model.unique(node.op.lower())

    def split(self, tensor: Tensor, sizes: Sequence[int], names: Sequence[str], axis: int = 0) -> list[Tensor]:
        """``tensor`` in parts of so many entries along ``axis``."""
        if self.model.opset < SIZES_OPSET:
            return self.nodes("Split", [tensor], names, axis=axis, split=list(sizes))
        if len(set(sizes)) == 1:
            count = len(sizes) if self.model.opset >= COUNT_OPSET else None
            return self.nodes("Split", [tensor], names, axis=axis, num_outputs=count)
        given = self.constant("sizes", np.asarray(sizes, np.int64))
        return self.nodes("Split", [tensor, given], names, axis=axis)

    def reshaped(self, tensor: Tensor, shape: Sequence[int], name: str) -> Tensor:
        """A Reshape to ``shape``, unless it is known to have it; equal shapes share their constant."""
        if tensor.shape is not None and list(tensor.shape) == list(shape):
            if tensor.inputs:
                tensor.name = self.model.unique(name)
            return tensor
        label = "x".join(map(str, shape)).replace("-1", "all")
        sizes = self.shared(f"shape_{label}", np.asarray(shape, np.int64))
        made = self.node("Reshape", [tensor, sizes], name)
        made.shape = list(shape) if -1 not in shape else None
        return made

    def transposed(self, tensor: Tensor, order: Sequence[int], name: str) -> Tensor:
        """A Transpose."""
        made = self.node("Transpose", [tensor], name, perm=list(order))
        made.shape = [tensor.shape[axis] for axis in order] if tensor.shape is not None else None
        return made

    def number(self, value: int) -> Tensor:
        """An int32 that nodes share."""
        return self.shared(f"number_{value}", np.asarray(value, np.int32))

    def cast(self, tensor: Tensor, name: str) -> Tensor:
        """``tensor`` as float32."""
        made = self.node("Cast", [tensor], name, to=TensorProto.FLOAT)
        made.dtype, made.shape = np.dtype(np.float32), tensor.shape
        return made


@dataclass(frozen=True)
class Group:
    """Weights of one shape, but for their rows along ``axis``, in one tensor: ``rows`` of each."""

    tensor: Tensor
    axis: int
    rows: Mapping[str, int]


@dataclass(frozen=True)
class Piece:
    """A weight among those that unfold together, its entries in the order in which they come.

    Attributes:
        shape: of the weight; axis: the one that varies slowest in that order, the others follow in the weight's own.
    """

    shape: tuple[int, ...]
    axis: int = 0

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int = 0) -> Piece:
        """The piece whose rows lie along ``axis``: file order where nothing comes before it."""
        return cls(shape, 0 if prod(shape[:axis]) == 1 else axis)

    @property
    def kind(self) -> tuple[int, tuple[int, ...]]:
        """Pieces of one kind are rows of one tensor."""
        return self.axis, self.shape[: self.axis] + self.shape[self.axis + 1 :]

    @property
    def size(self) -> int:
        return prod(self.shape)


def by_kind(pieces: Mapping[str, Piece]) -> list[str]:
    """The names of ``pieces`` in the order in which they have to lie: those of one kind behind each other."""
    kinds = list(dict.fromkeys(piece.kind for piece in pieces.values()))
    return sorted(pieces, key=lambda name: kinds.index(pieces[name].kind))


def spread(sheet: Sheet, tensor: Tensor, pieces: Mapping[str, Piece], total: int | None = None) -> dict[str, Tensor]:
    """The weights in a tensor that holds them one behind the other, in the order of ``by_kind``; without those that the
    sheet's groups tell.

    Args:
        tensor: any shape; total: its entries, where there are more than those of the pieces.
    """
    groups: dict[Hashable, list[str]] = {}
    for name, piece in pieces.items():
        groups.setdefault(piece.kind, []).append(name)
    first = next(iter(pieces))
    sizes = [sum(pieces[name].size for name in names) for names in groups.values()]
    rest = total - sum(sizes) if total is not None else 0
    if sheet.floats and tensor.dtype != np.float32:
        tensor = sheet.cast(tensor, f"{first}_floats")
    parts, flat = [tensor], is_flat(tensor)
    if rest or len(sizes) > 1:
        whole = tensor if flat else sheet.reshaped(tensor, (-1,), f"{first}_flat")
        labels = [names[0] if alone(pieces, names) else f"{names[0]}_part" for names in groups.values()]
        parts, flat = sheet.split(whole, sizes + [rest] * (rest > 0), labels + [f"{first}_rest"] * (rest > 0)), True
    found: dict[str, Tensor] = {}
    for part, names in zip(parts, groups.values(), strict=False):
        axis, others = pieces[names[0]].kind
        rows = [pieces[name].shape[axis] for name in names]
        label = names[0] if len(names) == 1 else f"{names[0]}_together"
        made = part
        if others or not flat or (len(names) == 1 and part is tensor):
            made = sheet.reshaped(part, (sum(rows), *others), f"{label}_rows" if axis else label)
        if axis:
            order = [*range(1, axis + 1), 0, *range(axis + 1, len(others) + 1)]
            made = sheet.transposed(made, order, label)
        if len(names) > 1 and sheet.groups is not None:
            sheet.groups.append(Group(made, axis, dict(zip(names, rows, strict=True))))
            continue
        found |= dict(zip(names, [made] if len(names) == 1 else sheet.split(made, rows, names, axis), strict=True))
    if sheet.floats:
        for name, made in found.items():
            made.dtype, made.shape = np.dtype(np.float32), list(pieces[name].shape)
    return found


def alone(pieces: Mapping[str, Piece], names: Sequence[str]) -> bool:
    """Whether ``names`` is one weight of one axis: what a Split of a flat tensor makes is the weight."""
    return len(names) == 1 and pieces[names[0]].kind == (0, ())


def is_flat(tensor: Tensor) -> bool:
    """Whether it is known to have one axis."""
    return tensor.shape is not None and len(tensor.shape) == 1


class Packed(Protocol):
    """A tensor in a smaller form."""

    @property
    def kind(self) -> Hashable:
        """Forms of one kind unfold together."""

    @property
    def size(self) -> int:
        """Entries of the tensor."""

    @property
    def bytes(self) -> int:
        """What it adds to a file in which others of its kind are."""

    def emit(self, sheet: Sheet, forms: Mapping[str, Any]) -> dict[str, Tensor]:
        """Write the nodes that unfold ``forms``, all of this kind; the tensors by name."""


def emit_together(sheet: Sheet, forms: Mapping[str, Packed]) -> dict[str, Tensor]:
    """Every one of ``forms`` unfolded: name -> tensor, which is called so."""
    found: dict[str, Tensor] = {}
    for names in batches({name: form.kind for name, form in forms.items()}, {n: f.size for n, f in forms.items()}):
        found |= forms[names[0]].emit(sheet, {name: forms[name] for name in names})
    return found


def batches(kinds: Mapping[str, Hashable], sizes: Mapping[str, int]) -> Iterable[list[str]]:
    """Names of one kind, at most TOGETHER entries in all; a larger one is alone."""
    groups: dict[Hashable, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind, []).append(name)
    for names in groups.values():
        batch: list[str] = []
        for name in names:
            if batch and sum(sizes[each] for each in (*batch, name)) > TOGETHER:
                yield batch
                batch = []
            batch.append(name)
        yield batch


def joined(arrays: Iterable[Array]) -> Array:
    """Arrays of any shape, flat, one behind the other."""
    return np.concatenate([array.reshape(-1) for array in arrays])
