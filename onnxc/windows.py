"""Windows of a convolution or a pooling. In: attributes, sizes, values. Out: steps and pads, what each window sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Windows:
    """One entry for every spatial axis; of ``pads`` what lies before and after."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[tuple[int, int]]

    @classmethod
    def of(cls, attributes: Mapping[str, Any], sizes: Sequence[int], kernel: Sequence[int]) -> Windows:
        """Those of a node with ``attributes`` on an input of ``sizes``."""
        axes, automatic = len(kernel), attributes.get("auto_pad", "NOTSET")
        strides = [int(step) for step in attributes.get("strides") or [1] * axes]
        dilations = [int(step) for step in attributes.get("dilations") or [1] * axes]
        if automatic in {"SAME_UPPER", "SAME_LOWER"}:
            pads = [same_pads(*each) for each in zip(sizes, kernel, strides, dilations, strict=True)]
            if automatic == "SAME_LOWER":
                pads = [(after, before) for before, after in pads]
        else:
            flat = [int(pad) for pad in attributes.get("pads") or ()] if automatic != "VALID" else []
            pads = list(zip(flat[:axes], flat[axes:], strict=True)) or [(0, 0)] * axes
        return cls(list(kernel), strides, dilations, pads)

    def seen(self, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """[B, C, positions..., kernel...]: ``values`` [B, C, ...] with zeros around, under every window; a view, in
        which nothing is repeated. None where no window fits.
        """
        padded = np.pad(values, [(0, 0), (0, 0), *self.pads])
        extent = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        if not len(padded) or any(n < e for n, e in zip(padded.shape[2:], extent, strict=True)):
            return None
        every = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, padded.ndim)))
        steps = [slice(None, None, step) for step in (*self.strides, *self.dilations)]
        return every[(slice(None), slice(None), *steps)]


def places(seen: NDArray[np.float32]) -> tuple[int, ...]:
    """(B, positions...) of what ``Windows.seen`` gives."""
    return len(seen), *seen.shape[2 : seen.ndim // 2 + 1]


def im2col(seen: NDArray[np.float32], picks: Sequence[NDArray[np.intp]], groups: int) -> NDArray[np.float32]:
    """Rows [R, G, C / G * kernel] at R places: ``picks`` has an index [R] for each entry of ``places``."""
    chosen: tuple[Any, ...] = (picks[0], slice(None), *picks[1:])
    return np.ascontiguousarray(seen[chosen], np.float32).reshape(len(picks[0]), groups, -1)


def same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Pads before and after an axis that give size / stride positions, rounded up; an odd one lies after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2
