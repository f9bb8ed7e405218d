"""Weights inside If, Loop and Scan: observed, rounded and judged like those of the main graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, compose, helper, numpy_helper

import onnxc
from onnxc import compiler, planning
from onnxc.bodies import hand_out, hidden, paths
from onnxc.coder import Coder
from onnxc.codes.saturation import machine_saturates
from onnxc.contract.context import Context
from onnxc.feedback import build_solved, solve
from onnxc.judge import build
from onnxc.kernels import fused, operators
from onnxc.model import Model
from onnxc.observe import NEVER_RUN
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.passes.smooth_activations import SmoothActivations
from onnxc.passes.store_low_bit import StoreLowBit
from onnxc.problem import Plan
from onnxc.propose import Proposals, collect
from onnxc.sensitivity import measure
from onnxc.sequential import stages
from onnxc.session import Options, Session
from tests import trained
from tests.emission import Sample, model, node, samples, weight
from tests.unpriced import pretend_everything_pays

COUNT = 12


def branched(proto: ModelProto, deep: bool = False) -> ModelProto:
    """``proto`` as the branch of an If on a further input ``rate``, 16 in all samples; in the other one a twin with
    weights of its own. ``deep``: in an If inside that If.
    """
    twin = compose.add_prefix(proto, "twin_", rename_inputs=False)
    for tensor in twin.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim:
            tensor.raw_data = np.ascontiguousarray(values[..., ::-1]).tobytes()
    results = [output.name for output in proto.graph.output]
    graph = chosen(proto.graph, twin.graph, results, "")
    if deep:
        other = chosen(proto.graph, twin.graph, results, "deep_")
        nested = helper.make_graph(other.node, "nested", [], _outputs(proto.graph, "deep_"), other.initializer)
        graph = chosen(nested, twin.graph, results, "")
    inputs = [*proto.graph.input, helper.make_tensor_value_info("rate", TensorProto.INT64, [])]
    made = helper.make_graph(graph.node, "g", inputs, _outputs(proto.graph, ""), graph.initializer)
    version = helper.make_opsetid("", proto.opset_import[0].version)
    return helper.make_model(made, opset_imports=[version], ir_version=max(proto.ir_version, 8))


def chosen(then: GraphProto, other: GraphProto, results: list[str], prefix: str) -> GraphProto:
    """If(rate = 16) then .. other, each with its own names."""
    parts = []
    for graph in (then, other):
        part = GraphProto()
        part.CopyFrom(graph)
        inside = {output.name: f"{output.name}_inside" for output in part.output if graph is then}
        for each in part.node:
            each.output[:] = [inside.get(name, name) for name in each.output]
            each.input[:] = [inside.get(name, name) for name in each.input]
        del part.input[:]
        for output in part.output:
            output.name = inside.get(output.name, output.name)
        parts.append(part)
    rate = f"{prefix}sixteen"
    nodes = [
        helper.make_node("Equal", ["rate", rate], [f"{prefix}fast"], name=f"{prefix}fast_node"),
        helper.make_node("If", [f"{prefix}fast"], [prefix + name for name in results], name=f"{prefix}branches",
                         then_branch=parts[0], else_branch=parts[1]),
    ]  # fmt: skip
    return helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(np.asarray(16), rate)])


def _outputs(graph: GraphProto, prefix: str) -> list[onnx.ValueInfoProto]:
    return [helper.make_value_info(prefix + output.name, output.type) for output in graph.output]


def contexts(name: str, count: int = COUNT, deep: bool = False) -> tuple[Context, Context, list[Sample]]:
    """A trained model, and the same one inside an If; samples with the rate."""
    data = list(trained.samples(name, count))
    rated = [{**sample, "rate": np.asarray(16)} for sample in data]
    flat = trained.context(trained.load(name), data)
    return flat, trained.context(Model.load(branched(flat.model.proto(), deep)), rated), rated


def proposed(context: Context) -> tuple[Proposals, Plan]:
    """Every site in int8 that can be, every weight with ranges for it in 3.2 bits."""
    found = collect([(QuantizeStatic(), True), (StoreLowBit(levels=9, block=0), True)], context)
    compute = {name: ways[0] for name, ways in found.compute.items()}
    stored = dict.fromkeys(sorted(name for name in found.storage if not name.startswith("twin_")), "levels9")
    stored |= {
        s.weight.name: stored.get(s.weight.name, "int8") for s in context.sites if s.weight and s.name in compute
    }
    return found, Plan(compute, stored)


@pytest.mark.parametrize(("name", "deep"), [("residual_cnn", True), ("vision_transformer", False)])
def test_a_branch_gets_what_the_model_alone_gets(name: str, deep: bool) -> None:
    """The same rows, candidates, codes and kernels; the branch that never runs stays as it is, by name."""
    flat, inside, rated = contexts(name, deep=deep)
    rows = inside.observations.rows
    assert all(np.allclose(found, rows[key], atol=1e-4) for key, found in flat.observations.rows.items())
    (plain, plan), (found, wrapped) = proposed(flat), proposed(inside)
    assert list(wrapped.compute) == list(plan.compute)
    assert wrapped.stored == plan.stored
    never = {refusal.place for refusal in found.refusals if refusal.reason == NEVER_RUN}
    assert {f"twin_{site}" for site in plan.compute} <= never
    coders = Coder(flat, plain), Coder(inside, found)
    codes = [coder.of(plan.stored, plan.compute) for coder in coders]
    assert all(np.array_equal(made.values, codes[1][key].values) for key, made in codes[0].items())
    models = [
        build(each.model, of, coder) for each, of, coder in zip((flat, inside), (plan, wrapped), coders, strict=True)
    ]
    kernels = [fused(operators(Session(each, dump=True).optimized())) for each in models]
    assert kernels[0] == kernels[1]
    assert kernels[0].total() > len(plan.compute) // 2
    data = [{key: value for key, value in sample.items() if key != "rate"} for sample in rated]
    wanted = trained.sqnr(flat.model, models[0], data)
    assert trained.sqnr(inside.model, models[1], rated) == pytest.approx(wanted, abs=0.2)
    other = [{**sample, "rate": np.asarray(8)} for sample in rated[:2]]
    assert trained.sqnr(inside.model, models[1], other) > 100


def test_feedback_goes_into_branches() -> None:
    """The same stages in a branch of a branch, and as much gained: 2 dB and more on what was solved alone."""
    flat, inside, rated = contexts("vision_transformer", deep=True)
    units = {site.weight.name: [site.name] for site in flat.sites if site.weight is not None}
    assert stages(inside.model, units) == stages(flat.model, units)
    found, plan = proposed(inside)
    few = list(plan.compute)[:6]
    weights = {site.weight.name for site in inside.sites if site.weight is not None and site.name in few}
    plan = Plan(
        {name: plan.compute[name] for name in few}, {n: mode for n, mode in plan.stored.items() if n in weights}
    )
    coder = Coder(inside, found)
    alone = build(inside.model, plan, coder)
    solved = solve(plan, inside, coder)
    assert solved.shifts, "biases take up the means"
    made = build_solved(plan, solved, inside)
    assert trained.sqnr(inside.model, made, rated) > trained.sqnr(inside.model, alone, rated) + 2


def test_roundings_in_a_branch_are_as_loud_as_in_the_model_alone() -> None:
    """Measured before the Softmax that each branch ends with."""
    flat, inside, rated = contexts("text_gru", 8)
    data = [{key: value for key, value in sample.items() if key != "rate"} for sample in rated]
    noises = []
    for context, given in ((flat, data), (inside, rated)):
        found = collect([(QuantizeStatic(), True), (StoreLowBit(levels=9, block=0), True)], context)
        activations, weights = found.roundings(context)
        codes = Coder(context, found).probe({name for name in weights if not name.startswith("twin_")}, found.compute)
        seen = context.observations
        noises.append(measure(context.model, activations, codes, given, Options(), seen.ranges, refining=0.0)[0])
    assert noises[0].keys() == noises[1].keys()
    assert len(noises[0]) >= 5
    assert all(noises[1][key] == pytest.approx(noise, rel=1e-2) for key, noise in noises[0].items())


def test_what_meets_a_recurrent_weight_in_a_branch_is_observed() -> None:
    flat, inside, _ = contexts("lstm", 8)
    assert flat.observations.moments
    for key, moment in flat.observations.moments.items():
        assert np.allclose(inside.observations.moments[key], moment, rtol=1e-3, atol=1e-3)


def test_smoothing_goes_into_branches() -> None:
    flat, inside, rated = contexts("vision_transformer", 8)
    levels = [next(iter(SmoothActivations(alpha=0.5).levels(each))) for each in (flat, inside)]
    assert levels[0].specification == levels[1].specification
    assert trained.sqnr(inside.model, levels[1].model, rated) > 80
    names = [site.weight.name for site in flat.sites if site.kind == "linear" and site.weight is not None]
    values = [{t.name: t.values for graph in each.model.graphs() for t in graph.weights} for each in levels]
    assert all(np.allclose(values[0][name], values[1][name], rtol=1e-4) for name in names)


TURNS = 5


def unrolled() -> ModelProto:
    """Five turns of h = tanh(h w), each with the weight that a loop has."""
    nodes = []
    for turn in range(TURNS):
        before, after = ("x", "h")[min(turn, 1)] + (str(turn) if turn else ""), f"h{turn + 1}"
        nodes += [node("MatMul", f"{before} w", f"m{turn + 1}"), node("Tanh", f"m{turn + 1}", after)]
    nodes += [node("Identity", f"h{TURNS}", "y")]
    return model(nodes, {"x": [16, 128]}, {"y": None}, {"w": LOOPED})


def looped(operator: str) -> ModelProto:
    """The same as a Loop or Scan; its w is the body's."""
    inner = [node("MatMul", "h w", "m"), node("Tanh", "m", "after")]
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16, 128]) for name in ("h", "after")]
    weights = [numpy_helper.from_array(LOOPED, "w")]
    if operator == "Loop":
        inner.append(node("Identity", "go", "again"))
        flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "again")]
        count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
        body = helper.make_graph(inner, "body", [count, flags[0], floats[0]], [flags[1], floats[1]], weights)
        nodes = [node("Loop", "turns _ x", "y", body=body)]
        more = {"turns": np.array(TURNS)}
    else:
        step = helper.make_tensor_value_info("step", TensorProto.FLOAT, [1])
        body = helper.make_graph(inner, "body", [floats[0], step], [floats[1]], weights)
        nodes = [node("Scan", "x steps", "y", body=body, num_scan_inputs=1)]
        more = {"steps": np.zeros((TURNS, 1), np.float32)}
    return model(nodes, {"x": [16, 128]}, {"y": [16, 128]}, more)


