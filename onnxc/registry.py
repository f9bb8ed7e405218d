"""Name -> pass. In: the entry-point group "onnxc.passes" of what is installed. Out: pass classes by name.

An entry point names a pass class or a tuple of them. The passes that come with onnxc are the entry point
"builtin"; in a checkout that is not installed there is no metadata, so what it would name is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from onnxc.errors import RecipeError

GROUP = "onnxc.passes"
BUILTIN = EntryPoint("builtin", "onnxc.passes:PASSES", GROUP)


def load_passes() -> dict[str, type[Any]]:
    """Every pass by the name that recipes use, in pipeline order: built-in ones first, then by distribution.

    Raises:
        RecipeError: an installed plug-in does not load, or two passes have one name.
    """
    found: dict[str, type[Any]] = {}
    for entry in _entries():
        for kind in _classes(entry):
            name = getattr(kind, "name", None)
            if not isinstance(kind, type) or not isinstance(name, str):
                raise RecipeError(f"entry point '{_origin(entry)}' holds {kind!r}, which is not a pass class")
            if found.setdefault(name, kind) is not kind:
                raise RecipeError(f"two passes are called '{name}': the second is in {_origin(entry)}")
    return found


def _entries() -> Iterator[EntryPoint]:
    installed = sorted(entry_points(group=GROUP), key=lambda entry: (entry.dist.name if entry.dist else "", entry.name))
    yield next((entry for entry in installed if entry.value == BUILTIN.value), BUILTIN)
    yield from (entry for entry in installed if entry.value != BUILTIN.value)


def _classes(entry: EntryPoint) -> Iterable[Any]:
    try:
        value = entry.load()
    except Exception as error:
        if entry.value == BUILTIN.value:
            raise
        text = " ".join(str(error).split())
        raise RecipeError(
            f"plug-in {_origin(entry)} does not load: {type(error).__name__}: {text}; mend or uninstall it"
        ) from error
    return value if isinstance(value, Iterable) and not isinstance(value, type) else (value,)


def _origin(entry: EntryPoint) -> str:
    package = f" of package '{entry.dist.name}'" if entry.dist else ""
    return f"{entry.name} = {entry.value}{package}"
