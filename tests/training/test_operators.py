"""Gradients agree with finite differences, straight-through estimators with their definition; refusals have names."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from onnxc.errors import ModelError
from onnxc.model import Model
from onnxc.session import Session
from onnxc.training.interpreter import Program
from onnxc.training.operators import OPERATORS
from tests.training.graphs import CASES, Case, build

ELSEWHERE = """
    And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CastLike Ceil Constant ConstantOfShape
    Dropout Equal EyeLike Floor Greater GreaterOrEqual Hardmax IsInf IsNaN Less LessOrEqual Mod NonZero Not OneHot
    Or Range Round Shape Sign Size Xor Upsample Scatter Col2Im GridSample RotaryEmbedding
    SimplifiedLayerNormalization If Loop Scan ConvInteger MatMulInteger QLinearConv QLinearMatMul QuantizeLinear
    DequantizeLinear DynamicQuantizeLinear
"""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    model, feeds = build(case)
    program = Program(model)
    names = list(feeds)
    point = [torch.tensor(feeds[name], requires_grad=True) for name in names]

    def function(*values: torch.Tensor) -> torch.Tensor:
        return program(dict(zip(names, values, strict=True)))["y0"]

    assert torch.autograd.gradcheck(function, point, eps=1e-6, atol=1e-5, rtol=1e-4)


NOT_THERE = {
    "Cast-to=11",  # its result is double, whatever the input: the case is made for doubles
    "Conv-auto_pad=SAME_UPPER",  # ONNX Runtime has no dilation beside it
}
COMPARED = [case for case in CASES if case.opset <= 23 and case.label not in NOT_THERE]


@pytest.mark.parametrize("case", COMPARED, ids=lambda case: case.label)
def test_values_agree_with_onnx_runtime(case: Case) -> None:
    model, feeds = build(case, TensorProto.FLOAT)
    expected = Session(model).run(feeds)["y0"]
    with torch.no_grad():
        got = Program(model)(feeds)["y0"].numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def quantizer() -> Model:
    """x, scale -> DequantizeLinear(QuantizeLinear(x))."""
    text = """<ir_version: 10, opset_import: ["": 21]>
    graph (float[6] x, float scale) => (float[6] y) <uint8 zero = {128}> {
        q = QuantizeLinear(x, scale, zero)
        y = DequantizeLinear(q, scale, zero)
    }"""
    return Model.load(parser.parse_model(text))


def test_quantization_passes_gradients_inside_its_range_and_learns_its_step() -> None:
    program = Program(quantizer())
    x = torch.tensor([-9.0, -0.26, 0.1, 0.24, 0.6, 9.0], requires_grad=True)
    scale = torch.tensor(0.05, requires_grad=True)
    y = program({"x": x, "scale": scale})["y"]
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]
    inside = np.asarray([-0.26, 0.1, 0.24, 0.6]) / 0.05
    wanted = -128 + 127 + float((np.rint(inside) - inside).sum())  # Esser et al., LSQ, eq. 3
    assert float(scale.grad) == pytest.approx(wanted, abs=1e-4)


def test_dynamic_quantization_equals_onnx_runtimes_and_passes_gradients() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    graph (float[3, 8] x) => (float[3, 4] y) <int8[8, 4] w = {%s}, float[4] scale = {0.1, 0.2, 0.3, 0.4}> {
        q, s, z = DynamicQuantizeLinear(x)
        p = MatMulInteger(q, w, z)
        f = Cast<to = 1>(p)
        k = Mul(s, scale)
        y = Mul(f, k)
    }"""
    random = np.random.default_rng(0)
    codes = random.integers(-63, 64, 32)  # sums of pairs stay within 16 bits, whatever the processor
    model = Model.load(parser.parse_model(text % ", ".join(map(str, codes))))
    x = random.standard_normal((3, 8)).astype(np.float32)
    program = Program(model)
    point = torch.tensor(x, requires_grad=True)
    y = program({"x": point})["y"]
    np.testing.assert_allclose(y.detach().numpy(), Session(model).run({"x": x})["y"], rtol=1e-5, atol=1e-5)
    y.sum().backward()
    weight = codes.reshape(8, 4) * np.asarray([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(point.grad.numpy(), np.tile(weight.sum(1), (3, 1)), rtol=1e-4)


def test_gradients_go_through_control_flow() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    graph (float[2] x, int64 n) => (float[2] y) {
        yes = Constant<value = bool {1}>()
        y = Loop(n, yes, x) <body = body (int64 i, bool going, float[2] a) => (bool goes, float[2] b) {
            goes = Identity(going)
            b = Mul(a, x)
        }>
    }"""
    program = Program(Model.load(parser.parse_model(text)))
    x = torch.tensor([0.5, -2.0], requires_grad=True)
    y = program({"x": x, "n": np.asarray(3)})["y"]
    assert y.tolist() == [0.0625, 16.0]
    y.sum().backward()
    assert x.grad.tolist() == [0.5, -32.0]  # 4 x^3


def test_an_operator_without_gradient_is_refused_by_name() -> None:
    node = helper.make_node("Unique", ["x"], ["y"], name="deep/unique")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = Model.load(helper.make_model(helper.make_graph([node], "g", [x], [y])))
    with pytest.raises(ModelError, match="node 'deep/unique': operator Unique cannot be trained through"):
        Program(model)


def test_what_an_output_does_not_need_is_left_out() -> None:
    nodes = [helper.make_node("Unique", ["x"], ["u"]), helper.make_node("Relu", ["x"], ["y"])]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xuy"]
    model = Model.load(helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:])))
    assert Program(model, outputs=["y"])({"x": np.asarray([-1.0], np.float32)})["y"].tolist() == [0.0]


def test_every_operator_with_a_gradient_is_in_the_sample() -> None:
    """What is not held against finite differences has no gradient, moves whole tensors, or is tested elsewhere."""
    whole = set(ELSEWHERE.split())
    sampled = {case.op for case in CASES}
    names = {name for domain, name in OPERATORS if not domain and "Sequence" not in name}
    assert names - whole == sampled - {"ReverseSequence"}


def test_halves_and_4_bit_integers_are_read() -> None:
    array = np.asarray([1, -3, 7], onnx.helper.tensor_dtype_to_np_dtype(TensorProto.INT4))
    nodes = [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    graph = helper.make_graph(nodes, "g", [], [y], [numpy_helper.from_array(array, "w")])
    assert Program(Model.load(helper.make_model(graph)))({})["y"].tolist() == [1, -3, 7]
