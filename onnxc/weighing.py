"""How many bytes the file of a plan takes, before its weights are solved. In: a plan. Out: bytes.

A dry run: the plan is written with codes to nearest. What solvers decide moves codes, not the bytes that they take,
except where zeros are packed. In small files tables, scales and the nodes that unfold codes count: a residual network
of 600 KB has as many bytes of them as of codes, and what they take depends on which formats share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from onnxc.coder import Coder
from onnxc.codes.formats import FLOATS, parse_format
from onnxc.codes.moments import Given
from onnxc.encoding import Codes
from onnxc.exactness import file_bytes
from onnxc.model import Model
from onnxc.problem import Plan
from onnxc.written import written

RECEIPT = 152  # bytes that delivery adds: what the file says of how it was made
MOST_ELEMENTS = 4_000_000  # of all weights: beyond, everything else in the file is little, and a dry run takes seconds


@dataclass
class Scales:
    """Weighs plans of one model.

    Attributes:
        finish: rewrites every model at the end.
    """

    coder: Coder
    finish: Callable[[Model], object] = lambda model: None
    made: dict[tuple[str, str], Codes] = field(default_factory=dict)
    known: dict[object, int] = field(default_factory=dict)

    @property
    def able(self) -> bool:
        """Whether the model is small enough."""
        return sum(weight.elements for weight in self.coder.weights.values()) <= MOST_ELEMENTS

    def file_bytes(self, plan: Plan) -> int:
        """Bytes of the file of ``plan``."""
        if plan.key not in self.known:
            codes = {name: self.codes(name, mode) for name, mode in plan.stored.items() if mode not in FLOATS}
            made = written(
                self.coder.context.model, plan, codes, target=self.coder.context.target, late=self.coder.late
            ).model
            self.finish(made)
            self.known[plan.key] = file_bytes(made) + RECEIPT
        return self.known[plan.key]

    def codes(self, name: str, mode: str) -> Codes:
        """Of a weight, to nearest."""
        if (name, mode) not in self.made:
            chosen = parse_format(mode)
            nearest = mode if chosen.dimension or chosen.scaled else replace(chosen, rounding="nearest").name
            self.made[name, mode] = self.coder.solved(name, nearest, Given(None))
        return self.made[name, mode]
