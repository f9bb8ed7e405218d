"""Figures of comparisons against figures worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxc.answers import class_scores
from onnxc.errors import DataError, HookError
from onnxc.kernels import fused
from onnxc.model import Model
from onnxc.quality import OutputError, Quality, differing, floor_met, relative_drop
from onnxc.recipe import Budget
from onnxc.reference import ReferenceOutputs
from onnxc.session import Options, Session
from onnxc.validate import compare, site_damage


def model(
    nodes: list[onnx.NodeProto],
    outputs: dict[str, int],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    inputs: dict[str, list[int | str]] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (inputs or {"x": ["n", 4]}).items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


def scaled(factor: float, op: str = "Mul") -> Session:
    weights = {"f": np.array(factor, np.float32)}
    return Session(model([helper.make_node(op, ["x", "f"], ["y"])], {"y": TensorProto.FLOAT}, weights))


def samples(*rows: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.array([row], np.float32)} for row in rows]


def test_sqnr_is_pooled_over_samples_not_averaged() -> None:
    data = samples([1, 1, 1, 1], [100, 0, 0, 0])
    # y = x against y = x + 0.1: signal 4 + 10000, noise 8 * 0.01
    found = ReferenceOutputs(scaled(1.0), data).judge(scaled(0.1, "Add"))
    assert found.sqnr_db == pytest.approx(10 * math.log10(10004 / 0.08), abs=1e-3)
    only = found.outputs[0]
    assert only.max_error == pytest.approx(0.1, rel=1e-4)
    assert only.mean_error == pytest.approx(0.1, rel=1e-4)
    assert only.samples == 2
    assert only.top1_agreement is None


def test_equal_outputs_have_200_db_and_scaling_keeps_the_cosine() -> None:
    data = samples([1, 2, 3, 4])
    assert ReferenceOutputs(scaled(1.0), data).judge(scaled(1.0)).sqnr_db == 200
    half = ReferenceOutputs(scaled(1.0), data).judge(scaled(0.5))
    assert half.outputs[0].cosine == pytest.approx(1)
    assert half.sqnr_db == pytest.approx(10 * math.log10(4))


def test_an_all_zero_reference_is_held_against_a_scale_of_one() -> None:
    found = ReferenceOutputs(scaled(0.0), samples([1, 1, 1, 1])).judge(scaled(0.1))
    assert found.sqnr_db == pytest.approx(20, abs=1e-3)


def test_non_finite_entries_must_match() -> None:
    data = samples([-1, 1, 0, 4])
    root = Session(model([helper.make_node("Log", ["x"], ["y"])], {"y": TensorProto.FLOAT}))  # NaN, 0, -inf, 1.39
    reference = ReferenceOutputs(root, data)
    assert reference.judge(root).sqnr_db == 200
    found = reference.judge(scaled(1.0))
    assert found.sqnr_db == -math.inf
    missed = floor_met(found, Budget(), generated=True)
    assert missed is not None
    assert "NaN or infinite" in missed


def test_outputs_without_a_finite_entry_say_so() -> None:
    root = Session(model([helper.make_node("Log", ["x"], ["y"])], {"y": TensorProto.FLOAT}))
    found = ReferenceOutputs(root, samples([-1, -2, 0, -4])).judge(root)
    assert (found.outputs[0].sqnr_db, found.outputs[0].nowhere_finite, found.has_floats) == (None, True, False)
    assert floor_met(found, Budget(), generated=False) is None
    assert differing(found, scored=False) == [
        "output 'y' is not a number anywhere, in both models: it could not be judged"
    ]
    assert ReferenceOutputs(root, samples([-1, 2, 0, -4])).judge(root).outputs[0].sqnr_db == 200


@pytest.mark.parametrize(("value", "damage"), [(np.inf, 0.25), (np.nan, math.nan)])
def test_sites_are_judged_by_what_is_finite(value: float, damage: float) -> None:
    """One column of four, or every one, is not finite."""
    weight = np.ones((4, 4), np.float32)
    weight[0, : 1 if np.isinf(value) else 4] = value
    names = {"y": TensorProto.FLOAT}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    old, new = (Model.load(model(nodes, names, {"w": each})) for each in (weight, 1.5 * weight))
    damages, _ = site_damage(old, new, samples([1, 2, 3, 4]), {})
    assert damages[0].damage == pytest.approx(damage, nan_ok=True)


def test_a_changed_shape_is_a_failure_with_a_sentence() -> None:
    shorter = Session(
        model(
            [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
            {"y": TensorProto.FLOAT},
        )
    )
    found = ReferenceOutputs(scaled(1.0), samples([1, 2, 3, 4])).judge(shorter)
    assert found.problem == "output 'y' has shape [] instead of [1, 4]"


def test_outputs_are_spilled_when_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxc.reference._SPILL_BYTES", 100_000)
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((2000, 4)).astype(np.float32)} for _ in range(6)]
    reference = ReferenceOutputs(scaled(1.0), data)
    kept = [part for each in reference._kept for parts in each for part in parts]
    assert sum(isinstance(part, np.ndarray) for part in kept) == 3
    assert reference.judge(scaled(1.1)).sqnr_db == pytest.approx(20, abs=1e-3)


@pytest.mark.parametrize(
    ("nodes", "opset", "axis"),
    [
        ([("Softmax", ["x"], {})], 17, -1),
        ([("Softmax", ["x"], {})], 11, 1),
        ([("LogSoftmax", ["x"], {"axis": 1}), ("Identity", ["t0"], {})], 17, 1),
        ([("Softmax", ["x"], {"axis": 1}), ("Flatten", ["t0"], {})], 17, -1),
        ([("MatMul", ["x", "w"], {})], 17, -1),
        ([("MatMul", ["x", "w"], {}), ("Add", ["t0", "b"], {}), ("Cast", ["t1"], {"to": 1})], 17, -1),
        ([("Gemm", ["x", "w", "b"], {})], 17, -1),
        ([("ArgMax", ["x"], {"axis": 1})], 17, None),
        ([("MatMul", ["x", "w"], {}), ("Relu", ["t0"], {})], 17, "no"),
        ([("Add", ["x", "b"], {})], 17, "no"),
        ([("MatMul", ["x", "w"], {}), ("MatMul", ["x", "w"], {}), ("Add", ["t0", "t1"], {})], 17, "no"),  # hidden state
        ([("Exp", ["x"], {}), ("ReduceSum", ["t0", "last"], {}), ("Div", ["t0", "t1"], {})], 17, 1),  # as JAX writes it
        ([("Exp", ["x"], {}), ("ReduceSum", ["t0"], {"axes": [1]}), ("Div", ["t0", "t1"], {})], 11, 1),
        ([("Exp", ["x"], {}), ("ReduceSum", ["x", "last"], {}), ("Div", ["t0", "t1"], {})], 17, "no"),
    ],
)
def test_class_scores(nodes: list[tuple[str, list[str], dict[str, Any]]], opset: int, axis: object) -> None:
    made = [
        helper.make_node(op, inputs, ["y" if i == len(nodes) - 1 else f"t{i}"], **attributes)
        for i, (op, inputs, attributes) in enumerate(nodes)
    ]
    kind = TensorProto.INT64 if nodes[-1][0] == "ArgMax" else TensorProto.FLOAT
    weights = {"w": np.ones((4, 3), np.float32), "b": np.ones(3 if len(nodes[0][1]) > 1 else 4, np.float32)}
    if nodes[0][0] == "Add":
        weights["b"] = np.ones(4, np.float32)
    weights["last"] = np.array([1])
    found = class_scores(Model.load(model(made, {"y": kind}, weights, opset)))
    assert found == ({} if axis == "no" else {"y": axis})


def test_top1_counts_rows_and_forgives_ties_of_the_reference() -> None:
    data = [{"x": np.array([[3, 1, 0, 0], [0, 2, 2, 1], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32)}]
    swapped = Session(
        model(
            [helper.make_node("Mul", ["x", "f"], ["y"])],
            {"y": TensorProto.FLOAT},
            {"f": np.array([1, 1, 2, 0], np.float32)},
        )
    )
    # row 1 now answers 2 instead of 1, which was a tie; row 3 is all zeros, answers 0 instead of 3
    found = ReferenceOutputs(scaled(1.0), data, {"y": -1}).judge(swapped)
    assert (found.changed, found.judged) == (1, 4)
    assert found.agreement == 0.75


def test_sequences_of_maps_and_labels_of_a_classifier() -> None:
    def classifier(flip: float) -> Session:
        nodes = [
            helper.make_node("Mul", ["x", "f"], ["scores"]),
            helper.make_node("ZipMap", ["scores"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[7, 8, 9, 10]),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ]
        proto = model(nodes, {"label": TensorProto.INT64}, {"f": np.array([1, flip, 1, 1], np.float32)})
        value = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        proto.graph.output.append(helper.make_value_info("y", helper.make_sequence_type_proto(value)))
        return Session(proto)

    data = samples([1, 2, 3, 0], [5, 4, 0, 0])
    answers = {"y": -1, "label": None}
    reference = ReferenceOutputs(classifier(1), data, answers)
    assert reference.judge(classifier(1)).agreement == 1
    found = reference.judge(classifier(2))
    labels, maps = found.outputs
    assert (labels.changed, labels.judged, labels.equal, labels.sqnr_db) == (2, 2, 0.0, None)
    assert (maps.changed, maps.judged) == (2, 2)
    assert maps.sqnr_db == pytest.approx(10 * math.log10((14 + 41) / (4 + 16)))


@pytest.mark.parametrize(("flip", "differ"), [(1.0, 0), (2.0, 50)])
def test_integers_beside_floats_that_differ_are_named(flip: float, differ: int) -> None:
    def detector(flip: float) -> Session:
        nodes = [
            helper.make_node("Mul", ["x", "f"], ["y"]),
            helper.make_node("TopK", ["y", "k"], ["best", "label"], axis=1),
        ]
        weights = {"f": np.array([1, flip, 1, 1], np.float32), "k": np.array([1])}
        return Session(model(nodes, {"y": TensorProto.FLOAT, "label": TensorProto.INT64}, weights))

    data = samples([1, 2, 3, 0], [5, 4, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9])
    quality = ReferenceOutputs(detector(1), data).judge(detector(flip))
    found = differing(quality, scored=False)
    assert len(found) == (differ > 0)
    assert all(each.startswith(f"output 'label': {differ}.0% of its discrete values differ") for each in found)
    assert all("--eval" in each for each in found)
    assert [each for each in differing(quality, scored=True) if "--eval" in each] == []


def test_a_model_with_discrete_outputs_only_is_judged_by_them_on_generated_inputs_too() -> None:
    def above(limit: float) -> Session:
        weights = {"f": np.array(limit, np.float32)}
        return Session(model([helper.make_node("Greater", ["x", "f"], ["y"])], {"y": TensorProto.BOOL}, weights))

    found = ReferenceOutputs(above(0), samples([1, 2, 3, 4])).judge(above(2.5))
    assert (found.changed, found.judged) == (2, 4)
    assert (
        floor_met(found, Budget(), generated=True)
        == "2 of 4 top-1 answers changed, more than the 1 allowed (--min-agreement)"
    )


@pytest.mark.parametrize(
    ("figures", "budget", "generated", "score", "says"),
    [
        ({"sqnr_db": 20.0}, Budget(), True, None, None),
        ({"sqnr_db": 19.9}, Budget(), True, None, "SQNR of 19.9 dB, below 20 dB"),
        ({"sqnr_db": 15.0}, Budget(min_sqnr=15), True, None, None),
        ({"sqnr_db": 15.0}, Budget(), False, (0.9, 0.9), None),
        ({"sqnr_db": 9.0}, Budget(), False, (0.9, 0.9), "below 10 dB"),
        ({"sqnr_db": 30.0}, Budget(), False, (0.9, 0.8909), "at most 1 % is allowed"),
        ({"sqnr_db": 30.0}, Budget(max_drop=0.02), False, (0.9, 0.8909), None),
        ({"sqnr_db": 30.0}, Budget(), False, (0.9, 0.95), None),
        ({"sqnr_db": 30.0, "changed": 1, "judged": 10}, Budget(), False, None, None),
        (
            {"sqnr_db": 30.0, "changed": 2, "judged": 10},
            Budget(),
            False,
            None,
            "2 of 10 top-1 answers changed",
        ),
        ({"sqnr_db": 30.0, "changed": 4, "judged": 200}, Budget(), False, None, None),
        ({"sqnr_db": 30.0, "changed": 5, "judged": 200}, Budget(), False, None, "more than the 4 allowed"),
        ({"sqnr_db": 30.0, "changed": 5, "judged": 10}, Budget(), True, None, None),
        ({"sqnr_db": 30.0, "changed": 5, "judged": 10}, Budget(), False, (1.0, 1.0), None),
        (
            {"sqnr_db": 30.0, "changed": 1, "judged": 10},
            Budget(min_agreement=1.0),
            False,
            (1.0, 1.0),
            "the 0 allowed",
        ),
    ],
)
def test_floor(
    figures: dict[str, float],
    budget: Budget,
    generated: bool,
    score: tuple[float, float] | None,
    says: str | None,
) -> None:
    output = OutputError("y", figures["sqnr_db"], 0, 0, 1, None, None, False, 1)
    found = Quality([output], figures["sqnr_db"], 0.5, int(figures.get("changed", 0)), int(figures.get("judged", 0)))
    missed = floor_met(found, budget, generated=generated, score=score)
    assert missed is None if says is None else says in (missed or "")


def test_a_score_above_the_originals_loses_nothing() -> None:
    assert relative_drop(0.5, 0.6) == 0
    assert relative_drop(-2.0, -2.5) == pytest.approx(0.25)


RNG = np.random.default_rng(0)
W1 = RNG.standard_normal((64, 256)).astype(np.float32)
W2 = RNG.standard_normal((256, 32)).astype(np.float32)


def two_layers() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    return model(nodes, {"y": TensorProto.FLOAT}, {"w1": W1, "w2": W2}, inputs={"x": ["n", 64]})


def dynamic_layers() -> onnx.ModelProto:
    """Both layers as DynamicQuantizeLinear and MatMulInteger; the second weight is coarse.

    63 levels: the pair sums of a processor without dot-product instructions do not saturate.
    """
    nodes, weights = [], {}
    for weight, values, levels, source, result in (("w1", W1, 63, "x", "h"), ("w2", W2, 7, "r", "y")):
        scale = np.abs(values).max(axis=0) / levels
        weights |= {
            f"{weight}_q": np.rint(values / scale).astype(np.int8),
            f"{weight}_s": scale.astype(np.float32),
        }
        nodes += [
            helper.make_node("DynamicQuantizeLinear", [source], [f"{source}_q", f"{source}_s", f"{source}_z"]),
            helper.make_node("MatMulInteger", [f"{source}_q", f"{weight}_q", f"{source}_z"], [f"{result}_i"]),
            helper.make_node("Cast", [f"{result}_i"], [f"{result}_c"], to=1),
            helper.make_node("Mul", [f"{source}_s", f"{weight}_s"], [f"{result}_s"]),
            helper.make_node("Mul", [f"{result}_c", f"{result}_s"], [result]),
        ]
        if result == "h":
            nodes.append(helper.make_node("Relu", ["h"], ["r"], name="relu"))
    return model(nodes, {"y": TensorProto.FLOAT}, weights, inputs={"x": ["n", 64]})


INPUTS = [{"x": RNG.standard_normal((3, 64)).astype(np.float32)} for _ in range(4)]


def test_compare_measures_everything(tmp_path) -> None:  # type: ignore[no-untyped-def]  # pytest's own fixture
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    onnx.save(two_layers(), old)
    onnx.save(dynamic_layers(), new)
    scores = iter([0.5, 0.49])
    result = compare(old, new, INPUTS, eval=lambda session: next(scores), sites=True)
    assert result.size_new < 0.3 * result.size_reference == 0.3 * old.stat().st_size
    assert 10 < result.sqnr_db < 30
    assert (result.judged, result.generated) == (12, False)
    assert result.drop == pytest.approx(0.02)
    assert result.ratio is not None
    assert result.ratio.low <= result.ratio.median <= result.ratio.high
    assert result.load_new is not None
    assert result.load_new.seconds > 0
    assert not fused(result.kernels_reference)
    assert fused(result.kernels_new).total() >= 2
    assert result.leftover == []
    assert [each.site for each in result.sites] == ["second", "first"]
    assert result.sites[0].damage > 20 * result.sites[1].damage
    assert result.unmatched == []


def test_site_damage_is_local_and_finds_a_renamed_half() -> None:
    new = dynamic_layers()
    for node in new.graph.node:
        node.input[:] = ["other" if name == "h" else name for name in node.input]
        node.output[:] = ["other" if name == "h" else name for name in node.output]
    found, unmatched = site_damage(Model.load(two_layers()), Model.load(new), INPUTS, {})
    # the first site is still seen through the Relu behind it
    assert [each.site for each in found] == ["second", "first"]
    for node in new.graph.node:
        node.input[:] = ["another" if name == "r" else name for name in node.input]
        node.output[:] = ["another" if name == "r" else name for name in node.output]
    found, unmatched = site_damage(Model.load(two_layers()), Model.load(new), INPUTS, {})
    assert found == []
    assert sorted(unmatched) == ["first", "second"]


def test_a_weight_that_nothing_fuses_with_is_named() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w_q", "s"], ["w"]),
        helper.make_node("Mul", ["x", "w"], ["y"]),
    ]
    weights = {"w_q": np.ones((3, 64), np.int8), "s": np.array(0.1, np.float32)}
    new = Model.load(model(nodes, {"y": TensorProto.FLOAT}, weights, inputs={"x": ["n", 64]}))
    assert compare(new, new, INPUTS[:1], speed=False, load=False).leftover == ["w_q"]


def test_generated_inputs_are_said_to_be() -> None:
    result = compare(Model.load(two_layers()), Model.load(dynamic_layers()), speed=False, load=False, kernels=False)
    assert result.generated
    assert result.samples >= 1


def test_bad_data_and_bad_hooks_are_input_errors() -> None:
    reference = Model.load(two_layers())
    with pytest.raises(DataError, match="z"):
        compare(reference, reference, [{"z": INPUTS[0]["x"]}])
    with pytest.raises(HookError, match="nan"):
        compare(reference, reference, INPUTS[:1], eval=lambda session: float("nan"), speed=False, load=False)


def test_options_are_used() -> None:
    from onnxc.errors import UsageError

    with pytest.raises(UsageError, match="CPUExecutionProvider"):
        compare(Model.load(two_layers()), Model.load(two_layers()), options=Options(providers=("Nonsense",)))
