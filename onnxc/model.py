"""A model that can be edited and loses nothing: onnx-graphsurgeon's objects inside our own way in and out.

In: a file or a ModelProto. Out: a Model whose ``graph`` passes edit, and the same file again, changed only
where it was edited. Weights are views of the file on disk. The bodies of If, Loop and Scan are graphs like
any other: a body that reads a tensor of an outer graph reads the very same object.

      onnx file --wire.py--> message + mapped weights --importing.py--> Graph, Node, Variable, Constant
      onnx file <--storage.py-- message + weights <--exporting.py-- the same objects and their old messages
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Collection, Iterator, Sequence
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
)
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxc.errors import ModelError
from onnxc.file import editing, storage
from onnxc.file.exporting import Exporter
from onnxc.file.importing import Classes, Importer
from onnxc.file.shell import ConstantShell, GraphShell, NodeShell, StoredShell, VariableShell
from onnxc.file.tensors import Array
from onnxc.file.wire import Weights


class Node(NodeShell, gs.Node):  # type: ignore[misc]  # graphsurgeon has no type information
    """An operation: graphsurgeon's node in our shell."""


class Variable(VariableShell, gs.Variable):  # type: ignore[misc]  # graphsurgeon has no type information
    """A tensor that is computed or fed: graphsurgeon's variable in our shell."""


class Stored(StoredShell, LazyValues):  # type: ignore[misc]  # graphsurgeon has no type information
    """Values that are still as in the file: graphsurgeon's lazy values in our shell."""


class Constant(ConstantShell, gs.Constant):  # type: ignore[misc]  # graphsurgeon has no type information
    """A tensor that is known: graphsurgeon's constant in our shell."""

    def __init__(self, name: str, values: Array | Stored) -> None:
        super().__init__(name, values)
        if isinstance(values, Stored):
            self.stored = values

    def copy(self) -> Constant:
        """A constant without readers that shares the values."""
        other = Constant(self.name, self._values)
        other.stored, other.kept = self.stored, self.kept
        return other


Tensor = Variable | Constant


