"""Convolution kernels of low rank. In: a kernel and H = E[x xT] of its im2col rows. Out: two or three thin kernels.

channel   k x k to r channels, then 1 x 1: a matrix of low rank, see low_rank.py.
tucker    1 x 1 to p channels, k x k to q, 1 x 1 (Kim et al., "Compression of Deep Convolutional Neural Networks for
          Fast and Low Power Mobile Applications", 2015), begun by HOSVD.
spatial   k x 1 to r channels, then 1 x k (Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks
          with Low Rank Expansions", 2014), begun by an SVD.

Tucker and spatial are then refined by alternating least squares on the output error: the last part exactly (an ordinary
regression), the first by conjugate gradients, which never build its normal matrix. Kernels are [G, O, C, *k] with G
groups; the matrix of a kernel is [G, C k, O], rows ordered as im2col.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxc.factors.low_rank import decompose

Array = NDArray[np.float64]
ROUNDS, STEPS = 3, 8  # of alternation; of conjugate gradients in each


def matrix_of(kernel: Array) -> Array:
    """[G, C k, O] of a kernel [G, O, C, *k]."""
    return np.asarray(kernel.reshape(*kernel.shape[:2], -1).swapaxes(1, 2))


def kernel_of(matrix: Array, channels: int, size: tuple[int, ...]) -> Array:
    """[G, O, C, *k] of a matrix [G, C k, O]."""
    return np.ascontiguousarray(matrix.swapaxes(1, 2)).reshape(len(matrix), matrix.shape[2], channels, *size)


def damage(matrix: Array, made: Array, moment: Array, total: Array) -> float:
    """E|y - y'|^2 / E|y|^2 over all groups."""
    off = matrix - made
    return float((off * (moment @ off)).sum() / max(float(total.sum()), 1e-300))


def channel_moment(moment: Array, channels: int) -> Array:
    """E[x xT] [G, C, C] of the input channels, the mean over kernel positions of H [G, C k, C k]."""
    places = moment.shape[1] // channels
    blocks = moment.reshape(len(moment), channels, places, channels, places)
    return np.asarray(np.trace(blocks, axis1=2, axis2=4) / places)


def column_moment(moment: Array, channels: int, size: tuple[int, int]) -> Array:
    """E[x xT] [G, C kh, C kh] of a column of the kernel's window, the mean over its columns."""
    rows, columns = size
    blocks = moment.reshape(len(moment), channels, rows, columns, channels, rows, columns)
    mean = np.trace(blocks, axis1=3, axis2=6) / columns
    return np.asarray(mean.reshape(len(moment), channels * rows, channels * rows))


class Tucker:
    """HOSVD of a kernel on its inputs: bases for both channel axes at every pair of ranks.

    Attributes:
        inputs: what each input direction adds to the output's energy, [G, C], falling; outputs: the same, [G, O].
    """

    def __init__(self, kernel: Array, moment: Array | None) -> None:
        self.kernel = np.asarray(kernel, np.float64)
        groups, _, self.channels, *size = self.kernel.shape
        self.size = tuple(size)
        self.matrix = matrix_of(self.kernel)
        self.moment = np.broadcast_to(np.eye(self.matrix.shape[1]), (groups, *self.matrix.shape[1:2] * 2))
        self.moment = np.array(self.moment) if moment is None else moment
        whole = decompose(self.matrix, self.moment)
        by_channel = np.moveaxis(self.kernel, 2, 1).reshape(groups, self.channels, -1)  # [G, C, O k]
        narrow = decompose(by_channel, channel_moment(self.moment, self.channels))
        self.inputs, self.outputs = narrow.energies, whole.energies
        self.start = np.asarray(np.linalg.qr(narrow.left)[0], np.float64)

    def ranks(self, allowed: float) -> tuple[int, int]:
        """Ranks (p, q) that each lose about half of ``allowed`` energy."""
        first, second = (least_rank(energies.sum(0), allowed / 2) for energies in (self.inputs, self.outputs))
        return first, second

    def parts(self, ranks: tuple[int, int], rounds: int = ROUNDS) -> tuple[Array, Array, Array]:
        """(first [G, p, C], core [G, q, p, *k], last [G, O, q]) with little output error; ``rounds`` of alternation."""
        first = self.start[:, :, : ranks[0]]
        core, last = self.behind(first, ranks[1])
        if ranks[0] < self.channels:
            for _ in range(rounds):
                first = self.before(first, core, last)
                first = np.asarray(np.linalg.qr(first)[0], np.float64)
                core, last = self.behind(first, ranks[1])
        return first.swapaxes(1, 2), kernel_of(core, ranks[0], self.size), last.swapaxes(1, 2)

    def spread(self, first: Array) -> Array:
        """[G, C k, p k]: what the first part does to im2col rows."""
        groups, channels, rank = first.shape
        places = prod(self.size)
        made = np.zeros((groups, channels, places, rank, places))
        at = np.arange(places)
        made[:, :, at, :, at] = first[None]
        return made.reshape(groups, channels * places, rank * places)

    def behind(self, first: Array, rank: int) -> tuple[Array, Array]:
        """(core [G, p k, q], last [G, q, O]): the best ones behind ``first`` [G, C, p]."""
        spread = self.spread(first)
        turned = spread.swapaxes(1, 2) @ self.moment
        inner = turned @ spread
        inner += tiny(inner)
        wanted = np.asarray(np.linalg.solve(inner, turned @ self.matrix), np.float64)
        found = decompose(wanted, inner)
        rank = min(rank, found.full)
        scale = np.sqrt(np.sqrt(np.maximum(found.energies[:, :rank], 1e-12 * found.energies[:, :1] + 1e-300)))
        left, right = (np.asarray(each, np.float64) for each in (found.left, found.right))
        return left[:, :, :rank] / scale[:, None, :], right[:, :rank] * scale[:, :, None]

    def before(self, first: Array, core: Array, last: Array) -> Array:
        """A better ``first`` [G, C, p] in front of a core and a last part."""
        groups, channels, rank = first.shape
        basis, turn = np.linalg.qr(last.swapaxes(1, 2))  # nothing but the outputs that ``last`` reaches can change
        inner = core @ turn.swapaxes(1, 2)  # [G, p k, q]
        flat = inner.reshape(groups, rank, -1)

        def forward(part: Array) -> Array:
            return np.asarray((part @ flat).reshape(groups, self.matrix.shape[1], -1))

        def adjoint(matrix: Array) -> Array:
            return np.asarray(matrix.reshape(groups, channels, -1) @ flat.swapaxes(1, 2))

        return conjugate_gradients(forward, adjoint, self.moment, self.matrix @ basis, first)