LOOPED = (np.random.default_rng(1).standard_normal((128, 128)) / 128**0.5).astype(np.float32)  # in any order of tests


@pytest.mark.parametrize("operator", ["Loop", "Scan"])
def test_a_loop_shows_all_its_turns_and_computes_in_int8(operator: str) -> None:
    data = samples(8, x=[16, 128])
    long, short = trained.context(Model.load(unrolled()), data), trained.context(Model.load(looped(operator)), data)
    seen = [long.observations.ranges[f"h{turn}"] for turn in range(1, TURNS)] + [long.observations.ranges["x"]]
    found = short.observations.ranges["h"]
    assert found.total == sum(each.total for each in seen)
    assert (found.lowest, found.highest) == pytest.approx((min(s.lowest for s in seen), max(s.highest for s in seen)))
    assert len(short.observations.rows["h"]) == 8 * 16 * TURNS
    made = trained.static(short)
    assert fused(operators(Session(made, dump=True).optimized()))["MatMulIntegerToFloat"] == 1
    least = 26 if machine_saturates() else 27  # where pair sums are added in 16 bits, weights have 7 bits
    assert trained.sqnr(short.model, made, data) > least
    proposals, plan = proposed(short)
    solved = solve(plan, short, Coder(short, proposals))  # its own errors come back: on the original's activations
    assert not solved.shifts
    assert np.array_equal(solved.codes["w"].values, Coder(short, proposals).of(plan.stored, plan.compute)["w"].values)


