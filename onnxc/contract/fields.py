"""What the fields of a pass may hold, said where they are declared. In: a pass class and what was asked for. Out: an
instance, or a RecipeError that names the field and the values there are.

    percentile: Annotated[float, Between(50, 100, open_low=True), Implies("range", "percentile")] = 99.99
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from onnxc.errors import RecipeError
from onnxc.samples.hooks import did_you_mean

KINDS = {int: "whole number", float: "number", str: "text"}


class OneOf:
    """A number among a few."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def complaint(self, value: Any) -> str:
        """What follows "field=value" where that is wrong; else empty."""
        return "" if value in self.values else f" is not one of {', '.join(f'{each:g}' for each in self.values)}"


@dataclass(frozen=True)
class Between:
    """A finite number from ``low`` to ``high``.

    Attributes:
        open_low, open_high: the end itself is none of them; beside: one more that is.
        percent: the number is in percent: 99% is 99, not 0.99.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    beside: float | None = None
    percent: bool = False

    def complaint(self, value: Any) -> str:
        """What follows "field=value" where that is wrong; else empty."""
        below = value <= self.low if self.open_low else value < self.low
        above = value >= self.high if self.open_high else value > self.high
        if value == self.beside or (math.isfinite(value) and not below and not above):
            return ""
        ends = [f"{'above' if self.open_low else 'at least'} {self.low:g}"] if self.low > -math.inf else []
        ends += [f"{'below' if self.open_high else 'at most'} {self.high:g}"] if self.high < math.inf else []
        ends += ["finite"] if math.isinf(value) else []
        return f" must be {' and '.join(ends)}" + (f", or {self.beside:g}" if self.beside is not None else "")


@dataclass(frozen=True)
class Readable:
    """Text that ``read`` understands; of what it does not, its ValueError says why."""

    read: Callable[[str], object]

    def complaint(self, value: Any) -> str:
        """What follows "field=value" where that is wrong; else empty."""
        try:
            self.read(value)
        except ValueError as error:
            return f": {error}"
        return ""


@dataclass(frozen=True)
class Implies:
    """The field is read only where another one, ``field``, is ``value``: given alone it means that too."""

    field: str
    value: Any


class Configurable:
    """What has fields that a recipe may set."""

    def contradiction(self) -> str:
        """Why fields that were asked for do not go together, each allowed by itself; empty where they do."""
        return ""


def configured(kind: type[Any], name: str, values: Mapping[str, Any]) -> Any:
    """An instance of the pass class ``kind``, called ``name``, with the fields asked for.

    Raises:
        RecipeError: there is no such field, its value is none of those allowed, or fields contradict each other.
    """
    hints = get_type_hints(kind, include_extras=True)
    allowed = {each.name: hints[each.name] for each in fields(kind) if each.init}
    arguments: dict[str, Any] = {}
    implied: list[tuple[str, Implies]] = []
    for key, value in values.items():
        if key not in allowed:
            there = did_you_mean(key, list(allowed), "it has") if allowed else "; it has no fields"
            raise RecipeError(f"pass '{name}' has no field '{key}'{there}")
        hint, *rules = get_args(allowed[key]) if get_origin(allowed[key]) is Annotated else (allowed[key],)
        percent = any(isinstance(rule, Between) and rule.percent for rule in rules)
        arguments[key] = converted(value, hint, f"{name}:{key}", percent=percent)
        for rule in rules:
            if isinstance(rule, Implies):
                implied.append((key, rule))
            elif said := rule.complaint(arguments[key]):
                raise RecipeError(f"{name}:{key}={value}{said}")
    for key, rule in implied:
        if arguments.setdefault(rule.field, rule.value) != rule.value:
            raise RecipeError(
                f"{name}:{key} is read only with {rule.field}={rule.value}, not {rule.field}={arguments[rule.field]}"
            )
    instance = kind(**arguments)
    if values and (said := instance.contradiction()):
        raise RecipeError(f"{name}: {said}")
    return instance


def converted(value: Any, hint: Any, where: str, *, percent: bool = False) -> Any:
    """``value`` as the field's type: numbers from text, and only listed words for a Literal."""
    choices = get_args(hint)
    if choices and all(isinstance(choice, str) for choice in choices):
        if value not in choices:
            raise RecipeError(f"{where}={value} is not one of {', '.join(choices)}")
        return value
    wanted = hint if isinstance(hint, type) else type(value)
    if wanted is bool:
        if str(value).lower() not in ("true", "false"):
            raise RecipeError(f"{where}={value} is neither true nor false")
        return str(value).lower() == "true"
    word = value.strip() if isinstance(value, str) else value
    try:
        if wanted is float and isinstance(word, str) and word.endswith("%"):
            made = float(word.removesuffix("%")) / (1 if percent else 100)
        else:
            made = wanted(word)
        if isinstance(value, bool) or (wanted is float and math.isnan(made)) or (wanted is int and made != float(word)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise RecipeError(f"{where}={value} is not a {KINDS.get(wanted, wanted.__name__)}") from None
    return made
