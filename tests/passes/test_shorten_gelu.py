"""GELU by tanh in every spelling: fewer operators, the same outputs, one kernel from opset 20 on."""

from __future__ import annotations

import numpy as np
import pytest

from onnxc.model import Model
from onnxc.passes.shorten_gelu import ShortenGelu
from onnxc.session import kernels
from tests.passes.test_exact_passes import after, model_of

DATA = 3 * np.random.default_rng(5).standard_normal((4, 32)).astype(np.float32)
CONSTANTS = {"a": 0.044715, "c": 0.7978845608, "half": 0.5, "one": 1.0, "three": 3.0}
JAX = (
    "m1 = Mul(a, x) m2 = Mul(x, m1) m3 = Mul(x, m2) m4 = Add(x, m3) m5 = Mul(c, m4) t = Tanh(m5) m6 = Add(one, t) "
    "m7 = Mul(half, m6) y = Mul(x, m7)"
)
GPT2 = (
    "h = Mul(x, half) m1 = Pow(x, three) m2 = Mul(m1, a) m3 = Add(x, m2) m4 = Mul(m3, c) t = Tanh(m4) "
    "m5 = Add(t, one) y = Mul(h, m5)"
)
FACTORED = (
    "s = Mul(x, x) m1 = Mul(a, s) m2 = Add(m1, one) xc = Mul(x, c) m3 = Mul(xc, m2) t = Tanh(m3) "
    "m4 = Add(t, one) m5 = Mul(x, m4) y = Mul(m5, half)"
)


def spelled(text: str, opset: int = 17) -> Model:
    constants = {
        name: np.float32(value) for name, value in CONSTANTS.items() if f"{name}," in text or f", {name})" in text
    }
    return model_of(f"g (float[4,32] x) => (float[4,32] y) {{ {text} }}", opset, **constants)


@pytest.mark.parametrize("text", [JAX, GPT2, FACTORED])
def test_six_operators_are_left(text: str) -> None:
    assert after(ShortenGelu(), spelled(text), DATA, 1) == {"Mul": 4, "Add": 1, "Sigmoid": 1}


@pytest.mark.parametrize("text", [JAX, GPT2, FACTORED])
def test_one_operator_and_one_kernel_where_the_opset_has_it(text: str) -> None:
    model = spelled(text, 20)
    assert sum(kernels(model).values()) >= 8
    assert after(ShortenGelu(), model, DATA, 1) == {"Gelu": 1}
    assert sum(kernels(model).values()) == 1


def test_behind_a_sum_that_is_not_its_own() -> None:
    """x is a MatMul plus a bias, as in a model."""
    text = f"p = MatMul(z, w) x = Add(p, b) {JAX}"
    constants = {name: np.float32(CONSTANTS[name]) for name in ("a", "c", "half", "one")}
    weights = np.random.default_rng(1).standard_normal((8, 32)).astype(np.float32)
    model = model_of(f"g (float[2,8] z) => (float[2,32] y) {{ {text} }}", 17, w=weights, b=weights[0], **constants)
    assert ShortenGelu().run(model).changed == 1
    assert [node.op for node in model.nodes()].count("Mul") == 4


@pytest.mark.parametrize(
    "text",
    [
        JAX.replace("m6 = Add(one, t)", "m6 = Sub(t, one)"),  # 0.5 x (Tanh - 1)
        JAX.replace("m3 = Mul(x, m2)", "m3 = Mul(m2, m2)"),  # a power of four
        "e = Tanh(x) y = Mul(e, half)",
    ],
)
def test_what_is_no_gelu_stays(text: str) -> None:
    assert ShortenGelu().run(spelled(text)).changed == 0


def test_a_value_that_something_else_reads_stays() -> None:
    constants = {name: np.float32(CONSTANTS[name]) for name in ("a", "c", "half", "one")}
    model = model_of(f"g (float[4,32] x) => (float[4,32] y, float[4,32] t) {{ {JAX} }}", 17, **constants)
    assert ShortenGelu().run(model).changed == 0
