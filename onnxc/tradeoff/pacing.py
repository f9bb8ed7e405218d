"""How fast models turn out beside what prices say. In: both, of models that were built. Out: better predictions.

Prices are measured beside the simplified model: they do not know what simplifying it gained, nor how much of what
single sites save arrives when all of them run together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

EXPECTED = np.array(
    [1.0, 1.0]
)  # the simplified model's time as a share of the input's; the share of savings that arrives
DOUBT = np.array([0.15, 0.3])  # how far these may be off
SPREAD = 0.04  # of one measurement
FASTEST = 0.02  # of the input's time


@dataclass
class Pace:
    """Learns from models; least squares around what is expected.

    Attributes:
        seen: (predicted, measured) time, each as a share: of the simplified model's, of the input's.
    """

    seen: list[tuple[float, float]] = field(default_factory=list)

    def learn(self, predicted: float, measured: float) -> None:
        """A model that was predicted to run ``predicted`` times as fast runs ``measured`` times as fast."""
        if predicted > 0 and measured > 0:
            self.seen.append((1 / predicted, 1 / measured))

    def of(self, predicted: float) -> float:
        """How many times as fast as the input a model is whose prices say ``predicted``."""
        rows = np.array([[1.0, share - 1] for share, _ in self.seen]).reshape(-1, 2) / SPREAD
        totals = np.array([share for _, share in self.seen]) / SPREAD
        system = np.concatenate([rows, np.diag(1 / DOUBT)]), np.concatenate([totals, EXPECTED / DOUBT])
        whole, arriving = np.linalg.lstsq(*system)[0]
        return 1 / max(float(whole + arriving * (1 / predicted - 1)), FASTEST)
