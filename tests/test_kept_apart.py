"""One sample in four is kept apart from what is fitted: the floor holds on inputs that no solver saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxc import optimize
from onnxc.codes.fitting import even_scale
from onnxc.codes.gptq import damage, factorize, gptq, second_moment, shrunk_moment
from onnxc.codes.grids import EvenGrid
from onnxc.data import Calibration
from onnxc.errors import DataError, ModelError
from onnxc.hardness import disturbed, noisy
from onnxc.judge import Judge
from onnxc.model import Model
from onnxc.observe import observe
from onnxc.quality import floor_met
from onnxc.recipe import Budget
from onnxc.reference import ReferenceOutputs
from onnxc.session import Options, Session
from onnxc.sites import find
from onnxc.targets import target
from tests import builders
from tests.unpriced import pretend_everything_pays

WIDTH, HIDDEN, OUTPUTS = 256, 512, 64


def two_layers() -> onnx.ModelProto:
    """MatMul, Relu, MatMul, Add: more inputs than a handful of samples has rows."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = random.standard_normal(shape) / np.sqrt(shape[0])
        return numpy_helper.from_array(values.astype(np.float32), name)

    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "a"], ["h"]),
        node("Relu", ["h"], ["positive"]),
        node("MatMul", ["positive", "b"], ["sum"]),
        node("Add", ["sum", "c"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])]
        for name, size in (("x", WIDTH), ("y", OUTPUTS))
    ]
    weights = [weight("a", WIDTH, HIDDEN), weight("b", HIDDEN, OUTPUTS), weight("c", OUTPUTS)]
    return helper.make_model(
        helper.make_graph(nodes, "two_layers", *ends, weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def rows(seed: int, count: int, each: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((each, WIDTH), np.float32)} for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "apart"), [(1, []), (2, [1]), (3, [2]), (4, [3]), (9, [3, 7]), (64, list(range(3, 64, 4)))]
)
def test_one_in_four(count: int, apart: list[int]) -> None:
    samples = Calibration.open(rows(0, count), Session(two_layers()).inputs)
    assert sorted(samples.apart) == apart


def test_they_give_ranges_but_nothing_that_weights_are_fitted_to() -> None:
    model = Model.load(two_layers())
    data = rows(0, 8, each=300)
    for position in (3, 7):
        data[position]["x"] *= 100
    found = find(model, target("cpu"))
    sites = list(found)
    seen = observe(model, data, 8, [t for site in sites for t in site.inputs], sites, Options(), {3, 7})
    assert seen.ranges["x"].limits("minmax")[1] > 300
    assert np.abs(seen.rows["x"]).max() < 10
    assert len(seen.rows["x"]) > 1500


def test_outputs_must_be_as_good_on_them() -> None:
    model, data = two_layers(), rows(0, 8)
    session, off = Session(model), onnx.ModelProto.FromString(model.SerializeToString())
    shift = numpy_helper.to_array(off.graph.initializer[2]) + np.float32(0.02)
    off.graph.initializer[2].CopyFrom(numpy_helper.from_array(shift, "c"))
    for position in (3, 7):  # the outputs are small there: the same error is larger
        data[position]["x"] = data[position]["x"] / 20
    quality = ReferenceOutputs(session, data).judge(Session(off))
    apart = ReferenceOutputs(session, data, apart={3, 7}).judge(Session(off))
    only = ReferenceOutputs(session, [data[3], data[7]]).judge(Session(off))
    assert apart.sqnr_db == pytest.approx(only.sqnr_db)
    assert apart.fitted == pytest.approx(quality.sqnr_db - only.sqnr_db)
    assert apart.fitted > 1
    said = floor_met(apart, Budget(min_sqnr=apart.sqnr_db + 0.2), generated=False)
    assert said is not None
    assert "nothing was fitted to" in said


