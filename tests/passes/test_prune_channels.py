"""prune-channels: half the parameters of every family, and trained models that stay good without training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper

from onnxc import optimize
from onnxc.contract.context import Context
from onnxc.contract.fields import configured
from onnxc.contract.passes import Level
from onnxc.coupling.graph import Group
from onnxc.coupling.pruning import Channels
from onnxc.coupling.selection import Damage, Problem, allocate, evenly, second_order, steps, uniform
from onnxc.data import Calibration, generate
from onnxc.errors import RecipeError
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.observe import Observations
from onnxc.passes.prune_channels import PruneChannels
from onnxc.recipe import Recipe
from onnxc.session import Options, Session
from onnxc.sites import find
from onnxc.targets import target
from tests.builders import MODELS as ODD_MODELS
from tests.builders import Builder, X
from tests.families import FAMILIES

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
LIGHT = [
    pytest.param(path, marks=() if path.stem in {"light_squeezenet", "light_shufflenet"} else pytest.mark.slow)
    for path in sorted((Path(onnx.backend.test.__file__).parent / "data" / "light").glob("*.onnx"))
]
sys.path.insert(0, str(MODELS))


def context(source: onnx.ModelProto | Path, calib: object = None, *, told: bool = True) -> Context:
    model = Model.load(source)
    name_nodes(model)
    session = Session(model)
    samples = generate(model, session) if calib is None else Calibration.open(calib, session.inputs)
    cpu = target("cpu")
    return Context(model, find(model, cpu), Observations(), Recipe(), cpu, told=told, samples=samples)


@cache
def trained(name: str) -> Context:
    return context(MODELS / f"{name}.onnx", some(name))


def some(name: str) -> list[dict[str, np.ndarray]]:
    """32 calibration samples."""
    with np.load(MODELS / "data" / f"{name}_calib.npz") as found:
        return [{key: found[key][i : i + 1] for key in found.files} for i in range(32)]


def only(levels: object) -> Level:
    (level,) = levels  # type: ignore[misc]  # told: exactly one
    return level


def elements(model: Model) -> int:
    return sum(int(np.prod(tensor.shape)) for tensor in model.graph.weights if tensor.dtype == np.float32)


def score(name: str, model: Model) -> float:
    import evaluate

    return float(getattr(evaluate, f"quality_{name}")(Session(model).raw))


def sqnr(first: Model, second: Model, samples: Calibration) -> float:
    one, two = Session(first), Session(second)
    signal = noise = 0.0
    for sample in samples:
        for wanted, found in zip(one.run(sample).values(), two.run(sample).values(), strict=True):
            signal += float((wanted**2).sum())
            noise += float(((wanted - found) ** 2).sum())
    return float(10 * np.log10(signal / max(noise, 1e-30)))


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_every_family_goes(name: str) -> None:
    """The model loads, runs, has its shapes and half the parameters; every group is cut or refused with a reason."""
    start = context(FAMILIES[name]())
    level = only(PruneChannels(parameters=0.5).levels(start))
    onnx.checker.check_model(level.model.proto(), full_check=True)
    assert 0.42 <= elements(level.model) / elements(start.model) <= 0.52
    assert start.samples is not None
    for sample in start.samples:
        before, after = Session(start.model).run(sample), Session(level.model).run(sample)
        assert after["y"].shape == before["y"].shape
        assert np.isfinite(after["y"]).all()
    channels = Channels.of(start.model, start.samples, Options(), 16, ("heads", "residual"))
    assert f"in {len(channels.groups)} groups" in level.specification
    reasons = [note.rpartition(" stay: ")[2] for note in level.notes[1:]]
    assert reasons == (["they reach the model's output 'y'"] if name != "gpt" else [])


def test_what_was_not_asked_for_is_said() -> None:
    level = only(PruneChannels(fraction=0.25, heads=False, residual=False).levels(context(FAMILIES["vit"]())))
    reasons = {note.rpartition(" stay: ")[2] for note in level.notes}
    assert {"heads were not asked for", "residual streams were not asked for"} <= reasons


def test_infinities_pin_their_channels_and_say_nothing_of_others() -> None:
    """Half of the rows are infinite behind the first layer: the second one's channels are judged by the others."""
    b = Builder(7)
    names = [b.weight(64, 96), b.weight(96, 80), b.weight(80, 32)]
    first = b.add("Relu", b.add("MatMul", "x", names[0]))
    b.add("MatMul", b.add("Relu", b.add("MatMul", first, names[1])), names[2], out="y")
    values = numpy_helper.to_array(b.initializers[0]).copy()
    values[0, 0] = np.inf
    b.initializers[0].CopyFrom(numpy_helper.from_array(values, names[0]))
    proto = b.model([X], [("y", onnx.TensorProto.FLOAT, ["n", 32])])
    random = np.random.default_rng(0)
    start = context(proto, [{"x": random.standard_normal((128, 64), np.float32)} for _ in range(8)])
    level = only(PruneChannels(fraction=0.25).levels(start))
    assert "in 1 groups" in level.specification
    assert [note for note in level.notes if note.endswith("stay: a weight that holds them has NaN or infinite values")]
    left = {t.name: np.asarray(t.values) for t in level.model.graph.weights}
    assert [left[name].shape for name in names] == [(64, 96), (96, 64), (64, 32)]
    assert np.isfinite(left[names[2]]).all()
    assert not np.array_equal(left[names[2]], numpy_helper.to_array(b.initializers[2])[: len(left[names[2]])])


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_light_models_go_through(path: Path) -> None:
    halve(path)


