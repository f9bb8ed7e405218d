"""What a pass may know when it proposes. In: a model, what was seen of it, what is wanted. Out: one thing to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from onnxc.model import Model
from onnxc.session import Options

if TYPE_CHECKING:
    from onnxc.data import Calibration
    from onnxc.observe import Observations
    from onnxc.recipe import Recipe
    from onnxc.sites import Sites
    from onnxc.targets import Target


@dataclass(frozen=True)
class Stakes:
    """What a plan of the whole model has at stake in each weight: in shares of the plan's bytes and time, added.

    Attributes:
        gains: weight name -> what would be won if all its bytes, and the time of its sites, went.
        costs: weight name -> what damage 1 (E|y - y'|^2 / E|y|^2 of its site's output) costs at the plan's price of
            noise: others would need so much more bytes and time to make it good.
        damages: weight name -> damage of the codes that the plan stores it in.
        kernel: what the time of one more kernel counts.
    """

    gains: Mapping[str, float]
    costs: Mapping[str, float]
    damages: Mapping[str, float]
    kernel: float = 0.0

    def gain(self, weight: str) -> float:
        return self.gains.get(weight, 0.0)

    @cached_property
    def total(self) -> float:
        """What all weights are worth."""
        return max(sum(self.gains.values()), 1e-12)

    @cached_property
    def usual(self) -> float:
        """The median of all costs."""
        return float(np.median(list(self.costs.values()))) if self.costs else 0.0

    def cost(self, weight: str) -> float:
        """Of one that was not measured, the median; and of none less than that: costs are those of rounding, which
        pooling averages out. What is cut is missing everywhere alike.
        """
        return max(self.costs.get(weight, 0.0), self.usual)


@dataclass(frozen=True)
class Context:
    """What a pass may know when it proposes.

    Attributes:
        model: the simplified model, its sites, and what was observed of them on real data.
        told: the pass was asked for with fields: it acts whether or not it pays.
        samples: calibration data or generated inputs; None where a pass only proposes.
        stakes: what weights are worth to a plan of this model; None where there is no plan yet.
        allowed: noise over signal that the quality floor allows, of the worst output.
    """

    model: Model
    sites: Sites
    observations: Observations
    recipe: Recipe
    target: Target
    told: bool = False
    samples: Calibration | None = None
    options: Options = field(default_factory=Options)
    stakes: Stakes | None = None
    allowed: float = 0.01

    def in_float32(self) -> Context:
        """The same for a pass that changes the graph, which knows float32 alone."""
        return replace(self, sites=self.sites.in_float32())
