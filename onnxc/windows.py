"""Where the windows of a convolution or a pooling lie. In: attributes, sizes of an input. Out: steps, pads, counts."""

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

    def padded(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """``values`` [B, C, ...] with zeros around them."""
        return np.pad(values, [(0, 0), (0, 0), *self.pads])

    def counts(self, padded: NDArray[Any]) -> list[int]:
        """Positions along each axis of what came from ``padded``; below 1 where no window fits."""
        sizes = padded.shape[2:]
        return [
            (n - (k - 1) * d - 1) // s + 1
            for n, k, d, s in zip(sizes, self.kernel, self.dilations, self.strides, strict=True)
        ]


def same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Pads before and after an axis that give size / stride positions, rounded up; an odd one lies after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2
