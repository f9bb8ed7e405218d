"""Which sites hurt, what each would cost in float, and the fewest that have to be, where the culprits are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxc
from onnxc import cli, validate
from onnxc.culprits import smallest as culprits_smallest
from onnxc.culprits.costs import kept_bytes
from onnxc.culprits.local_damage import site_damage
from onnxc.culprits.matching import matched
from onnxc.culprits.restoring import restorable, restored
from onnxc.culprits.scales import units
from onnxc.culprits.smallest import SmallestSet
from onnxc.errors import RecipeError
from onnxc.model import Model
from onnxc.passes.fold_sparse import FoldSparse
from onnxc.recipe import Budget, PassRequest, Recipe, load_recipe, recipe_text
from onnxc.reference import ReferenceOutputs
from onnxc.session import Options, Ratio, Session
from onnxc.validate import compare
from tests.unpriced import pretend_everything_pays

ROOT = Path(__file__).parents[1]
MLP, CALIB = ROOT / "models" / "sklearn_mlp.onnx", ROOT / "models" / "data" / "sklearn_mlp_calib.npz"
RNG = np.random.default_rng(5)
LAYERS = 6
WEIGHTS = [RNG.standard_normal((48, 48)).astype(np.float32) / 7 for _ in range(LAYERS)]
INPUTS = [{"x": RNG.standard_normal((4, 48)).astype(np.float32)} for _ in range(6)]


def proto(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], rank: int = 2) -> onnx.ModelProto:
    shape = ["n", 48] if rank == 2 else ["n", 8, 12, 12]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tower() -> onnx.ModelProto:
    """Six linears, each with a Tanh."""
    nodes = []
    for index in range(LAYERS):
        nodes.append(
            helper.make_node("MatMul", [f"t{index - 1}" if index else "x", f"w{index}"], [f"h{index}"], f"layer{index}")
        )
        nodes.append(helper.make_node("Tanh", [f"h{index}"], [f"t{index}"], f"tanh{index}"))
    return proto(nodes, {f"w{index}": values for index, values in enumerate(WEIGHTS)})


def coarse(*culprits: int) -> onnx.ModelProto:
    """The same with 8-bit weights, those of ``culprits`` with 3 levels."""
    nodes, weights = [], dict[str, np.ndarray]()
    for index, values in enumerate(WEIGHTS):
        levels = 1 if index in culprits else 127
        scale = np.float32(np.abs(values).max() / levels)
        weights |= {f"w{index}_q": np.rint(values / scale).astype(np.int8), f"w{index}_s": np.array(scale)}
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{index}_q", f"w{index}_s"], [f"w{index}_f"]),
            helper.make_node("MatMul", [f"t{index - 1}" if index else "x", f"w{index}_f"], [f"h{index}"]),
            helper.make_node("Tanh", [f"h{index}"], [f"t{index}"]),
        ]
    return proto(nodes, weights)


def smallest(new: onnx.ModelProto, **limits: Any) -> SmallestSet:
    found = compare(
        Model.load(tower()),
        Model.load(new),
        INPUTS,
        bisect=True,
        budget=Budget(**limits),
        speed=False,
        load=False,
        kernels=False,
    ).smallest
    assert found is not None
    return found


@pytest.mark.parametrize("culprits", [(3,), (0, 5), (1, 2, 4)])
def test_the_fewest_sites_are_the_coarse_ones(culprits: tuple[int, ...]) -> None:
    found = smallest(coarse(*culprits))
    assert set(found.sites) == {f"layer{index}" for index in culprits}
    assert (found.candidates, found.unmatched) == (6, 0)
    assert found.before.sqnr_db < 10
    assert found.after.sqnr_db >= 20
    assert found.before.missed is not None
    assert found.after.missed is None
    saved = len(culprits) * 48 * 48 * 3  # float32 instead of int8
    assert 0.9 * saved < found.added_bytes < 1.1 * saved
    assert found.models <= 12
    few = "this 1" if len(culprits) == 1 else f"these {len(culprits)}"
    assert found.sentence.startswith(f"leave {few} of 6 in float: +")


def test_nothing_has_to_be_in_float_where_every_floor_holds() -> None:
    found = smallest(coarse())
    assert (found.sites, found.models) == ([], 1)
    assert "every floor holds" in found.sentence


def test_it_says_so_where_the_sites_are_not_to_blame() -> None:
    """The last Tanh is another function: no site in float brings its outputs back."""
    other = coarse(2)
    other.graph.node[-1].op_type = "Sigmoid"
    found = smallest(other)
    assert found.sites == []
    assert "what hurts lies elsewhere" in found.sentence


@pytest.mark.parametrize(("original", "slower"), [(0.5, True), (2.0, False)])
def test_it_says_where_the_result_is_slower_than_the_original(
    original: float, slower: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second model is ``original`` times as fast as the first, the one with sites in float 0.8 times as fast."""
    measured = Ratio(original, original, original, 1.0, 1.0)
    monkeypatch.setattr(validate, "measure_ratio", lambda *_, **__: measured)
    monkeypatch.setattr(culprits_smallest, "measure_ratio", lambda *_, **__: Ratio(0.8, 0.8, 0.8, 1.0, 1.0))
    models = Model.load(tower()), Model.load(coarse(3))
    found = compare(*models, INPUTS, bisect=True, load=False, kernels=False).smallest
    assert found is not None
    assert found.speed == pytest.approx(0.8 * original)
    assert "0.80 times as fast" in found.sentence
    assert found.sentence.endswith("; slower than the original, 0.40 times as fast as that") is slower


