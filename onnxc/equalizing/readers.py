"""What rounding the weights of a seam's readers does to their outputs. In: a seam, rows that meet it. Out: errors.

Weights are matrices [K, N] here, whatever operator has them: K holds the kernel positions of a convolution.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxc.equalizing.scaling import Seam, as_rows, input_order
from onnxc.observe import Observations
from onnxc.sites import Site

ROWS = 192  # of the sampled rows, on which choices are compared

Matrix = NDArray[np.float32]
Vector = NDArray[np.float64]


def matrix_of(site: Site, values: Matrix) -> Matrix:
    """The weight of a site as [K, N]; K holds the kernel positions of a convolution."""
    if site.operator == "Conv":
        return np.ascontiguousarray(values.reshape(len(values), -1).T)
    return np.ascontiguousarray(values.T if site.node.attrs.get("transB", 0) else values)


def stored_as(site: Site, matrix: Matrix, shape: tuple[int, ...]) -> Matrix:
    """A matrix [K, N] in the shape of the site's weight: the way back from ``matrix_of``."""
    transposed = site.operator == "Conv" or site.node.attrs.get("transB", 0)
    return np.ascontiguousarray(matrix.T if transposed else matrix).reshape(shape)


class Outputs:
    """The error of a seam's readers for any factors, on sampled input rows.

    Args:
        seam: the tensor and its readers; their weights are taken as they are now.
        seen: sampled rows [R, K] of the readers.
        bits, block: what the weights are rounded to.
    """

    def __init__(self, seam: Seam, seen: Observations, bits: int, block: int) -> None:
        self.seam, self.bits, self.block = seam, bits, block
        self.parts: list[tuple[Matrix, Matrix, NDArray[np.intp], float]] = []
        for site in seam.sites:
            assert site.weight is not None
            values = np.asarray(site.weight.tensor.values, np.float32)
            rows = seen.rows_of(site)
            if rows is None:  # depthwise: its own scale makes any factor free
                continue
            rows = rows[:: -(-len(rows) // ROWS)]
            order = np.broadcast_to(input_order(site, seam.channels), values.shape)
            matrix = matrix_of(site, values)
            if site.operator == "Conv":
                channel = order[0].reshape(-1)
            else:
                channel = order[0] if site.node.attrs.get("transB", 0) else order[:, 0]
            signal = float(((rows @ matrix).astype(np.float64) ** 2).sum())
            self.parts.append((rows, matrix, channel, max(signal, 1e-30)))

    def weight_magnitude(self) -> Vector:
        """The largest |W| of every input channel over all readers."""
        found = np.zeros(self.seam.channels)
        for site in self.seam.sites:
            assert site.weight is not None
            found = np.maximum(found, np.abs(as_rows(site, np.asarray(site.weight.tensor.values))).max(1))
        return found

    def mean_magnitude(self) -> Vector:
        """The mean |x| of every channel over the sampled rows; 1 where there are none."""
        total, count = np.zeros(self.seam.channels), np.zeros(self.seam.channels)
        for rows, _, channel, _ in self.parts:
            np.add.at(total, channel, np.abs(rows).mean(0))
            np.add.at(count, channel, 1.0)
        return np.where(count > 0, total / np.maximum(count, 1), 1.0)

    def error(self, factors: Vector) -> float:
        """Noise over signal of the readers' outputs on few-bit weights, summed over the readers."""
        total = 0.0
        for rows, matrix, channel, signal in self.parts:
            scale = factors[channel].astype(np.float32)
            weight = matrix * scale[:, None]
            lost = blockwise(weight, self.bits, self.block) - weight
            error = np.asarray(rows @ (lost / scale[:, None]), np.float32)
            total += float((error.astype(np.float64) ** 2).sum()) / signal
        return total


def per_output(weight: Matrix, levels: int) -> Matrix:
    """A matrix [K, N] rounded to nearest, one scale per output."""
    step = np.maximum(np.abs(weight).max(0) / np.float32(levels), np.float32(1e-30))
    return np.asarray(np.rint(weight / step) * step, np.float32)


def blockwise(weight: Matrix, bits: int, block: int) -> Matrix:
    """A matrix [K, N] rounded to ``bits``, asymmetric, one scale and zero for ``block`` inputs of an output."""
    depth, outputs = weight.shape
    size = min(block, depth) if block else depth
    padded = np.pad(weight, ((0, -depth % size), (0, 0))).reshape(-1, size, outputs)
    low, high = np.minimum(padded.min(1, keepdims=True), 0), np.maximum(padded.max(1, keepdims=True), 0)
    top = np.float32(2**bits - 1)
    step = np.maximum((high - low) / top, np.float32(1e-30))
    zero = np.rint(-low / step)
    rounded = (np.clip(np.rint(padded / step) + zero, 0, top) - zero) * step
    return np.asarray(rounded.reshape(-1, outputs)[:depth], np.float32)
