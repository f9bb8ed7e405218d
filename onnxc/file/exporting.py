"""Graph objects back to protobuf messages, losing nothing.

In: the graph of a Model. Out: its ModelProto with tokens for large data (see wire.py). Every object remembers
the message it came from; what was not edited is written back as that message, with everything in it that the
objects do not
show: documentation, metadata, denotations, attributes of unusual types, the difference between empty and
absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from onnxc.errors import ModelError
from onnxc.file.shell import ConstantShell, is_bodies, is_constant, is_graph
from onnxc.file.tensors import DATA_FIELDS, Array, data_type_of, encode
from onnxc.file.wire import LARGE, Weights

if TYPE_CHECKING:
    from onnxc.model import Constant, Graph, Node, Tensor

_SIMPLE: dict[int, str] = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
}


def simple_value(attribute: AttributeProto) -> Any:
    """An attribute as a Python value: numbers, text, lists of them; the message for everything else."""
    field = _SIMPLE.get(kind_of(attribute))
    if field is None or attribute.ref_attr_name:
        return attribute
    value = getattr(attribute, field)
    try:
        if field == "s":
            return value.decode()
        if field == "strings":
            return [item.decode() for item in value]
    except UnicodeDecodeError:
        return attribute
    return list(value) if field in {"floats", "ints"} else value


def kind_of(attribute: AttributeProto) -> int:
    """The type of an attribute; files of the first IR version have to be looked at."""
    if attribute.type or attribute.ref_attr_name:
        return attribute.type
    fields = {field.name for field, _ in attribute.ListFields()}
    return next(
        (
            number
            for number, field in (*_SIMPLE.items(), (AttributeProto.TENSOR, "t"), (AttributeProto.GRAPH, "g"))
            if field in fields
        ),
        AttributeProto.UNDEFINED,
    )


class Exporter:
    """Writes the graphs of one model.

    Args:
        weights: takes the large data.
        homeless: constants that no graph owns, or that are read outside the graph that owns them; the main
            graph takes them.
        constant_inputs: whether initializers are listed as inputs, as files before IR version 4 do.
        data: False leaves out the data of large weights.
        named: False leaves out the names that name_nodes() gave.
    """

    def __init__(
        self, weights: Weights, homeless: Sequence[Constant], *, constant_inputs: bool, data: bool, named: bool
    ) -> None:
        self._weights = weights
        self._homeless = dict.fromkeys(homeless)
        self._constant_inputs = constant_inputs
        self._data = data
        self._named = named

    def graph(self, graph: Graph, out: GraphProto, *, main: bool = False) -> None:
        """Fill an empty GraphProto."""
        if graph.origin is not None:
            out.CopyFrom(graph.origin)
        if out.name != graph.name:
            out.name = graph.name
        if out.doc_string != graph.doc_string:
            out.doc_string = graph.doc_string
        for node in graph.nodes:
            self._node(node, out.node.add())
        owned = [tensor for tensor in graph.weights if tensor not in self._homeless]
        for tensor in (*owned, *self._homeless) if main else owned:
            self._initializer(tensor, out)
        for tensor in self._inputs(graph, owned):
            _value(tensor, graph.input_info.get(tensor), out.input.add())
        for tensor in graph.outputs:
            _value(tensor, graph.output_info.get(tensor), out.output.add())
        self._value_info(graph, owned, out)
        alive = graph.tensors_inside()
        for about, note in graph.annotations:
            if about is None or about in alive:
                kept = out.quantization_annotation.add()
                kept.CopyFrom(note)
                if about is not None and kept.tensor_name != about.name:
                    kept.tensor_name = about.name

    def _inputs(self, graph: Graph, owned: Iterable[Constant]) -> Iterator[Tensor]:
        """The inputs in the order of the file, with the initializers listed among them."""
        present = {*graph.inputs, *(owned if self._constant_inputs else ())}
        listed = [tensor for tensor in graph.listed if tensor in present]
        yield from listed
        yield from (tensor for tensor in graph.inputs if tensor not in set(listed))

    def _value_info(self, graph: Graph, owned: Iterable[Constant], out: GraphProto) -> None:
        """Types and shapes of tensors inside: the file's first, in its order, then what edits made known."""
        inside = graph.tensors_inside()
        alive = {*inside, *owned, *graph.outputs}
        for tensor, info in graph.value_info:
            if tensor is None:
                out.value_info.add().CopyFrom(info)
            elif tensor in alive:
                _value(tensor, info, out.value_info.add())
        known = {
            *graph.inputs,
            *graph.outputs,
            *(tensor for tensor, _ in graph.value_info if tensor is not None),
        }
        for tensor in inside:
            if not (tensor in known or isinstance(tensor, ConstantShell) or tensor.described[0] is None):
                _value(tensor, None, out.value_info.add())

    def _initializer(self, tensor: Constant, out: GraphProto) -> None:
        if tensor.sparse is not None and not tensor.edited():
            sparse = out.sparse_initializer.add()
            sparse.CopyFrom(tensor.sparse)
            if sparse.values.name != tensor.name:
                sparse.values.name = tensor.name
        else:
            self._tensor(tensor, out.initializer.add())

    def _tensor(self, tensor: Constant, out: TensorProto) -> None:
        if tensor.origin is not None:
            out.CopyFrom(tensor.origin)
        raw: Array | None = tensor.mapped()
        if tensor.edited():
            for field in (*DATA_FIELDS, "external_data", "data_location", "segment", "dims", "data_type"):
                out.ClearField(field)
            fresh, raw = encode(tensor.values)
            out.MergeFrom(fresh)
        if out.name != tensor.name:
            out.name = tensor.name
        if raw is None:
            return
        if raw.nbytes <= LARGE:
            out.raw_data = raw.tobytes()
        elif self._data:
            out.raw_data = self._weights.add(raw)
        else:
            out.ClearField("raw_data")

    def _node(self, node: Node, out: NodeProto) -> None:
        origin = node.origin
        if origin is not None:
            out.CopyFrom(origin)
        names = [tensor.name for tensor in node.inputs]
        if list(out.input) != names:
            out.input[:] = names
        names = [tensor.name for tensor in node.outputs]
        if list(out.output) != names:
            out.output[:] = names
        name = node.name if self._named or node.name != node.given else ""
        for field, value in (("op_type", node.op), ("name", name), ("domain", node.domain or "")):
            if getattr(out, field) != value:
                setattr(out, field, value)
        if [attribute.name for attribute in out.attribute] != list(node.attrs):
            before = {attribute.name: attribute for attribute in origin.attribute} if origin is not None else {}
            del out.attribute[:]
            for name in node.attrs:
                if name in before:
                    out.attribute.add().CopyFrom(before[name])
                else:
                    out.attribute.add().name = name
        for attribute, (name, value) in zip(out.attribute, node.attrs.items(), strict=True):
            self._attribute(attribute, value, f"node {node.name!r} ({node.op}): attribute {name!r}")

    def _attribute(self, out: AttributeProto, value: Any, where: str) -> None:
        """Fill an attribute that holds what the file had but tensors and graphs, or nothing but a name."""
        if is_graph(value):
            self._set_kind(out, AttributeProto.GRAPH)
            out.g.SetInParent()
            self.graph(value, out.g)
        elif is_constant(value):
            self._set_kind(out, AttributeProto.TENSOR)
            out.t.SetInParent()
            self._tensor(value, out.t)
        elif is_bodies(value):
            self._set_kind(out, AttributeProto.GRAPHS)
            for item in value:
                self.graph(item, out.graphs.add())
        elif isinstance(value, AttributeProto):
            if out != value:
                name = out.name
                out.CopyFrom(value)
                out.name = name
        elif not _same(out, value):
            if isinstance(value, np.ndarray):
                raise ModelError(f"{where} is an array: wrap it in a Constant or make it a list")
            fresh = _attribute_of(out, value.item() if isinstance(value, np.generic) else value, where)
            for field in (*_SIMPLE.values(), "t", "g", "type"):
                out.ClearField(field)
            out.MergeFrom(fresh)

    @staticmethod
    def _set_kind(out: AttributeProto, kind: onnx.AttributeProto.AttributeType) -> None:
        """Make an attribute one of a tensor or of graphs, unless it is one in the file."""
        if out.type != kind:
            for field in _SIMPLE.values():
                out.ClearField(field)
            out.type = kind


