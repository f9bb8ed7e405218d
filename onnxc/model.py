"""A model that can be edited and loses nothing: onnx-graphsurgeon's objects inside our own way in and out.

In: a file or a ModelProto. Out: a Model whose ``graph`` passes edit, and the same file again, changed only where it was
edited. Weights are views of the file on disk. The bodies of If, Loop and Scan are graphs like any other: a body that reads
a tensor of an outer graph reads the very same object.

      onnx file --wire.py--> message + mapped weights --Importer--> Graph, Node, Variable, Constant
      onnx file <--storage.py-- message + tokens <--exporting.py-- the same objects, each with the message it came from
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, EncodeError
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
)
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxc import editing, storage
from onnxc.errors import ModelError
from onnxc.exporting import Exporter
from onnxc.importing import Classes, Importer
from onnxc.tensors import Array, Bytes, decode, numpy_type
from onnxc.wire import Weights

Description = tuple[
    np.dtype[np.generic] | None, tuple[int | str | None, ...] | None
]  # type and shape, None unknown


class Node(gs.Node):  # type: ignore[misc]  # graphsurgeon has no type information
    """A graphsurgeon node that is equal only to itself and remembers its NodeProto.

    Attributes:
        origin: the message of the file, tensors and graphs of its attributes left out; None for a new node.
        kept: in the file nobody read what it makes, so that ``tidy`` leaves it alone.
    """

    op: str
    name: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    origin: NodeProto | None = None
    kept: bool = False
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def bodies(self) -> list[Graph]:
        """The graphs in the attributes."""
        bodies: list[Graph] = []
        for value in self.attrs.values():
            if isinstance(value, Graph):
                bodies.append(value)
            elif isinstance(value, list):
                bodies += [item for item in value if isinstance(item, Graph)]
        return bodies


class Variable(gs.Variable):  # type: ignore[misc]  # graphsurgeon has no type information
    """A graphsurgeon variable that is equal only to itself: a tensor that is computed or fed."""

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


class Stored(LazyValues):  # type: ignore[misc]  # graphsurgeon has no type information
    """Values that are still as in the file.

    Attributes:
        proto: the message, its data in it or mapped.
        raw: the mapped bytes, None when the data is in the message.
    """

    def __init__(self, proto: TensorProto | SparseTensorProto, raw: Bytes | None = None) -> None:
        values = proto if isinstance(proto, TensorProto) else proto.values
        self.proto = proto
        self.raw = raw
        self.shape = tuple(proto.dims)
        self.dtype = numpy_type(values.data_type)
        self._array: Array | None = None

    def load(self) -> Array:
        if self._array is None:
            if isinstance(self.proto, TensorProto):
                self._array = decode(self.proto, self.raw)
            else:
                self._array = _dense(self.proto)
        return self._array


def _dense(sparse: SparseTensorProto) -> Array:
    """The array of a sparse tensor; indices are positions in the flat array or coordinates."""
    values, indices = decode(sparse.values), decode(sparse.indices).astype(np.int64)
    shape = tuple(sparse.dims)
    dense = np.zeros(shape, values.dtype)
    try:
        if indices.ndim == 2:
            dense[tuple(indices.T)] = values
        else:
            dense.reshape(-1)[indices] = values
    except (IndexError, ValueError) as error:
        raise ModelError(f"sparse tensor {sparse.values.name!r} has indices outside its shape") from error
    dense.flags.writeable = False
    return dense


class Constant(gs.Constant):  # type: ignore[misc]  # graphsurgeon has no type information
    """A graphsurgeon constant that is equal only to itself; its values are loaded when they are looked at.

    Attributes:
        stored: the values in the file; None for a new constant.
        kept: in the file nobody read it, so that ``tidy`` leaves it alone.
    """

    name: str
    inputs: list[Node]
    outputs: list[Node]
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    kept: bool = False
    type = "tensor_type"
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(self, name: str, values: Array | Stored) -> None:
        super().__init__(name, values)
        self.stored = values if isinstance(values, Stored) else None

    @property
    def values(self) -> Array:
        """The array; read-only when it is the file's. Assign a new one to change it."""
        return self._values.load() if isinstance(self._values, Stored) else self._values  # type: ignore[no-any-return]  # graphsurgeon has no type information

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

    def copy(self) -> Constant:
        """A constant without readers that shares the values."""
        other = Constant(self.name, self._values)
        other.stored, other.kept = self.stored, self.kept
        return other