def test_the_plan_of_a_branch_is_that_of_the_model_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The whole run: the same formats at the same places, and 8 bits where no sample goes."""
    pretend_everything_pays(monkeypatch)
    monkeypatch.setattr(planning, "HEARD_SECONDS", {False: 1e6, True: 1e6})  # on all samples, however long it takes
    monkeypatch.setattr(compiler, "frequent_rows", lambda *_: {})  # tables of the main graph only
    passes = "quantize-static,quantize-dynamic,store-int8,store-low-bit"
    flat = trained.load("text_gru").proto()
    data = list(trained.samples("text_gru", COUNT))
    rated = [{**sample, "rate": np.asarray(16)} for sample in data]
    runs = ((flat, data), (branched(flat), rated))
    reports = [
        onnxc.optimize(proto, calib=given, passes=passes, prices=tmp_path / f"{len(given[0])}.json")
        for proto, given in runs
    ]
    rows = [{row.site: (row.choice, row.specification) for row in report.rows} for report in reports]
    assert len(rows[0]) > 6
    assert any("bit" in said for _, said in rows[0].values())
    assert rows[0].items() <= rows[1].items()
    small = [name for name, (_, said) in rows[1].items() if name.startswith("twin_") and "-bit" in said]
    assert not small
    assert any(note.startswith("no sample shows what 3 weights (twin_") for note in reports[1].notes)


def small_loop(name: str, inner: GraphProto | None = None) -> GraphProto:
    """A body of two turns that doubles what it carries; around ``inner``, of the same kind, where that is given."""
    flags = [helper.make_tensor_value_info(f"{name}_{part}", TensorProto.BOOL, []) for part in ("go", "again")]
    count = helper.make_tensor_value_info(f"{name}_i", TensorProto.INT64, [])
    values = [helper.make_tensor_value_info(f"{name}_{part}", TensorProto.FLOAT, [2]) for part in ("in", "out")]
    nodes = [node("Add", f"{name}_in {name}_in", f"{name}_sum"), node("Identity", f"{name}_go", f"{name}_again")]
    if inner is None:
        nodes.append(node("Identity", f"{name}_sum", f"{name}_out"))
    else:
        nodes.append(node("Loop", f"two _ {name}_sum", f"{name}_out", body=inner))
    return helper.make_graph(nodes, name, [count, flags[0], values[0]], [flags[1], values[1]])


def test_values_come_out_of_loops_in_loops_and_branches() -> None:
    inside = GraphProto()
    inside.node.extend([node("Loop", "two _ x", "looped", body=small_loop("outer", small_loop("inner")))])
    inside.output.extend([helper.make_tensor_value_info("looped", TensorProto.FLOAT, [2])])
    other = GraphProto()
    other.node.extend([node("Neg", "x", "negative")])
    other.output.extend([helper.make_tensor_value_info("negative", TensorProto.FLOAT, [2])])
    inside.name, other.name = "inside", "other"
    choice = node("If", "yes", "y", then_branch=inside, else_branch=other)
    proto = model([node("Cast", "c", "yes", to=9), choice], {"x": [2], "c": []}, {"y": [2]}, {"two": np.asarray(2)})
    loaded = Model.load(proto)
    names = ["outer_sum", "inner_sum", "negative"]
    assert all(hidden(paths(loaded)[name], loaded.opset) is None for name in names)
    handed = hand_out(loaded, names)
    loaded.tidy()
    session = Session(loaded)
    for yes, wanted in ((1, {"outer_sum": [2, 16], "inner_sum": [4, 8, 32, 64]}), (0, {"negative": [-1]})):
        results = session.run({"x": np.ones(2, np.float32), "c": np.float32(yes)})
        assert {n: [float(v[0]) for v in handed.values(n, results)] for n in names} == {
            n: wanted.get(n, []) for n in names
        }
    old = hidden(paths(loaded)["outer_sum"], 12)
    assert old == "its values inside a Loop of opset 12 cannot be handed out"
    assert hidden(paths(loaded)["negative"], 10) == "its values inside an If of opset 10 cannot be handed out"


def test_codes_cross_into_a_branch() -> None:
    """What an int8 convolution outside makes is quantized again inside: nothing fuses across the border."""
    convs = [node("Conv", f"{before} w{n} b{n}", f"c{n}", pads=[1, 1, 1, 1]) for n, before in enumerate(("x", "r0"))]
    inside, other = GraphProto(name="inside"), GraphProto(name="other")
    inside.node.extend([convs[1], node("Relu", "c1", "r1"), node("Conv", "r1 w2 b2", "c2")])
    other.node.extend([node("Conv", "r0 w3 b3", "c3")])
    for part, result in ((inside, "c2"), (other, "c3")):
        part.output.extend([helper.make_tensor_value_info(result, TensorProto.FLOAT, None)])
    nodes = [convs[0], node("Relu", "c0", "r0"), node("Cast", "c", "yes", to=9)]
    nodes += [node("If", "yes", "y", then_branch=inside, else_branch=other), node("Exp", "r0", "z")]
    kernel = {0: 3, 1: 3, 2: 1, 3: 1}
    weights = {f"w{n}": weight(16, 16, size, size) for n, size in kernel.items()} | {
        f"b{n}": weight(16) for n in kernel
    }
    proto = model(nodes, {"x": [1, 16, 12, 12], "c": []}, {"y": None, "z": None}, weights)
    data = [each | {"c": np.asarray(1, np.float32)} for each in samples(4, x=[1, 16, 12, 12])]
    context = trained.context(Model.load(proto), data)
    made = trained.static(context)
    kernels = operators(Session(made, dump=True).optimized())
    assert kernels["QLinearConv"] == 3
    assert kernels["Conv"] + kernels["FusedConv"] == 1
    assert trained.sqnr(context.model, made, data) > 30
    assert made.serialized() == trained.static(context).serialized()