def _attribute_of(before: AttributeProto, value: Any, where: str) -> AttributeProto:
    """An attribute of a simple value; whole numbers stay FLOAT where the file has that."""
    kind = kind_of(before)
    try:
        if kind == AttributeProto.FLOAT and isinstance(value, int):
            value = float(value)
        elif kind == AttributeProto.FLOATS and isinstance(value, (list, tuple)):
            value = [float(item) for item in value]
        if isinstance(value, (list, tuple)) and not value:
            empty = kind if _SIMPLE.get(kind) in {"floats", "ints", "strings"} else AttributeProto.INTS
            return onnx.helper.make_attribute(before.name, [], attr_type=empty)
        return onnx.helper.make_attribute(before.name, value)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where} cannot be written as {value!r}: {error}") from error


def _same(attribute: AttributeProto, value: Any) -> bool:
    """Whether an attribute already has this value, to the type of its entries."""
    if attribute.ref_attr_name:
        return False
    before = simple_value(attribute)
    if isinstance(before, AttributeProto) or type(before) is not type(value):
        return False
    if isinstance(before, list):
        return bool(before == value) and set(map(type, value)) <= set(map(type, before))
    return bool(before == value)


def _value(tensor: Tensor, origin: ValueInfoProto | None, out: ValueInfoProto) -> None:
    """Name, type and shape of a tensor."""
    if origin is not None:
        out.CopyFrom(origin)
    if out.name != tensor.name:
        out.name = tensor.name
    if origin is not None and (isinstance(tensor, ConstantShell) or not tensor.redescribed()):
        return
    dtype, shape = tensor.described
    if dtype is None and shape is None:
        return
    kind: Mapping[str, Any] = {"sparse_tensor_type": TypeProto.SparseTensor}
    target = out.type.sparse_tensor_type if tensor.type in kind else out.type.tensor_type
    if dtype is not None:
        target.elem_type = data_type_of(dtype)
    if shape is None:
        target.ClearField("shape")
        return
    notes = [dim.denotation for dim in target.shape.dim]
    del target.shape.dim[:]
    target.shape.SetInParent()
    for axis, extent in enumerate(shape):
        dim = target.shape.dim.add()
        if isinstance(extent, str):
            dim.dim_param = extent
        elif extent is not None and extent >= 0:
            dim.dim_value = int(extent)
        if len(notes) == len(shape) and notes[axis]:
            dim.denotation = notes[axis]
