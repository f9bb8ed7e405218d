"""ONNX sparse tensors. In: an array with zeros. Out: a SparseTensorProto in the smallest form that the format allows;
or a model that has such tensors, and its weights as any other.

ONNX knows one form: the values that are not zero, and their places. Places in the flattened array, written as varints
(7 bits a byte) in ``int64_data``, are never longer than coordinates or 8-byte integers. ONNX Runtime makes the tensor
dense again when it loads the model: it saves bytes of the file, no memory and no time.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, SparseTensorProto, TensorProto

from onnxc.file.tensors import data_type_of
from onnxc.model import Constant, Model

HEADERS = 64  # bytes of a node or a message around values and places, about

Array = NDArray[np.generic]


def sparse_proto(values: Array, name: str = "") -> SparseTensorProto:
    """``values`` as a sparse tensor, its places rising, as the format wants them."""
    flat, places = values.reshape(-1), places_of(values)
    made = SparseTensorProto(dims=values.shape)
    made.values.name, made.values.data_type = name, data_type_of(values.dtype)
    made.values.dims.append(len(places))
    made.values.raw_data = flat[places].tobytes()
    made.indices.data_type = TensorProto.INT64
    made.indices.dims.append(len(places))
    made.indices.int64_data.extend(places.tolist())
    return made


def places_of(values: Array) -> NDArray[np.intp]:
    """Where ``values``, flattened, are not zero; the first entry of an array of zeros, since no tensor is empty."""
    places = np.flatnonzero(values.reshape(-1))
    return places if places.size else np.zeros(min(values.size, 1), np.intp)


def sparse_bytes(values: Array) -> int:
    """Bytes of ``sparse_proto`` in a file, with the node that holds it."""
    places = places_of(values)
    return len(places) * int(values.dtype.itemsize) + varint_bytes(places) + HEADERS


def varint_bytes(places: NDArray[np.intp]) -> int:
    """Bytes of rising, not negative integers as varints."""
    return sum(int(places.size - np.searchsorted(places, 1 << (7 * k) if k else 0)) for k in range(9))


def break_even(shape: tuple[int, ...], itemsize: int) -> float:
    """The share of zeros from which on a tensor whose zeros lie anywhere is smaller in sparse form."""
    elements = prod(shape)
    place = sum(max(elements - (1 << (7 * k) if k else 0), 0) for k in range(9)) / max(elements, 1)
    return min(1.0, (place * elements + HEADERS) / max(elements * (place + itemsize), 1))


def sparse_value(values: Array) -> AttributeProto:
    """The attribute of a Constant node."""
    return AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse_proto(values))


def unfold(model: Model) -> None:
    """Make initializers of the Constant nodes that hold sparse tensors: weights like any other."""
    changed = False
    for graph in list(model.graphs()):
        outputs = {id(t) for t in graph.outputs}
        for node in list(graph.nodes):
            value = node.attrs.get("sparse_value")
            if node.op != "Constant" or not isinstance(value, AttributeProto) or id(node.outputs[0]) in outputs:
                continue
            made = node.outputs[0]
            weight = Constant(made.name, np.array(model.values(made)))
            graph.weights.append(weight)
            model.redirect(made, weight)
            graph.nodes.remove(node)
            node.outputs.clear()
            changed = True
    if changed:
        model.tidy()
