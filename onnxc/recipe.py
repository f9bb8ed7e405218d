"""What the user asked for: limits, passes with their fields, target.

In: the words of the command line, or a TOML file. Out: a Recipe.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from onnxc.errors import RecipeError, UsageError
from onnxc.registry import load_passes
from onnxc.samples.hooks import did_you_mean

DEFAULT_LOAD_TIME = 2.0  # times the original's, where no limit is given


@dataclass(frozen=True)
class Budget:
    """The limits of section "limits" on the command line; None means no limit given.

    Attributes:
        size: largest allowed file, as a fraction of the input's bytes (0.25 is 25 %).
        speed: smallest allowed speed-up (2.0 is twice as fast).
        max_drop: largest relative loss of the user's metric (0.01 is 1 %); only with an evaluation hook.
        min_sqnr: smallest signal to quantization noise ratio of the outputs, in dB.
        min_agreement: smallest fraction of unchanged top-1 answers.
        max_load_time: longest time to create a session, as a factor of the original's; None: DEFAULT_LOAD_TIME.
        evals: most calls of the evaluation hook, the one for the original included.
    """

    size: float | None = None
    speed: float | None = None
    max_drop: float | None = None
    min_sqnr: float | None = None
    min_agreement: float | None = None
    max_load_time: float | None = None
    evals: int | None = None


@dataclass(frozen=True)
class PassRequest:
    """One pass that was asked for by name, with its fields; fields make it "done as told"."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides the model and the data."""

    budget: Budget = Budget()
    passes: tuple[PassRequest, ...] | None = None  # None: every lossy pass may propose
    target: str = "cpu"
    ops: str = "standard"  # or "ort": operators of com.microsoft are allowed
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 1
    seed: int = 0
    external_data: bool = False
    custom_ops: tuple[str, ...] = ()
    recover: float = 0.0  # minutes of training that wins back what compression lost
    keep_float: tuple[str, ...] = ()  # sites and weights that stay in float


def parse_fraction(text: str | float) -> float:
    """``25%``, ``0.25`` or 0.25 as a fraction. UsageError outside 0 to 1 or if it is no number."""
    word = str(text).strip()
    try:
        value = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"'{text}' is not a fraction: write 25% or 0.25") from None
    if not 0 <= value <= 1:
        raise UsageError(f"'{text}' is not between 0 and 1: write 25% or 0.25")
    return value


def parse_size(text: str | float) -> float:
    """As parse_fraction(), above 0: no file is empty."""
    value = parse_fraction(text)
    if not value:
        raise UsageError(f"'{text}' is no size of a file: write 25% or 0.25")
    return value


def parse_speed(text: str | float) -> float:
    """``2x``, ``2`` or 2.0 as a factor. UsageError if it is not above 0."""
    return _positive(str(text).strip().removesuffix("x"), f"'{text}' is not a factor: write 2x or 2")


def parse_decibels(text: str | float) -> float:
    """``20`` or ``20dB`` as decibels."""
    word = str(text).strip().lower().removesuffix("db").strip()
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not -200 <= value <= 200:
        raise UsageError(f"'{text}' is not a signal to noise ratio: write 20, in dB")
    return value


def parse_evals(text: str | float) -> int:
    """A number of calls of the hook: one for the original, and at least one for a plan."""
    word = str(text).strip()
    if not word.isdecimal() or int(word) < 2:
        raise UsageError(f"'{text}' is not a number of evaluations: write 2 or more, the original's is one of them")
    return int(word)


def parse_student(text: str) -> float | None:
    """``width=0.5`` as the part of the channels that a student has, ``compact`` as None."""
    if text == "compact":
        return None
    word, _, part = text.partition("=")
    with suppress(UsageError):
        if word == "width" and 0 < (width := parse_fraction(part)) < 1:
            return width
    raise UsageError(f"'{text}' makes no student: --student takes compact, or width=0.5, a part between 0 and 1")


