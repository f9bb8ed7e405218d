"""What compression took is won back: the plan that was chosen is trained against the original, on inputs alone.

before: W = Gather(table, words) * scale        after: the same nodes, with words and scales that were learned
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxc.contract.passes import TrainingPass


@dataclass(frozen=True)
class Recover(TrainingPass):
    """Train weights, rounding and scales of the chosen plan, blocks first, then on all outputs (``--recover MINUTES``).

    1. Needs calibration data, and torch (``pip install 'onnxc[distill]'``); named alone, everything else is chosen as
       it always is.
    2. It must not return what is no better on samples held back: then the plan stays as it was.

    Attributes:
        minutes: the longest it may take.
    """

    name: ClassVar[str] = "recover"
