"""Factors per channel: equal outputs, easier activations or weights; where they go, and where they may not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from onnxc.contract.passes import Level
from onnxc.equalizing.readers import blockwise, matrix_of, stored_as
from onnxc.equalizing.seams import seams
from onnxc.model import Model
from onnxc.passes.smooth_activations import SmoothActivations
from onnxc.session import Session
from onnxc.sites import find
from onnxc.targets import target
from tests.emission import model, node, samples, weight
from tests.trained import context, load, sqnr, static
from tests.trained import samples as trained_samples

OUTLIERS = np.where(np.arange(96) % 16 == 3, 40, 1).astype(np.float32)


def smoothed(made: Model, data: list[dict[str, np.ndarray]], **fields: Any) -> Level | None:
    return next(iter(SmoothActivations(**fields).levels(context(made, data))), None)


def uneven(made: Model) -> Model:
    """A trained transformer as large ones come: some channels of every LayerNormalization 30 times the others, the
    weights that read them as much smaller. It computes the same.
    """
    copy = made.copy()
    found, _ = seams(copy, find(copy, target("cpu")))
    for seam in found:
        if seam.passed[0].op == "LayerNormalization":
            seam.apply(copy, np.where(np.arange(seam.channels) % 24 == 5, 1 / 30, 1.0))
    return copy


def test_outliers_of_a_trained_transformer() -> None:
    """Judged on samples that nothing was chosen on."""
    made = load("vision_transformer")
    every = trained_samples("vision_transformer", 48)
    data, others = list(every[:24]), every[24:]
    hard = uneven(made)
    level = smoothed(hard, data)
    assert level is not None
    assert sqnr(made, hard, others) > 100
    assert sqnr(made, level.model, others) > 100
    plain, after = static(context(hard, data)), static(context(level.model, data))
    assert sqnr(made, after, others) > sqnr(made, plain, others) + 3
    assert "tensors scaled for activations" in level.specification


def test_a_mul_takes_outliers_that_nothing_else_can_where_it_leaves_weights_more_room() -> None:
    """Normalizations that are read elsewhere too, as by the residuals of a text encoder."""
    made = load("vision_transformer")
    every = trained_samples("vision_transformer", 48)
    data, others = list(every[:24]), every[24:]
    hard = uneven(made)
    read = [seam.tensor for seam in seams(hard, find(hard, target("cpu")))[0]]
    read = [tensor for tensor in read if tensor.inputs[0].op == "LayerNormalization"]
    for tensor in read:
        tensor.dtype = np.dtype(np.float32)
    hard.graph.outputs += read
    seen = context(hard, data)
    level = next(iter(SmoothActivations().levels(replace(seen, allowed=0.01))))
    added = Counter(each.op for each in level.model.graph.nodes)["Mul"] - Counter(n.op for n in hard.graph.nodes)["Mul"]
    assert added >= len(read) == 8
    assert f"{added} multiplications in front of linears" in level.specification
    assert sqnr(hard, level.model, others) > 100
    plain, after = static(seen), static(context(level.model, data))
    assert sqnr(hard, after, others) > sqnr(hard, plain, others) + 6
    assert not list(SmoothActivations().levels(replace(seen, allowed=1.0))), "outliers in weights cost more there"


def test_too_few_samples_to_judge_by_choose_nothing() -> None:
    made = uneven(load("vision_transformer"))
    assert smoothed(made, list(trained_samples("vision_transformer", 3))) is None


def test_weights_of_a_trained_network() -> None:
    """4 bits, one scale per output, to nearest, on samples that nothing was chosen on: 22.9 to 24.2 dB."""
    made = load("residual_cnn")
    every = trained_samples("residual_cnn", 96)
    level = smoothed(made, list(every[:48]), aim="weights", bits=4, block=0)
    assert level is not None
    assert sqnr(made, level.model, every[48:]) > 110

    def rounded(found: Model) -> Model:
        copy = found.copy()
        for site in find(copy, target("cpu")):
            if site.weight is not None and site.node.attrs.get("group", 1) == 1:
                values = np.asarray(site.weight.tensor.values, np.float32)
                matrix = blockwise(matrix_of(site, values), 4, 0)
                site.weight.tensor.values = stored_as(site, matrix, values.shape)
        return copy

    assert sqnr(made, rounded(level.model), every[48:]) > sqnr(made, rounded(made), every[48:]) + 0.5


def normalized(*nodes: Any, **weights: np.ndarray) -> Model:
    """LayerNormalization with outliers in six channels, then ``nodes``."""
    used = {name for each in nodes for name in each.input}
    constants = {"w": weight(96, 64) / OUTLIERS[:, None], "v": weight(96, 32) / OUTLIERS[:, None]} | weights
    first = node("LayerNormalization", "x gamma beta", "n")
    given = {"gamma": OUTLIERS, "beta": weight(96)} | {k: v for k, v in constants.items() if k in used}
    return Model.load(model([first, *nodes], {"x": ["b", "s", 96]}, {"y": None}, given))


def test_layer_normalization_takes_the_factors_and_readers_share_them() -> None:
    """Q and K read one tensor."""
    made = normalized(node("MatMul", "n w", "q"), node("MatMul", "n v", "k"), node("Concat", "q k", "y", axis=-1))
    data = samples(6, x=[2, 8, 96])
    level = smoothed(made, data)
    assert level is not None
    assert sqnr(made, level.model, data) > 110
    assert [n.op for n in level.model.graph.nodes] == [n.op for n in made.graph.nodes]
    gains = {}
    for name, found in (("before", made), ("after", level.model)):
        seen = context(found, data)
        low, high = seen.observations.limits("n")
        gains[name] = (high - low) / np.abs(np.asarray(found.graph.nodes[0].inputs[1].values)).min()
    assert gains["after"] < 0.5 * gains["before"]
    assert sqnr(made, static(context(level.model, data)), data) > sqnr(made, static(context(made, data)), data) + 3


def test_attention_values_take_the_factors_of_the_output_projection() -> None:
    nodes = [
        node("MatMul", "x wv", "a"),
        node("Add", "a bv", "v"),
        node("Reshape", "v split", "v4"),
        node("Transpose", "v4", "vt", perm=[0, 2, 1, 3]),
        node("Softmax", "p", "s"),
        node("MatMul", "s vt", "o"),
        node("Transpose", "o", "ot", perm=[0, 2, 1, 3]),
        node("Reshape", "ot join", "z"),
        node("MatMul", "z wo", "y"),
    ]
    constants: dict[str, np.ndarray] = {
        "wv": weight(96, 96) * OUTLIERS,
        "bv": weight(96),
        "wo": weight(96, 64),
        "split": np.array([0, 0, 4, 24]),
        "join": np.array([0, 0, 96]),
    }
    made = Model.load(model(nodes, {"x": ["b", "s", 96], "p": ["b", 4, "s", "s"]}, {"y": None}, constants))
    data = samples(4, x=[2, 8, 96], p=[2, 4, 8, 8])
    level = smoothed(made, data, alpha=0.5)
    assert level is not None
    assert "1 tensors" in level.specification
    assert sqnr(made, level.model, data) > 110
    values = np.abs(np.asarray(level.model.graph.nodes[0].inputs[1].values)).max(0)
    assert values.max() / values.min() < 0.5 * OUTLIERS.max()


def test_a_residual_is_refused_by_name_or_gets_a_mul() -> None:
    made = normalized(node("MatMul", "n u", "m"), node("Add", "m n", "y"), u=weight(96, 96))
    data = samples(4, x=[2, 8, 96])
    assert smoothed(made, data, alpha=0.5) is None
    level = smoothed(made, data, alpha=0.5, insert=True)
    assert level is not None
    assert [n.op for n in level.model.graph.nodes].count("Mul") == 1
    assert sqnr(made, level.model, data) > 110


def test_the_scalar_of_a_gelu_is_not_touched() -> None:
    nodes = [
        node("Div", "x root", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "f"),
        node("Mul", "x f", "g"),
        node("Mul", "g half", "h"),
        node("MatMul", "h w", "y"),
    ]
    constants = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5), "w": weight(96, 64)}
    made = Model.load(model(nodes, {"x": ["b", 96]}, {"y": None}, constants))
    data = samples(4, x=[16, 96])
    assert smoothed(made, data, alpha=0.5) is None
    level = smoothed(made, data, alpha=0.5, insert=True)
    assert level is not None
    kernels = [n.op_type for n in Session(level.model, dump=True).optimized().graph.node]
    assert "Gelu" in kernels
    assert sqnr(made, level.model, data) > 110


def test_nothing_happens_where_nothing_is_gained_or_known() -> None:
    made = normalized(node("MatMul", "n w", "y"), gamma=np.ones(96, np.float32))
    data = samples(4, x=[2, 8, 96])
    blind = context(made, data)
    object.__setattr__(blind, "samples", None)
    assert not list(SmoothActivations(alpha=0.5).levels(blind))
    one, two = (smoothed(made, data, alpha=0.5) for _ in range(2))
    assert one is not None
    assert two is not None
    assert one.model.serialized() == two.model.serialized()


def test_every_alpha_is_exact() -> None:
    made = load("depthwise_cnn")
    data = list(trained_samples("depthwise_cnn", 8))
    for alpha in (0.0, 1.0):
        level = smoothed(made, data, alpha=alpha)
        assert level is not None
        assert sqnr(made, level.model, data) > 100


def spectrum(**changes: Any) -> tuple[Model, list[dict[str, np.ndarray]]]:
    """The magnitude of a spectrum, frequencies of very different size, as a speech model has it."""
    loud = np.geomspace(40, 0.1, 64).astype(np.float32)
    cut = {"zero": [0, 1], "half": [64, 1], "end": [64, 99], "far": [128, 99], "axes": [1, 2]} | changes
    nodes = [
        node("MatMul", "x basis", "p"),
        node("Transpose", "p", "t", perm=[0, 2, 1]),
        node("Slice", "t zero end axes", "re"),
        node("Slice", "t half far axes", "im"),
        node("Pow", "re two", "rr"),
        node("Mul", "im im", "ii"),
        node("Add", "rr ii", "a"),
        node("Sqrt", "a", "m"),
        node("Conv", "m w", "y"),
    ]
    constants: dict[str, np.ndarray] = {
        "basis": weight(64, 128) * np.tile(loud, 2),
        "w": weight(64, 64, 3) / loud[:, None],
        "two": np.float32(2.0),
    } | {name: np.array(values, np.int64) for name, values in cut.items()}
    return Model.load(model(nodes, {"x": ["b", 12, 64]}, {"y": None}, constants)), samples(8, x=[2, 12, 64])


def test_the_magnitude_of_a_spectrum_takes_factors_through_its_root() -> None:
    made, data = spectrum()
    level = smoothed(made, data)
    assert level is not None
    assert sqnr(made, level.model, data) > 110
    assert sqnr(made, static(context(level.model, data)), data) > sqnr(made, static(context(made, data)), data) + 6


def test_parts_that_leave_channels_out_take_none() -> None:
    made, data = spectrum(far=[127, 99], half=[63, 1])
    assert smoothed(made, data) is None
    found, reasons = seams(made, find(made, target("cpu")))
    assert not [seam for seam in found if seam.name == "m"]
    assert any("is not cut into parts" in reason for reason in reasons)