def _positive(word: str, complaint: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(complaint)
    return value


LIMITS: Mapping[str, Callable[[str | float], Any]] = {
    "size": parse_size,
    "speed": parse_speed,
    "max_drop": parse_fraction,
    "min_sqnr": parse_decibels,
    "min_agreement": parse_fraction,
    "max_load_time": parse_speed,
    "evals": parse_evals,
}
"""The fields of a Budget and how each is read."""


def parse_passes(text: str) -> tuple[PassRequest, ...]:
    """``a,b:field=value:field=value`` as requests; values stay text until the field gives their type.

    Raises:
        RecipeError: no such pass, or something that is no field=value.
    """
    requests = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, *pairs = item.split(":")
        fields: dict[str, Any] = {}
        last = ""
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if pair.isdecimal() and fields and fields[last].isdecimal():  # pattern=2:4
                fields[last] = f"{fields[last]}:{pair}"
                continue
            if not equals or not key:
                raise RecipeError(f"'{pair}' in '{item}' is not field=value: write {name}:field=value")
            last = key.strip().replace("-", "_")
            if last in fields:
                raise RecipeError(f"'{item}' says {last} twice: give it one value")
            fields[last] = value.strip()
        requests.append(PassRequest(known_pass(name), fields))
    if not requests:
        raise RecipeError("no pass is named: write a,b or a:field=value; `onnxc passes` lists them")
    return tuple(requests)


def known_pass(name: str) -> str:
    """``name`` if there is such a pass; RecipeError with the closest one otherwise."""
    names = list(load_passes())
    if name not in names:
        raise RecipeError(f"unknown pass '{name}'{did_you_mean(name, names, 'there are')}")
    return name


def presets() -> dict[str, str]:
    """Name -> text of the recipes that come with onnxc."""
    folder = files("onnxc").joinpath("recipes")
    found = [each for each in folder.iterdir() if each.name.endswith(".toml")]
    return {each.name.removesuffix(".toml"): each.read_text(encoding="utf-8") for each in sorted(found, key=_name)}


def _name(entry: Any) -> str:
    return str(entry.name)


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file: limits and settings at the top level, passes in ``[[pass]]`` tables; or one of
    presets(), by its bare name where there is no file called so.

    Raises:
        RecipeError: the file cannot be read, or has a key, pass or value that does not exist.
    """
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8") if place.is_file() or not _bare(place) else preset(place.name)
        values = tomllib.loads(text)
    except OSError as error:
        raise RecipeError(f"recipe '{place}' cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe '{place}' is not TOML: {error}") from error
    try:
        return parse_recipe(values)
    except (RecipeError, UsageError) as error:
        raise RecipeError(f"recipe '{place}': {error}") from error


def _bare(place: Path) -> bool:
    return not place.suffix and place.name == str(place)


def preset(name: str) -> str:
    """The text of a recipe that comes with onnxc; RecipeError naming those there are."""
    known = presets()
    if name not in known:
        raise RecipeError(
            f"no recipe is called '{name}'{did_you_mean(name, list(known), 'there are')}; or give a .toml file"
        )
    return known[name]


_SETTINGS: Mapping[str, type | tuple[type, ...]] = {
    "target": str,
    "ops": str,
    "providers": list,
    "threads": int,
    "seed": int,
    "external_data": bool,
    "custom_ops": list,
    "recover": (int, float),
    "keep_float": list,
}


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """A Recipe from what a TOML file holds; keys may be written with ``-`` or ``_``."""
    limits: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    requests: tuple[PassRequest, ...] | None = None
    for written, value in values.items():
        key = written.replace("-", "_")
        if key == "pass":
            requests = tuple(_pass_table(table) for table in (value if isinstance(value, list) else [value]))
        elif key in LIMITS:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise RecipeError(f"'{written}' must be a number or text, not {value!r}")
            limits[key] = LIMITS[key](value)
        elif key in _SETTINGS:
            if not isinstance(value, _SETTINGS[key]) or (_SETTINGS[key] is int and isinstance(value, bool)):
                raise RecipeError(f"'{written}' cannot be {value!r}")
            settings[key] = tuple(map(str, value)) if isinstance(value, list) else value
        else:
            there = [*LIMITS, *_SETTINGS, "pass"]
            raise RecipeError(f"unknown key '{written}'{did_you_mean(key, there, 'there are')}")
    return replace(Recipe(), budget=Budget(**limits), passes=requests, **settings)


def recipe_text(recipe: Recipe) -> str:
    """``recipe`` as TOML that load_recipe() reads; what is as by default is left out."""
    plain = Recipe()
    values = {name: getattr(recipe.budget, name) for name in LIMITS if getattr(recipe.budget, name) is not None}
    values |= {name: getattr(recipe, name) for name in _SETTINGS if getattr(recipe, name) != getattr(plain, name)}
    tables = [{"use": request.name, **request.fields} for request in recipe.passes or ()]
    lines = [f"{name.replace('_', '-')} = {_toml(value)}" for name, value in values.items()]
    for table in tables:
        lines += ["", "[[pass]]", *(f"{name.replace('_', '-')} = {_toml(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value as TOML has it: its strings are those of JSON."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _pass_table(table: Any) -> PassRequest:
    if not isinstance(table, Mapping) or not isinstance(table.get("use"), str):
        raise RecipeError('a [[pass]] table needs use = "NAME"; `onnxc passes` lists the names')
    fields = {str(key).replace("-", "_"): value for key, value in table.items() if key != "use"}
    return PassRequest(known_pass(table["use"]), fields)
