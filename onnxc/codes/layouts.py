"""How a weight lies. In: its shape, the axis of its outputs, groups. Out: the matrix that solvers see, and back."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How a weight's own axes map to the matrix [K, outputs] that solvers see.

    Attributes:
        shape: of the weight; axis: of its outputs; groups: of a grouped convolution, each with its own outputs.
    """

    shape: tuple[int, ...]
    axis: int
    groups: int = 1

    @property
    def outputs(self) -> int:
        return self.shape[self.axis]

    @property
    def depth(self) -> int:
        return prod(self.shape) // max(self.outputs, 1)

    @property
    def last(self) -> bool:
        """Whether outputs vary fastest, as in a MatMul."""
        return self.axis == len(self.shape) - 1 and self.groups == 1

    @property
    def others(self) -> tuple[int, ...]:
        """The shape without the axis of outputs."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    def rows(self, matrix: Array) -> Array:
        """[G, K, N] as rows [outputs, K]."""
        return matrix.swapaxes(1, 2).reshape(self.outputs, -1)

    def filed(self, matrix: Array) -> Array:
        """[G, K, N] in the weight's own shape."""
        return np.moveaxis(self.rows(matrix).reshape(self.outputs, *self.others), 0, self.axis)


def layout_of(shape: tuple[int, ...], axis: int | None, groups: int = 1) -> Layout:
    """Of a weight whose scales vary along ``axis``; all of it is one output where there is none."""
    return Layout(shape, axis, groups) if axis is not None else Layout((*shape, 1), len(shape), 1)
