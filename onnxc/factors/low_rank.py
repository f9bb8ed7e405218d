"""Matrices of low rank, judged on the inputs that they meet. In: W and H = E[x xT]. Out: damage(rank), and pairs U V.

The pair of rank r with the least output error E|x W - x U V|^2 is the truncated SVD of H^(1/2) W (Wang et al.,
"SVD-LLM: Truncation-aware Singular Value Decomposition", 2024, with L of H = L LT for the square root): all ranks come
from one decomposition. Where the inputs have changed since, W is first replaced by the least-squares solution on the
new ones; its truncation is then the best pair there is (reduced-rank regression, Izenman 1975).

Everything comes in groups: W [G, K, N] and H [G, K, K], G = 1 but for grouped convolutions and stacked matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DAMPING = 0.01  # of the mean of H's diagonal, added to it: directions that no sample took are kept as they are, cheaply
ROWS = 4096  # of a table at a time
SKETCHED = 1024  # both sides above it: the leading directions are sketched, the others never computed
SKETCH_START, SKETCH_EXTRA, POWERS = 256, 16, 2


@dataclass(frozen=True)
class Decomposition:
    """A matrix as a sum of rank-one parts, the one that matters most to the output first.

    Attributes:
        left: [G, K, Q]; right: [G, Q, N]; their product over all Q parts is W (or the sketched part of it).
        energies: [G, Q], what each part adds to E|y|^2, falling.
        total: [G], E|y|^2 of the whole output: what damage is measured against.
        lost: [G], the part of E|y|^2 that no part holds.
    """

    left: NDArray[np.floating[Any]]
    right: NDArray[np.floating[Any]]
    energies: Array
    total: Array
    lost: Array

    @property
    def full(self) -> int:
        """How many parts there are: min(K, N), or the length of the sketch."""
        return int(self.energies.shape[1])

    def damages(self) -> Array:
        """[Q + 1], E|y - y'|^2 / E|y|^2 of every rank from 0 on, over all groups together."""
        kept = np.concatenate([[0.0], np.cumsum(self.energies.sum(0))])
        everything = self.energies.sum() + self.lost.sum()
        return np.asarray(np.maximum(everything - kept, 0.0) / max(float(self.total.sum()), 1e-300))

    def rank_for(self, damage: float) -> int:
        """The lowest rank whose damage is at most ``damage``; Q + 1 where none of those here is."""
        below = np.flatnonzero(self.damages() <= damage + 1e-12)
        return max(int(below[0]), 1) if len(below) else self.full + 1

    def pair(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """U [G, K, rank] and V [G, rank, N]. What flows between them has the square root of each part's energy, so
        that both are about equally hard to quantize.
        """
        left, right = self.left[:, :, :rank], self.right[:, :rank]
        energy = np.maximum(self.energies[:, :rank], 1e-12 * self.energies[:, :1])
        norm = np.linalg.norm(right, axis=2)
        scale = np.where((energy > 0) & (norm > 0), energy**0.25 / np.where(norm > 0, norm, 1.0), 1.0)
        left, right = left / scale[:, None, :], right * scale[:, :, None]
        return left.astype(np.float32), right.astype(np.float32)


def regularized(moment: Array, damping: float = DAMPING) -> Array:
    """H [G, K, K] with ``damping`` times the mean of its diagonal on it; the identity where all inputs were zero or
    something is not finite.
    """
    made = np.array(moment, np.float64)
    depth = made.shape[1]
    mean = np.diagonal(made, axis1=1, axis2=2).mean(1)
    idle = ~(np.isfinite(made).all((1, 2)) & (mean > 0))
    made[idle] = np.eye(depth)
    made[:, np.arange(depth), np.arange(depth)] += damping * np.where(idle, 1.0, mean)[:, None]
    return made


def decompose(
    weight: Array, moment: Array | None = None, *, total: Array | None = None, most: int = 0
) -> Decomposition:
    """All ranks of ``weight`` at once.

    Args:
        weight: W [G, K, N].
        moment: H [G, K, K] or [1, K, K], regularized; None for the identity: the plain SVD.
        total: [G], what damage is measured against; tr(WT H W) if not given.
        most: the highest rank that is of use; a large matrix is decomposed no further. 0: all of them.

    With H at hand the squared singular values are the eigenvalues of the smaller of WT H W (of the outputs; U = W R,
    V = RT) and LT W WT L (of the inputs; U = L^-T Q, V = QT LT W): the same truncation either way.
    """
    weight = np.asarray(weight, np.float64)
    _, depth, width = weight.shape
    if min(depth, width) > SKETCHED and 0 < most < min(depth, width) // 2:
        return sketched(weight, moment, total, most)
    if width <= depth:
        weighted = weight if moment is None else moment @ weight
        energies, basis = falling(weight.swapaxes(1, 2) @ weighted)
        left, right = weight @ basis, np.ascontiguousarray(basis.swapaxes(1, 2))
    else:
        lower = root(moment)
        whitened = weight if lower is None else lower.swapaxes(1, 2) @ weight
        energies, basis = falling(whitened @ whitened.swapaxes(1, 2))
        left = basis if lower is None else solved(lower, basis)
        right = basis.swapaxes(1, 2) @ whitened
        if lower is None:
            left = np.broadcast_to(left, (len(weight), *left.shape[1:]))
    everything = energies.sum(1)
    return Decomposition(left, right, energies, everything if total is None else total, np.zeros(len(weight)))


def decompose_until(
    weight: Array, moment: Array | None, total: Array | None, most: int = 0, damage: float = 0.0
) -> Decomposition:
    """``decompose``, of a large matrix only as far as it takes to get below ``damage``: the sketch starts short and
    doubles.
    """
    size = SKETCH_START
    while damage and size < most:
        found = decompose(weight, moment, total=total, most=size)
        if found.damages()[-1] <= damage:
            return found
        size *= 4
        if not len(found.lost) or not found.lost.any():
            return found
    return decompose(weight, moment, total=total, most=most)


def sketched(weight: Array, moment: Array | None, total: Array | None, most: int) -> Decomposition:
    """The leading ``most`` parts of a large matrix, from random projections with power iterations (Halko, Martinsson,
    Tropp, "Finding Structure with Randomness", 2011, algorithms 4.4 and 5.1). In float32: a sketch is no more exact.
    """
    lower = root(moment)
    whitened = np.asarray(weight if lower is None else lower.swapaxes(1, 2) @ weight, np.float32)
    everything = np.square(whitened, dtype=np.float64).sum((1, 2))
    basis = orthonormal_range(whitened, min(most + SKETCH_EXTRA, *whitened.shape[1:]))
    small = (basis.swapaxes(1, 2) @ whitened).astype(np.float64)
    energies, turn = falling(small @ small.swapaxes(1, 2))
    energies, turn = energies[:, :most], turn[:, :, :most]
    rotated = basis.astype(np.float64) @ turn
    left = rotated if lower is None else solved(lower, rotated)
    lost = np.maximum(everything - energies.sum(1), 0.0)
    right = turn.swapaxes(1, 2) @ small
    return Decomposition(left, right, energies, everything if total is None else total, lost)


def orthonormal_range(matrix: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """An orthonormal basis [G, K, rank] of about the leading left singular vectors of ``matrix`` [G, K, N]."""
    random = np.random.default_rng(0)
    probes = random.standard_normal((len(matrix), matrix.shape[2], rank)).astype(np.float32)
    basis = np.linalg.qr(matrix @ probes)[0]
    for _ in range(POWERS):
        basis = np.linalg.qr(matrix.swapaxes(1, 2) @ basis)[0]
        basis = np.linalg.qr(matrix @ basis)[0]
    return np.asarray(basis, np.float32)


def decompose_rows(table: NDArray[np.floating[Any]], counts: Array, moment: Array | None = None) -> Decomposition:
    """A table [V, D] whose rows are read ``counts`` [V] times, and which may also be a head: ``moment`` [D, D] is
    E[x xT] of what is multiplied with its rows.

    The two wishes are met together by decomposing diag(counts)^(1/2) T H^(1/2); a row that was never seen counts as a
    tenth of a mean one. Only some rows at a time are held in float64.
    """
    weights = counts + 0.1 * max(float(counts.mean()), 1e-12)
    weights = weights / weights.mean()
    lower = None if moment is None else np.linalg.cholesky(moment)
    parts = [slice(start, start + ROWS) for start in range(0, len(table), ROWS)]

    def turned(part: slice) -> Array:
        rows = np.asarray(table[part], np.float64)
        return rows if lower is None else rows @ lower

    gram = np.zeros((table.shape[1], table.shape[1]))
    for part in parts:
        rows = turned(part)
        gram += rows.T @ (weights[part, None] * rows)
    energies, basis = falling(gram[None])
    right = basis[0].T if lower is None else np.linalg.solve(lower.T, basis[0]).T
    left = np.empty((1, *table.shape), np.float32)
    for part in parts:
        left[0, part] = turned(part) @ basis[0]
    return Decomposition(left, right[None], energies, energies.sum(1), np.zeros(1))


def regression(weight: Array, moment: Array, cross: Array, damping: float = DAMPING) -> Array:
    """The matrix M [G, K, N] with the least E|x' M - x W|^2 + d |M - W|^2.

    Args:
        weight: W [G, K, N], which met x in the original model.
        moment: E[x' x'T] [G, K, K] of what it meets now, not regularized; cross: E[x' xT] [G, K, K].
        damping: d as a fraction of the mean of the moment's diagonal.
    """
    made = regularized(moment, damping)
    added = np.asarray(made - moment) if np.isfinite(moment).all() else np.zeros_like(made)
    return np.asarray(np.linalg.solve(made, (cross + added) @ weight))


def falling(gram: Array) -> tuple[Array, Array]:
    """(eigenvalues, eigenvectors) of symmetric matrices [G, Q, Q], largest first, none negative."""
    values, vectors = np.linalg.eigh((gram + gram.swapaxes(1, 2)) / 2)
    return np.maximum(values[:, ::-1], 0.0), np.ascontiguousarray(vectors[:, :, ::-1])


def root(moment: Array | None) -> Array | None:
    """L of H = L LT, [G, K, K]."""
    return None if moment is None else np.asarray(np.linalg.cholesky(moment))


def solved(lower: Array, basis: Array) -> Array:
    """L^-T times ``basis``."""
    return np.asarray(np.linalg.solve(lower.swapaxes(1, 2), basis))


def output_energy(weight: Array, moment: Array) -> Array:
    """[G], tr(WT H W): E|y|^2 of each group."""
    return np.asarray((weight * (moment @ weight)).sum((1, 2)))


def break_even(depth: int, width: int, share: float = 1.0) -> int:
    """The highest rank whose pair holds at most ``share`` of the K N numbers of the matrix."""
    return int(share * depth * width / (depth + width) + 1e-9)


def rounded(rank: int, step: int, most: int) -> int:
    """``rank`` up to the next multiple of ``step`` that kernels like, but not above ``most``."""
    return max(rank, min(-(-rank // step) * step, most))