@pytest.mark.parametrize("form", ["constant", "initializer"])
def test_sparse_weights_in_float_cost_what_the_file_grows_by(form: Literal["constant", "initializer"]) -> None:
    """Dense weights are not for nothing where the model has them as sparse initializers."""
    dense = proto([helper.make_node("MatMul", ["x", "w"], ["y"], "layer")], {"w": WEIGHTS[0]})
    few = np.where(np.abs(WEIGHTS[0]) > 0.2, WEIGHTS[0], 0)
    sparse = Model.load(proto([helper.make_node("MatMul", ["x", "w"], ["y"], "layer")], {"w": few}))
    assert FoldSparse(form=form).finish(sparse, told=True).changed == 1
    new = Model.load(sparse.proto())
    pairs, _ = matched(Model.load(dense), new)
    grown = len(restored(new, pairs, {}).serialized()) - len(new.serialized())
    assert grown > 5_000
    assert kept_bytes(new, pairs, {})["layer"] == pytest.approx(grown, abs=20)


def test_a_metric_decides_too() -> None:
    """The outputs are close enough, the score is not: what it asks for is left in float."""
    first: list[np.ndarray] = []

    def hook(session: Any) -> float:
        outputs = np.concatenate([session.run(None, sample)[0] for sample in INPUTS])
        first.append(outputs)
        return 1.0 - float(((outputs - first[0]) ** 2).sum() / (first[0] ** 2).sum())

    result = compare(
        Model.load(tower()),
        Model.load(coarse(1, 4)),
        INPUTS,
        eval=hook,
        bisect=True,
        budget=Budget(max_drop=0.001, min_sqnr=-20.0),
        speed=False,
        load=False,
        kernels=False,
    )
    found = result.smallest
    assert found is not None
    assert set(found.sites) >= {"layer1", "layer4"}
    assert found.after.score is not None
    assert found.after.score >= 0.999
    assert "points" in found.sentence


def test_restored_sites_are_the_references_own() -> None:
    reference, new = Model.load(tower()), Model.load(coarse(0, 1, 2, 3, 4, 5))
    pairs, missing = matched(reference, new)
    assert missing == []
    outputs = ReferenceOutputs(Session(reference), INPUTS)
    assert outputs.judge(Session(restored(new, pairs, {}))).sqnr_db > 130
    assert outputs.judge(Session(restored(new, [], {}))).sqnr_db == outputs.judge(Session(new)).sqnr_db
    alone = kept_bytes(new, pairs, {})
    assert all(0.9 * 48 * 48 * 3 < size < 1.1 * 48 * 48 * 3 for size in alone.values())


def test_an_activation_that_vanished_into_the_rounding_is_done_again() -> None:
    """ONNX Runtime's own quantizer drops Relu: the tensor of its name is not clipped any more."""
    kernels = [RNG.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8 for _ in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Add", ["a", "x"], ["s"], "sum"),
        helper.make_node("Relu", ["s"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "k1"], ["y"], "second", pads=[1] * 4),
    ]
    reference = proto(nodes, {"k0": kernels[0], "k1": kernels[1]}, rank=4)
    quantized = [
        nodes[0],
        helper.make_node("Add", ["a", "x"], ["r"], "sum"),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["r_q"]),
        helper.make_node("DequantizeLinear", ["r_q", "scale", "zero"], ["r_dq"]),
        helper.make_node("Conv", ["r_dq", "k1"], ["y"], "second", pads=[1] * 4),
    ]
    parameters = {"scale": np.array(0.05, np.float32), "zero": np.array(0, np.uint8)}
    new = proto(quantized, {"k0": kernels[0], "k1": kernels[1], **parameters}, rank=4)
    data = [{"x": RNG.standard_normal((1, 8, 12, 12)).astype(np.float32)} for _ in range(3)]
    old_model, new_model = Model.load(reference), Model.load(new)
    pairs, _ = matched(old_model, new_model)
    assert [pair.site for pair in pairs] == ["first", "second"]
    assert len(restorable(new_model, pairs, old_model)) == 2
    outputs = ReferenceOutputs(Session(reference), data)
    assert outputs.judge(Session(new)).sqnr_db < 50
    assert outputs.judge(Session(restored(new_model, pairs[1:], {}))).sqnr_db > 110


