"""How the codes of a weight are found, as far as it was asked for. In: the fields of a pass. Out: what solvers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Feedback = Literal["auto", "on", "off"]
Bias = Literal["auto", "corrected", "kept"]


@dataclass(frozen=True)
class Asked:
    """What passes say of the codes of one weight.

    Attributes:
        rounding: "gptq", on what meets the weight, "nearest", whatever does, or "hqq".
        feedback: whether GPTQ solves them on what the compressed model feeds the weight ("on"), or on what the original
            does ("off"); "auto": as the search for plans decides.
        bias: whether the bias behind the weight takes up what rounding does to the mean of the outputs ("corrected"),
            or not ("kept"); "auto": where there is feedback.
    """

    rounding: str = "gptq"
    feedback: Feedback = "auto"
    bias: Bias = "auto"

    def fed(self, rounding: str, *, usual: bool) -> bool:
        """Whether codes found by ``rounding`` are solved on what the compressed model feeds the weight."""
        return rounding == "gptq" and (usual if self.feedback == "auto" else self.feedback == "on")

    def corrects(self, *, fed: bool) -> bool:
        """Whether the bias takes up the mean."""
        return fed if self.bias == "auto" else self.bias == "corrected"

    @property
    def walks(self) -> bool:
        """Whether samples have to go through the compressed model for it, whatever the search decides."""
        return self.feedback == "on" or self.bias == "corrected"

    def beside(self, other: Asked) -> Asked:
        """What two passes say of one weight, whatever its format: what one of them forbids is not done."""
        feedback = self.feedback if self.feedback == "off" or other.feedback == "auto" else other.feedback
        bias = self.bias if self.bias == "kept" or other.bias == "auto" else other.bias
        return Asked(self.rounding, feedback, bias)
