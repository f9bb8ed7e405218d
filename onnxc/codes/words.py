"""Several digits in a word, and the operators that turn words back into codes. In: digits. Out: words, a tensor.

    few:   words ── Cast ── Div(1, levels, levels ** 2, ...) ── Mod(levels) ── digits
    many:  words ── Cast ── Gather(table)

Division takes ONNX Runtime 6 to 10 nanoseconds for a code, a look-up 2, and 0.2 (two codes in a word) to 0.7 (five)
milliseconds and 500 bytes of a file for the nodes that make the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxc.codes.formats import FEW, WORDS
from onnxc.codes.grids import lowest_digit
from onnxc.codes.sheets import Sheet
from onnxc.model import Tensor

MOD_OPSET = 10  # the first with Mod

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


def separated(sheet: Sheet, name: str, digits: Array, levels: int) -> tuple[Tensor, int]:
    """Words that hold ``digits``, and at load their codes, [words, codes of a word]; and what digit 0 stands for: codes
    are int8 from the lowest one, or int32 from 0.
    """
    words, count = packed_words(digits, levels), WORDS[levels][1]
    few = digits.size <= FEW * count and sheet.model.opset >= MOD_OPSET
    stored = sheet.constant(f"{name}_packed", words[:, None] if few else words)
    index = sheet.node("Cast", [stored], f"{name}_words", to=TensorProto.INT32)
    if not few:
        return sheet.node("Gather", [digit_table(sheet, levels), index], f"{name}_all"), lowest_digit(levels)
    places = sheet.shared(f"places_{levels}", (levels ** np.arange(count)).astype(np.int32))
    quotients = sheet.node("Div", [index, places], f"{name}_quotients")
    return sheet.node("Mod", [quotients, sheet.number(levels)], f"{name}_digits"), 0


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
