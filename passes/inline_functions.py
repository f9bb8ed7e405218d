"""Local functions are put where they are called: passes and libraries see operators then, not calls.

before: x -> MyGelu (a function of the model) -> y        after: x -> Div -> Erf -> Add -> Mul -> Mul -> y
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx import ModelProto, inliner

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.errors import ModelError
from onnxc.model import Model

from .skeletons import adopt, through_skeleton


@dataclass(frozen=True)
class InlineFunctions(ExactPass):
    """Put the bodies of all local functions in the place of their calls.

    1. Every function, also one called from inside another or from a body.
    2. Left as they are when ONNX's inliner refuses them (functions of an opset that differs too much).
    """

    name: ClassVar[str] = "inline-functions"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        if not model.functions:
            return Outcome()
        count = len(model.functions)
        try:
            adopt(model, through_skeleton(model, _inline))
        except (ModelError, RuntimeError, ValueError) as error:
            return Outcome(0, (f"{count} local functions were kept: {' '.join(str(error).split())[:200]}",))
        return Outcome(count, (f"{count} local functions put where they are called",))


def _inline(proto: ModelProto) -> ModelProto:
    inlined: ModelProto = inliner.inline_local_functions(proto, convert_version=False)
    return inlined
