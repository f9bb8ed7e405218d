"""A weight as stored: the codes, and the standard operators that unfold them. In: a float array. Out: codes and bytes.

The same functions price a candidate and write it, so an estimate is never off by an encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.exact_rows import exact_bytes
from onnxc.codes.formats import FLOATS, HALF, INT8, Format
from onnxc.codes.grids import rounded_up
from onnxc.codes.layouts import layout_of
from onnxc.codes.packing import packed_bytes
from onnxc.codes.sheets import Packed
from onnxc.codes.sparse_packing import expected_bytes
from onnxc.sites import Weight

# What a Cast and a Mul node with their names, the scale's and the codes' headers take in the file, measured: about
# 170 bytes plus four times the tensor's name.
UNFOLD_BYTES = 120
FLOAT_BYTES = 12  # of a piece of a Split
CAST_BYTES = 48  # of a Cast, beside three times the weight's name


@dataclass(eq=False)
class Codes:
    """An int8 weight: value = code * scale, with one scale along ``axis`` or one for the whole tensor.

    Attributes:
        values: int8, the weight's own shape.
        scale: float32 [channels], or a scalar where ``axis`` is None.
        axis: the axis of ``scale``.
        levels: largest magnitude of a code (127, or 63 where pair sums must not saturate).
        packed: how they are stored in fewer bits; None: as they are.
        damage: squared error of the site's output over its square, tr(ET H E) / tr(WT H W); NaN where not computed.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    axis: int | None
    levels: int
    packed: Packed | None = None
    damage: float = float("nan")

    def broadcast_scale(self) -> NDArray[np.float32]:
        """``scale`` shaped so that it multiplies ``values``."""
        if self.axis is None:
            return self.scale
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape)

    def restored(self) -> NDArray[np.float32]:
        """The float32 weight that a session computes with."""
        return np.asarray(self.values.astype(np.float32) * self.broadcast_scale(), np.float32)


@dataclass(eq=False)
class BlockCodes(Codes):
    """A matrix [K, N] for an operator that reads blocks: value = code * the scale of its block.

    Attributes:
        values: int8 [K, N], also where the weight lies [N, K]; scale: float32 [K / block, N].
        bits: of a code, 4 or 8; turned: the weight lies [N, K].
    """

    bits: int = 8
    turned: bool = False

    @property
    def block(self) -> int:
        return int(self.values.shape[0]) // int(self.scale.shape[0])

    def restored(self) -> NDArray[np.float32]:
        """The float32 weight, in its own shape."""
        made = np.asarray(self.values * np.repeat(self.scale, self.block, 0), np.float32)
        return np.ascontiguousarray(made.T) if self.turned else made


def block_bytes(weight: Weight, chosen: Format) -> int:
    """Bytes of ``weight`` in a format with a float scale per block, with the node that reads it."""
    return int(weight.elements * (chosen.bits / 8 + 4 / chosen.block)) + UNFOLD_BYTES + 6 * len(weight.name)


def round_to_nearest(
    values: NDArray[np.float32],
    axis: int | None,
    levels: int = 127,
    smallest_scale: NDArray[np.float32] | None = None,
) -> Codes:
    """Symmetric rounding, one scale per channel of ``axis``; channels of zeros get scale 1.

    Args:
        values: the weight, any shape.
        axis: channel axis, None for one scale.
        levels: largest code magnitude.
        smallest_scale: lower limit of each scale [channels], which keeps an int32 bias in range.
    """
    values = np.asarray(values, np.float32)
    others = tuple(i for i in range(values.ndim) if i != axis)
    peak = np.abs(values).max(axis=others if axis is not None else None, initial=0.0)
    scale = np.asarray(peak / np.float32(levels), np.float32)
    if smallest_scale is not None:
        scale = np.maximum(scale, smallest_scale)
    scale = np.where(scale < np.float32(1e-30), np.float32(1.0), scale).astype(np.float32)
    scale = rounded_up(scale) if axis is not None else scale
    codes = Codes(np.zeros((0,), np.int8), scale, axis, levels)
    shape = [1] * values.ndim
    if axis is not None:
        shape[axis] = -1
    spread = scale.reshape(shape) if axis is not None else scale
    codes.values = np.clip(np.rint(values / spread), -levels, levels).astype(np.int8)
    return codes


def float_bytes(weight: Weight, kind: str = HALF) -> int:
    """Bytes of ``weight`` as smaller floats in the file, with its share of the nodes that unfold it."""
    bits, unfolding = FLOATS[kind][0], FLOAT_BYTES + len(weight.name) + cast_bytes(weight)
    return bits // 8 * weight.elements + unfolding + (0 if bits > 8 else 60 + 3 * len(weight.name))


def cast_bytes(weight: Weight) -> int:
    """Bytes of the Cast behind what unfolds in float32, where the weight has another type."""
    return CAST_BYTES + 3 * len(weight.name) if weight.cast else 0


def stored_bytes(weight: Weight, chosen: Format = INT8, *, groups: int = 1, plain: bool = False) -> int:
    """Bytes of ``weight`` as codes in the file: codes, scales, and its share of the nodes that unfold them.

    Args:
        groups: of the convolution that reads it; plain: codes lie in the file as they are.
    """
    channels = weight.shape[weight.channel_axis] if weight.channel_axis is not None else 1
    others = channels + UNFOLD_BYTES + 6 * len(weight.name) + cast_bytes(weight)
    layout, size = layout_of(weight.shape, weight.channel_axis, groups), prod(weight.shape)
    if chosen != INT8:
        size = packed_bytes(chosen, layout)
    elif plain:
        return size + others + 3 * channels
    elif weight.waves is not None:
        size = weight.waves.bytes
    if chosen.even:
        zeros = max(weight.zeros, weight.elements * chosen.zeros // 100)
        size = min(size, expected_bytes(weight.elements, zeros, chosen.levels))
    if chosen != INT8 and weight.frequent is not None:
        others += exact_bytes(len(weight.frequent), weight.elements // weight.shape[0])
    return size + others
