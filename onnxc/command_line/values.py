"""Words of the command line as values. In: text. Out: shapes, numbers, limits; UsageError saying what to write."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from onnxc.errors import UsageError


def own_words(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type whose complaint is our own sentence."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def limit(name: str) -> Callable[[str], Any]:
    """An argparse type for the limit called ``name``."""

    def read(text: str) -> Any:
        from onnxc.recipe import LIMITS

        return LIMITS[name](text)

    return own_words(read)


def student(text: str) -> str:
    """``width=0.5`` or ``compact``, as it is."""
    from onnxc.recipe import parse_student

    parse_student(text)
    return text


def shape(text: str) -> tuple[str, list[int]]:
    """``NAME=1x128`` as (name, sizes)."""
    name, equals, sizes = text.rpartition("=")
    words = sizes.replace(",", "x").split("x") if sizes else []
    if not equals or not name or not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"'{text}' is not a shape: write NAME=1x128")
    return name, [int(word) for word in words]


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise UsageError(f"'{text}' is not a whole number above 0")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"'{text}' is not a number above 0")
    return value


def minutes(text: str) -> float:
    """``10``, ``10m`` or ``10min`` as minutes."""
    return positive(text.removesuffix("min").removesuffix("m"))
