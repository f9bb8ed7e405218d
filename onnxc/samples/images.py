"""Pictures that mean nothing and look like none, but have the power that pictures have. In: a shape. Out: an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SMALLEST_SIDE = 8  # of a picture
AGREEING, TINT = 0.8, 0.5  # share of power that channels have in common; standard deviation of an image's own colour


def image_layout(shape: Sequence[int]) -> int | None:
    """The axis of the channels of [N, C, H, W] or [N, H, W, C]; None of anything that is no picture."""
    if len(shape) != 4:
        return None
    sides = {1: min(shape[2:]), 3: min(shape[1:3])}
    return next((axis for axis in (1, 3) if shape[axis] in (1, 3, 4) and sides[axis] >= SMALLEST_SIDE), None)


def is_image(value: object) -> bool:
    """Whether an input has the shape of pictures."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and image_layout(value.shape) is not None


def make_image(shape: tuple[int, ...], axis: int, random: Any) -> np.ndarray:
    """Noise of unit power that has what all pictures have: the power of natural images falls with the square of the
    frequency (Field, "Relations between the statistics of natural images", 1987), and their channels mostly agree.
    """
    height, width = (size for place, size in enumerate(shape) if place not in (0, axis))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = np.inf

    def noise(count: int) -> Any:
        made = np.fft.ifft2(np.fft.fft2(random.standard_normal((count, height, width))) / frequency).real
        return made / made.std((1, 2), keepdims=True)

    images, channels = shape[0], shape[axis]
    common, own = noise(images)[:, None], noise(images * channels).reshape(images, channels, height, width)
    made = np.sqrt(AGREEING) * common + np.sqrt(1 - AGREEING) * own
    made += TINT * random.standard_normal((images, channels, 1, 1))
    return np.moveaxis(made, 1, axis)
