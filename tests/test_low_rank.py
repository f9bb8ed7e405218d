"""Decompositions are the best there are, on what is really met; the walk in stages sees what a whole run sees."""

from __future__ import annotations

import numpy as np
import pytest

from onnxc import sequential
from onnxc.factors import low_rank
from onnxc.factors.goals import Curve, Goal, rank_of
from onnxc.factors.kernel_rank import Spatial, Tucker, damage, matrix_of
from onnxc.factors.low_rank import (
    break_even,
    decompose,
    decompose_rows,
    decompose_until,
    regression,
    regularized,
    rounded,
)
from onnxc.model import Model
from onnxc.sequential import Reading, Statistic, Walk, stages, statistics
from onnxc.session import Options, Session
from tests.factored import MODELS, context_of

random = np.random.default_rng(0)
Array = np.ndarray


def rows(count: int, depth: int) -> Array:
    """Inputs some directions of which are a hundred times as large as others."""
    return random.standard_normal((count, depth)) @ (np.geomspace(1, 0.01, depth)[:, None] * rotation(depth))


def rotation(size: int) -> Array:
    return np.asarray(np.linalg.qr(random.standard_normal((size, size)))[0])


def moment(x: Array) -> Array:
    return np.asarray((x.T @ x / len(x))[None])


def off(x: Array, weight: Array, pair: tuple[Array, Array]) -> float:
    """E|y - y'|^2 / E|y|^2, measured on rows."""
    left, right = (np.asarray(part[0], np.float64) for part in pair)
    return float(np.square(x @ weight - x @ left @ right).sum() / np.square(x @ weight).sum())


@pytest.mark.parametrize(("depth", "width"), [(48, 80), (80, 48), (64, 64)])
def test_the_whitened_truncation_is_the_best_and_the_curve_is_true(depth: int, width: int) -> None:
    x, weight = rows(4000, depth), random.standard_normal((depth, width))
    H = moment(x)
    found, plain = decompose(weight[None], H), decompose(weight[None])
    whitened = np.linalg.cholesky(H[0]).T @ weight  # SVD-LLM as written in the paper
    values = np.linalg.svd(whitened, compute_uv=False) ** 2
    np.testing.assert_allclose(found.energies[0], values, rtol=1e-6, atol=1e-9 * values[0])
    for rank in (1, 8, 24, 40):
        measured = off(x, weight, found.pair(rank))
        assert measured == pytest.approx(values[rank:].sum() / values.sum(), rel=1e-3)
        assert measured == pytest.approx(found.damages()[rank], rel=1e-3)
        assert measured < (0.5 if rank >= 8 else 1.0) * off(x, weight, plain.pair(rank))  # 3 dB
    assert off(x, weight, found.pair(found.full)) < 1e-10


def test_both_factors_carry_the_same_part_of_the_scale() -> None:
    left, right = decompose(random.standard_normal((1, 40, 60)) * np.geomspace(1, 1e-4, 40)[:, None]).pair(40)
    np.testing.assert_allclose(np.linalg.norm(left[0], axis=0), np.linalg.norm(right[0], axis=1), rtol=1e-3)


def test_a_sketch_finds_the_leading_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random.standard_normal((1, 300, 12)) @ random.standard_normal((1, 12, 280))
    weight += 0.05 * random.standard_normal(weight.shape)
    H = regularized(moment(rows(2000, 300)))
    exact = decompose(weight, H)
    monkeypatch.setattr(low_rank, "SKETCHED", 100)
    sketch = decompose(weight, H, most=12)
    assert sketch.full == 12
    np.testing.assert_allclose(sketch.damages(), exact.damages()[:13], rtol=0.02, atol=1e-6)
    monkeypatch.setattr(low_rank, "SKETCH_START", 4)
    longer = decompose_until(weight, H, None, 140, float(exact.damages()[12]) * 1.05)
    assert longer.full == 16  # 4 were too few
    assert longer.rank_for(float(exact.damages()[12]) * 1.05) == 12


def test_reduced_rank_regression_answers_changed_inputs() -> None:
    x, weight = rows(4000, 32), random.standard_normal((1, 32, 48))
    now = x + 0.1 * random.standard_normal(x.shape) @ np.diag(x.std(0)) + 0.2 * x[:, ::-1]
    H, C = moment(now), (now.T @ x / len(x))[None]
    wanted = x @ weight[0]

    def missed(pair: tuple[Array, Array]) -> float:
        return float(np.square(wanted - now @ pair[0][0] @ pair[1][0]).sum() / np.square(wanted).sum())

    refitted = decompose(regression(weight, H, C, 1e-9), H).pair(12)
    assert missed(refitted) < 0.5 * missed(decompose(weight, H).pair(12))
    best = missed(refitted)
    for part in (0, 1):  # no step away from it is better
        for _ in range(5):
            moved = [np.array(each, np.float64) for each in refitted]
            moved[part] += 1e-3 * random.standard_normal(moved[part].shape)
            assert missed((moved[0], moved[1])) > best
    np.testing.assert_allclose(regression(weight, moment(x), moment(x)), weight, rtol=1e-6, atol=1e-8)


