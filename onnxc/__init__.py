"""onnxc compiles an ONNX model into a smaller, faster ONNX model, and proves what it claims.

The face of the library. Names are imported when they are first used, so that ``import onnxc`` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxc.compiler import optimize
    from onnxc.contract.candidates import Candidate, Refusal
    from onnxc.contract.passes import ExactPass, LossyPass, Outcome
    from onnxc.data import Calibration
    from onnxc.errors import BudgetError, OnnxcError
    from onnxc.model import Model
    from onnxc.recipe import Budget, Recipe
    from onnxc.report import Report
    from onnxc.validate import compare

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "BudgetError",
    "Calibration",
    "Candidate",
    "ExactPass",
    "LossyPass",
    "Model",
    "OnnxcError",
    "Outcome",
    "Recipe",
    "Refusal",
    "Report",
    "compare",
    "optimize",
]

_HOMES = {
    "Budget": "recipe",
    "BudgetError": "errors",
    "Calibration": "data",
    "Candidate": "contract.candidates",
    "ExactPass": "contract.passes",
    "LossyPass": "contract.passes",
    "Model": "model",
    "OnnxcError": "errors",
    "Outcome": "contract.passes",
    "Recipe": "recipe",
    "Refusal": "contract.candidates",
    "Report": "report",
    "compare": "validate",
    "optimize": "compiler",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxc' has no attribute '{name}'")
    value = getattr(import_module(f"onnxc.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
