"""One plan, built and judged. In: what judging found. Out: a Trial."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import helper

from onnxc.model import Model
from onnxc.problem import Plan
from onnxc.quality import Quality

LEAST_SHARE = 0.02  # of a form's noise, that rounding makes: what is left of a difference of two like figures

NOTHING = Model.load(helper.make_model(helper.make_graph([], "nothing", [], [])))


@dataclass
class Trial:
    """One plan, built and judged.

    Attributes:
        plan, model: what was decided, and the model that came out.
        quality: against the original, over all samples.
        score: of the user's metric, None without a hook.
        missed: the sentence of the floor that is missed, None when all hold.
        excess: how many times over the allowed one the drop of the score is, or how many items where one is more than
            allowed; 1 where it is allowed or not known.
        notes: what finishing passes said.
        before: noise over signal of the model before anything is rounded: of a form that is smaller than the original.
        others: bytes of the file besides the weights.
        spare: seconds by which it loads faster than it must, below 0 where it does not; None where nobody measured.
    """

    plan: Plan
    model: Model
    quality: Quality
    score: float | None
    missed: str | None
    notes: tuple[str, ...] = ()
    excess: float = 1.0
    before: float = 0.0
    others: float = 0.0
    spare: float | None = None

    @property
    def noise(self) -> float:
        """Measured noise over signal of the worst output: that of rounding."""
        total = 10 ** (-self.quality.sqnr_db / 10) if math.isfinite(self.quality.sqnr_db) else 1e6
        return max(total - self.before, LEAST_SHARE * total)
