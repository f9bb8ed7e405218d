"""Convolutions as chains of thinner ones, against ONNX Runtime over a grid of what a convolution can be."""

from __future__ import annotations

from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxc.factors.kernel_rank import matrix_of
from onnxc.passes.factor_conv import FactorConv
from onnxc.sites import find
from onnxc.targets import target
from tests.emission import model, node, samples, weight
from tests.factored import MODELS, context_of, error, operators, told

SIZES = {"spatial": [(3, 3), (5, 2)], "tucker": [(3, 3), (1, 3), (3,), (2, 2, 2)], "channel": [(1, 1), (3, 3), (3,)]}
PADS: list[dict[str, Any]] = [{}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"}]
GRID = [
    (form, size, stride, dilation, pads, groups)
    for form, sizes in SIZES.items()
    for size, (stride, dilation), pads, groups in product(sizes, ((1, 1), (2, 1), (2, 2)), ("odd", *range(4)), (1, 4))
    if not (dilation > 1 and pads in {1, 2})
]
RESIDUAL = MODELS / "residual_cnn.onnx"


def convolution(size: tuple[int, ...], groups: int, attributes: dict[str, Any]) -> tuple[ModelProto, list[Any]]:
    """One convolution of 8 to 12 channels with a bias, and samples."""
    shape = [1, 8, *[10] * len(size)]
    weights = {"w": weight(12, 8 // groups, *size), "b": weight(12)}
    operator = node("Conv", "x w b", "y", group=groups, **attributes)
    return model([operator], {"x": shape}, {"y": None}, weights), samples(3, x=shape)


def full_rank(form: str, size: tuple[int, ...], groups: int) -> int:
    inputs, outputs = 8 // groups, 12 // groups
    if form == "tucker":
        return max(inputs, outputs)
    return min(inputs * size[0], outputs * size[1]) if form == "spatial" else min(inputs * prod(size), outputs)


@pytest.mark.parametrize("form", SIZES)
def test_every_convolution_in_every_form(form: str) -> None:
    """At full rank the output is the original's to float precision; below, it is what the factors say."""
    for name, size, stride, dilation, pads, groups in GRID:
        if name != form:
            continue
        axes = len(size)
        attributes: dict[str, Any] = {"strides": [stride] * axes, "dilations": [dilation] * axes}
        attributes |= {"pads": [2] * axes + [1] * axes} if pads == "odd" else PADS[int(pads)]
        proto, data = convolution(size, groups, attributes)
        full = full_rank(form, size, groups)
        step = FactorConv(rank=full, form=form)
        level, where = told(step, proto, data), (size, attributes, groups)
        assert len(operators(level)) == (3 if form == "tucker" else 2), where
        assert error(proto, level, data) < 1e-9, where
        assert all(site.kind == "convolution" for site in find(level.model, target("cpu")) if site.weight is not None)
        if pads == 0 and groups > 1:
            errors = [error(proto, told(FactorConv(rank=r, form=form), proto, data), data) for r in range(1, full)]
            assert all(more > less for more, less in pairwise(errors)), where


def test_the_chain_is_named_after_what_it_replaces_and_keeps_the_bias() -> None:
    proto, data = convolution((3, 3), 1, {"pads": [1, 1, 1, 1], "strides": [2, 2]})
    level = told(FactorConv(rank=4, form="tucker", refit=False, method="plain"), proto, data)
    assert [each.name for each in level.model.graph.nodes] == ["y_node_left", "y_node_core", "y_node_right"]
    first, core, last = level.model.graph.nodes
    assert [tuple(each.inputs[1].shape) for each in (first, core, last)] == [(4, 8, 1, 1), (4, 4, 3, 3), (12, 4, 1, 1)]
    assert (core.attrs["strides"], core.attrs["pads"]) == ([2, 2], [1, 1, 1, 1])
    assert "strides" not in first.attrs
    assert last.inputs[2].name == "b"
    assert first.outputs[0].name == "y_left"


def test_a_kernel_of_low_rank_is_recovered_in_each_form() -> None:
    random = np.random.default_rng(0)
    tucker = np.einsum(
        "oq,qpij,pc->ocij",
        random.standard_normal((64, 16)), random.standard_normal((16, 16, 3, 3)), random.standard_normal((16, 64)),
    )  # fmt: skip
    spatial = np.einsum("rci,orj->ocij", random.standard_normal((16, 64, 3)), random.standard_normal((64, 16, 3)))
    channel = np.einsum("or,rcij->ocij", random.standard_normal((64, 16)), random.standard_normal((16, 64, 3, 3)))
    for form, kernel in (("tucker", tucker), ("spatial", spatial), ("channel", channel)):
        values = (kernel / kernel.std() / 24).astype(np.float32)
        values += 1e-3 * values.std() * random.standard_normal(values.shape).astype(np.float32)
        proto = model([node("Conv", "x w", "y")], {"x": [1, 64, 12, 12]}, {"y": None}, {"w": values})
        data = samples(6, x=[1, 64, 12, 12])
        level = told(FactorConv(energy=0.999), proto, data)
        assert f"{form} rank 16" in level.specification
        assert error(proto, level, data) < 1e-4
        untold = list(FactorConv().levels(context_of(proto, data)))[-1]
        assert f"{form} rank 16" in untold.specification
        assert len(untold.model.serialized()) < 0.5 * proto.ByteSize()


def test_a_kernel_of_two_convolutions_is_factored_once() -> None:
    nodes = [node("Conv", "x w", "h", pads=[1] * 4), node("Relu", "h", "r"), node("Conv", "r w", "y", strides=[2, 2])]
    proto = model(nodes, {"x": [1, 8, 10, 10]}, {"y": None}, {"w": weight(8, 8, 3, 3)})
    data = samples(4, x=[1, 8, 10, 10])
    level = told(FactorConv(rank=8, form="channel"), proto, data)
    assert len(level.model.graph.weights) == 2
    assert operators(level).count("Conv") == 4
    assert error(proto, level, data) < 1e-9


def test_refused_by_name_with_the_reason() -> None:
    nodes = [
        node("Conv", "x w b", "h", group=8, pads=[1] * 4),
        node("Conv", "h v", "g"),
        node("ConvTranspose", "g u", "y"),
    ]
    weights = {"w": weight(8, 1, 3, 3), "b": weight(8), "v": weight(6, 8, 1, 1), "u": weight(6, 4, 2, 2)}
    proto = model(nodes, {"x": [1, 8, 10, 10]}, {"y": None}, weights)
    data = samples(4, x=[1, 8, 10, 10])
    notes = told(FactorConv(rank=7), proto, data).notes
    assert len(notes) == 3  # a bias is no weight to factor
    assert "g_node: not factored, rank 7 is above the full rank 6 of its channel form" in notes
    assert "h_node: not factored, rank 7 is above the full rank 3 of its spatial form" in notes
    assert "y_node: not factored, a transposed convolution" in notes
    (level,) = FactorConv().levels(context_of(proto, data))
    assert level.specification == "no convolution is factored"
    assert "h_node: not factored, a depthwise convolution: two of them are slower than one" in level.notes


def test_data_and_refit_pay_on_a_trained_model() -> None:
    with np.load(MODELS / "data/residual_cnn_calib.npz") as stored:
        ((name, images),) = stored.items()
    data = [{name: image[None] if image.ndim == 3 else image} for image in images[:48]]
    context, held_out = context_of(RESIDUAL, data[:24]), data[24:]

    def found(**fields: Any) -> float:
        (level,) = FactorConv(parameters=0.5, form="channel", **fields).levels(context)
        return error(RESIDUAL, level, held_out)

    refitted, whitened, plain = found(), found(refit=False), found(method="plain")
    assert whitened < 0.5 * plain
    assert refitted < whitened


def test_told_twice_it_is_the_same_file() -> None:
    proto, data = convolution((3, 3), 1, {"pads": [1] * 4})
    for form in ("tucker", "spatial"):
        made = [told(FactorConv(rank=4, form=form), proto, data).model.serialized() for _ in range(2)]
        assert made[0] == made[1]


def test_the_matrix_of_a_kernel_is_im2col() -> None:
    kernel = np.arange(2 * 3 * 4).reshape(1, 2, 3, 2, 2)
    assert matrix_of(kernel).shape == (1, 12, 2)
    np.testing.assert_array_equal(matrix_of(kernel)[0, :, 1], kernel[0, 1].ravel())
