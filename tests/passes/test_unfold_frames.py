"""Convolutions over frames as matrix products: equal outputs, and nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest

from onnxc.model import Model
from onnxc.passes.unfold_frames import UnfoldFrames
from onnxc.session import Session
from tests.emission import Shape, model, node, random, weight


def operators(loaded: Model) -> list[str]:
    return [each.op for each in loaded.nodes()]


@pytest.mark.parametrize(("kernel", "stride"), [(32, 16), (32, 32), (48, 16), (256, 128)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("more", [0, 7])
def test_outputs_are_equal(kernel: int, stride: int, bias: bool, more: int) -> None:
    weights = {"w": weight(24, 1, kernel)} | ({"b": weight(24)} if bias else {})
    convolution = node("Conv", "x w b" if bias else "x w", "y", strides=[stride])
    proto = model([convolution], {"x": ["n", 1, 5 * stride + more]}, {"y": None}, weights)
    loaded = Model.load(proto)
    assert UnfoldFrames().run(loaded).changed == 1
    assert "MatMul" in operators(loaded)
    assert "Conv" not in operators(loaded)
    x = {"x": random.standard_normal((3, 1, 5 * stride + more)).astype(np.float32)}
    expected, found = Session(proto).run(x)["y"], Session(loaded).run(x)["y"]
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "weights", "attributes"),
    [
        (["n", 1, "length"], (24, 1, 32), {"strides": [16]}),
        (["n", 2, 80], (24, 2, 32), {"strides": [16]}),
        (["n", 1, 80], (24, 1, 24), {"strides": [16]}),  # no whole number of strides
        (["n", 1, 80], (24, 1, 32), {"strides": [16], "pads": [8, 8]}),
        (["n", 1, 80], (24, 1, 32), {"strides": [16], "dilations": [2]}),
        (["n", 1, 80], (24, 1, 8), {"strides": [4]}),
    ],
)
def test_left_alone(shape: Shape, weights: tuple[int, ...], attributes: dict[str, list[int]]) -> None:
    proto = model([node("Conv", "x w", "y", **attributes)], {"x": shape}, {"y": None}, {"w": weight(*weights)})
    loaded = Model.load(proto)
    assert not UnfoldFrames().run(loaded).changed
    assert operators(loaded) == ["Conv"]


def test_a_weight_that_others_read_stays() -> None:
    nodes = [node("Conv", "x w", "y", strides=[16]), node("Mul", "w two", "z")]
    weights = {"w": weight(24, 1, 32), "two": np.float32(2)}
    loaded = Model.load(model(nodes, {"x": ["n", 1, 80]}, {"y": None, "z": None}, weights))
    assert not UnfoldFrames().run(loaded).changed
