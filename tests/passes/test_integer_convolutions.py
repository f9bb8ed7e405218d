"""QLinearConv in place of DequantizeLinear, Conv and QuantizeLinear: the same kernels and outputs, fewer nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxc.cli import main
from onnxc.exactness import Exactness
from onnxc.judge import Judge
from onnxc.model import Model
from onnxc.passes.integer_convolutions import IntegerConvolutions
from onnxc.propose import passes_of
from onnxc.recipe import Recipe, parse_passes
from tests.passes.test_exact_passes import model_of
from tests.trained import MODELS

IMAGE = np.random.default_rng(3).standard_normal((1, 16, 9, 9)).astype(np.float32)
CODES = np.random.default_rng(4).integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)

BODY = (
    "xq = QuantizeLinear(x, xs, xz) xd = DequantizeLinear(xq, xs, xz) {bias} "
    "wd = DequantizeLinear<axis: int = {axis}>(w, ws, wz) c = Conv<pads: ints = [1, 1, 1, 1]>(xd, wd, bd) "
    "r = {bound} rq = QuantizeLinear(r, ys, yz) rd = DequantizeLinear(rq, ys, yz) y = Neg(rd) {more}"
)
PRODUCT = "bs = Mul(ws, xs) bd = DequantizeLinear<axis: int = 0>(b, bs)"


def network(
    *,
    bound: str = "Relu(c)",
    bias: str = PRODUCT,
    axis: int = 0,
    more: str = "",
    outputs: str = "float y",
    zero: int = 0,
    signed: bool = False,
    skewed: bool = False,
) -> Model:
    """A convolution of 16 channels on codes; its output has the zero point ``zero``."""
    rng = np.random.default_rng(5)
    body = BODY.format(bound=bound, bias=bias, axis=axis, more=more)
    if not bias:
        body = body.replace("(xd, wd, bd)", "(xd, wd)")
    if not bound:
        body = body.replace("r =  ", "").replace("Linear(r,", "Linear(c,")
    return model_of(
        f"g (float[1,16,9,9] x) => ({outputs}) {{ {body} }}",
        xs=np.float32(0.03),
        xz=np.uint8(120),
        w=CODES,
        ws=rng.uniform(0.001, 0.002, 16).astype(np.float32),
        wz=np.arange(16, dtype=np.int8) * skewed,
        b=rng.integers(-900, 900, 16).astype(np.int32),
        other=np.float32(0.5),
        low=np.float32(0.0),
        high=np.float32(6.0),
        ys=np.float32(0.02),
        yz=np.int8(zero) if signed else np.uint8(zero),
    )


@pytest.mark.parametrize("bound", ["Relu(c)", "Clip(c, low, high)"])
def test_it_is_the_operator_that_a_session_makes(bound: str) -> None:
    model = network(bound=bound)
    before = model.copy()
    assert IntegerConvolutions().finish(model).changed == 1
    assert Counter(node.op for node in model.nodes())["QLinearConv"] == 1
    assert not {"Conv", "Relu", "Clip", "Mul"} & {node.op for node in model.nodes()}
    assert len(list(model.nodes())) == len(list(before.nodes())) - 6
    assert len(model.serialized()) < len(before.serialized()) - 100
    assert Exactness(before, [{"x": IMAGE}]).differs(model) is None
    assert IntegerConvolutions().finish(model).changed == 0


def test_without_bias_and_without_bounds() -> None:
    model = network(bound="", bias="", zero=128)
    before = model.copy()
    assert IntegerConvolutions().finish(model).changed == 1
    assert Exactness(before, [{"x": IMAGE}]).differs(model) is None


@pytest.mark.parametrize(
    "what",
    [
        {"zero": 3},  # codes below it stand for negative numbers, which Relu cuts off
        {"bound": "Clip(c, low, other)"},
        {"bound": "Sigmoid(c)"},
        {"bound": "", "signed": True},  # uint8 in, int8 out: there is no such kernel
        {"skewed": True},  # zero points that differ from output to output
        {"bias": "bd = DequantizeLinear(b, other)"},  # of another scale than an integer convolution takes
        {"axis": 1},
        {"more": "z = Exp(c)", "outputs": "float y, float z"},
        {"more": "z = Exp(r)", "outputs": "float y, float z"},
        {"outputs": "float y, float r"},
    ],
)
def test_what_it_leaves_alone(what: dict[str, Any]) -> None:
    model = network(**what)
    before = model.serialized()
    assert IntegerConvolutions().finish(model).changed == 0
    assert model.serialized() == before


def optimized(out: Path, *arguments: str) -> Counter[str]:
    """Operators of what the command line makes of a trained model."""
    data = MODELS / "data" / "depthwise_cnn_calib.npz"
    asked = ["optimize", str(MODELS / "depthwise_cnn.onnx"), str(out), "--calib", str(data), "--quiet", *arguments]
    assert main(asked) == 0
    return Counter(node.op_type for node in onnx.load(out).graph.node)


def test_named_it_writes_a_smaller_file_with_the_same_kernels(tmp_path: Path) -> None:
    plain, named = tmp_path / "plain.onnx", tmp_path / "named.onnx"
    assert not optimized(plain, "--passes", "quantize-static")["QLinearConv"]
    assert optimized(named, "--passes", "quantize-static,integer-convolutions")["QLinearConv"] >= 2
    assert named.stat().st_size < plain.stat().st_size
    sample = {"image": np.load(MODELS / "data" / "depthwise_cnn_calib.npz")["image"][:4]}
    assert Exactness(Model.load(plain), [sample]).differs(Model.load(named)) is None


def test_unasked_only_where_models_are_late_to_load() -> None:
    """And named always; never before a training, which goes through operators that have a gradient."""
    asked = [None, parse_passes("quantize-static,integer-convolutions"), parse_passes("quantize-static")]
    recipes = [*(replace(Recipe(), passes=passes) for passes in asked), replace(Recipe(), recover=1.0)]
    written = list[tuple[int, int]]()
    for recipe in recipes:
        judge: Any = SimpleNamespace(finishing=passes_of(recipe).finishing, late=False)
        counts = list[int]()
        for judge.late in (False, True):
            made, _ = Judge.finished(judge, network())
            counts.append(sum(node.op == "QLinearConv" for node in made.nodes()))
        written.append((counts[0], counts[1]))
    assert written == [(0, 1), (1, 1), (0, 0), (0, 0)]