def halve(path: Path) -> None:
    start = context(path)
    level = only(PruneChannels(parameters=0.5).levels(start))
    assert start.samples is not None
    sample = start.samples.take(1)[0]
    before, after = Session(start.model).run(sample), Session(level.model).run(sample)
    assert {name: value.shape for name, value in before.items()} == {n: v.shape for n, v in after.items()}
    assert 0.5 <= float(level.specification.split("%")[1].split()[-1]) / 100 < 0.56
    assert not any("cannot be reached" in note for note in level.notes)
    tied = [note for note in level.notes if "tied to all others" in note]  # a shuffle of 4 does not divide groups of 34
    reason = "every one of them is tied to all others, through a convolution of 4 groups"
    expected = [f"channels of n17, n29, n41, n53 stay: {reason}"]
    assert tied == (expected if path.stem == "light_shufflenet" else [])


def test_a_trained_cnn_loses_half_of_its_macs() -> None:
    start = trained("residual_cnn")
    assert start.samples is not None
    level = only(PruneChannels(macs=0.5).levels(start))
    assert float(level.specification.split("%")[0]) >= 50
    assert score("residual_cnn", start.model) - score("residual_cnn", level.model) <= 0.005
    assert sqnr(start.model, level.model, start.samples) >= 18
    raw = only(PruneChannels(macs=0.5, refit=False).levels(start))
    assert sqnr(start.model, raw.model, start.samples) < 8


@pytest.mark.slow
def test_a_trained_transformer_loses_a_fifth_of_its_mlps() -> None:
    start = trained("vision_transformer")
    assert start.samples is not None
    level = only(PruneChannels(fraction=0.2, heads=False, residual=False).levels(start))
    shapes = sorted(tuple(t.shape) for t in level.model.graph.weights if 304 in t.shape)
    assert shapes == sorted([(304,), (96, 304), (304, 96)] * 4)
    assert score("vision_transformer", start.model) - score("vision_transformer", level.model) <= 0.01
    assert sqnr(start.model, level.model, start.samples) >= 15


def test_recurrent_layers_are_refitted_too() -> None:
    start = trained("lstm")
    assert start.samples is not None
    level = only(PruneChannels(fraction=0.25).levels(start))
    assert [node.attrs["hidden_size"] for node in level.model.graph.nodes if node.op == "LSTM"] == [96, 96]
    raw = only(PruneChannels(fraction=0.25, refit=False).levels(start))
    with_refit = sqnr(start.model, level.model, start.samples)
    assert with_refit > sqnr(start.model, raw.model, start.samples) + 3
    assert score("lstm", start.model) - score("lstm", level.model) <= 0.05


@pytest.mark.slow
def test_second_order_beats_variance_and_norm() -> None:
    start = trained("residual_cnn")
    assert start.samples is not None
    found = {
        importance: sqnr(
            start.model,
            only(PruneChannels(fraction=0.5, importance=importance, residual=False, refit=False).levels(start)).model,
            start.samples,
        )
        for importance in ("obs", "variance", "norm")
    }
    assert max(found.values()) < 15  # none is any good without a refit
    refitted = {
        importance: sqnr(
            start.model,
            only(PruneChannels(fraction=0.5, importance=importance, residual=False).levels(start)).model,
            start.samples,
        )
        for importance in ("obs", "norm")
    }
    assert refitted["obs"] > refitted["norm"] > found["norm"] + 3


@pytest.mark.slow
def test_levels_are_cut_afresh_and_grow() -> None:
    start = trained("residual_cnn")
    levels = PruneChannels().levels(Context(**{**vars(start), "told": False}))
    cuts = [float(level.specification.split("%")[0]) for level in (next(levels), next(levels), next(levels))]
    assert cuts == sorted(cuts)
    for cut, wanted in zip(cuts, (10, 20, 30), strict=True):
        assert wanted <= cut < wanted + 8