Tensor = Variable | Constant


class Graph(gs.Graph):  # type: ignore[misc]  # graphsurgeon has no type information
    """A graphsurgeon graph that owns its weights and remembers what the file says of its tensors.

    Attributes:
        weights: its initializers in order; also those nobody reads, and the default values of inputs.
        listed: inputs in the order of the file; before IR version 4 initializers are among them.
        input_info: what the file says of an input; output_info and value_info likewise, the latter with None for a
            name that no tensor has.
        annotations: quantization annotations.
        origin: the message without all of these; None for a new graph.
    """

    name: str
    doc_string: str
    nodes: list[Node]
    inputs: list[Tensor]
    outputs: list[Tensor]

    def __init__(self, name: str = "", doc_string: str = "", origin: GraphProto | None = None) -> None:
        super().__init__(name=name, doc_string=doc_string)
        self.origin = origin
        self.weights: list[Constant] = []
        self.listed: list[Tensor] = []
        self.input_info: dict[Tensor, ValueInfoProto] = {}
        self.output_info: dict[Tensor, ValueInfoProto] = {}
        self.value_info: list[tuple[Tensor | None, ValueInfoProto]] = []
        self.annotations: list[tuple[Tensor | None, onnx.TensorAnnotation]] = []

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def tensors_inside(self) -> dict[Tensor, None]:
        """Its inputs, weights and what its nodes make, in this order, without what its bodies have."""
        made = (tensor for node in self.nodes for tensor in node.outputs if tensor.name)
        return dict.fromkeys((*self.inputs, *self.weights, *made))


