"""GELU in every spelling: fewer operators, the same outputs, one kernel from opset 20 on, also behind int8."""

from __future__ import annotations

import numpy as np
import pytest

from onnxc.model import Model
from onnxc.passes.plain_gelu import PlainGelu
from onnxc.session import Options, Session, kernels
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
    assert after(PlainGelu(), spelled(text), DATA, 1) == {"Mul": 4, "Add": 1, "Sigmoid": 1}


@pytest.mark.parametrize("text", [JAX, GPT2, FACTORED])
def test_one_operator_and_one_kernel_where_the_opset_has_it(text: str) -> None:
    model = spelled(text, 20)
    assert sum(kernels(model).values()) >= 8
    assert after(PlainGelu(), model, DATA, 1) == {"Gelu": 1}
    assert sum(kernels(model).values()) == 1


def test_behind_a_sum_that_is_not_its_own() -> None:
    """x is a MatMul plus a bias, as in a model."""
    text = f"p = MatMul(z, w) x = Add(p, b) {JAX}"
    constants = {name: np.float32(CONSTANTS[name]) for name in ("a", "c", "half", "one")}
    weights = np.random.default_rng(1).standard_normal((8, 32)).astype(np.float32)
    model = model_of(f"g (float[2,8] z) => (float[2,32] y) {{ {text} }}", 17, w=weights, b=weights[0], **constants)
    assert PlainGelu().run(model).changed == 1
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
    assert PlainGelu().run(spelled(text)).changed == 0


def test_a_value_that_something_else_reads_stays() -> None:
    constants = {name: np.float32(CONSTANTS[name]) for name in ("a", "c", "half", "one")}
    model = model_of(f"g (float[4,32] x) => (float[4,32] y, float[4,32] t) {{ {JAX} }}", 17, **constants)
    assert PlainGelu().run(model).changed == 0


ERF = "d = Div(x, root) t = Erf(d) p = Add(t, one) m = Mul(x, p) y = Mul(m, half)"
HALVED = "h = Mul(x, half) d = Mul(x, inverse) t = Erf(d) p = Add(one, t) y = Mul(h, p)"
ROOTS = {"root": 2**0.5, "inverse": 0.5**0.5, "one": 1.0, "half": 0.5}


@pytest.mark.parametrize("text", [ERF, HALVED])
def test_with_erf(text: str) -> None:
    constants = {name: np.float32(value) for name, value in ROOTS.items() if name in text}
    body = f"g (float[4,32] x) => (float[4,32] y) {{ {text} }}"
    assert after(PlainGelu(), model_of(body, 20, **constants), DATA, 1) == {"Gelu": 1}
    old = model_of(body, 17, **constants)
    assert PlainGelu().run_checked(old, [{"x": DATA}], Options()).changed == 0, "a session fuses it by itself"
    assert old.opset == 17


@pytest.mark.parametrize("text", [ERF, HALVED])
def test_behind_a_convolution_the_opset_is_raised(text: str) -> None:
    constants = {name: np.float32(value) for name, value in ROOTS.items() if name in text}
    weights = np.random.default_rng(1).standard_normal((8, 4, 3, 3)).astype(np.float32)
    text = f"g (float[1,4,9,9] z) => (float[1,8,7,7] y) {{ x = Conv(z, w, b) {text} }}"
    model = model_of(text, 13, w=weights, b=weights[:, 0, 0, 0], **constants)
    data = [{"z": np.random.default_rng(2).standard_normal((1, 4, 9, 9)).astype(np.float32)}]
    before = Session(model).run(data[0])["y"]
    outcome = PlainGelu().run_checked(model, data, Options())
    assert outcome.changed == 1
    assert outcome.notes == ("opset 13 became 20, for Gelu",)
    assert [node.op for node in model.nodes()] == ["Conv", "Gelu"]
    assert np.allclose(Session(model).run(data[0])["y"], before, atol=1e-5)
