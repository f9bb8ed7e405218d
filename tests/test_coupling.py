"""Channels are followed exactly: a cut model does what the whole one does with the readers of its channels at zero."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxc.coupling.consumers import as_matrix, consumers, rows, stored
from onnxc.coupling.cutting import Cut, apply, tied, untied
from onnxc.coupling.graph import Coupling, Group, connected
from onnxc.coupling.movement import refined
from onnxc.coupling.operators import RULES
from onnxc.coupling.tracing import traced
from onnxc.data import generate
from onnxc.model import Constant, Model
from onnxc.session import Options, Session
from tests.builders import MODELS
from tests.families import FAMILIES, Net

F = TensorProto.FLOAT
OVER_CHANNELS = {"LRN", "InstanceNormalization", "LayerNormalization", "Pow"}  # their results change with the number


def coupled(proto: onnx.ModelProto) -> tuple[Model, Coupling, dict[str, np.ndarray]]:
    model = Model.load(proto)
    untied(model)
    sample = dict(generate(model, Session(model)).take(1)[0])
    return model, Coupling(model, traced(model, sample, Options()), RULES), sample


def halved(groups: list[Group]) -> list[tuple[Group, np.ndarray]]:
    random, stays = np.random.default_rng(1), []
    for group in groups:
        stay = np.zeros(group.units, np.bool_)
        stay[random.permutation(group.units)[: -(-group.units // 2)]] = True
        stays.append((group, stay))
    return stays


def exact(model: Model, group: Group) -> bool:
    makers = {tensor.name: node.op for node in model.graph.nodes for tensor in node.outputs}
    return not any(makers.get(name) in OVER_CHANNELS for name, _ in group.members)


def without(model: Model, stays: list[tuple[Group, np.ndarray]]) -> Model:
    """The whole model, in which nobody listens to the units that go."""
    copy = model.copy()
    weights = {t.name: t for node in copy.graph.nodes for t in node.inputs if isinstance(t, Constant)}
    for group, stay in stays:
        for reader in group.readers:
            units = group.members[reader.weight, reader.axis]
            values = np.moveaxis(np.array(weights[reader.weight].values), reader.axis, 0)
            values[(units >= 0) & ~stay[units]] = 0
            weights[reader.weight].values = np.ascontiguousarray(np.moveaxis(values, 0, reader.axis))
    return copy


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_is_exact(name: str) -> None:
    model, coupling, sample = coupled(FAMILIES[name]())
    free = [group for group in coupling.groups() if not group.pinned and group.units > 1 and exact(model, group)]
    assert free
    stays = halved(free)
    cut, smaller = Cut.of(coupling, stays), model.copy()
    apply(cut, smaller)
    onnx.checker.check_model(smaller.proto(), full_check=True)
    wanted, found = Session(without(model, stays)).run(sample), Session(smaller).run(sample)
    np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-3, atol=1e-4)
    shapes = traced(smaller, sample, Options())
    tensors = {tensor.name: tensor for node in model.graph.nodes for tensor in node.outputs}
    assert all(shapes[name] == cut.shape(tensors[name]) for name in shapes if name in tensors)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_group_can_be_cut(name: str) -> None:
    """Those behind a normalization over channels too; only the model's outputs stay."""
    model, coupling, sample = coupled(FAMILIES[name]())
    groups = coupling.groups()
    stays = halved([group for group in groups if not group.pinned])
    smaller = model.copy()
    apply(Cut.of(coupling, stays), smaller)
    before, after = Session(model).run(sample), Session(smaller).run(sample)
    assert after["y"].shape == before["y"].shape
    assert np.isfinite(after["y"]).all()
    reasons = {group.pinned for group in groups if group.pinned}
    assert reasons <= {"they reach the model's output 'y'"}


KINDS = {
    "resnet": {"residual": 2, "channels": 5},
    "vit": {"residual": 1, "heads": 2, "channels": 2},
    "gpt": {"residual": 1, "heads": 2, "channels": 2},
    "lstm_tagger": {"hidden": 2, "channels": 1},
    "mobilenet": {"residual": 1, "channels": 6},
}


@pytest.mark.parametrize("name", KINDS)
def test_groups_are_what_a_reader_of_the_model_would_say(name: str) -> None:
    _, coupling, _ = coupled(FAMILIES[name]())
    kinds = [group.kind for group in coupling.groups() if not group.pinned]
    assert {kind: kinds.count(kind) for kind in kinds} == KINDS[name]


def test_heads_go_with_their_queries_keys_values_and_output() -> None:
    _, coupling, _ = coupled(FAMILIES["bert"]())
    group = next(group for group in coupling.groups() if group.kind == "heads")
    weights = [axis for axis in group.members if axis[0].startswith("w_") and len(coupling.shapes[axis[0]]) == 2]
    assert group.units == 4
    assert sorted(axis for _, axis in weights) == [0, 1, 1, 1]
    for axis in weights:
        np.testing.assert_array_equal(group.members[axis], np.repeat(np.arange(4), 16))


def test_channels_of_a_shuffle_come_from_both_halves() -> None:
    net = Net()
    x = net.add("Concat", net.conv("x", 8, 4, 1, act=""), net.conv("x", 8, 4, 1, act=""), axis=1)
    x = net.add("Transpose", net.add("Reshape", x, net.ints(0, 2, 4, 12, 12)), perm=[0, 2, 1, 3, 4])
    net.conv(net.add("Reshape", x, net.ints(0, 8, 12, 12), out="shuffled"), 8, 3, 1)
    net.nodes[-1].output[0] = "y"
    _, coupling, _ = coupled(net.model([("x", F, ["n", 8, 12, 12])], [("y", F, None)]))
    group = coupling.groups()[0]
    np.testing.assert_array_equal(group.members["shuffled", 1], [0, 0, 1, 1, 2, 2, 3, 3])
    assert group.units == 4


