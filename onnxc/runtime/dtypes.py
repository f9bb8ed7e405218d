"""Element types by ONNX Runtime's names, and arrays of the types that numpy lacks as ONNX Runtime holds them.

In: a type string ("tensor(int4)") or an array. Out: the numpy or ml_dtypes type, packed bytes, an array.
"""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import onnx

_DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "float4e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
    "int2": np.dtype(ml_dtypes.int2),
    "uint2": np.dtype(ml_dtypes.uint2),
    "int4": np.dtype(ml_dtypes.int4),
    "uint4": np.dtype(ml_dtypes.uint4),
    "bool": np.dtype(np.bool_),
    "string": np.dtype(np.object_),
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4e2m1": 4}  # several values share a byte
_FOREIGN = frozenset(name for name in _DTYPES if re.match(r"bfloat|float[48]e|u?int[24]$", name))


def element(dtype: str) -> str:
    """The name of the element type: "float" of "tensor(float)" and "seq(tensor(float))"; "" if none."""
    found = re.search(r"tensor\((\w+)\)", dtype)
    # kernels name 4-bit types by how they lie in memory: Int4x2, UInt4x2, Int2x4
    return re.sub(r"x\d$", "", found.group(1).lower()) if found else ""


def numpy_dtype(dtype: str) -> np.dtype[Any] | None:
    """The numpy type of a "tensor(...)" string; None for sequences, maps, optionals and unknown types."""
    return _DTYPES.get(element(dtype)) if dtype.startswith("tensor(") else None


def is_foreign(dtype: str) -> bool:
    """Whether this is a tensor that ONNX Runtime does not exchange with numpy: bfloat16, float8, 4 bits."""
    return dtype.startswith("tensor(") and element(dtype) in _FOREIGN


def onnx_type(dtype: str) -> int:
    """The number of the element type in TensorProto.DataType."""
    return int(onnx.TensorProto.DataType.Value(element(dtype).upper()))


def pack(array: np.ndarray, dtype: str) -> np.ndarray:
    """The bytes of ``array`` as ONNX Runtime holds a foreign type, in an unsigned array of the same shape.

    Types of less than a byte fill only its first bytes.
    """
    kind = element(dtype)
    array = np.ascontiguousarray(array).astype(_DTYPES[kind], copy=False)
    if kind not in _BITS:
        return array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
    bits = _BITS[kind]
    per_byte = 8 // bits
    codes = array.view(np.uint8).ravel() & np.uint8((1 << bits) - 1)
    codes = np.pad(codes, (0, -codes.size % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: np.ndarray = np.bitwise_or.reduce(codes << shifts, axis=1)
    room = np.zeros(array.size, np.uint8)
    room[: packed.size] = packed
    return room.reshape(array.shape)


def packed_bytes(count: int, dtype: str) -> int:
    """How many bytes ONNX Runtime holds for ``count`` elements."""
    kind = element(dtype)
    return -(-count * _BITS.get(kind, _DTYPES[kind].itemsize * 8) // 8)


def unpack(raw: bytes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array of ``shape`` whose bytes ONNX Runtime holds as ``raw``."""
    kind = element(dtype)
    data = np.frombuffer(raw, np.uint8)
    if kind not in _BITS:
        return data.view(_DTYPES[kind]).reshape(shape)
    bits = _BITS[kind]
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    codes = ((data[:, None] >> shifts) & np.uint8((1 << bits) - 1)).ravel()[: int(np.prod(shape, dtype=np.int64))]
    if kind.startswith("float"):
        return codes.view(_DTYPES[kind]).reshape(shape)
    if kind.startswith("int"):
        signed = codes.astype(np.int8)
        signed[signed >= 1 << (bits - 1)] -= np.int8(1 << bits)
        return signed.astype(_DTYPES[kind]).reshape(shape)
    return codes.astype(_DTYPES[kind]).reshape(shape)
