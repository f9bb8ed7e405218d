"""Trained models with zeros: which weights go, and what is left of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxc.codes.moments import Factors
from onnxc.codes.solve import solved
from onnxc.contract.context import Context
from onnxc.contract.fields import configured
from onnxc.contract.passes import Level
from onnxc.data import Calibration
from onnxc.errors import RecipeError
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.observe import Observations, observe
from onnxc.passes.prune_weights import PruneWeights
from onnxc.recipe import Recipe, parse_passes
from onnxc.session import Options, Session
from onnxc.sites import find
from onnxc.targets import target

MODELS = Path(__file__).parents[2] / "models"
SAMPLES = 48
random = np.random.default_rng(0)


@cache
def data_of(name: str) -> dict[str, np.ndarray]:
    with np.load(MODELS / f"data/{name}_calib.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("calib")
    for path in MODELS.glob("*.onnx"):
        values = data_of(path.stem)
        np.savez(made / f"{path.stem}.npz", **{key: each[:SAMPLES] for key, each in values.items()})
    return made


def context_of(folder: Path, name: str, *, told: bool = True, data: bool = True) -> Context:
    model = Model.load(MODELS / f"{name}.onnx")
    name_nodes(model)
    session = Session(MODELS / f"{name}.onnx")
    samples = Calibration.open(folder / f"{name}.npz", session.inputs) if data else None
    where = target("cpu")
    return Context(model, find(model, where), Observations(), Recipe(), where, told=told, samples=samples)


def told(folder: Path, name: str, *, data: bool = True, **fields: Any) -> tuple[Context, Level]:
    context = context_of(folder, name, data=data)
    (level,) = PruneWeights(**fields).levels(context)
    return context, level


def weights(model: Model) -> dict[str, np.ndarray]:
    return {t.name: np.asarray(t.values) for graph in model.graphs() for t in graph.weights}


def sqnr(context: Context, model: Model, name: str) -> float:
    """On samples that calibration did not see."""
    sessions = [Session(each) for each in (context.model, model)]
    signal = noise = 0.0
    fresh = {key: values[SAMPLES:96] for key, values in data_of(name).items()}
    for index in range(len(next(iter(fresh.values())))):
        sample = {key: values[index : index + 1] for key, values in fresh.items()}
        old, new = (np.asarray(next(iter(session.run(sample).values())), np.float64) for session in sessions)
        signal, noise = signal + float((old**2).sum()), noise + float(((old - new) ** 2).sum())
    return 10 * float(np.log10(signal / max(noise, 1e-30)))


def matrices(context: Context) -> list[str]:
    return [
        w.name for w in context.sites.weights if any(s.weight is w and s.kind != "embedding" for s in context.sites)
    ]


@pytest.mark.parametrize("name", ["residual_cnn", "vision_transformer"])
def test_half_of_the_weights_go_and_the_answers_stay(folder: Path, name: str) -> None:
    context, level = told(folder, name, fraction=0.5)
    _, plain = told(folder, name, fraction=0.5, importance="magnitude")
    before, after = weights(context.model), weights(level.model)
    pruned = matrices(context)
    for weight in pruned:
        zeros = (after[weight] == 0).mean()
        assert zeros == pytest.approx(0.5, abs=0.5 / after[weight].size + 0.001), weight
    biases = {site.bias.name for site in context.sites if site.bias is not None}
    for other in set(before) - set(pruned) - biases:
        np.testing.assert_array_equal(after[other], before[other], err_msg=other)
    found, by_size = sqnr(context, level.model, name), sqnr(context, plain.model, name)
    assert found > 20
    assert found > by_size + 8
    assert "50.0%" in level.specification


def test_a_threshold_is_exact(folder: Path) -> None:
    context, level = told(folder, "residual_cnn", threshold=0.02)
    before, after = weights(context.model), weights(level.model)
    for name, values in before.items():
        expected = np.where(np.abs(values) < 0.02, 0, values) if name in matrices(context) else values
        np.testing.assert_array_equal(after[name], expected)


def test_a_threshold_may_be_refitted(folder: Path) -> None:
    name = "vision_transformer"
    context, level = told(folder, name, threshold=0.04)
    _, refitted = told(folder, name, threshold=0.04, refit=True)
    for weight in matrices(context):
        assert np.array_equal(weights(refitted.model)[weight] == 0, weights(level.model)[weight] == 0)
    assert sqnr(context, refitted.model, name) > sqnr(context, level.model, name) + 3


@pytest.mark.parametrize("importance", ["second-order", "activation", "magnitude"])
def test_a_fraction_of_the_whole_model(folder: Path, importance: str) -> None:
    context, level = told(folder, "vision_transformer", fraction=0.4, scope="model", importance=importance, refit=True)
    before, after = weights(context.model), weights(level.model)
    pruned = matrices(context)
    zeros = {name: float((after[name] == 0).mean()) for name in pruned}
    total = sum(after[name].size for name in pruned)
    assert sum(zeros[n] * after[n].size for n in pruned) / total == pytest.approx(0.4, abs=0.005)
    assert max(zeros.values()) > min(zeros.values()) + 0.05, "sites differ"
    if importance == "magnitude":
        gone = max(np.abs(before[n][after[n] == 0]).max(initial=0) for n in pruned)
        kept = min(np.abs(before[n][after[n] != 0]).min() for n in pruned)
        assert gone <= kept


def test_two_of_four_inputs_survive(folder: Path) -> None:
    context, level = told(folder, "vision_transformer", pattern="2:4")
    _, plain = told(folder, "vision_transformer", pattern="2:4", importance="magnitude")
    for made in (level, plain):
        for site in context.sites:
            if site.operator == "MatMul" and site.weight is not None and site.weight.shape[0] % 4 == 0:
                groups = weights(made.model)[site.weight.name].reshape(site.weight.shape[0] // 4, 4, -1)
                assert ((groups != 0).sum(1) == 2).all()
    name = "vision_transformer"
    assert sqnr(context, level.model, name) > sqnr(context, plain.model, name) + 8


def test_recurrent_weights_are_pruned_and_tables_only_by_a_threshold(folder: Path) -> None:
    context, level = told(folder, "lstm", fraction=0.5)
    recurrent = [w.name for w in context.sites.weights if any(node.op == "LSTM" for node, _ in w.readers)]
    after = weights(level.model)
    assert sum(np.ndim(after[name]) == 3 and (after[name] == 0).mean() > 0.49 for name in recurrent) == 4
    assert any("by magnitude alone" in note for note in level.notes)
    context, level = told(folder, "text_gru", fraction=0.5)
    table = next(w.name for w in context.sites.weights if any(node.op == "Gather" for node, _ in w.readers))
    assert weights(level.model)[table].all()
    _, level = told(folder, "text_gru", threshold=0.02)
    values = weights(context.model)[table]
    np.testing.assert_array_equal(weights(level.model)[table] == 0, np.abs(values) < 0.02)


def test_without_data_magnitude_decides(folder: Path) -> None:
    _, blind = told(folder, "residual_cnn", data=False, fraction=0.5)
    _, plain = told(folder, "residual_cnn", fraction=0.5, importance="magnitude")
    assert blind.model.serialized() == plain.model.serialized()
    assert any("not observed" in note for note in blind.notes)
    assert not plain.notes


def test_again_it_changes_no_zero_and_comes_out_the_same(folder: Path) -> None:
    context, level = told(folder, "sklearn_mlp", fraction=0.5)
    _, same = told(folder, "sklearn_mlp", fraction=0.5)
    assert level.model.serialized() == same.model.serialized()
    again = Context(
        level.model, find(level.model, context.target), Observations(), Recipe(), context.target, True, context.samples
    )
    (more,) = PruneWeights(fraction=0.3).levels(again)
    for name in matrices(context):
        zeros = weights(level.model)[name] == 0
        assert not weights(more.model)[name][zeros].any()
        assert (weights(more.model)[name] == 0).mean() < zeros.mean() + 0.01


def test_zeros_stay_zero_in_codes() -> None:
    """GPTQ moves every weight that it has not yet rounded, zeros excepted."""
    values = random.standard_normal((64, 32)).astype(np.float32)
    values[random.random(values.shape) < 0.6] = 0
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 64), ("y", 32))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(values, "w")])
    model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    sites = find(model, target("cpu"))
    x = (random.standard_normal((300, 8)) @ random.standard_normal((8, 64))).astype(np.float32)
    seen = observe(model, [{"x": x}], 1, model.graph.inputs, list(sites), Options())
    context = Context(model, sites, seen, Recipe(), target("cpu"))
    factors = Factors(sites, seen)
    assert factors.of(sites.weights[0]) is not None, "GPTQ is at work"
    codes = solved(sites.weights[0], values, context, factors)
    assert not codes.values[values == 0].any()
    assert (codes.values[values != 0] != 0).mean() > 0.9


def test_levels_cut_more_and_more(folder: Path) -> None:
    context = context_of(folder, "residual_cnn", told=False)
    shares: Sequence[float] = []
    for level, _ in zip(PruneWeights(importance="magnitude").levels(context), range(3), strict=False):
        zeros = [float((weights(level.model)[name] == 0).mean()) for name in matrices(context)]
        shares = [*shares, float(np.mean(zeros))]
    assert shares == pytest.approx([0.3, 0.4, 0.5], abs=0.01)


@pytest.mark.parametrize(
    ("passes", "said"), [("prune-weights", True), ("prune-weights,simplify", True), ("prune-weights,store-int8", False)]
)
def test_unless_something_stores_them_zeros_are_said_to_save_nothing(folder: Path, passes: str, said: bool) -> None:
    for fold in (False, True):
        asked = parse_passes(f"{passes},fold-sparse" if fold else passes)
        context = replace(context_of(folder, "sklearn_mlp", told=False), recipe=Recipe(passes=asked))
        level = next(iter(PruneWeights(importance="magnitude").levels(context)))
        assert any("zeros alone save no byte" in note for note in level.notes) is (said and not fold)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"importance": "magnitude"}, "say how much"),
        ({"threshold": 0.1, "fraction": 0.5}, "say how much"),
        ({"fraction": 1.0}, "below 1"),
        ({"fraction": -0.1}, "above 0"),
        ({"threshold": -1.0}, "above 0"),
        ({"pattern": "4:2"}, "N:M"),
        ({"pattern": "4x1"}, "say how much"),
    ],
)
def test_what_cannot_be_done_is_said(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        configured(PruneWeights, PruneWeights.name, fields)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("prune-weights:pattern=2:4:refit=true", PruneWeights(pattern="2:4", refit=True)),
        ("prune-weights:fraction=50%:pattern=4x1", PruneWeights(fraction=0.5, pattern="4x1")),
        ("prune-weights:threshold=1e-3", PruneWeights(threshold=1e-3)),
    ],
)
def test_fields_in_words(text: str, wanted: PruneWeights) -> None:
    (request,) = parse_passes(text)
    assert configured(PruneWeights, request.name, request.fields) == wanted
