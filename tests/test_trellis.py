"""Codes along a trellis: no path is better, they unfold bit for bit, and damage less than others of as many bits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxc.cli import main
from onnxc.coder import Coder
from onnxc.codes import trellis_packing, trellis_scales
from onnxc.codes.estimates import Seen, estimated
from onnxc.codes.fitting import make_grid
from onnxc.codes.formats import TRELLISES, Format, parse_format, trellis_segment
from onnxc.codes.gptq import damage, gptq
from onnxc.codes.grids import nearest
from onnxc.codes.layouts import layout_of
from onnxc.codes.packing import packed, packed_bytes
from onnxc.codes.solve import as_groups, from_groups, solved
from onnxc.codes.trellis import TrellisGrid, best_paths, union_of
from onnxc.codes.trellis_scales import MOST, scale_of, shared_reach, some_inputs
from onnxc.encoding import Codes
from onnxc.model import Model
from onnxc.observe import Observations
from onnxc.passes import store_trellis
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.passes.store_low_bit import StoreLowBit
from onnxc.passes.store_trellis import StoreTrellis
from onnxc.propose import collect
from onnxc.rewriting.rewriter import Rewriter
from onnxc.session import Options, Session
from tests import trained
from tests.emission import model, node, proposed, samples
from tests.unpriced import pretend_everything_pays

MODELS = Path(__file__).parents[1] / "models"
SHAPES: list[tuple[tuple[int, ...], int, int]] = [
    ((40, 48), 1, 1),  # MatMul
    ((40, 101), 1, 1),  # its outputs fill no segments
    ((48, 40), 0, 1),  # Gemm with transB
    ((16, 24), 0, 1),  # one segment
    ((303, 8), 0, 1),  # a table with an odd number of rows
    ((32, 5, 3, 3), 0, 1),  # Conv
    ((64, 4, 3, 3), 0, 2),  # grouped Conv
    ((2, 48, 32), 1, 1),  # LSTM in two directions
]


def sqnr(before: Any, after: Any) -> float:
    return 10 * float(np.log10(np.square(before).sum() / np.square(before - after).sum()))


def made(values: np.ndarray, axis: int, groups: int, levels: int, limit: int = 127) -> Codes:
    """Codes to nearest."""
    chosen, matrix = Format(levels, trellis=True), as_groups(values, axis, groups)
    grid, scale = make_grid(matrix, chosen, np.ones(matrix.shape[:2], np.float32), limit)
    found, digits = gptq(matrix / scale[:, None], None, grid)
    form = packed(chosen, grid, digits, layout_of(values.shape, axis, groups), native=False)
    return Codes(from_groups(found, values.shape, axis), scale.reshape(-1), axis, limit, form)


@pytest.mark.parametrize("limit", [127, 63])
@pytest.mark.parametrize("levels", TRELLISES)
def test_values_are_all_different_and_lie_around_zero(levels: int, limit: int) -> None:
    union = union_of(levels, limit).astype(int)
    assert len(union) == 2 * levels
    assert (np.diff(union) > 0).all()
    assert (union == -union[::-1]).all()
    assert union[-1] == limit


@pytest.mark.parametrize("closed", [True, False])
def test_no_path_is_better(closed: bool) -> None:
    """Against all paths of 10 steps that end where they start, or of all starts."""
    errors = np.random.default_rng(0).random((4, 10, 7)).astype(np.float32)
    before, after = best_paths(errors, closed=closed)
    assert (before >> 1 == np.concatenate([before[-1:], before])[:-1] & 1).all() or not closed
    assert (after[:-1] == before[1:]).all()
    assert (after >> 1 == before & 1).all()

    def subset(far: Any, near: Any, bit: Any) -> Any:
        return 2 * near + (bit ^ far)  # in the order D0, D2, D1, D3

    found = np.take_along_axis(errors, subset(before >> 1, before & 1, after & 1)[None], 0)[0].sum(0)
    least = np.full(7, np.inf)
    for bits in product((0, 1), repeat=10 if closed else 12):
        row = np.array([*bits[-2:], *bits] if closed else bits)
        chosen = subset(row[:-2], row[1:-1], row[2:])
        least = np.minimum(least, errors[chosen, np.arange(10)].sum(0))
    np.testing.assert_allclose(found, least, rtol=1e-6)


@pytest.mark.parametrize(
    ("levels", "gain", "least"), [(16, 2.2, 21.6), (8, 1.6, 15.9), (6, 1.4, 13.5), (4, 1.0, 10.2), (2, 0.4, 4.8)]
)
def test_normal_weights_are_nearer_than_with_even_levels(levels: int, gain: float, least: float) -> None:
    """Marcellin and Fischer have 16.2 and 10.6 dB for 3 and 2 bits and four states, on paths without an end."""
    values = np.random.default_rng(1).standard_normal((256, 64)).astype(np.float32)
    grid, scale = make_grid(values[None], Format(levels), np.ones((1, 256), np.float32), 127)
    even = gptq(values[None] / scale[:, None], None, grid)[0] * scale[:, None]
    found = sqnr(values, made(values, 1, 1, levels).restored())
    assert found > least
    assert found > sqnr(values, even[0]) + gain


@pytest.mark.parametrize(("limit", "many"), [(127, 1 << 20), (63, 1 << 20), (127, 1)])
@pytest.mark.parametrize("levels", TRELLISES)
@pytest.mark.parametrize(("shape", "axis", "groups"), SHAPES)
def test_unfolds_to_the_codes(
    shape: Any, axis: int, groups: int, levels: int, limit: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, all of it at load, in the bytes announced, with words of one byte or of two."""
    monkeypatch.setattr(trellis_packing, "MANY", many)
    codes = made(np.random.default_rng(2).standard_normal(shape).astype(np.float32), axis, groups, levels, limit)
    assert codes.packed is not None
    assert codes.packed.bytes == packed_bytes(Format(levels, trellis=True), layout_of(shape, axis, groups))
    assert np.abs(codes.values).max() <= limit
    zeros = np.zeros(shape, np.float32)
    loaded = Model.load(model([node("Add", "x w", "y")], {"x": shape}, {"y": shape}, {"w": zeros}))
    rewriter = Rewriter(loaded, {"w": codes})
    rewriter.unfold("w")
    loaded.tidy()
    session = Session(loaded, Options(), dump=True)
    assert [each.op_type for each in session.optimized().graph.node] == ["Add"]
    np.testing.assert_array_equal(np.asarray(session.run({"x": zeros})["y"]), codes.restored())


