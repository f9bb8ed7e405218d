"""What the objects of a graph have that graphsurgeon's lack: the message they came from, and identity.

In: nothing but what importing.py attaches. Out: mixins; model.py joins each with graphsurgeon's class of the
same name. Objects are equal only to themselves, so they can be members of sets and keys; graphsurgeon
compares names and attributes.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto

from onnxc.errors import ModelError
from onnxc.file.tensors import Array, Bytes, decode, numpy_type

if TYPE_CHECKING:
    from onnxc.model import Constant, Graph, Node, Stored, Tensor, Variable

Description = tuple["np.dtype[np.generic] | None", tuple[int | str | None, ...] | None]  # type and shape; None: unknown


class NodeShell:
    """A node that remembers its NodeProto.

    Attributes:
        origin: the message of the file, tensors and graphs of its attributes left out; None for a new node.
        kept: in the file nobody read what it makes, so that ``tidy`` leaves it alone.
        given: the name that name_nodes() made for a node without one: files are written without it.
    """

    op: str
    name: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    origin: NodeProto | None = None
    kept: bool = False
    given: str = ""
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def bodies(self) -> list[Graph]:
        """The graphs in the attributes."""
        bodies: list[Graph] = []
        for value in self.attrs.values():
            if is_graph(value):
                bodies.append(value)
            elif is_bodies(value):
                bodies += value
        return bodies


class VariableShell:
    """A tensor that is computed or fed.

    Attributes:
        inputs: the node that makes it, or none.
        outputs: the nodes that read it, those in bodies too; a node that reads it twice is there twice.
        dtype: numpy's type, None when unknown or when it is no tensor.
        shape: extents, names of extents, None for unknown ones; None when unknown altogether.
        type: "tensor_type", "sequence_type", "optional_type", "map_type" or "sparse_tensor_type".
        from_file: type and shape as the file has them.
    """

    name: str
    inputs: list[Node]
    outputs: list[Node]
    dtype: np.dtype[np.generic] | None
    shape: list[int | str | None] | None
    type: str
    from_file: Description = (None, None)
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def is_constant(self) -> bool:
        return False

    @property
    def described(self) -> Description:
        return self.dtype, None if self.shape is None else tuple(self.shape)

    def redescribed(self) -> bool:
        """Whether type or shape are no longer those of the file."""
        return self.described != self.from_file

    def describe_as(self, other: Variable) -> None:
        """Take over the type and shape of another variable, and what the file said of it."""
        self.dtype, self.type, self.from_file = other.dtype, other.type, other.from_file
        self.shape = None if other.shape is None else list(other.shape)


class StoredShell:
    """Values that are still as in the file.

    Attributes:
        proto: the message, its data in it or mapped.
        raw: the mapped bytes, None when the data is in the message.
    """

    def __init__(self, proto: TensorProto | SparseTensorProto, raw: Bytes | None = None) -> None:
        self.proto = proto
        self.raw = raw
        self.shape = tuple(proto.dims)
        self.dtype = numpy_type(proto.data_type if isinstance(proto, TensorProto) else proto.values.data_type)
        self._array: weakref.ref[Array] | None = None  # unfolded values live as long as somebody looks at them

    def load(self) -> Array:
        """The values, read-only."""
        array = None if self._array is None else self._array()
        if array is None:
            array = decode(self.proto, self.raw) if isinstance(self.proto, TensorProto) else dense(self.proto)
            self._array = weakref.ref(array)
        return array


def dense(sparse: SparseTensorProto) -> Array:
    """The array of a sparse tensor; its indices are positions in the flat array, or coordinates.

    Raises:
        ModelError: indices outside the shape.
    """
    values, indices = decode(sparse.values), decode(sparse.indices).astype(np.int64)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        if indices.ndim == 2:
            array[tuple(indices.T)] = values
        else:
            array.reshape(-1)[indices] = values
    except (IndexError, ValueError) as error:
        raise ModelError(f"sparse tensor {sparse.values.name!r} has indices outside its shape") from error
    array.flags.writeable = False
    return array


class ConstantShell:
    """A tensor that is known; its values are loaded when they are looked at.

    Attributes:
        inputs: empty.
        outputs: the nodes that read it, those in bodies too; a node that reads it twice is there twice.
        stored: the values in the file; None for a new constant.
        kept: in the file nobody read it, so that ``tidy`` leaves it alone.
    """

    name: str
    inputs: list[Node]
    outputs: list[Node]
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    type = "tensor_type"
    stored: Stored | None = None
    kept: bool = False
    _values: Array | Stored
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def values(self) -> Array:
        """The array; read-only when it is the file's. Assign a new one to change it."""
        return self._values.load() if isinstance(self._values, StoredShell) else self._values

    @values.setter
    def values(self, values: Array) -> None:
        self._values = values

    @property
    def origin(self) -> TensorProto | None:
        """The dense message of the file."""
        return self.stored.proto if self.stored and isinstance(self.stored.proto, TensorProto) else None

    @property
    def sparse(self) -> SparseTensorProto | None:
        """The sparse message of the file."""
        return self.stored.proto if self.stored and isinstance(self.stored.proto, SparseTensorProto) else None

    def is_constant(self) -> bool:
        return True

    def edited(self) -> bool:
        """Whether the values are no longer those of the file."""
        return self._values is not self.stored

    def mapped(self) -> Bytes | None:
        """The bytes of unedited values where they lie outside the message."""
        return None if self.stored is None or self.edited() else self.stored.raw

    @property
    def nbytes(self) -> int:
        """Bytes of the values, unpacked."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def described(self) -> Description:
        return self.dtype, tuple(self.shape)


class GraphShell:
    """A graph that owns its weights and remembers what the file says of its tensors.

    Attributes:
        weights: its initializers in order; also those nobody reads, and the default values of inputs.
        listed: inputs in the order of the file; before IR version 4 initializers are among them.
        input_info: what the file says of an input; ``output_info`` and ``value_info`` likewise, the latter
            with None for a name that no tensor of this graph has.
        annotations: quantization annotations, likewise.
        origin: the message without all of these; None for a new graph.
    """

    name: str
    doc_string: str
    nodes: list[Node]
    inputs: list[Tensor]
    outputs: list[Tensor]
    weights: list[Constant]
    listed: list[Tensor]
    input_info: dict[Tensor, ValueInfoProto]
    output_info: dict[Tensor, ValueInfoProto]
    value_info: list[tuple[Tensor | None, ValueInfoProto]]
    annotations: list[tuple[Tensor | None, onnx.TensorAnnotation]]
    origin: GraphProto | None
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:  # graphsurgeon's looks among registered functions, and prints
        raise AttributeError(f"a graph has no attribute {name!r}")

    def tensors_inside(self) -> dict[Tensor, None]:
        """Its inputs, weights and what its nodes make, in this order, without what its bodies have."""
        made = (tensor for node in self.nodes for tensor in node.outputs if tensor.name)
        return dict.fromkeys((*self.inputs, *self.weights, *made))


def is_graph(value: Any) -> TypeGuard[Graph]:
    """Whether an attribute's value is a graph."""
    return isinstance(value, GraphShell)


def is_constant(value: Any) -> TypeGuard[Constant]:
    """Whether an attribute's value is a tensor."""
    return isinstance(value, ConstantShell)


def is_bodies(value: Any) -> TypeGuard[list[Graph]]:
    """Whether an attribute's value is a list of graphs."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], GraphShell)
