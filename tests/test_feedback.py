"""Weights solved in order, on what the compressed model feeds them: what it gains on samples that nobody saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxc
from onnxc import planning
from onnxc.coder import Coder
from onnxc.codes.compensation import Met, compensated
from onnxc.contract.candidates import Activation
from onnxc.feedback import Fitted, build_solved, possible, solve
from onnxc.judge import build
from onnxc.model import Model
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.passes.store_low_bit import StoreLowBit
from onnxc.problem import Plan
from onnxc.propose import collect
from onnxc.rewriting.rewriter import Rewriter
from tests import trained
from tests.emission import model, node, weight

SEEN, UNSEEN = 48, 48
FORMAT = "levels9"  # 3.2 bits


def met(now: np.ndarray, before: np.ndarray, samples: int = 16) -> Met:
    """Rows [R, K] of so many samples."""
    found = Met()
    for one, other in zip(np.split(now, samples), np.split(before, samples), strict=True):  # each a part
        found.add(one[:, None], other[:, None])
    return found


def test_a_weight_makes_up_for_what_its_inputs_lost() -> None:
    """Half of the inputs are rounded to nothing; the other half knows most of them."""
    random = np.random.default_rng(0)
    hidden = random.standard_normal((3200, 8)).astype(np.float32)
    mixed = random.standard_normal((8, 32)).astype(np.float32)
    before = hidden @ mixed + 0.1 * random.standard_normal((3200, 32)).astype(np.float32)
    now = before.copy()
    now[:, 16:] = 0
    weight = random.standard_normal((1, 32, 6)).astype(np.float32)
    made = compensated(weight, met(now[:1600], before[:1600]), centre=False)
    wanted = before[1600:] @ weight[0]
    lost, left = (float(np.square(wanted - now[1600:] @ w[0]).mean()) for w in (weight, made))
    assert left < 0.1 * lost


def test_nothing_is_corrected_where_nothing_was_lost_or_samples_do_not_agree() -> None:
    random = np.random.default_rng(1)
    before = random.standard_normal((64, 48)).astype(np.float32)
    weight = random.standard_normal((1, 48, 5)).astype(np.float32)
    assert np.array_equal(compensated(weight, met(before, before), centre=False), weight)
    noise = before + 0.05 * random.standard_normal(before.shape).astype(np.float32)
    assert np.array_equal(compensated(weight, met(noise, before), centre=False), weight)


def test_zeros_stay_zeros() -> None:
    random = np.random.default_rng(2)
    before = random.standard_normal((640, 12)).astype(np.float32)
    weight = random.standard_normal((1, 12, 4)).astype(np.float32)
    weight[:, ::3] = 0
    made = compensated(weight, met(np.round(before), before), centre=True)
    assert not made[weight == 0].any()
    assert not np.array_equal(made, weight)


@pytest.mark.parametrize(("name", "gain"), [("vision_transformer", 2.0), ("residual_cnn", 2.5)])
def test_feedback_gains_on_unseen_samples(name: str, gain: float) -> None:
    """All sites in int8, all weights in 3.2 bits: dB over weights that are solved on the original's activations."""
    seen = 2 * SEEN  # of half of them the gain is one or four decibels, as scales are rounded
    data = trained.samples(name, seen + UNSEEN)
    context = trained.context(trained.load(name), data[:seen])
    assert possible(context)
    proposals = collect([(QuantizeStatic(), False), (StoreLowBit(levels=9, block=0), True)], context)
    compute = {site: found[0] for site, found in proposals.compute.items()}
    stored = dict.fromkeys(sorted(proposals.storage), FORMAT)
    stored |= {
        s.weight.name: stored.get(s.weight.name, "int8") for s in context.sites if s.weight and s.name in compute
    }
    plan, coder = Plan(compute, stored), Coder(context, proposals)
    alone = build(context.model, plan, coder)
    solved = solve(plan, context, coder)
    made = build_solved(plan, solved, context)
    assert set(solved.codes) == set(stored)
    assert solved.shifts, "biases take up the means"
    unseen = data[seen:]
    assert trained.sqnr(context.model, made, unseen) > trained.sqnr(context.model, alone, unseen) + gain
    again = build_solved(plan, solve(plan, context, Coder(context, proposals)), context)
    assert again.serialized() == made.serialized()
    sizes = [len(each.serialized()) for each in (made, alone)]
    assert sizes[0] <= sizes[1] * 1.01, "the same formats"


