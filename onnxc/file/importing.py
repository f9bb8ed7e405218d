"""Protobuf messages to graph objects, every reference checked.

In: the GraphProto of a model whose large data are tokens (see wire.py). Out: graph objects, each holding the
message it came from. What is not sound is refused here, by the name of the tensor or node: names that nobody
makes or two make, data that does not fit its shape, unknown types.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto

from onnxc.errors import ModelError
from onnxc.file.exporting import kind_of, simple_value
from onnxc.file.shell import ConstantShell
from onnxc.file.storage import ExternalData
from onnxc.file.tensors import Bytes, check, check_shape, numpy_type
from onnxc.file.wire import Weights

if TYPE_CHECKING:
    from onnxc.model import Constant, Graph, Node, Stored, Tensor, Variable


class Classes(NamedTuple):
    """The classes to make; they are handed in because only model.py knows graphsurgeon."""

    graph: type[Graph]
    node: type[Node]
    variable: type[Variable]
    constant: type[Constant]
    stored: type[Stored]


class Importer:
    """Messages to objects, checking every reference."""

    def __init__(self, classes: Classes, label: str, weights: Weights, external: ExternalData, ir_version: int) -> None:
        self._make = classes
        self._label = label
        self._weights = weights
        self._external = external
        self._constant_inputs = ir_version < 4

    def graph(self, proto: GraphProto, outer: ChainMap[str, Tensor], place: str = "") -> Graph:
        """One graph and its bodies; the lists of ``proto`` are emptied."""
        self._check_text(place, proto.name, *(name for node in proto.node for name in node.output))
        graph = self._make.graph(proto.name, proto.doc_string, proto)
        local: dict[str, Tensor] = {}
        for message in (*proto.initializer, *proto.sparse_initializer):
            tensor = self._constant(message, place + "initializer")
            self._check_text(place, tensor.name)
            if not tensor.name or tensor.name in local:
                raise ModelError(f"{self._label}: {place}initializer {tensor.name!r}: the name is taken or empty")
            local[tensor.name] = tensor
            graph.weights.append(tensor)
        seen: set[str] = set()
        for info in proto.input:
            if not info.name or info.name in seen:
                raise ModelError(f"{self._label}: {place}input {info.name!r}: the name is taken or empty")
            self._check_text(place, info.name)
            seen.add(info.name)
            known = local.get(info.name)
            if known is None or not self._constant_inputs:  # an initializer is a default then: a feed overrides it
                known = local[info.name] = self._make.variable(info.name)
                graph.inputs.append(known)
            graph.listed.append(known)
            self._describe(known, info, graph.input_info, place)
        for node in proto.node:
            for name in node.output:
                if name and name in local:
                    raise ModelError(
                        f"{self._label}: {place}node {node.name!r} ({node.op_type}): output {name!r} is made twice"
                    )
                if name:
                    local[name] = self._make.variable(name)
        scope = outer.new_child(local)
        self._information(graph, proto, local, scope, place)
        graph.nodes = [self._node(node, local, scope, place) for node in proto.node]
        for field in ("node", "initializer", "sparse_initializer", "input", "output", "value_info"):
            proto.ClearField(field)
        proto.ClearField("quantization_annotation")
        return graph

    def _check_text(self, place: str, *texts: str) -> None:
        """Protobuf hands over bytes where a text is not UTF-8."""
        if not all(isinstance(text, str) for text in texts):
            raise ModelError(f"{self._label}: {place}a name is not UTF-8")

    def _information(
        self,
        graph: Graph,
        proto: GraphProto,
        local: dict[str, Tensor],
        scope: Mapping[str, Tensor],
        place: str,
    ) -> None:
        """Outputs, and what the file says of tensors."""
        for info in proto.output:
            tensor = scope.get(info.name)
            if tensor is None:
                raise ModelError(f"{self._label}: {place}output {info.name!r} is made by no node")
            if tensor in graph.output_info:
                raise ModelError(f"{self._label}: {place}output {info.name!r} is listed twice")
            graph.outputs.append(tensor)
            self._describe(tensor, info, graph.output_info, place)
        for info in proto.value_info:
            tensor = local.get(info.name)
            graph.value_info.append((tensor, info))
            if tensor is not None:
                self._describe(tensor, info, {}, place)
        graph.annotations = [(local.get(note.tensor_name), note) for note in proto.quantization_annotation]

    def _describe(self, tensor: Tensor, info: ValueInfoProto, table: dict[Tensor, ValueInfoProto], place: str) -> None:
        table[tensor] = info
        if isinstance(tensor, ConstantShell) or tensor.described != (None, None):
            return
        tensor.type = kind = info.type.WhichOneof("value") or "tensor_type"
        if kind not in {"tensor_type", "sparse_tensor_type"}:
            return
        details = getattr(info.type, kind)
        if details.elem_type:
            tensor.dtype = numpy_type(details.elem_type)
            if tensor.dtype is None:
                raise ModelError(f"{self._label}: {place}tensor {info.name!r}: no element type {details.elem_type}")
        if details.HasField("shape"):
            kinds = [(dim, dim.WhichOneof("value")) for dim in details.shape.dim]
            tensor.shape = [getattr(dim, field) if field else None for dim, field in kinds]
            self._check_text(f"{place}tensor {info.name!r}: ", *(dim.dim_param for dim, _ in kinds))
        tensor.from_file = tensor.described

    def _constant(self, proto: TensorProto | SparseTensorProto, place: str) -> Constant:
        if isinstance(proto, SparseTensorProto):
            where = f"{self._label}: sparse {place} {proto.values.name!r}"
            check(proto.values, where)
            check(proto.indices, f"{where}: its indices")
            check_shape(proto.dims, proto.values.data_type, where)
            return self._make.constant(proto.values.name, self._make.stored(proto))
        where = f"{self._label}: {place} {proto.name!r}"
        raw: Bytes | None = None
        if proto.data_location == TensorProto.EXTERNAL:
            raw = self._external.read(proto, where)
        elif proto.HasField("raw_data"):
            raw = self._weights.find(proto.raw_data)  # type: ignore[assignment]  # flat bytes by construction
        check(proto, where, None if raw is None else raw.nbytes)
        if proto.data_location == TensorProto.EXTERNAL:
            proto.ClearField("data_location")
            proto.ClearField("external_data")
        return self._make.constant(proto.name, self._make.stored(proto, raw))

    def _node(self, proto: NodeProto, local: Mapping[str, Tensor], scope: ChainMap[str, Tensor], place: str) -> Node:
        where = f"{place}node {proto.name!r} ({proto.op_type}): "
        self._check_text(where, proto.name, proto.op_type, proto.domain)
        if not proto.op_type:
            raise ModelError(f"{self._label}: {place}node {proto.name!r} has no operator")
        inputs: list[Tensor] = []
        for name in proto.input:
            tensor = local.get(name) or scope.get(name) if name else self._make.variable("")
            if tensor is None:
                raise ModelError(f"{self._label}: {where}input {name!r} is made by no node and is no input")
            inputs.append(tensor)
        outputs = [local[name] if name else self._make.variable("") for name in proto.output]
        attrs: dict[str, Any] = {}
        for attribute in proto.attribute:
            self._check_text(where, attribute.name, attribute.ref_attr_name)
            if not attribute.name or attribute.name in attrs:
                raise ModelError(f"{self._label}: {where}attribute {attribute.name!r} is given twice or has no name")
            attrs[attribute.name] = self._attribute(attribute, scope, where)
        domain = proto.domain if proto.HasField("domain") else None
        node = self._make.node(proto.op_type, proto.name, attrs, inputs, outputs, domain)
        node.origin = proto
        return node

    def _attribute(self, proto: AttributeProto, scope: ChainMap[str, Tensor], where: str) -> Any:
        kind = kind_of(proto)
        if kind != proto.type:
            proto.type = kind  # type: ignore[assignment]  # a file of the first IR version: the type is plain to see
        if proto.ref_attr_name:
            return proto
        value: Any
        if kind == AttributeProto.TENSOR:
            value = self._constant(proto.t, f"{where}tensor {proto.name!r}")
            proto.ClearField("t")
        elif kind == AttributeProto.GRAPH:
            if not proto.HasField("g"):
                raise ModelError(f"{self._label}: {where}attribute {proto.name!r} has no graph in it")
            value = self.graph(proto.g, scope, where)
            proto.ClearField("g")
        elif kind == AttributeProto.GRAPHS:
            value = [self.graph(body, scope, where) for body in proto.graphs]
            proto.ClearField("graphs")
        else:
            value = simple_value(proto)
        return value
