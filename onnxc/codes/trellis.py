"""Trellis-coded quantization: codes that stand for one of twice as many values as they have levels, along a path.

In: rows of weights in units of their scales. Out: the codes of the path through a trellis that is nearest to each
segment of neighbouring outputs, and the int8 values that it stands for.

Marcellin and Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources" (1990), with Ungerboeck's
code of four states ("Channel coding with multilevel/phase signals", 1982). The values of a format, twice as many as a
code has levels, lie in four interleaved subsets D0 to D3: value u is in subset u mod 4. A code is a path bit and the
number of a member. The subset follows from three path bits, b of the weight itself, b' and b'' of the two before it:
D = 2 (b xor b'') + b'. So a weight has all levels at twice the distance, and paths that are far apart choose between
them: 1.5 dB more than the best scalar code of as many bits has. A segment bites its tail: before its first weight come
its last two, which costs no bits for a state to start in (as in Tseng, Sun, Hou, De Sa, "QTIP", 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.formats import trellis_segment
from onnxc.codes.grids import Matrix, Places

STATES, SUBSETS = 4, 4
HALVES = 512  # halves of a code in the range of int8: between two of them the nearest member is the same one

Cells = NDArray[np.intp]


@lru_cache
def union_of(levels: int, limit: int) -> NDArray[np.int8]:
    """The values of a format with codes of ``levels``, [2 levels], ascending, +-``limit`` at the ends.

    They are quantiles of the normal distribution, within 0.05 dB of what Lloyd's iterations on samples of it find; with
    a scale per output they fit wider and narrower distributions as well.
    """
    count = 2 * levels
    values = np.array([NormalDist().inv_cdf((each + 0.5) / count) for each in range(count)])
    return np.asarray(np.rint(values * (limit / values[-1])), np.int8)


@dataclass(frozen=True)
class TrellisGrid:
    """Paths through a trellis along neighbouring outputs.

    Attributes:
        levels: of a code, even; ``union`` has twice as many values, int8, ascending.
        importance: [G, N], how much an error of each output counts.
        closed: paths end where they start, as is stored; open ones are found in a third of the time, and tell how far
            from a matrix paths are.
    """

    levels: int
    union: NDArray[np.int8]
    importance: Matrix
    closed: bool = True

    def width(self, outputs: int) -> int:
        """Codes of a row, whose last segment may be longer than what is left."""
        count, length = trellis_segment(outputs, self.levels)
        return count * length

    def snap(self, at: Places, target: Matrix) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        """Codes [R, width] and values [R, N] of the best paths near ``target`` [R, N]."""
        rows, outputs = target.shape
        steps, groups = self.along(target), at[0]
        whole = len(groups) == len(self.importance) and bool((groups == np.arange(len(groups))).all())
        cells = np.fmin(np.fmax(2 * steps + HALVES // 2, 0), HALVES - 1).astype(np.intp)
        errors = self.member_values.take(cells, axis=1)
        errors -= steps
        errors *= errors
        errors *= self.importance_along if whole else self.along(self.importance[groups])
        before, after = best_paths(errors, closed=self.closed)
        last = after & 1
        place = (((before & 1) * 2 + (last ^ (before >> 1))) * HALVES + cells).T
        digits = self.member_numbers.take(place) + (last * (self.levels // 2)).astype(np.uint8).T
        values = self.member_values.take(place).reshape(rows, -1)[:, :outputs]
        return digits.reshape(rows, -1), values.astype(np.int8)

    def along(self, matrix: Matrix) -> Matrix:
        """[R, N] as steps of all segments, [length, R * count]; what is filled up has no importance."""
        outputs = matrix.shape[1]
        count, length = trellis_segment(outputs, self.levels)
        wide = np.pad(matrix, ((0, 0), (0, count * length - outputs))) if count * length > outputs else matrix
        return np.ascontiguousarray(wide.reshape(-1, length).T)

    @cached_property
    def importance_along(self) -> Matrix:
        """Of all groups."""
        return self.along(self.importance)

    @cached_property
    def members(self) -> Cells:
        """[subsets, HALVES], the number of the member nearest to what lies in each half of a code. Subsets are in the
        order D0, D2, D1, D3: by the path bit of the weight before, then by the two others' sum.
        """
        centre = (np.arange(HALVES) - HALVES // 2 + 0.5) / 2
        own = [self.union[subset::SUBSETS].astype(np.float64) for subset in (0, 2, 1, 3)]
        return np.stack([np.abs(centre[:, None] - values).argmin(1) for values in own])

    @cached_property
    def member_numbers(self) -> NDArray[np.uint8]:
        return self.members.astype(np.uint8)

    @cached_property
    def member_values(self) -> Matrix:
        places = self.members * SUBSETS + np.array([0, 2, 1, 3])[:, None]
        return np.asarray(self.union[places], np.float32)


def best_paths(errors: Matrix, *, closed: bool) -> tuple[Cells, Cells]:
    """The states before and after every step on the paths with the least sum of errors (Viterbi 1967), [T, B] each.

    A state is 2 b' + b, the path bits of the two weights before, b of the last one. All segments take a step at once.

    Args:
        errors: [subsets, T, B], of the nearest member of each subset in T steps of B segments.
        closed: whether a path starts in the state in which it ends; each of the four is tried.
    """
    _, length, count = errors.shape
    starts, segments = STATES if closed else 1, np.arange(count)
    by_step = errors.swapaxes(0, 1).reshape(length, 2, 2, 1, count)  # by b', then by b xor b''
    steps = np.empty((length, 2, 2, 2, 1, count), np.float32)  # by b'', b' and b
    steps[:, 0], steps[:, 1] = by_step, by_step[:, :, ::-1]
    cost = np.full((STATES, starts, count), np.inf if closed else 0.0, np.float32)
    cost[np.arange(starts), np.arange(starts)] = 0
    came = np.empty((length, STATES * starts * count), np.bool_)  # b'' of the better way into a state
    ways = np.empty((2, STATES * starts * count), np.float32)
    by_bits, coming, into = ways.reshape(2, 2, 2, starts, count), cost.reshape(2, 2, 1, starts, count), cost.reshape(-1)
    one, other = ways
    for step, better in zip(steps, came, strict=True):
        np.add(coming, step, out=by_bits)
        np.less(other, one, out=better)
        np.minimum(one, other, out=into)
    if closed:
        last = cost[np.arange(starts), np.arange(starts)].argmin(0)
        own = last * count + segments  # of the start that is best for each segment
        came = came.reshape(length, STATES, starts * count).take(own, axis=2)
    else:
        last = cost[:, 0].argmin(0)
    # The place, in [states, segments], of the state that each state was reached from.
    back = came.reshape(length, STATES, count) * np.intp(2 * count)
    back += (np.arange(STATES) // 2)[:, None] * count + segments
    places = np.empty((length + 1, count), np.intp)
    places[length] = last * count + segments
    for at in range(length - 1, -1, -1):
        back[at].reshape(-1).take(places[at + 1], out=places[at], mode="clip")
    found = places // count
    return found[:-1], found[1:]