def test_what_is_found_is_handed_to_optimize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """From the command line: a rough model, its culprits in a recipe, a model with them in float."""
    pretend_everything_pays(monkeypatch)
    rough, keep, better = tmp_path / "rough.onnx", tmp_path / "keep.toml", tmp_path / "better.onnx"
    data = ["--calib", str(CALIB), "--quiet"]
    words = ["--prices", str(tmp_path / "prices.json"), "--passes", "store-low-bit:levels=3"]
    loose = ["--min-sqnr", "0", "--min-agreement", "0"]
    assert cli.main(["optimize", str(MLP), str(rough), *data, *words, *loose]) == 0
    asked = ["--bisect", "--min-sqnr", "32", "--save-recipe", str(keep), "--json"]
    assert cli.main(["compare", str(MLP), str(rough), *data, *asked]) == 0
    found = json.loads(capsys.readouterr().out)["smallest"]
    assert load_recipe(keep).keep_float == tuple(found["sites"])
    assert found["before"]["sqnr_db"] < 32 <= found["after"]["sqnr_db"]
    assert 0 < len(found["sites"]) < found["candidates"]
    report = tmp_path / "report.json"
    again = ["--recipe", str(keep), *loose, "--report", str(report)]
    assert cli.main(["optimize", str(MLP), str(better), *data, *words, *again]) == 0
    rows = {row["site"]: row["choice"] for row in json.loads(report.read_text())["rows"]}
    for name in ("MatMul", "MatMul1", "MatMul2"):
        assert rows[name] == ("float" if name in found["sites"] else "store-low-bit")
    assert onnxc.compare(MLP, better, CALIB, speed=False, load=False, kernels=False).sqnr_db >= 31.5
    assert rough.stat().st_size < better.stat().st_size < MLP.stat().st_size


def test_a_name_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no site or weight 'MatMull'; did you mean 'MatMul'"):
        onnxc.optimize(MLP, tmp_path / "out.onnx", calib=CALIB, recipe=Recipe(keep_float=("MatMull",)))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--min-sqnr", "30"], "belong to --bisect"),
        (["--save-recipe", "keep.toml"], "belong to --bisect"),
        (["--bisect", "--max-drop", "1%"], "--max-drop needs a score"),
        (["--bisect", "--save-recipe", "nowhere/keep.toml"], "cannot be written"),
    ],
)
def test_what_does_not_go_together_is_said(words: list[str], says: str, capsys: Any) -> None:
    assert cli.main(["compare", str(MLP), str(MLP), *words]) == 2
    assert says in capsys.readouterr().err


def test_a_recipe_is_written_as_it_is_read(tmp_path: Path) -> None:
    wanted = Recipe(
        Budget(size=0.25, max_drop=0.01, evals=5),
        (PassRequest("store-low-bit", {"levels": 16}), PassRequest("quantize-static", {"range": "minmax"})),
        ops="ort",
        threads=2,
        keep_float=("/layer/MatMul", 'a "quoted", name'),
    )
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(wanted), encoding="utf-8")
    assert load_recipe(path) == wanted
    assert recipe_text(Recipe()) == "\n"


def test_channels_in_other_units_are_no_damage() -> None:
    """Equalized by factors of 0.1 to 10, one weight coarse: that one is found, all put back are the original."""
    generator = np.random.default_rng(3)
    factors = [np.exp(generator.uniform(-2.3, 2.3, WEIGHTS[0].shape[1])).astype(np.float32) for _ in range(3)]
    models = []
    for equalized in (False, True):
        nodes, weights = [], dict[str, np.ndarray]()
        for index in range(4):
            nodes.append(
                helper.make_node("MatMul", [f"t{index - 1}" if index else "x", f"w{index}"], [f"h{index}"], f"l{index}")
            )
            nodes.append(helper.make_node("Relu", [f"h{index}"], [f"t{index}"], f"relu{index}"))
            values = WEIGHTS[index]
            if equalized and index == 3:
                values = values.max() * np.rint(values / values.max())
            if equalized and index:
                values = values / factors[index - 1][:, None]
            if equalized and index < 3:
                values = values * factors[index]
            weights[f"w{index}"] = values.astype(np.float32)
        nodes[-1].output[0] = f"t{LAYERS - 1}"
        models.append(Model.load(proto(nodes, weights)))
    reference, new = models
    pairs, _ = matched(reference, new)
    found = units(reference, new, pairs, INPUTS, Options())
    assert set(found) >= {"h0", "t0", "h1", "t1"}
    assert np.abs(found["t0"] / factors[0] - 1).max() < 1e-3
    damages, missing = site_damage(reference, new, INPUTS, found)
    assert missing == []
    assert damages[0].site == "l3"
    assert damages[0].sqnr_db < 20
    assert all(each.sqnr_db > 60 for each in damages[1:])
    outputs = ReferenceOutputs(Session(reference), INPUTS)
    assert outputs.judge(Session(restored(new, pairs, found))).sqnr_db > 60
    some = [pair for pair in pairs if pair.site in ("l1", "l3")]
    assert outputs.judge(Session(restored(new, some, found))).sqnr_db > 60
    assert outputs.judge(Session(restored(new, some, {}))).sqnr_db < 20, "the wrong units would be heard"