def test_samples_kept_apart_are_not_looked_at() -> None:
    context = trained.context(trained.load("sklearn_mlp"), trained.samples("sklearn_mlp", 12))
    assert context.samples is not None
    fitted = Fitted(context.samples)
    assert fitted.positions == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert len(list(fitted)) == len(fitted)
    few = trained.context(trained.load("sklearn_mlp"), trained.samples("sklearn_mlp", 8))
    assert not possible(few)


def test_what_is_told_with_nothing_to_choose_is_solved_with_feedback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three levels in every weight of a classifier: 3 dB or more on its samples."""
    found = {}
    for fed in (True, False):
        if not fed:
            monkeypatch.setattr(planning, "possible", lambda context: False)
        report = onnxc.optimize(
            trained.MODELS / "sklearn_mlp.onnx",
            tmp_path / "out.onnx",
            calib=trained.MODELS / "data" / "sklearn_mlp_calib.npz",
            passes="store-low-bit:levels=3",
            budget=onnxc.Budget(min_sqnr=0.1, min_agreement=0.0),
            prices=tmp_path / "prices.json",
        )
        assert report.comparison is not None
        found[fed] = report.comparison.sqnr_db
    assert found[True] > found[False] + 3, found


def test_what_nothing_reads_any_more_is_not_what_readers_see() -> None:
    proto = model([node("MatMul", "x w", "m"), node("Relu", "m", "y")], {"x": [4, 8]}, {"y": None}, {"w": weight(8, 8)})
    loaded = Model.load(proto)
    rewriter = Rewriter(loaded, {})
    pair = rewriter.quantized(Activation("m", -1, 1, dynamic=False))
    assert rewriter.read_as("m") == "m"
    loaded.redirect(rewriter.tensors["m"], pair)
    assert rewriter.read_as("m") == pair.name == "m_dq"
    assert rewriter.read_as("x") == "x"


def test_a_value_that_was_cut_off_is_not_spread_over_other_rows() -> None:
    """One token of a sample has one huge value: what a range cuts off of it stays lost, and all else stays right."""
    rng, met = np.random.default_rng(0), Met()
    weight = rng.standard_normal((1, 32, 16)).astype(np.float32)
    for _ in range(16):
        before = rng.standard_normal((24, 1, 32)).astype(np.float32)
        before[0, 0, 3] = 200.0
        now = before + np.float32(0.01) * rng.standard_normal(before.shape).astype(np.float32)
        now[0, 0, 3] = 5.0
        met.add(now, before)
    met.flush()
    assert np.abs(met.shift(weight, weight)).max() < 0.01 * np.abs(weight).max()
    assert np.abs(compensated(weight, met, centre=True) - weight).max() < 0.01
    steps = np.diagonal(met.moments(centre=False)[0])
    assert steps[3] > 1.5 * np.median(steps), "the value still counts among what meets the weight"


def test_a_row_that_lost_more_than_its_sample_does_not_decide_for_it() -> None:
    """A loud token that lost six times what the others did, as where it took another way through the layers before."""
    rng, met = np.random.default_rng(0), Met()
    weight = rng.standard_normal((1, 32, 16)).astype(np.float32)
    for _ in range(16):
        before = rng.standard_normal((24, 1, 32)).astype(np.float32)
        before[0] *= 20
        now = np.float32(0.8) * before
        now[0] = np.float32(0.5) * before[0]
        met.add(now, before)
    met.flush()
    made = compensated(weight, met, centre=False)
    grown = float((made * weight).sum() / (weight**2).sum())
    assert 1.0 <= grown < 1.25, "twice as large would be right for the loud token alone"