REFUSED = {
    "TopK": "operator TopK of node 'TopK_of_top' is not followed",
    "Softmax": "Softmax 'Softmax_of_top' normalizes over them",
    "ReduceMax": "ReduceMax 'ReduceMax_of_top' is taken over them",
}


@pytest.mark.parametrize("operator", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(operator: str) -> None:
    net = Net()
    x = net.linear("x", 8, 16)
    if operator == "TopK":
        net.add("TopK", x, net.ints(4), out=["top", "places"])
    else:
        net.add(operator, x, out="top", **({"axes": [-1]} if operator == "ReduceMax" else {"axis": -1}))
    width = {"TopK": 4, "Softmax": 16, "ReduceMax": 1}[operator]
    net.add("MatMul", "top", net.weight(width, 5), out="y")
    _, coupling, _ = coupled(net.model([("x", F, ["n", 8])], [("y", F, ["n", 5])]))
    assert coupling.groups()[0].pinned == REFUSED[operator]


def test_a_body_that_reads_channels_pins_them() -> None:
    for name in ("if_bodies", "loop_body", "scan_body"):
        model = Model.load(MODELS[name]())
        sample = dict(generate(model, Session(model)).take(1)[0])
        coupling = Coupling(model, traced(model, sample, Options()), RULES)
        assert all(group.pinned for group in coupling.groups())


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        ((2, 12, 5), (2, 3, 4, 5), ([[0], [1, 2], [3]], [[0], [1], [2], [3]], [2, 3, 4, 5])),
        ((4, 3, 2), (12, 1, 2), ([[0], [1], [2]], [[0, 1], [], [2]], [4, 3, 2])),
        ((1, 6), (2, 3), ([[], [0, 1]], [[0], [1]], [2, 3])),
        ((4, 6), (6, 4), None),
        ((0, 6), (6, 0), None),
    ],
)
def test_reshapes_have_common_factors(
    before: tuple[int, ...], after: tuple[int, ...], parts: tuple[list[list[int]], list[list[int]], list[int]] | None
) -> None:
    assert refined(before, after) == parts


def test_connected_components_agree_with_a_walk() -> None:
    random = np.random.default_rng(0)
    left, right = random.integers(0, 300, (2, 260))
    label = connected(300, left, right)
    assert (label[left] == label[right]).all()
    assert (label <= np.arange(300)).all()
    seen = {}
    for index in range(300):  # by hand
        seen.setdefault(index, {index})
    for a, b in zip(left, right, strict=True):
        both = seen[int(a)] | seen[int(b)]
        seen.update(dict.fromkeys(both, both))
    assert [min(seen[index]) for index in range(300)] == label.tolist()


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "grouped", "Gemm", "MatMul"])
def test_a_consumer_is_its_rows_times_its_matrix(operator: str) -> None:
    net = Net()
    if operator == "Gemm":
        net.add("Gemm", "x", net.weight(5, 6), net.weight(5), out="y", transB=1)
    elif operator == "MatMul":
        net.add("MatMul", "x", net.weight(6, 5), out="y")
    elif operator == "ConvTranspose":
        net.add("ConvTranspose", "x", net.weight(6, 5, 3, 2), out="y", strides=[2, 1], dilations=[1, 2])
    else:
        group = 2 if operator == "grouped" else 1
        attributes = {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 2, 1], "group": group}
        net.add("Conv", "x", net.weight(4, 6 // group, 3, 2), out="y", **attributes)
    shape = (7, 6) if operator in {"Gemm", "MatMul"} else (2, 6, 7, 8)
    model = Model.load(net.model([("x", F, list(shape))], [("y", F, None)]))
    node = model.graph.nodes[0]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = Session(model).run({"x": x})["y"]
    coupling = Coupling(model, {"x": shape, "y": expected.shape}, RULES)
    (consumer,) = consumers(model, [reader for found in coupling.readers.values() for reader in found])
    weight = np.asarray(consumer.weight.values)
    np.testing.assert_array_equal(stored(consumer, as_matrix(node, weight, "weight")[0], weight.shape), weight)
    made = np.einsum("rgk,gkn->rgn", rows(consumer, x, 10**6, 0), consumer.matrix)
    made = made.reshape(len(made), -1)
    bias = consumer.bias
    made += 0 if bias is None else np.asarray(bias[0].inputs[bias[1]].values)
    flat = expected if expected.ndim == 2 else np.moveaxis(expected, 1, -1).reshape(len(made), -1)
    np.testing.assert_allclose(made, flat, rtol=1e-4, atol=1e-5)


def test_vectors_that_are_equal_by_chance_tie_no_layers() -> None:
    net = Net()
    bias = net.value(np.zeros(16, np.float32))
    x = net.add("Add", net.add("MatMul", "x", net.weight(8, 16)), bias)
    x = net.add("Add", net.add("MatMul", net.add("Relu", x), net.weight(16, 16)), bias)
    net.add("MatMul", net.add("Relu", x), net.weight(16, 4), out="y")
    proto = net.model([("x", F, ["n", 8])], [("y", F, ["n", 4])])
    model = Model.load(proto)
    names = untied(model)
    shapes = {"x": (2, 8)} | traced(model, {"x": np.zeros((2, 8), np.float32)}, Options())
    assert [group.units for group in Coupling(model, shapes, RULES).groups()] == [16, 16, 4]
    tied(model, names)
    assert len(model.graph.weights) == len(proto.graph.initializer)
    assert {tensor.name for tensor in model.graph.weights} == {each.name for each in proto.graph.initializer}
