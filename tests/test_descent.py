"""Coordinate descent never adds damage, stays on its grid, and gains over rounding to nearest and over GPTQ."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxc.codes.descent import Snap, descend
from onnxc.codes.gptq import damage
from onnxc.codes.moments import moment_of
from tests.trained import context, load, samples

Matrix = NDArray[np.float32]


@cache
def trained(operator: str) -> tuple[Matrix, Matrix]:
    """W [G, K, N] and H [G, K, K] of the largest linear of a transformer, or of a depthwise convolution."""
    name = "vision_transformer" if operator == "MatMul" else "depthwise_cnn"
    made = context(load(name), samples(name, 8))
    sites = [s for s in made.sites if s.operator == operator and s.weight is not None]
    if operator == "Conv":
        sites = [s for s in sites if s.node.attrs.get("group", 1) > 1]
    site = max(sites, key=lambda s: s.weight.elements if s.weight else 0)
    assert site.weight is not None
    values = np.asarray(site.weight.tensor.values, np.float32)
    moment = moment_of(site, made.observations)
    assert moment is not None
    weight = values[None] if operator == "MatMul" else values.reshape(len(values), -1, 1)
    return weight, moment


def per_output(weight: Matrix, levels: int) -> tuple[Matrix, Matrix]:
    """(scale [G, N], W rounded to nearest)."""
    scale = np.maximum(np.abs(weight).max(1) / levels, 1e-12)
    return scale, np.rint(weight / scale[:, None]) * scale[:, None]


def scale_snap(scale: Matrix, lowest: int, highest: int, zero: Matrix | None = None) -> Snap:
    """The snap of evenly spaced grids.

    Args:
        scale: [G, N], or [G, K, N] where it varies along the rows (blocks, repeated).
        lowest, highest: code range.
        zero: zero points of the same shape; None: 0.
    """
    by_row = scale.ndim == 3

    def snap(row: int, target: Matrix) -> Matrix:
        step = scale[:, row] if by_row else scale
        offset = 0.0 if zero is None else zero[:, row] if by_row else zero
        return np.asarray((np.clip(np.rint(target / step) + offset, lowest, highest) - offset) * step, np.float32)

    return snap


def codebook_snap(entries: Matrix) -> Snap:
    """The snap of a codebook.

    Args:
        entries: [C] values for the whole weight, or [G, N, C] of each output, any order.
    """
    ordered = np.sort(np.asarray(entries, np.float32), -1)
    middles = (ordered[..., 1:] + ordered[..., :-1]) / 2

    def snap(row: int, target: Matrix) -> Matrix:
        if ordered.ndim == 1:
            return ordered[np.searchsorted(middles, target)]
        index = (target[..., None] > middles).sum(-1)
        return np.take_along_axis(ordered, index[..., None], -1)[..., 0]

    return snap


@pytest.mark.parametrize("operator", ["MatMul", "Conv"])
@pytest.mark.parametrize("bits", [3, 4])
def test_it_gains_over_rounding_to_nearest(operator: str, bits: int) -> None:
    weight, moment = trained(operator)
    scale, nearest = per_output(weight, 2 ** (bits - 1) - 1)
    snap = scale_snap(scale, -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    found = descend(weight, nearest, moment, snap)
    assert damage(weight, found, moment) < (0.4 if operator == "MatMul" else 0.9) * damage(weight, nearest, moment)
    codes = found / scale[:, None]
    assert np.abs(codes - np.rint(codes)).max() < 1e-3
    assert np.abs(codes).max() < 2 ** (bits - 1) - 1 + 1e-3


def test_it_gains_over_gptq_and_repeats_itself() -> None:
    """GPTQ here as in its paper: unblocked, columns in order."""
    weight, moment = trained("MatMul")
    scale, _ = per_output(weight, 7)
    depth = weight.shape[1]
    damped = moment[0].astype(np.float64) + 0.01 * np.diag(moment[0]).mean() * np.eye(depth)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    remaining, values = weight[0].astype(np.float64).copy(), np.zeros(weight.shape, np.float32)
    for row in range(depth):
        values[0, row] = np.clip(np.rint(remaining[row] / scale[0]), -7, 7) * scale[0]
        remaining[row:] -= upper[row, row:, None] * ((remaining[row] - values[0, row]) / upper[row, row])
    snap = scale_snap(scale, -7, 7)
    found = descend(weight, values, moment, snap)
    assert damage(weight, found, moment) < 0.97 * damage(weight, values, moment)
    assert np.array_equal(found, descend(weight, values, moment, snap))


def test_every_sweep_lowers_the_damage() -> None:
    weight, moment = trained("MatMul")
    scale, values = per_output(weight, 3)
    snap = scale_snap(scale, -3, 3)
    before = damage(weight, values, moment)
    for _ in range(4):
        values = descend(weight, values, moment, snap, sweeps=1)
        assert damage(weight, values, moment) <= before * (1 + 1e-6)
        before = damage(weight, values, moment)


def test_blocks_with_scales_of_their_own() -> None:
    weight, moment = trained("MatMul")
    blocks = weight.reshape(1, -1, 32, weight.shape[2])
    low, high = blocks.min(2, keepdims=True), blocks.max(2, keepdims=True)
    scale = np.broadcast_to((high - low) / 15, blocks.shape).reshape(weight.shape)
    zero = np.broadcast_to(np.rint(-low / ((high - low) / 15)), blocks.shape).reshape(weight.shape)
    snap = scale_snap(scale, 0, 15, zero)
    nearest = np.stack([snap(row, weight[:, row]) for row in range(weight.shape[1])], 1)
    found = descend(weight, nearest, moment, snap)
    assert damage(weight, found, moment) < 0.7 * damage(weight, nearest, moment)


@pytest.mark.parametrize("own", [False, True])
def test_codebooks(own: bool) -> None:
    weight, moment = trained("MatMul")
    shares = np.linspace(0.02, 0.98, 8)
    book = np.quantile(weight[0], shares, axis=0).T[None] if own else np.quantile(weight, shares)
    snap = codebook_snap(book.astype(np.float32))
    nearest = np.stack([snap(row, weight[:, row]) for row in range(weight.shape[1])], 1)
    distance = np.abs(weight[0, 0, :, None] - (book[0] if own else book)).min(-1)
    assert np.allclose(np.abs(nearest[0, 0] - weight[0, 0]), distance, atol=1e-6)
    found = descend(weight, nearest, moment, snap)
    assert damage(weight, found, moment) < 0.7 * damage(weight, nearest, moment)
    assert np.isin(found, book.astype(np.float32)).all()


def test_inputs_that_are_idle_or_not_finite_change_nothing() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    scale, nearest = per_output(weight, 3)
    moment = np.zeros((2, 6, 6), np.float32)
    moment[1] = np.nan
    assert np.array_equal(descend(weight, nearest, moment, scale_snap(scale, -3, 3)), nearest)
