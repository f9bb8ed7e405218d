"""What a score loses at a noise, as all other models tell. In: noises and drops of models. Out: the drop to expect.

A score that counts items loses so many of them by luck around a mean that is a power of the noise: the power is the one
of greatest likelihood (Poisson regression), the drop to expect the nearest number of whole items.

Another score is read off the curve through the others that never falls as noise rises (isotonic regression; Ayer and
others, 1955), and off a power of the noise. The first one knows where drops begin, but has steps, and a model that is
left out pulls it away from what that model lost; the second one has neither fault, nor that virtue. Their geometric
mean orders models best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

POWERS = np.linspace(0.5, 1.0, 6)  # of the noise, that drops may follow
POWERS_OF_ITEMS = np.linspace(0.3, 1.5, 25)  # of the noise, that numbers of items may follow
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


def followed(known: Sequence[tuple[Mapping[str, float], float]]) -> str:
    """The output whose noise a score follows: the one from which a curve that never falls as its noise rises tells the
    drops best; the first one where several do.

    Args:
        known: (output -> SQNR in dB, relative drop of the score) of models.
    """
    best, least = "", np.inf
    for name in [name for name in known[0][0] if all(name in noises for noises, _ in known)] if known else ():
        drops = [drop for _, drop in sorted((-noises[name], drop) for noises, drop in known)]
        missed = float(np.square(rising(drops) - drops).sum())
        if missed < least:
            best, least = name, missed
    return best


def power_law(noises: NDArray[np.float64], drops: NDArray[np.float64]) -> tuple[float, float]:
    """(scale, exponent) of the power of ``noises``, over signal, that is nearest to ``drops`` by least squares."""
    curves = noises ** POWERS[:, None]
    scales = curves @ drops / (curves**2).sum(1)
    best = int(np.argmin(np.square(scales[:, None] * curves - drops).sum(1)))
    return float(scales[best]), float(POWERS[best])


def expected_drop(sqnr_db: float, known: Sequence[tuple[float, float]]) -> float | None:
    """The relative drop of the score of a model with ``sqnr_db``, None where nothing is known.

    Args:
        known: (SQNR in dB, relative drop of the score) of other models; a score above the original's is no drop.
    """
    if not known:
        return None
    noises, drops = (np.array(each) for each in zip(*sorted((-db, max(drop, 0.0)) for db, drop in known), strict=True))
    curve, noise = rising(drops.tolist()), -sqnr_db
    beyond = max(noise - float(noises[-1]), 0.0)
    stepped = float(np.interp(noise, noises, curve)) * 10 ** (GROWTH * beyond / 10)
    scale, exponent = power_law(10 ** (noises / 10), drops)
    return float(np.sqrt(stepped * scale * 10 ** (exponent * noise / 10)))


def expected_items(sqnr_db: float, known: Sequence[tuple[float, float]], item: float) -> float | None:
    """``expected_drop`` where one item of a score is worth ``item``: so many whole ones."""
    if not known:
        return None
    noises, drops = (np.array(each) for each in zip(*known, strict=True))
    curves = (10 ** (-noises / 10)) ** POWERS_OF_ITEMS[:, None]
    lost = np.maximum(drops, 0.0) / item
    if not lost.any():
        return 0.0
    scales = lost.sum() / curves.sum(1)
    means = scales[:, None] * curves
    best = int(np.argmax((lost * np.log(means) - means).sum(1)))
    return float(round(scales[best] * 10 ** (-POWERS_OF_ITEMS[best] * sqnr_db / 10))) * item
