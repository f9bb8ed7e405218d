"""The tree of errors. Every error is one line for the user: what, where, what to do.

OnnxcError            70  our own bug
├── UsageError         2  the command or call itself is wrong
├── BudgetError        1  a limit was not met; the best that was found is in .report
└── InputError         3  something that was handed in is bad
    ├── ModelError        the model file
    ├── DataError         calibration data, or inputs that do not fit the model
    ├── HookError         the --eval hook
    ├── RecipeError       the recipe
    └── MissingExtraError an optional package is not installed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxc.report import Report


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a state kept from which the same command goes on."""


class OnnxcError(Exception):
    """Base of every error that onnxc raises on purpose."""

    exit_code: int = 70


class UsageError(OnnxcError):
    """The command line or the call is wrong: an unknown option value, IN equal to OUT."""

    exit_code = 2


class BudgetError(OnnxcError):
    """A limit was not met. Nothing was written; ``report`` describes the best that was found."""

    exit_code = 1

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class InputError(OnnxcError):
    """Something that was handed in cannot be used."""

    exit_code = 3


class ModelError(InputError):
    """The model file is missing, damaged, unsafe or cannot be run."""


class DataError(InputError):
    """Calibration data is missing, damaged or does not fit the model's inputs."""


class HookError(InputError):
    """The evaluation hook is missing, raised, or did not return a usable number."""


class RecipeError(InputError):
    """The recipe names an unknown pass or field, or a value of the wrong kind."""


class MissingExtraError(InputError):
    """An optional package is needed: the message names the ``pip install onnxc[...]``."""