class Spatial:
    """SVD of a two-dimensional kernel [G, O, C, kh, kw] as columns and rows.

    Attributes:
        energies: what each part adds to the output's energy, [G, Q], falling.
    """

    def __init__(self, kernel: Array, moment: Array | None) -> None:
        self.kernel = np.asarray(kernel, np.float64)
        groups, self.filters, self.channels, self.rows, self.columns = self.kernel.shape
        self.matrix = matrix_of(self.kernel)
        self.moment = np.asarray(np.broadcast_to(np.eye(self.matrix.shape[1]), (groups, *self.matrix.shape[1:2] * 2)))
        self.moment = self.moment if moment is None else moment
        column = column_moment(self.moment, self.channels, (self.rows, self.columns))
        unfolded = self.kernel.transpose(0, 2, 3, 1, 4).reshape(
            groups, self.channels * self.rows, -1
        )  # [G, C kh, O kw]
        self.found = decompose(unfolded, column)
        self.energies = self.found.energies

    def parts(self, rank: int, rounds: int = ROUNDS) -> tuple[Array, Array]:
        """(first [G, r, C, kh, 1], last [G, O, r, 1, kw]) with little output error."""
        groups = len(self.kernel)
        first = self.found.left[:, :, :rank]
        first = first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-300)
        last = self.behind(first)
        for _ in range(rounds if rank < self.found.full else 0):
            first = self.before(first, last)
            first = first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-300)
            last = self.behind(first)
        size = np.sqrt(np.maximum(np.linalg.norm(last, axis=(2, 3)), 1e-300))  # [G, r]
        first, last = first * size[:, None, :], last / size[:, :, None, None]
        made = first.swapaxes(1, 2).reshape(groups, rank, self.channels, self.rows, 1)
        return made, last.transpose(0, 3, 1, 2)[:, :, :, None, :]

    def behind(self, first: Array) -> Array:
        """The best last part [G, r, kw, O] behind ``first`` [G, C kh, r]."""
        groups, _, rank = first.shape
        at = np.arange(self.columns)
        spread = np.zeros((groups, self.channels * self.rows, self.columns, rank, self.columns))
        spread[:, :, at, :, at] = first[None]
        spread = spread.reshape(groups, -1, rank * self.columns)
        turned = spread.swapaxes(1, 2) @ self.moment
        inner = turned @ spread
        inner += tiny(inner)
        found = np.linalg.solve(inner, turned @ self.matrix)
        return np.asarray(found.reshape(groups, rank, self.columns, self.filters))

    def before(self, first: Array, last: Array) -> Array:
        """A better ``first`` [G, C kh, r] in front of ``last`` [G, r, kw, O]."""
        groups, depth, rank = first.shape
        flat = last.reshape(groups, rank, -1)

        def forward(part: Array) -> Array:
            return (part @ flat).reshape(groups, depth * self.columns, self.filters)

        def adjoint(matrix: Array) -> Array:
            return matrix.reshape(groups, depth, -1) @ flat.swapaxes(1, 2)

        return conjugate_gradients(forward, adjoint, self.moment, self.matrix, first)


def lost(energies: Array) -> Array:
    """[Q + 1], the share of the energy that is lost at every rank from 0 on."""
    kept = np.concatenate([[0.0], np.cumsum(energies)])
    return np.asarray(1 - kept / max(float(kept[-1]), 1e-300))


def least_rank(energies: Array, allowed: float) -> int:
    """The lowest rank, 1 or more, that loses at most ``allowed`` of the energy."""
    return max(int(np.argmax(lost(energies) <= allowed + 1e-12)), 1)


def tiny(moment: Array) -> Array:
    """What makes [G, K, K] safe to invert and changes nothing else."""
    size = 1e-10 * np.trace(moment, axis1=1, axis2=2) + 1e-300
    return np.asarray(size[:, None, None] * np.eye(moment.shape[1]))


def conjugate_gradients(
    forward: Callable[[Array], Array], adjoint: Callable[[Array], Array], moment: Array, matrix: Array, start: Array
) -> Array:
    """The part A with less tr((M - f(A))T H (M - f(A))), a few steps from ``start``; f is linear, with its adjoint.

    Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952, on the normal equations.
    """
    part = start
    residual = adjoint(moment @ (matrix - forward(part)))
    direction, size = residual, float(np.square(residual).sum())
    smallest = 1e-16 * size
    for _ in range(STEPS):
        if size <= smallest or size == 0:
            break
        turned = adjoint(moment @ forward(direction))
        curvature = float((direction * turned).sum())
        if curvature <= 0:
            break
        step = size / curvature
        part = part + step * direction
        residual = residual - step * turned
        size, before = float(np.square(residual).sum()), size
        direction = residual + (size / before) * direction
    return part