def test_the_same_input_gives_the_same_bytes() -> None:
    start = trained("lstm")
    first, second = (only(PruneChannels(macs=0.3).levels(start)).model.serialized() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"importance": "norm"}, "needs one of fraction, macs and parameters"),
        ({"macs": 0.2, "fraction": 0.3}, "needs one of"),
        ({"macs": 1.5}, "above 0 and below 1"),
        ({"fraction": 0.5, "rounding": 0}, "rounding=0 must be at least 1"),
    ],
)
def test_wrong_fields_are_said_to_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        configured(PruneChannels, PruneChannels.name, fields)


def test_what_cannot_be_reached_is_said() -> None:
    level = only(PruneChannels(macs=0.99).levels(context(FAMILIES["mobilenet"]())))
    assert "macs=0.99 cannot be reached" in level.notes[0]


def test_a_model_without_channels_has_no_levels() -> None:
    assert not list(PruneChannels(macs=0.5).levels(context(MODELS / "lightgbm_trees.onnx")))


ODD = ["no_nodes", "sequences", "recurrent", "grouped", "conv_transpose", "everything_dynamic", "weight_is_output"]


@pytest.mark.parametrize("name", ODD)
def test_odd_models_run_or_are_left_alone(name: str) -> None:
    start = context(ODD_MODELS[name]())
    assert start.samples is not None
    for level in PruneChannels(fraction=0.5).levels(start):
        for sample in start.samples:
            before, after = Session(start.model).run(sample), Session(level.model).run(sample)
            assert [np.shape(value) for value in before.values()] == [np.shape(value) for value in after.values()]


@pytest.mark.slow
def test_the_whole_walk(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = optimize(
        MODELS / "residual_cnn.onnx", out, calib=some("residual_cnn"), passes="prune-channels:macs=0.5",
        prices=tmp_path / "prices.json",
    )  # fmt: skip
    assert out.stat().st_size < 0.6 * (MODELS / "residual_cnn.onnx").stat().st_size
    assert any("of the multiply-adds" in note for note in report.notes)


def group(units: int, width: int = 1) -> Group:
    return Group("layer", "channels", units, {("w", 0): np.repeat(np.arange(units), width)}, width)


def test_sizes_are_what_kernels_like() -> None:
    assert (128 - steps(group(128), 16)).tolist() == [128, 112, 96, 80, 64, 48, 32, 16]
    assert (40 - steps(group(40), 16)).tolist() == [40, 32, 24, 16, 8]
    assert (12 - steps(group(12), 16)).tolist() == [12, 8, 4]
    assert (6 - steps(group(6), 16)).tolist() == [6, 5, 4]
    assert (3 - steps(group(3), 16)).tolist() == [3]
    assert (12 - steps(group(12, 32), 16)).tolist() == list(range(12, 0, -1))
    assert (64 - steps(group(64), 4)).tolist() == list(range(64, 0, -4))
    assert uniform([group(128), group(40)], 0.3, 16) == {0: 32, 1: 8}


def test_the_second_order_order_is_that_of_brute_force() -> None:
    """The first unit is the one whose removal costs least after the best refit of all others; its cost is exact."""
    random = np.random.default_rng(3)
    rows, weight = random.standard_normal((200, 12)) @ random.standard_normal((12, 12)), random.standard_normal((12, 5))
    moment = rows.T @ rows / len(rows)
    units = np.repeat(np.arange(4), 3)
    errors = []
    for unit in range(4):
        left = units != unit
        solved = np.linalg.solve(moment[np.ix_(left, left)], moment[left] @ weight)
        change = weight.copy()
        change[left] -= solved
        errors.append(np.trace(change.T @ moment @ change) / np.trace(weight.T @ moment @ weight))
    damage = second_order(group(4, 3), [Problem(moment[None].copy(), weight[None], units)], 3)
    assert damage.order[0] == np.argmin(errors)
    np.testing.assert_allclose(damage.errors[1], min(errors), rtol=1e-6)
    assert (np.diff(damage.errors) >= 0).all()


def test_allocation_takes_the_cheap_group_first() -> None:
    groups = [group(64), group(64)]
    order = np.arange(64)
    cheap, dear = Damage(order, np.linspace(0, 0.1, 65)), Damage(order, np.linspace(0, 10, 65))

    def count(removed: Mapping[int, int]) -> float:
        return 128.0 - sum(removed.values())

    assert allocate(groups, [dear, cheap], count, 0.25, 16) == {1: 32}
    assert allocate(groups, [dear, cheap], count, 0.5, 16) == {0: 16, 1: 48}
    assert evenly(groups, count, 0.25, 16) == {0: 16, 1: 16}
