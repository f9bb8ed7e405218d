"""The contract of passes: what a pass author reads.

An exact pass edits a model in place and says what it did; the frame checks that the outputs stayed equal.
A lossy pass looks at one site at a time and proposes candidates: specifications with estimated damage and bytes.
A structural pass yields smaller graphs, each of which is planned afresh.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from onnxc.model import Model
    from onnxc.observe import Observations
    from onnxc.recipe import Recipe
    from onnxc.sites import Site
    from onnxc.targets import Target


@dataclass(frozen=True)
class Outcome:
    """What an exact pass did: how many places it changed, and sentences worth telling the user."""

    changed: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExactPass(ABC):
    """A rewrite after which every output is equal to float rounding (rtol 1e-3, atol 1e-5)."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
