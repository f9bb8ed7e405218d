"""Which int8 sites overflow 16-bit pair sums. In: sites, their input rows and codes. Out: the names of those weights.

Processors without dot-product instructions (AVX2, AVX512 without VNNI) multiply uint8 activations by int8 weights in
pairs and add each pair in 16 bits, saturating: 255 * 127 * 2 is twice what fits. Weights of a site where that happens
on calibration rows get 7 bits (codes up to 63), which always fit; all others keep 8.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxc.encoding import Codes
from onnxc.session import Session
from onnxc.sites import Site, matrix_axes

LARGEST = 32767
ROWS = 128


@cache
def machine_saturates() -> bool:
    """Whether this machine's int8 kernels saturate, asked of a kernel itself."""
    depth = 64
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "pairs",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [8, depth])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [8, 32])],
        [onnx.numpy_helper.from_array(np.full((depth, 32), 127, np.int8), "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    sums = Session(model).run({"x": np.full((8, depth), 255, np.uint8)})["y"]
    return bool(np.any(np.asarray(sums) != 255 * 127 * depth))


def overflows(site: Site, codes: Codes, rows: NDArray[np.float32], scale: float, zero_point: int) -> bool:
    """Whether any pair sum of this site leaves 16 bits on ``rows`` [R, K], quantized with the given parameters."""
    matrix = as_matrix(site, codes)
    quantized = np.clip(np.rint(rows[:ROWS] / scale) + zero_point, 0, 255).astype(np.int32)
    quantized = channels_last(site, quantized)
    depth = min(matrix.shape[0], quantized.shape[1]) // 2 * 2
    left, right = quantized[:, 0:depth:2], quantized[:, 1:depth:2]
    first, second = matrix[0:depth:2].astype(np.int32), matrix[1:depth:2].astype(np.int32)
    left_peak, right_peak = left.max(0, initial=0)[:, None], right.max(0, initial=0)[:, None]
    highest = np.maximum(first, 0) * left_peak + np.maximum(second, 0) * right_peak
    lowest = np.minimum(first, 0) * left_peak + np.minimum(second, 0) * right_peak
    pair, channel = np.nonzero((highest > LARGEST) | (lowest < -LARGEST - 1))
    if not len(pair):
        return False
    pair, channel = pair[:20000], channel[:20000]
    sums = left[:, pair] * first[pair, channel] + right[:, pair] * second[pair, channel]
    return bool(np.any((sums > LARGEST) | (sums < -LARGEST - 1)))


def may_overflow(codes: NDArray[np.int8]) -> bool:
    """Whether some input codes make a pair sum of ``codes`` [K, ...] leave 16 bits; pairs lie along the first axis."""
    depth = len(codes) // 2 * 2
    first, second = codes[0:depth:2].astype(np.int32), codes[1:depth:2].astype(np.int32)
    highest = 255 * (np.maximum(first, 0) + np.maximum(second, 0))
    lowest = 255 * (np.minimum(first, 0) + np.minimum(second, 0))
    return bool(np.any((highest > LARGEST) | (lowest < -LARGEST - 1)))


def as_matrix(site: Site, codes: Codes) -> NDArray[np.int8]:
    """The codes as [K, N] in the order in which the kernel walks K (convolutions: kernel positions, then channels)."""
    values = codes.values
    if site.kind == "linear":
        return values.T if matrix_axes(site) == (1, 0) else values
    return np.moveaxis(values, 1, -1).reshape(len(values), -1).T


def channels_last(site: Site, rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """im2col rows [R, C * k] reordered to [R, k * C]; rows of linears as they are."""
    if site.kind == "linear" or site.weight is None:
        return rows
    channels = site.weight.shape[1]
    return rows.reshape(len(rows), channels, -1).swapaxes(1, 2).reshape(len(rows), -1)