def test_rows_that_are_read_often_are_kept_better_and_a_head_has_its_say() -> None:
    table, counts = random.standard_normal((60, 24)), np.where(np.arange(60) < 20, 100.0, 1.0)
    left, right = decompose_rows(table, counts).pair(12)
    wrong = np.square(table - left[0] @ right[0]).sum(1)
    assert wrong[:20].mean() < 0.3 * wrong[20:].mean()
    H = moment(rows(500, 24))
    both, alone = decompose_rows(table, counts, regularized(H)[0]).pair(12), decompose_rows(table, counts).pair(12)

    def head(pair: tuple[Array, Array]) -> float:
        miss = (table - pair[0][0] @ pair[1][0])[:20]
        return float(np.trace(miss @ H[0] @ miss.T))

    assert head(both) < 0.7 * head(alone)
    left, right = decompose_rows(table, counts, regularized(H)[0]).pair(24)
    np.testing.assert_allclose(left[0] @ right[0], table, atol=1e-4)


def test_idle_and_infinite_moments_become_the_identity() -> None:
    made = regularized(np.stack([np.zeros((3, 3)), np.full((3, 3), np.inf), np.diag([1.0, 2.0, 3.0])]))
    np.testing.assert_allclose(made[0], 1.01 * np.eye(3))
    np.testing.assert_allclose(made[1], 1.01 * np.eye(3))
    np.testing.assert_allclose(np.diag(made[2]), [1.02, 2.02, 3.02])


def test_ranks_and_why_there_are_none() -> None:
    assert break_even(100, 300) == 75
    assert break_even(100, 300, 0.65) == 48
    assert (rounded(17, 8, 40), rounded(17, 8, 20), rounded(16, 8, 40)) == (24, 20, 16)
    curve = Curve(np.array([1.0, 0.5, 0.2, 0.05, 0.0]))
    ask = {"speed": 0.65, "step": 1}
    assert rank_of(curve, 40, 40, Goal(energy=0.8), **ask) == 2
    assert rank_of(curve, 4, 4, Goal(rank=5), **ask) == "rank 5 is above its full rank 4"
    assert rank_of(curve, 4, 4, Goal(rank=4), **ask) == 4
    assert rank_of(curve, 40, 40, Goal(parameters=0.5), **ask) == 10
    assert "keeps 50.0%, not 99.0%" in str(rank_of(curve, 4, 4, Goal(energy=0.99), **ask))


def test_alternation_lowers_the_error_of_convolutions() -> None:
    kernel = random.standard_normal((2, 12, 10, 3, 3))
    x = rows(4000, 90)
    H = np.repeat(moment(x), 2, 0)
    matrix = matrix_of(kernel)
    total = low_rank.output_energy(matrix, H)

    def tucker(rounds: int) -> float:
        first, core, last = Tucker(kernel, H).parts((5, 6), rounds)
        made = np.einsum("goq,gqpij,gpc->gocij", last, core, first)
        return damage(matrix, matrix_of(made), H, total)

    def spatial(rounds: int) -> float:
        first, last = Spatial(kernel, H).parts(9, rounds)
        return damage(matrix, matrix_of(np.einsum("grcia,gorbj->gocij", first, last)), H, total)

    for found in (tucker, spatial):
        assert found(3) < found(1) < found(0)


@pytest.mark.parametrize("memory", [0, 1 << 28], ids=["files", "memory"])
def test_a_walk_in_stages_sees_what_a_whole_run_sees(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "MEMORY", memory)
    context = context_of(MODELS / "vision_transformer.onnx", str(MODELS / "data/vision_transformer_calib.npz"))
    model, samples = context.model, context.samples.take(3)
    names = [site.input.name for site in context.sites if site.operator == "MatMul"][::5]
    copy = model.copy()
    copy.graph.outputs = [t for node in copy.graph.nodes for t in node.outputs if t.name in names]
    for tensor in copy.graph.outputs:
        tensor.dtype = np.dtype(np.float32)
    whole = [Session(copy).run(sample) for sample in samples]
    walk = Walk(model, samples, Options(), context.sites.types)
    for name in names:
        for found, expected in zip(walk.advance([name]), whole, strict=True):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert len(walk.done) < len(model.graph.nodes)
    assert all(len(held) <= 6 for held in walk.waiting)  # what nobody reads any more is gone


def test_stages_follow_the_graph() -> None:
    model = Model.load(context_of(MODELS / "vision_transformer.onnx").model.proto())
    nodes = [node.name for node in model.graph.nodes if node.op in {"MatMul", "Gemm"}]
    found = stages(model, {name: [name] for name in nodes})
    assert sorted(name for stage in found for name in stage) == sorted(nodes)
    assert len(found) == len(nodes)  # one after the other in this model
    together = stages(model, {"all": nodes})
    assert together == [["all"]]


def test_statistics_pair_the_rows_of_two_models() -> None:
    statistic, x = Statistic(), np.random.default_rng(0).standard_normal((2100, 1, 6)).astype(np.float32)
    for start in range(0, 2100, 700):
        statistic.add(x[start : start + 700] * 2, x[start : start + 700])
    statistic.flush()
    assert statistic.rows == 2100
    assert statistic.moment is not None
    assert statistic.cross is not None
    np.testing.assert_allclose(statistic.moment, 2 * statistic.cross, rtol=1e-5)
    np.testing.assert_allclose(statistic.cross[0], 2 * x[:, 0].T @ x[:, 0], rtol=1e-3, atol=1e-2)
    context = context_of(MODELS / "text_gru.onnx", str(MODELS / "data/text_gru_calib.npz"))
    table = next(site for site in context.sites if site.kind == "embedding")
    size = table.weight.shape[0] if table.weight is not None else 0
    walk = Walk(context.model, context.samples.take(2), Options(), context.sites.types)
    counted = statistics(walk, [Reading(table.node.inputs[1].name, "ids", table=size)])["ids"].counts
    assert counted is not None
    assert counted.shape == (size,)
    assert counted.sum() > 0