def test_samples_that_any_noise_changes_are_known_to_be_hard() -> None:
    """x a - z b, where a = b: where z is nearly x little is left but the noise, as in both samples kept apart."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((WIDTH, OUTPUTS)).astype(np.float32)
    node = helper.make_node
    nodes = [node("MatMul", ["x", "a"], ["p"]), node("MatMul", ["z", "b"], ["q"]), node("Sub", ["p", "q"], ["y"])]
    sizes = {"x": WIDTH, "z": WIDTH, "y": OUTPUTS}
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in sizes.items()]
    weights = [numpy_helper.from_array(weight, name) for name in "ab"]
    model = Model.load(
        helper.make_model(
            helper.make_graph(nodes, "rest", kinds[:2], kinds[2:], weights),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
    )
    data = rows(0, 8)
    for position, sample in enumerate(data):
        sample["z"] = (0.9 if position in (3, 7) else -0.9) * sample["x"]
    session = Session(model)
    knowing, other = (ReferenceOutputs(session, data, apart={3, 7}) for _ in range(2))
    first, second = disturbed(model), disturbed(model, seed=1)
    assert first is not None
    assert second is not None
    knowing.hear(Session(first))
    truly = ReferenceOutputs(session, data).judge(Session(second)).sqnr_db
    assert other.judge(Session(second)).sqnr_db < truly - 10
    assert knowing.judge(Session(second)).sqnr_db == pytest.approx(truly, abs=0.5)

    seen = np.concatenate([data[position]["x"] for position in range(8) if position not in (3, 7)])
    unheard = np.linalg.svd(seen)[2][len(seen) :]  # what the others do not show may be wrong: that is what is fitted
    fitted = model.copy()
    error = unheard.T @ unheard @ random.standard_normal(weight.shape) * 0.01
    fitted.graph.weights[0].values = (weight + error).astype(np.float32)
    found = knowing.judge(Session(fitted))
    assert found.fitted > 6


def test_a_model_that_runs_with_no_noise_is_judged_without() -> None:
    """Floats that are cast to the indices of the last row: with noise some point behind it."""
    nodes = [
        helper.make_node("Cast", ["places"], ["rows"], to=TensorProto.INT64),
        helper.make_node("Gather", ["x", "rows"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [101])
    found = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    places = numpy_helper.from_array(np.full((8, 8), 100, np.float32), "places")
    proto = helper.make_model(
        helper.make_graph(nodes, "rows", [given], [found], [places]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    data = [{"x": np.arange(101, dtype=np.float32) + seed} for seed in range(8)]
    session = Session(proto)
    noisy = disturbed(Model.load(proto))
    assert noisy is not None
    with pytest.raises(ModelError):
        Session(noisy).run(data[0])
    judge = Judge(Model.load(proto), Calibration.open(data, session.inputs), Budget(), Options())
    judge.prepare(session)
    assert judge.reference.shares == {}
    assert judge.judge(Model.load(proto))[2] is None


def test_noise_spares_masks() -> None:
    mask = np.array([[0, -np.inf], [np.finfo(np.float32).min, 65504]], np.float32)
    for kind in (np.float32, np.float16):
        with np.errstate(over="ignore"):
            given = mask.astype(kind)
        found = noisy(given, np.random.default_rng(3))
        assert found.dtype == kind
        assert np.array_equal(np.isfinite(found), np.isfinite(given))
        assert found[0, 0] == 0


def test_noise_reaches_weights_of_constant_nodes_and_spares_the_model() -> None:
    inside, values = helper.make_node, np.ones((4, 4), np.float32)
    nodes = [
        inside("Constant", [], ["a"], value=numpy_helper.from_array(values)),
        inside("MatMul", ["x", "a"], ["h"]),
        inside("Add", ["h", "b"], ["y"]),
    ]
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    bias = numpy_helper.from_array(np.ones(4, np.float32), "b")
    graph = helper.make_graph(nodes, "constant", kinds[:1], kinds[1:], [bias])
    model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    before, noisy = model.digest(), disturbed(model)
    assert noisy is not None
    x = {"x": np.eye(4, dtype=np.float32)[:1]}
    found = Session(noisy).run(x)["y"] - 2
    assert 0.002 < np.abs(found).max() < 0.05
    assert model.digest() == before
    assert np.array_equal(Session(model).run(x)["y"], np.full((1, 4), 2, np.float32))


@pytest.mark.parametrize("count", [16, 36, 100])
def test_a_solver_gains_on_rows_that_it_did_not_see(count: int) -> None:
    """Behind a Relu: a large mean that is known well, and a covariance that few rows do not tell."""
    random = np.random.default_rng(1)
    mixing = random.standard_normal((WIDTH, HIDDEN)) / np.sqrt(WIDTH)

    def activations(number: int) -> np.ndarray:
        return np.maximum(random.standard_normal((number, WIDTH)) @ mixing, 0).astype(np.float32)

    few, true = activations(count), second_moment(activations(8000))[None]
    weight = random.standard_normal((1, HIDDEN, OUTPUTS)).astype(np.float32)
    scale = even_scale(weight, 9, np.ones((1, HIDDEN), np.float32))
    nearest = np.rint(weight / scale[:, None]).clip(-4, 4)
    found, _ = gptq(weight / scale[:, None], factorize(shrunk_moment(few)[None]), EvenGrid(9))
    assert damage(weight, found * scale[:, None], true) < 0.75 * damage(weight, nearest * scale[:, None], true)


@pytest.mark.parametrize("count", [2, 9])
def test_the_floor_holds_on_inputs_that_were_not_given(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_everything_pays(monkeypatch)
    source, result = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(two_layers().SerializeToString())
    optimize(source, result, calib=rows(0, count), prices=tmp_path / "prices.json")
    assert result.stat().st_size < 0.3 * source.stat().st_size
    quality = ReferenceOutputs(Session(source), rows(1, 40)).judge(Session(result))
    assert quality.sqnr_db > 19  # 20 on 4 or 8 rows: within what chance makes of them


def test_the_first_step_of_a_decoder_has_an_empty_past() -> None:
    """A dynamic axis may be empty; a sample in which nothing is left may not."""
    node = helper.make_node("Concat", ["past", "x"], ["y"], axis=0)
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("past", "x", "y")]
    model = helper.make_model(
        helper.make_graph([node], "decoder", kinds[:2], kinds[2:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    inputs, empty, full = Session(model).inputs, np.zeros((0, 2), np.float32), np.ones((1, 2), np.float32)
    assert len(Calibration.open([{"past": empty, "x": full}], inputs)) == 1
    with pytest.raises(DataError, match="holds nothing"):
        Calibration.open([{"past": empty, "x": empty}], inputs)


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_that_no_sample_takes_keeps_its_answers(taken: bool, tmp_path: Path) -> None:
    """What nobody hears seems to cost nothing: 1.6 bits of it would pass every check on the samples."""
    b = builders.Builder(3)
    then, other = (builders.body(lambda c: c.add("MatMul", "x", c.weight(64, 512)), s, ["n", 512]) for s in (1, 2))
    b.add("If", "c", out="y", then_branch=then, else_branch=other)
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(b.model([builders.X, ("c", TensorProto.BOOL, [])], [("y", TensorProto.FLOAT, ["n", 512])]), source)
    random = np.random.default_rng(0)
    data = [{"x": random.standard_normal((8, 64), np.float32), "c": np.bool_(taken)} for _ in range(8)]
    budget = Budget(min_sqnr=10, max_load_time=100)
    report = optimize(source, out, calib=data, budget=budget, prices=tmp_path / "prices.json")
    before, after = Session(source), Session(out)
    found = dict[bool, float]()
    for each in (True, False):
        wanted, got = (session.run({"x": data[0]["x"], "c": np.bool_(each)})["y"] for session in (before, after))
        found[each] = float(10 * np.log10(np.square(wanted).sum() / np.square(got - wanted).sum()))
    assert 10 <= found[taken] < 25
    assert found[not taken] > 35
    assert [note for note in report.notes if "no sample shows what 1 weights" in note]
    assert out.stat().st_size < 0.25 * source.stat().st_size


def test_labels_alone_hear_no_rounding(tmp_path: Path) -> None:
    """All samples use all weights: it is that labels jump, or do not."""
    b = builders.Builder(4)
    hidden = b.add("Relu", b.add("MatMul", "x", b.weight(64, 256)))
    b.add("ArgMax", b.add("MatMul", hidden, b.weight(256, 16)), out="y", axis=1, keepdims=0)
    source = tmp_path / "in.onnx"
    onnx.save(b.model([builders.X], [("y", TensorProto.INT64, ["n"])]), source)
    random = np.random.default_rng(0)
    data = [{"x": random.standard_normal((8, 64), np.float32)} for _ in range(16)]
    report = optimize(source, tmp_path / "out.onnx", calib=data, prices=tmp_path / "prices.json")
    assert [note for note in report.notes if note.startswith("no output is a quantity in which rounding 2 weights")]
    assert not [note for note in report.notes if "no sample shows" in note]
