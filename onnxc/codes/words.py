"""Several digits in a word, and the table that turns words back into codes. In: digits. Out: words, a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.formats import WORDS
from onnxc.codes.grids import lowest_digit
from onnxc.codes.sheets import Sheet
from onnxc.model import Tensor

Array = NDArray[Any]


def packed_words(digits: Array, levels: int) -> Array:
    """Words of ``digits``, the first digit of each counting least; the last one is filled up with zeros."""
    word, count = WORDS[levels]
    flat = np.zeros(-(-digits.size // count) * count, np.uint8)
    flat[: digits.size] = digits.reshape(-1)
    words = np.zeros(len(flat) // count, np.uint16)
    for place in range(count):
        words += flat[place::count] * np.uint16(levels**place)
    return words.astype(word)


def digit_table(sheet: Sheet, levels: int) -> Tensor:
    """The codes that each word stands for: [words, codes in a word], shared by all weights.

    It is made at load from the values of one digit, so that the file does not hold it.
    """
    count, lowest = WORDS[levels][1], lowest_digit(levels)
    name = f"digits_{levels}"
    if name in sheet.known:
        return sheet.known[name]
    values = np.arange(lowest, lowest + levels, dtype=np.int8)
    whole = sheet.shared(f"{name}_shape", np.asarray([levels] * count + [1], np.int64))
    places = []
    for place in range(count):  # the first digit counts least: it is the last axis
        shape = [1] * (count + 1)
        shape[count - 1 - place] = levels
        column = sheet.shared(f"{name}_{place}", values.reshape(shape))
        places.append(sheet.node("Expand", [column, whole], f"{name}_at_{place}"))
    grid = sheet.node("Concat", places, f"{name}_grid", axis=count)
    sheet.known[name] = sheet.reshaped(grid, (-1, count), name)
    return sheet.known[name]
