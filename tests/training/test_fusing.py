"""Chains that exporters write for GELU and layer normalization are one step, with the same values and gradients."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnx import parser

from onnxc.model import Model
from onnxc.session import Session
from onnxc.training.interpreter import Program

HEAD = '<ir_version: 8, opset_import: ["": 17]> graph ({type}[3, 5] x) => ({type}[3, 5] y)'
CONSTANTS = """<{type} root = {{1.4142135}}, {type} inverse = {{0.70710677}}, {type} one = {{1}}, {type} half = {{0.5}},
    {type} two = {{2}}, {type} epsilon = {{0.001}}>"""
CHAINS = {
    "half last": "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "half before": "d = Mul(x, inverse) e = Erf(d) a = Add(one, e) h = Mul(half, a) y = Mul(h, x)",
    "half of x": "h = Mul(x, half) d = Div(x, root) e = Erf(d) a = Add(e, one) y = Mul(h, a)",
    "layer norm": """m = ReduceMean <axes = [-1]> (x) c = Sub(x, m) p = Pow(c, two) v = ReduceMean <axes = [-1]> (p)
        s = Add(v, epsilon) r = Sqrt(s) y = Div(c, r)""",
    "layer norm by a product": """m = ReduceMean <axes = [-1]> (x) c = Sub(x, m) p = Mul(c, c)
        v = ReduceMean <axes = [-1]> (p) s = Add(v, epsilon) r = Sqrt(s) y = Div(c, r)""",
}


def model(chain: str, kind: str = "float") -> Model:
    text = f"{HEAD} {CONSTANTS} {{{{ {chain} }}}}".format(type=kind)
    return Model.load(parser.parse_model(text))


@pytest.mark.parametrize("name", CHAINS)
def test_one_step_gives_the_same(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5))
    single, double = model(CHAINS[name]), model(CHAINS[name], "double")
    program = Program(single)
    (chain,) = program.fused.values()
    assert {node.op for node in chain.nodes} == {node.op for node in single.graph.nodes}
    expected = Session(single).run({"x": x.astype(np.float32)})["y"]
    np.testing.assert_allclose(program({"x": x.astype(np.float32)})["y"].numpy(), expected, atol=1e-6)
    exact = Program(double)
    assert exact.fused
    point = torch.tensor(x, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: exact({"x": value})["y"], [point])


@pytest.mark.parametrize(
    "chain",
    [
        "d = Div(x, one) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",  # not the root of two
        "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) n = Mul(m, half) y = Add(n, e)",  # e is read again
        "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(d, a) y = Mul(m, half)",  # another factor
    ],
)
def test_what_only_looks_like_it_is_left_alone(chain: str) -> None:
    made = model(chain)
    program = Program(made)
    assert not program.fused
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    np.testing.assert_allclose(program({"x": x})["y"].numpy(), Session(made).run({"x": x})["y"], atol=1e-6)