class Model:
    """An ONNX model in memory.

    Attributes:
        graph: the main graph; the bodies of If, Loop and Scan are Graph values in ``node.attrs``.
        path: the file it was read from, None for a message.
        source_bytes: its size on disk, external data included [bytes].
        ir_version: of the format.
        metadata: the model's metadata_props; edit it freely.
        functions: local functions as messages.
    """

    graph: Graph
    path: Path | None
    source_bytes: int
    ir_version: int
    metadata: dict[str, str]
    functions: list[onnx.FunctionProto]

    def __init__(self, header: ModelProto) -> None:
        """Start from a message without graph; use ``Model.load``."""
        self._header = header
        self._opsets = {entry.domain: entry.version for entry in header.opset_import}
        self._names: editing.Names | None = None
        self.graph = Graph()
        self.path = None
        self.source_bytes = 0
        self.ir_version = header.ir_version
        self.metadata = {entry.key: entry.value for entry in header.metadata_props}
        self.functions = list(header.functions)

    @classmethod
    def load(cls, source: str | Path | ModelProto) -> Model:
        """Read a model; its weights stay on disk until they are looked at.

        Raises:
            ModelError: it is missing, damaged, unsafe or not sound; one line naming the file and the tensor or node.
        """
        path = None if isinstance(source, ModelProto) else Path(source)
        label = "the model" if path is None else str(path)
        if isinstance(source, ModelProto):
            try:
                data = np.frombuffer(source.SerializeToString(), np.uint8)
            except (EncodeError, ValueError) as error:
                raise ModelError(
                    "a message over 2 GB cannot be read: save it and hand over its path"
                ) from error
        else:
            data = storage.map_file(Path(source))
        weights = Weights()
        external = storage.ExternalData(path)
        try:
            proto = ModelProto.FromString(weights.lift(data))
            if not proto.HasField("graph") and not proto.ir_version:
                raise ModelError(f"{label} is not an ONNX model")
            storage.embed(proto, external, label)
            model = cls(proto)
            model.path, model.source_bytes = path, int(data.size) + external.size
            classes = Classes(Graph, Node, Variable, Constant, Stored)
            if proto.HasField("graph"):
                importer = Importer(classes, label, weights, external, proto.ir_version)
                model.graph = importer.graph(proto.graph, ChainMap())
                proto.ClearField("graph")
            for graph in model.graphs():
                editing.in_order(graph, label)
        except DecodeError:
            raise ModelError(f"{label} is not an ONNX model, or is damaged or cut short") from None
        except UnicodeDecodeError:
            raise ModelError(f"{label} is damaged: a name or text in it is not UTF-8") from None
        editing.mark_kept(model)
        return model

    def save(self, path: str | Path, *, external_data: bool = False) -> int:
        """Write the model: the file appears whole or not at all.

        Args:
            path: where to.
            external_data: put large initializers into a file beside it; models over 2 GB always do.

        Returns:
            Bytes written, external data included.

        Raises:
            ModelError: it cannot be written; what was there is unharmed.
        """
        weights = Weights()
        message = self._message(weights)
        external_data = (
            external_data or weights.size + len(message.SerializeToString()) > storage.PROTOBUF_LIMIT
        )
        return storage.save(message, weights, Path(path), external_data=external_data)

    def serialized(self) -> bytes:
        """The bytes that ``save`` writes, all weights inside.

        Raises:
            ModelError: they are over 2 GB.
        """
        weights = Weights()
        chunks, size = weights.lower(self._message(weights).SerializeToString(deterministic=True))
        if size > storage.PROTOBUF_LIMIT:
            raise ModelError(f"the model has {size} bytes, more than one message can hold (2 GB)")
        return b"".join(chunks)

    def proto(self, *, weights: bool = True) -> ModelProto:
        """The model as a message; ``weights=False`` leaves out the data of all tensors over 4 KB."""
        if weights:
            return ModelProto.FromString(self.serialized())
        return self._message(Weights(), data=False)

    def _message(self, weights: Weights, *, data: bool = True) -> ModelProto:
        """The model with tokens for large data."""
        out = ModelProto()
        out.CopyFrom(self._header)
        if {entry.key: entry.value for entry in out.metadata_props} != self.metadata:
            del out.metadata_props[:]
            for key, value in self.metadata.items():
                out.metadata_props.add(key=key, value=value)
        if {entry.domain: entry.version for entry in out.opset_import} != self._opsets:
            del out.opset_import[:]
            for domain, version in self._opsets.items():
                out.opset_import.add(domain=domain, version=version)
        if list(out.functions) != self.functions:
            del out.functions[:]
            out.functions.extend(self.functions)
        listed, homeless = set(self.graph.listed), editing.homeless(self)
        unlisted = [
            item for item in (*self.graph.weights, *homeless) if item.stored is None and item not in listed
        ]
        ir_version = (
            max(self.ir_version, 4) if unlisted else self.ir_version
        )  # before 4 all of them must be inputs
        if out.ir_version != ir_version:
            out.ir_version = ir_version
        if self.graph.origin is not None or self.graph.nodes or self.graph.weights or self.graph.inputs:
            exporter = Exporter(weights, homeless, constant_inputs=ir_version < 4, data=data)
            exporter.graph(self.graph, out.graph, main=True)
        return out

    def copy(self) -> Model:
        """A model of its own that shares the weights' arrays."""
        other = Model(self._header)
        other._opsets, other.metadata = dict(self._opsets), dict(self.metadata)
        other.path, other.source_bytes, other.ir_version = self.path, self.source_bytes, self.ir_version
        other.functions = list(self.functions)
        other.graph = _copy(self.graph, {})
        return other

    @property
    def opset(self) -> int:
        """Version of the default domain; a file that names none has version 1."""
        return self.opsets.get("", 1)

    @property
    def opsets(self) -> dict[str, int]:
        """Version by domain."""
        return {"" if domain == "ai.onnx" else domain: version for domain, version in self._opsets.items()}

    def set_opset(self, version: int, domain: str = "") -> None:
        """Import another version of a domain's operators; the IR version rises as far as that needs."""
        if not domain:
            self._opsets.pop("ai.onnx", None)
        self._opsets[domain] = version
        imports = [onnx.helper.make_opsetid(name, number) for name, number in self._opsets.items()]
        self.ir_version = max(
            self.ir_version, onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
        )

    def graphs(self) -> Iterator[Graph]:
        """The main graph, then all bodies, depth first."""
        yield from (graph for graph, _ in editing.scopes(self))

    def nodes(self) -> Iterator[Node]:
        """The nodes of all graphs."""
        for graph in self.graphs():
            yield from graph.nodes

    def values(self, tensor: Tensor) -> Array:
        """The array of a constant, or of what a ``Constant`` node makes.

        Raises:
            ModelError: it is not constant.
        """
        if isinstance(tensor, Constant):
            return tensor.values
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is None or maker.op != "Constant" or maker.domain not in {None, "", "ai.onnx"}:
            raise ModelError(f"tensor {tensor.name!r} is not constant")
        kind, value = next(iter(maker.attrs.items()), ("", None))
        if isinstance(value, Constant):
            return value.values
        if isinstance(value, AttributeProto) and value.HasField("sparse_tensor"):
            return Stored(value.sparse_tensor).load()
        types: dict[str, Any] = {"float": np.float32, "int": np.int64, "string": object}
        dtype = types.get(kind.removeprefix("value_").removesuffix("s"))
        if dtype is None or isinstance(value, AttributeProto):
            raise ModelError(f"node {maker.name!r} (Constant): its value cannot be read")
        return np.asarray(value, dtype)

    def unique(self, name: str) -> str:
        """``name``, or ``name_1``, ``name_2`` and so on: one that no tensor and no node has; it counts as used now."""
        if self._names is None:
            self._names = editing.Names(self)
        return self._names.take(name)

    def constant(self, name: str, values: Array, graph: Graph | None = None) -> Constant:
        """A new initializer of ``graph`` (the main graph), under a name that is free."""
        tensor = Constant(self.unique(name), np.asarray(values))
        (graph or self.graph).weights.append(tensor)
        return tensor

    def insert(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[str | Tensor],
        *,
        name: str | None = None,
        domain: str = "",
        graph: Graph | None = None,
        **attributes: Any,
    ) -> Node:
        """A new node at the end of ``graph`` (the main graph); ``tidy`` moves it to its place.

        Args:
            op: the operator.
            inputs: None for an optional one that is left out.
            outputs: text becomes a variable under a free name.
            name: of the node, made free; the first output's by default.
            domain: of the operator; version 1 of it is imported when the model has none.
            graph: where.
            attributes: an array becomes a tensor; None is left out.
        """
        made = [Variable(self.unique(item)) if isinstance(item, str) else item for item in outputs]
        given = [Variable("") if item is None else item for item in inputs]
        if name is None and outputs and isinstance(outputs[0], str):
            label = made[0].name
        else:
            label = self.unique(name or f"{made[0].name if made else op}_node")
        attrs: dict[str, Any] = {
            key: Constant("", value) if isinstance(value, np.ndarray) else value
            for key, value in attributes.items()
            if value is not None
        }
        node = Node(op, label, attrs, given, made, domain or None)
        (graph or self.graph).nodes.append(node)
        if domain and domain not in self.opsets:
            self.set_opset(1, domain)
        return node

    def redirect(self, old: Tensor, new: Tensor, *, only: Collection[Node] | None = None) -> None:
        """Let the readers of ``old`` in all graphs, or ``only`` some nodes, read ``new``.

        New nodes that make ``new`` out of ``old`` keep reading it. Where ``old`` is an output of its graph and ``only``
        is not given, the output gets the values of ``new`` and keeps its name.
        """
        editing.redirect(self, old, new, only)

    def tidy(self) -> None:
        """Remove nodes and initializers that edits left without readers, and sort the nodes.

        What the file itself had unused stays.

        Raises:
            ModelError: nodes wait for each other in a circle.
        """
        editing.tidy(self)
        self._names = None

    def skeleton(self, limit: int = 1 << 16) -> tuple[ModelProto, dict[str, Array]]:
        """The model with its large weights lifted out: they are inputs of the message.

        Args:
            limit: initializers of the main graph over so many bytes are lifted out.

        Returns:
            The message, and the arrays by name; ``restore`` puts them back.
        """
        model = self.copy()
        lifted: dict[str, Array] = {}
        fed = {tensor.name for tensor in (*model.graph.inputs, *model.graph.outputs)}
        for tensor in list(model.graph.weights):
            if tensor.nbytes > limit and tensor.name not in fed and tensor.dtype != object:
                lifted[tensor.name] = tensor.values
                variable = Variable(tensor.name, tensor.dtype, list(tensor.shape))
                editing.redirect(model, tensor, variable, None)
                model.graph.weights.remove(tensor)
                model.graph.inputs.append(variable)
        return model.proto(), lifted

    def restore(self, weights: Mapping[str, Array]) -> None:
        """Make inputs of these names initializers again; names that are no inputs any more are passed over."""
        for tensor in list(self.graph.inputs):
            if tensor.name in weights and isinstance(tensor, Variable):
                constant = Constant(tensor.name, weights[tensor.name])
                self.graph.inputs.remove(tensor)
                self.graph.weights.append(constant)
                editing.redirect(self, tensor, constant, None)


