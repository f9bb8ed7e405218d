"""Arrays and TensorProto: a tensor's bytes, whether they are all there, and the way to numpy and back.

In: a TensorProto, and its bytes where they lie outside the message (mapped from a file). Out: a numpy array,
a view of the mapped bytes wherever numpy has the type; or, the other way, a TensorProto without data and its
payload.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from onnxc.errors import ModelError

Bytes = npt.NDArray[np.uint8]  # a flat view of a weight's bytes, read-only when it is mapped from a file
Array = npt.NDArray[np.generic]

DATA_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
_LARGEST = 1 << 48  # elements; beyond it dims are damage, not a shape
_NARROW = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
_DTYPES: dict[int, np.dtype[np.generic]] = {
    number: onnx.helper.tensor_dtype_to_np_dtype(number)
    for name, number in TensorProto.DataType.items()
    if name != "UNDEFINED"
}
_BITS = {
    number: _NARROW.get(TensorProto.DataType.Name(number), dtype.itemsize * 8) for number, dtype in _DTYPES.items()
}


def numpy_type(data_type: int) -> np.dtype[np.generic] | None:
    """Numpy's type for an ONNX one (from ml_dtypes for the narrow ones); None when unknown."""
    return _DTYPES.get(data_type)


def data_type_of(dtype: npt.DTypeLike) -> int:
    """ONNX's number for a numpy type.

    Raises:
        ModelError: ONNX has no such type.
    """
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"ONNX has no tensor type for numpy's {dtype}") from None


def payload_bytes(dims: Sequence[int], data_type: int) -> int:
    """Bytes that a tensor of this shape and type takes as raw data (2, 4 and 6 bit types are packed)."""
    return -(-math.prod(dims) * _BITS[data_type] // 8)


def check_shape(dims: Sequence[int], data_type: int, where: str) -> None:
    """Refuse a type that ONNX does not have and a shape that no tensor can have.

    Raises:
        ModelError: saying which.
    """
    if data_type not in _DTYPES:
        raise ModelError(f"{where} has element type {data_type}, which ONNX does not define")
    if any(dim < 0 for dim in dims) or math.prod(dims) > _LARGEST:
        raise ModelError(f"{where} has the impossible shape {list(dims)[:8]}")


def check(tensor: TensorProto, where: str, raw_bytes: int | None = None) -> None:
    """Hold a tensor's data against its shape and type, without reading it.

    Args:
        tensor: the message.
        where: its name for the user, file first.
        raw_bytes: length of the data where it lies outside the message.

    Raises:
        ModelError: unknown type, impossible shape, or data that is too long or too short for it.
    """
    check_shape(tensor.dims, tensor.data_type, where)
    if tensor.HasField("segment"):
        raise ModelError(f"{where} is one segment of a larger tensor, which no runtime reads")
    if raw_bytes is None and tensor.HasField("raw_data"):
        raw_bytes = len(tensor.raw_data)
    if tensor.data_type == TensorProto.STRING:
        if raw_bytes is not None:
            raise ModelError(f"{where} has raw data, which strings cannot have")
        have, need = len(tensor.string_data), math.prod(tensor.dims)
    elif raw_bytes is not None:
        have, need = raw_bytes, payload_bytes(tensor.dims, tensor.data_type)
    else:
        have, need = _entries(tensor)
    if have != need:
        raise ModelError(f"{where} of shape {list(tensor.dims)[:8]} needs {need} bytes or entries, has {have}")


def _entries(tensor: TensorProto) -> tuple[int, int]:
    """Entries in the typed field of a tensor, and how many there must be."""
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    need = math.prod(tensor.dims)
    if tensor.data_type in {TensorProto.COMPLEX64, TensorProto.COMPLEX128}:
        need *= 2
    elif _BITS[tensor.data_type] in {2, 4}:
        need = -(-need * _BITS[tensor.data_type] // 8)
    return len(getattr(tensor, field)), need


def decode(tensor: TensorProto, raw: Bytes | None = None) -> Array:
    """The values of a checked tensor, read-only; a view of ``raw`` for every type of whole bytes.

    Raises:
        ModelError: strings that are not UTF-8, or typed data out of its type's range.
    """
    data_type = tensor.data_type
    if raw is not None and data_type != TensorProto.STRING and _whole(data_type):
        return raw.view(_DTYPES[data_type]).reshape(tuple(tensor.dims))
    if raw is not None:  # 2, 4 and 6 bit types: numpy has no packed form, they unfold to a byte each
        packed = TensorProto(data_type=data_type, dims=tensor.dims, raw_data=raw.tobytes())
        tensor = packed
    try:
        array: Array = onnx.numpy_helper.to_array(tensor)
    except (UnicodeDecodeError, OverflowError, ValueError) as error:
        raise ModelError(f"tensor {tensor.name!r} cannot be read: {error}") from error
    array.flags.writeable = False
    return array


def _whole(data_type: int) -> bool:
    """Whether an element is a whole number of bytes."""
    return _BITS[data_type] % 8 == 0


def encode(array: Array) -> tuple[TensorProto, Array | None]:
    """A TensorProto of an array, and what its raw data is to be (None: its data is in the message)."""
    array = np.asarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    data_type = data_type_of(array.dtype)
    tensor = TensorProto(data_type=data_type, dims=array.shape)
    if data_type == TensorProto.STRING:
        entries = (item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1))
        tensor.string_data.extend(entries)
        return tensor, None
    if not _whole(data_type):
        return tensor, np.frombuffer(onnx.numpy_helper.from_array(array).raw_data, np.uint8)
    return tensor, array


def flat_bytes(array: Array) -> Bytes:
    """The bytes of an array in row order: a view, or a copy when it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