class Graph(GraphShell, gs.Graph):  # type: ignore[misc]  # graphsurgeon has no type information
    """The main graph or a body: graphsurgeon's graph in our shell."""

    def __init__(self, name: str = "", doc_string: str = "", origin: GraphProto | None = None) -> None:
        super().__init__(name=name, doc_string=doc_string)
        self.origin = origin
        self.weights = []
        self.listed = []
        self.input_info = {}
        self.output_info = {}
        self.value_info = []
        self.annotations = []


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
            ModelError: it is missing, damaged, unsafe or not sound; one line naming the file and the tensor
                or node.
        """
        path = None if isinstance(source, ModelProto) else Path(source)
        label = "the model" if path is None else str(path)
        if isinstance(source, ModelProto):
            try:
                data = np.frombuffer(source.SerializeToString(), np.uint8)
            except (EncodeError, ValueError) as error:
                raise ModelError("a message over 2 GB cannot be read: save it and hand over its path") from error
        else:
            data = storage.map_file(Path(source))
        weights = Weights()
        external = storage.ExternalData(path)
        try:
            proto = ModelProto.FromString(weights.lift(data))
            if not proto.HasField("graph") and not proto.ir_version:
                raise ModelError(f"{label} is not an ONNX model")
            texts = [text for entry in proto.metadata_props for text in (entry.key, entry.value)]
            if not all(isinstance(text, str) for text in (*texts, *(entry.domain for entry in proto.opset_import))):
                raise ModelError(f"{label} has metadata or an operator domain that is not UTF-8")
            storage.embed(proto, external, label)
            model = cls(proto)
            classes = Classes(Graph, Node, Variable, Constant, Stored)
            if proto.HasField("graph"):
                importer = Importer(classes, label, weights, external, proto.ir_version)
                model.graph = importer.graph(proto.graph, ChainMap())
                proto.ClearField("graph")
            model.path, model.source_bytes = path, int(data.size) + external.size
            for graph in model.graphs():
                editing.in_order(graph, label)
        except ModelError as error:  # names in a damaged file may hold anything: keep the message on one line
            raise ModelError("".join(c if c.isprintable() else "?" for c in str(error))) from error
        except DecodeError:
            raise ModelError(f"{label} is not an ONNX model, or is damaged or cut short") from None
        except UnicodeDecodeError:
            raise ModelError(f"{label} is damaged: a name or text in it is not UTF-8") from None
        editing.mark_kept(model)
        return model

    def save(self, path: str | Path, *, external_data: bool = False, named: bool = False) -> int:
        """Write the model: the file appears whole or not at all.

        Args:
            path: where to.
            external_data: put large initializers into a file beside it; models over 2 GB always do.
            named: with the names that name_nodes() gave to nodes without one.

        Returns:
            Bytes written, external data included.

        Raises:
            ModelError: it cannot be written; what was there is unharmed.
        """
        weights = Weights()
        message = self._message(weights, named=named)
        external_data = external_data or weights.size + len(message.SerializeToString()) > storage.PROTOBUF_LIMIT
        return storage.save(message, weights, Path(path), external_data=external_data)

    def serialized(self, *, named: bool = True) -> bytes:
        """The bytes that ``save`` writes, all weights inside.

        Raises:
            ModelError: they are over 2 GB.
        """
        weights = Weights()
        chunks, size = weights.lower(self._message(weights, named=named).SerializeToString(deterministic=True))
        if size > storage.PROTOBUF_LIMIT:
            raise ModelError(f"the model has {size} bytes, more than one message can hold (2 GB)")
        return b"".join(chunks)

    def digest(self) -> str:
        """SHA-256 (hex) of the bytes that ``save`` writes with all names, of any size."""
        weights, made = Weights(), hashlib.sha256()
        for chunk in weights.lower(self._message(weights).SerializeToString(deterministic=True))[0]:
            made.update(chunk)
        return made.hexdigest()

    def proto(self, *, weights: bool = True, named: bool = True) -> ModelProto:
        """The model as a message; ``weights=False`` leaves out the data of all tensors over 4 KB."""
        if weights:
            message: ModelProto = ModelProto.FromString(self.serialized(named=named))
            return message
        return self._message(Weights(), data=False, named=named)

    def _message(self, weights: Weights, *, data: bool = True, named: bool = True) -> ModelProto:
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
        unlisted = [item for item in (*self.graph.weights, *homeless) if item.stored is None and item not in listed]
        ir_version = max(self.ir_version, 4) if unlisted else self.ir_version  # before 4 all of them must be inputs
        if out.ir_version != ir_version:
            out.ir_version = ir_version
        if self.graph.origin is not None or self.graph.nodes or self.graph.weights or self.graph.inputs:
            exporter = Exporter(weights, homeless, constant_inputs=ir_version < 4, data=data, named=named)
            exporter.graph(self.graph, out.graph, main=True)
        return out

    def copy(self) -> Model:
        """A model of its own that shares the weights' arrays."""
        other = Model(self._header)
        other._opsets, other.metadata = dict(self._opsets), dict(self.metadata)
        other.path, other.source_bytes, other.ir_version = self.path, self.source_bytes, self.ir_version
        other.functions = list(self.functions)
        other.graph = editing.copy(self.graph, {})
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
        self.ir_version = max(self.ir_version, onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True))

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
        """``name``, or ``name_1``, ``name_2`` ...: no tensor or node has it, and it counts as used now."""
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
            name: of the node, made free; the first output's by default: nodes and tensors may share a name.
            domain: of the operator; version 1 of it is imported when the model has none.
            graph: where.
            attributes: an array becomes a tensor; None is left out.
        """
        made = [Variable(self.unique(item)) if isinstance(item, str) else item for item in outputs]
        given = [Variable("") if item is None else item for item in inputs]
        if outputs and isinstance(outputs[0], str) and name in (None, outputs[0]):
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

        New nodes that make ``new`` out of ``old`` keep reading it. Where ``old`` is an output of its graph
        and ``only`` is not given, the output gets the values of ``new`` and keeps its name.
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
            The message, and the arrays by name.
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
