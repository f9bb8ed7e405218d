"""Numbers as text: with the unit and the digits that a reader needs. In: figures. Out: words for any report."""

from __future__ import annotations

from math import isnan

UNHEARD = "not a number in both"
"""What there is to say of two outputs that are NaN or infinite everywhere."""


def amount(count: int | None) -> str:
    """Bytes in the unit that gives two to four digits."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.2f} {unit}"
        value /= 1000
    return ""


def decibels(value: float | None) -> str:
    """An SQNR; outputs that are equal have none, nor those of which nothing is a number."""
    if value is None:
        return ""
    if isnan(value):
        return UNHEARD
    return "equal" if value >= 200 else "incomparable" if value == float("-inf") else f"{value:.1f} dB"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return "" if value is None else f"{100 * value:.2f}".rstrip("0").rstrip(".") + " %"


def operations(count: int | None) -> str:
    """Multiply-accumulates with a unit."""
    if not count:
        return ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return str(count)


def milliseconds(value: float | None) -> str:
    """Three significant digits."""
    return "" if value is None else f"{value:.3g}"
