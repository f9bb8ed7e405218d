"""What a score loses at a noise, as all other models tell. In: noises and drops of models. Out: the drop to expect.

A score on few items turns on one or two of them: what a model is expected to lose is read off the curve through the
others that never falls as noise rises (isotonic regression; Ayer and others, 1955).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GROWTH = 0.5  # of the drop with the noise beyond all that is known: answers change with the amplitude of errors


def rising(drops: Sequence[float]) -> NDArray[np.float64]:
    """The curve of least squares through ``drops`` that never falls, by pooling adjacent violators."""
    pools: list[tuple[float, int]] = []
    for each in drops:
        total, count = float(each), 1
        while pools and pools[-1][0] / pools[-1][1] >= total / count:
            before, others = pools.pop()
            total, count = total + before, count + others
        pools.append((total, count))
    return np.repeat([total / count for total, count in pools], [count for _, count in pools])


def expected_drop(sqnr_db: float, known: Sequence[tuple[float, float]]) -> float | None:
    """The relative drop of the score of a model with ``sqnr_db``, None where nothing is known.

    Args:
        known: (SQNR in dB, relative drop of the score) of other models.
    """
    if not known:
        return None
    noises, drops = (np.array(each) for each in zip(*sorted((-db, drop) for db, drop in known), strict=True))
    curve, noise = rising(drops.tolist()), -sqnr_db
    beyond = max(noise - float(noises[-1]), 0.0)
    return float(np.interp(noise, noises, curve)) * 10 ** (GROWTH * beyond / 10)