def _copy(graph: Graph, twins: dict[Tensor, Tensor]) -> Graph:
    """A graph of new objects; ``twins`` leads from old tensors to new ones, those of the outer graphs first."""
    other = Graph(graph.name, graph.doc_string, graph.origin)

    def twin(tensor: Tensor) -> Tensor:
        if not tensor.name:
            return Variable("")
        if tensor not in twins:
            if isinstance(tensor, Constant):
                twins[tensor] = tensor.copy()
            else:
                twins[tensor] = copy = Variable(tensor.name)
                copy.describe_as(tensor)
        return twins[tensor]

    for node in graph.nodes:
        attrs: dict[str, Any] = {}
        for name, value in node.attrs.items():
            if isinstance(value, Graph):
                attrs[name] = _copy(value, twins)
            elif isinstance(value, list):
                attrs[name] = [_copy(item, twins) if isinstance(item, Graph) else item for item in value]
            else:
                attrs[name] = value.copy() if isinstance(value, Constant) else value
        inputs, outputs = [twin(item) for item in node.inputs], [twin(item) for item in node.outputs]
        new = Node(node.op, node.name, attrs, inputs, outputs, node.domain)
        new.origin, new.kept = node.origin, node.kept
        other.nodes.append(new)
    other.inputs = [twin(item) for item in graph.inputs]
    other.outputs = [twin(item) for item in graph.outputs]
    other.listed = [twin(item) for item in graph.listed]
    for item in graph.weights:
        copied = twin(item)
        assert isinstance(copied, Constant)
        other.weights.append(copied)
    other.input_info = {twin(item): info for item, info in graph.input_info.items()}
    other.output_info = {twin(item): info for item, info in graph.output_info.items()}
    other.value_info = [(item and twin(item), info) for item, info in graph.value_info]
    other.annotations = [(item and twin(item), note) for item, note in graph.annotations]
    return other