def test_segments_are_whole_words_and_waste_little() -> None:
    for levels, word in TRELLISES.items():
        for outputs in range(16, 700):
            count, length = trellis_segment(outputs, levels)
            assert length % word == length % 2 == 0
            assert outputs <= count * length <= max(1.13 * outputs, outputs + 15)


@pytest.mark.parametrize("levels", [16, 8, 4])
def test_one_share_of_their_peaks_serves_all_rows_of_a_table(levels: int) -> None:
    """Within 0.2 dB of a scale that is searched for each; rows of another size have scales of that size."""
    matrix = np.random.default_rng(5).standard_normal((1, 256, 1024)).astype(np.float32)
    matrix *= np.exp2(np.arange(1024) % 5).astype(np.float32)
    union, importance = union_of(levels, 127), np.ones((1, 256), np.float32)
    found = []
    for scale in (scale_of(matrix, levels, union, importance), shared_reach(matrix, levels, union, importance)):
        grid = TrellisGrid(levels, union, (scale / scale.max()) ** 2)
        found.append(sqnr(matrix, nearest(grid, matrix / scale[:, None])[1] * scale[:, None]))
    assert found[0] - 0.2 < found[1] < found[0] + 0.2


def test_some_inputs_tell_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that count a thousand times as much as others are among them: within 1 % of what all inputs tell."""
    random = np.random.default_rng(6)
    matrix = random.standard_normal((1, 768, 64)).astype(np.float32) * np.exp(random.standard_normal((1, 1, 64)) / 2)
    importance = np.exp(2 * random.standard_normal((1, 768))).astype(np.float32)
    matrix, union, lost = matrix.astype(np.float32), union_of(8, 127), []
    for most in (MOST, 768):
        monkeypatch.setattr(trellis_scales, "MOST", most)
        scale = scale_of(matrix, 8, union, importance)
        grid = TrellisGrid(8, union, (scale / scale.max()) ** 2)
        error = matrix - nearest(grid, matrix / scale[:, None])[1] * scale[:, None]
        lost.append(float((importance[:, :, None] * error**2).sum()))
    assert lost[0] == pytest.approx(lost[1], rel=0.01)
    monkeypatch.undo()
    seen, counts = some_inputs(matrix, importance)
    assert seen.shape[1] == counts.shape[1] < 768
    np.testing.assert_allclose(counts.sum(), importance.sum(), rtol=1e-3)


def test_zeros_cost_nothing_and_far_weights_are_kept() -> None:
    """An output of zeros has a scale next to nothing; one weight far from all others is what its output is scaled to,
    where its input counts.
    """
    random = np.random.default_rng(3)
    values = random.standard_normal((128, 32)).astype(np.float32)
    values[:, 5] = 0
    values[7, 9] = 40
    matrix, importance = values[None], np.ones((1, 128), np.float32)
    importance[0, 7] = 100
    grid, scale = make_grid(matrix, Format(16, trellis=True), importance, 127)
    found = gptq(matrix / scale[:, None], None, grid)[0][0] * scale
    assert np.abs(found[:, 5]).max() < 1e-3
    assert abs(found[7, 9] - 40) < 1.5
    assert sqnr(np.delete(values, [5, 9], 1), np.delete(found, [5, 9], 1)) > 21
    _, scale = make_grid(np.zeros((1, 32, 32), np.float32), Format(4, trellis=True), importance[:, :32], 127)
    assert float(scale.max()) < 1e-15


def test_rows_searched_together_are_those_searched_one_by_one() -> None:
    matrix = np.random.default_rng(4).standard_normal((2, 300, 50)).astype(np.float32) * 40
    grid = TrellisGrid(8, union_of(8, 127), np.random.default_rng(5).random((2, 50)).astype(np.float32))
    digits, values = nearest(grid, matrix)
    for row in (0, 150, 299):
        one, own = grid.snap((np.arange(2), np.full(2, row)), matrix[:, row])
        np.testing.assert_array_equal(one, digits[:, row])
        np.testing.assert_array_equal(own, values[:, row])
    again = nearest(grid, values.astype(np.float32))
    np.testing.assert_array_equal(again[0], digits)


@pytest.mark.parametrize(("name", "larger"), [("vision_transformer", 8000), ("residual_cnn", 8000)])
def test_less_damage_in_as_few_bits_on_trained_weights(name: str, larger: int) -> None:
    """GPTQ through the trellis against GPTQ on even levels and pairs, and against the nearest paths."""
    context = trained.context(trained.load(name), trained.samples(name, 32))
    coder = Coder(context, collect([(StoreTrellis(), True)], context))
    found: dict[str, list[float]] = {}
    for weight in [w for w in coder.weights.values() if w.elements > larger and coder.ways[w.name]][:3]:
        factor = coder.factors.of(weight)
        assert factor is not None
        values, axis = coder.values(weight.name), weight.channel_axis or 0
        matrix = as_groups(values, axis, 1)
        names = ("trellis16", "trellis8", "trellis6", "trellis4", "levels16", "codebook2", "levels9", "levels4")
        for each in names:
            codes = solved(weight, values, context, coder.factors, parse_format(each))
            found.setdefault(each, []).append(10 * float(np.log10(codes.damage)))
            if each == "trellis16":
                grid = TrellisGrid(16, union_of(16, 127), np.ones((1, matrix.shape[2]), np.float32))
                nearest, _ = gptq(matrix / codes.scale, None, grid)
                lost = damage(matrix, nearest * codes.scale, factor.moment)
                found.setdefault("nearest", []).append(10 * float(np.log10(lost)))
        looked = Seen.of(weight, values, coder.factors.of(weight), [parse_format(n) for n in names])
        expected = estimated([looked], context.target.weight_levels)[weight.name]
        found.setdefault("expected", []).append(10 * float(np.log10(expected["trellis8"])) - found["trellis8"][-1])
    mean = {each: float(np.mean(values)) for each, values in found.items()}
    assert mean["trellis16"] < mean["levels16"] - 1.4
    assert mean["trellis16"] < mean["codebook2"] - 1.4
    assert mean["trellis8"] < mean["levels9"] - 0.2  # 3 bits against 3.2
    assert mean["trellis4"] < mean["levels4"] - 1.7
    assert mean["trellis16"] < mean["nearest"] - 2.0
    assert 0 <= mean["expected"] < 2.5  # what is planned with


def test_by_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three bits a weight, twice the same file; even levels of 3.2 bits are further off."""
    pretend_everything_pays(monkeypatch)
    source, data = str(MODELS / "sklearn_mlp.onnx"), str(MODELS / "data" / "sklearn_mlp_calib.npz")

    def run(passes: str, target: Path) -> float:
        limits = ["--min-sqnr", "5", "--min-agreement", "0", "--prices", str(tmp_path / "prices.json"), "--quiet"]
        assert main(["optimize", source, str(target), "--calib", data, "--passes", passes, *limits]) == 0
        return float(trained.sqnr(Model.load(source), Model.load(target), trained.samples("sklearn_mlp", 32)))

    paths = run("store-trellis:levels=8", tmp_path / "paths.onnx")
    assert run("store-trellis:levels=8", tmp_path / "again.onnx") == paths
    even = run("store-low-bit:levels=9:block=0", tmp_path / "even.onnx")
    assert (tmp_path / "paths.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert (tmp_path / "paths.onnx").stat().st_size < 0.14 * Path(source).stat().st_size
    assert paths > even + 0.3


def test_it_is_offered_with_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rates, each in fewer bytes than the one before; 3 bits in fewer than 3.2; large weights only."""
    context = trained.context(trained.load("sklearn_mlp"), trained.samples("sklearn_mlp", 32))
    without = replace(context, observations=Observations())
    assert not collect([(StoreTrellis(), False)], without).storage
    assert len(collect([(StoreTrellis(levels=8), True)], context).storage["coefficient1"]) == 1
    refused = {each.reason for each in collect([(StoreTrellis(), False)], context).refusals}
    assert "too small for a trellis to save more than its nodes take" in refused
    monkeypatch.setattr(store_trellis, "LEAST", 1)
    proposals = collect([(StoreLowBit(), False), (StoreTrellis(), False)], context)
    found = {each.mode: each.bytes for each in proposals.storage["coefficient1"]}
    sizes = [found[f"trellis{levels}"] for levels in TRELLISES]
    assert sizes == sorted(sizes, reverse=True)
    assert found["trellis8"] < found["levels9"]
    assert found["trellis16"] == found["levels16"]


def test_where_it_does_not_act() -> None:
    """Too few outputs."""
    weights = {"w": np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)}
    small = model([node("MatMul", "x w", "y")], {"x": [4, 64]}, {"y": [4, 10]}, weights)
    context, _ = proposed(small, samples(x=(4, 64)), QuantizeStatic())
    refusals = collect([(StoreTrellis(), True)], context).refusals
    assert "fewer than 16 output channels in a group" in {each.reason for each in refusals}
