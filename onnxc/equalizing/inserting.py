"""A multiplication in front of linears whose input nothing before them can scale, where int8 activations gain by it.

      LayerNorm ── x ─┬─ MatMul(W)                   LayerNorm ── x ─┬─ Mul(1 / s) ── MatMul(W * s)
                      └─ Add            becomes                      └─ Add

In: a context whose model can take no more factors without one. Out: the model with them, or None. A text encoder whose
normalizations feed residuals too has all of its outliers there: its 36 linears keep 17 dB in int8, with a Mul in front
of 18 of them 22 dB, and the Mul takes a hundredth of the time that int8 saves.

Factors as SmoothQuant's (Xiao et al. 2022, see smoothing.py). They are taken where the room that the quality floor
leaves to weights grows by more than the weights' own error does: outliers that are no longer in the activations are in
the weights.
"""

from __future__ import annotations

import numpy as np

from onnxc.contract.context import Context
from onnxc.equalizing.readers import Vector
from onnxc.equalizing.scaling import Seam, as_rows
from onnxc.equalizing.smoothing import CONVINCING, FEWEST, Bench, telling_data
from onnxc.model import Model

GAIN = 0.7  # of the error of rounding one tensor: what a multiplication in front of its readers must bring
TYPICAL = 0.65  # the alpha with which that is told
LEAST_ROOM = 0.05  # of the allowed noise: where activations alone take all of it, some stay in float


def inserted(context: Context) -> tuple[Model, str] | None:
    """``context.model`` with multiplications where they pay, and what was done; None where none do."""
    samples = telling_data(context)
    if samples is None or len(samples) < FEWEST:
        return None
    bench = Bench(context, "activations", bits=4, block=0, insert=True, quick=True, only=linear_alone)
    gaining = {seam.name for seam in bench.seams if rounding(bench, seam, TYPICAL) < GAIN}
    if not gaining:
        return None
    before = bench.noise({}, gaining)
    if before < LEAST_ROOM * context.allowed:  # there is next to nothing to gain
        return None
    found: list[tuple[float, float]] = []
    for alpha in bench.alphas:
        factors = chosen(bench, gaining, alpha, half=True)
        after = bench.noise(factors, gaining)
        if after < CONVINCING * before:
            found.append((room(context, after) / bench.coarse(factors), alpha))
    if not found or max(found)[0] <= room(context, before) / bench.coarse({}):
        return None
    alpha = max(found)[1]
    factors = chosen(bench, gaining, alpha, half=False)
    model = bench.applied(factors)[0]
    model.tidy()
    return model, f"{len(factors)} multiplications in front of linears, alpha {alpha:g}"


def linear_alone(seam: Seam) -> bool:
    """Whether a seam takes a Mul, and only linears read it: between convolutions it would break their int8 islands."""
    return seam.insert and all(site.kind == "linear" for site in seam.sites)


def chosen(bench: Bench, names: set[str], alpha: float, *, half: bool) -> dict[str, Vector]:
    """The factors of the seams called ``names``, from half of the samples or all."""
    factors = bench.with_alpha(alpha, bench.half if half else bench.ranges)
    return {name: each for name, each in factors.items() if name in names}


def rounding(bench: Bench, seam: Seam, alpha: float) -> float:
    """The error of the readers' outputs when the tensor is rounded to 256 steps between its extremes, over the same
    without factors: steps squared, times what the weights make of them.
    """
    factors, (low, high) = bench.factors(seam, alpha, bench.half), bench.half[seam.name]
    heard = np.zeros(seam.channels)
    for site in seam.sites:
        assert site.weight is not None
        heard += (as_rows(site, np.asarray(site.weight.tensor.values, np.float32)).astype(np.float64) ** 2).sum(1)
    plain = extent(low, high) ** 2 * heard.sum()
    return float(extent(low / factors, high / factors) ** 2 * (heard * factors**2).sum() / max(plain, 1e-300))


def extent(low: Vector, high: Vector) -> float:
    """The width of the range that holds every channel and zero."""
    return max(float(high.max()), 0.0) - min(float(low.min()), 0.0)


def room(context: Context, noise: float) -> float:
    """What of the allowed noise is left to weights, at least a little."""
    return max(context.allowed - noise, LEAST_ROOM * context.allowed)
