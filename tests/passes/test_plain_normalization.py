"""Layer normalization in every spelling becomes one kernel, with the same outputs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxc.model import Model
from onnxc.passes.plain_normalization import PlainNormalization
from onnxc.session import kernels
from tests.passes.test_exact_passes import after, model_of

DATA = np.random.default_rng(5).standard_normal((2, 4, 32)).astype(np.float32) * 3 + 1
VECTORS = {name: np.random.default_rng(seed).uniform(0.5, 1.5, 32).astype(np.float32) for seed, name in enumerate("gb")}
NUMBERS = {"e": 1e-3, "zero": 0.0, "n": 1 / 32}

# Flax: the variance is the mean of squares less the square of the mean, and sums drop the axis
FLAX = (
    "s = {sum} m = Mul(s, n) xx = Mul(x, x) ss = {sum_of_squares} q = Mul(ss, n) mm = Mul(m, m) v0 = Sub(q, mm) "
    "v1 = Max(zero, v0) v2 = Unsqueeze(v1, last) v = Add(v2, e) d = Sqrt(v) r = Reciprocal(d) rg = Mul(r, g) "
    "m2 = Unsqueeze(m, last) away = Sub(x, m2) scaled = Mul(away, rg) y = Add(scaled, b)"
)
# Keras: as a batch normalization
KERAS = (
    "m = {mean} away = Sub(x, m) aa = Mul(away, away) v0 = {mean_of_squares} v = Add(v0, e) d = Sqrt(v) "
    "r = Reciprocal(d) inv = Mul(r, g) xi = Mul(x, inv) mi = Mul(m, inv) neg = Neg(mi) "
    "shift = Add(neg, b) y = Add(xi, shift)"
)
# the same with a power, and the difference computed twice
POWER = (
    "m = {mean} a1 = Sub(x, m) a2 = Sub(x, m) aa = Mul(a1, a1) v0 = {mean_of_squares} v = Add(e, v0) "
    "r = Pow(v, minus) unit = Mul(a2, r) gone = Mul(unit, g) y = Add(b, gone)"
)


def spelled(text: str, opset: int) -> Model:
    axes = "<axes = [-1], keepdims = 1>" if opset < 18 else "<keepdims = 1>"
    place = "" if opset < 18 else ", last"
    filled = text.format(
        sum="ReduceSum<keepdims = 0>(x, last)",
        sum_of_squares="ReduceSum<keepdims = 0>(xx, last)",
        mean=f"ReduceMean{axes}(x{place})",
        mean_of_squares=f"ReduceMean{axes}(aa{place})",
    )
    held = {name: np.float32(value) for name, value in {**NUMBERS, "minus": -0.5}.items()}
    used = {name: value for name, value in {**held, **VECTORS, "last": np.array([-1])}.items() if _reads(filled, name)}
    return model_of(f"g (float[2,4,32] x) => (float[2,4,32] y) {{ {filled} }}", opset, **used)


def _reads(text: str, name: str) -> bool:
    return any(f"{before}{name}{behind}" in text for before in ("(", " ") for behind in (",", ")"))


@pytest.mark.parametrize("text", [FLAX, KERAS, POWER])
def test_one_operator_from_opset_17_on(text: str) -> None:
    assert after(PlainNormalization(), spelled(text, 18), DATA, 1) == {"LayerNormalization": 1}


@pytest.mark.parametrize("text", [FLAX, KERAS, POWER])
def test_one_kernel_before(text: str) -> None:
    model = spelled(text, 13)
    assert "LayerNormalization" not in kernels(model)
    assert sum(after(PlainNormalization(), model, DATA, 1).values()) == 9
    assert kernels(model) == {"LayerNormalization": 1}


def test_epsilon_and_vectors_are_kept() -> None:
    model = spelled(FLAX, 18)
    PlainNormalization().run(model)
    (node,) = model.nodes()
    assert node.attrs["epsilon"] == pytest.approx(1e-3)
    assert [list(model.values(each)) for each in node.inputs[1:]] == [list(VECTORS["g"]), list(VECTORS["b"])]


@pytest.mark.parametrize(
    "changed",
    [
        ("mm = Mul(m, m)", "mm = Mul(m, q)"),  # no variance
        ("away = Sub(x, m2)", "away = Add(x, m2)"),
        ("Mul(s, n)", "Mul(s, e)"),  # not the mean
    ],
)
def test_what_is_no_normalization_stays(changed: tuple[str, str]) -> None:
    assert changed[0] in FLAX
    assert PlainNormalization().run(spelled(FLAX.replace(*changed), 13)).changed == 0


def test_over_another_axis_it_stays() -> None:
    model = spelled(FLAX, 13)
    for node in model.nodes():
        if node.op == "ReduceSum":
            node.inputs[1] = model.constant("axis", np.array([1]))
    assert PlainNormalization().run(model).changed == 0


def test_the_form_that_fuses_stays() -> None:
    text = (
        "m = {mean} away = Sub(x, m) aa = Mul(away, away) v0 = {mean_of_squares} v = Add(v0, e) d = Sqrt(v) "
        "unit = Div(away, d) scaled = Mul(unit, g) y = Add(scaled, b)"
    )
    assert PlainNormalization().run(spelled(text, 13)).changed == 0
