"""Classical models as converters write them: look-ups of labels, scalers, and votes of single columns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxc.contract.passes import ExactPass, FinishingPass
from onnxc.exactness import Exactness
from onnxc.model import Model
from onnxc.passes.columns_as_products import ColumnsAsProducts
from onnxc.passes.fold_scaler import FoldScaler
from onnxc.passes.plain_labels import PlainLabels
from onnxc.session import Options

ROWS = np.random.default_rng(3).standard_normal((5, 6)).astype(np.float32)
CLASSES = np.arange(4, dtype=np.int32)


def model_of(text: str, **weights: Any) -> Model:
    """A model from ONNX's text format with operators of ai.onnx.ml; ``weights`` become initializers."""
    header = '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 1]>'
    proto = onnx.parser.parse_model(f"{header} {text}")
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    return Model.load(proto)


def after(pass_: ExactPass | FinishingPass, model: Model, changed: int) -> Counter[str]:
    """Run a pass, check outputs and that a second run finds nothing; operators with their number."""
    before = model.copy()
    run = pass_.run if isinstance(pass_, ExactPass) else pass_.finish
    assert run(model).changed == changed
    assert Exactness(before, [{"x": ROWS}, {"x": ROWS[:1]}]).differs(model) is None
    assert run(model).changed == 0
    return Counter(node.op for node in model.nodes())


def labels(tail: str, result: str = "int64[N] y", classes: np.ndarray = CLASSES, axis: int = 1) -> Model:
    weights = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    text = f"g (float[N,6] x) => ({result}) {{ s = MatMul(x, w) i = ArgMax<axis = {axis}>(s) {tail} }}"
    return model_of(text, w=weights, c=classes, flat=np.array([-1]))


def test_labels_that_are_their_own_places() -> None:
    tail = "a = ai.onnx.ml.ArrayFeatureExtractor(c, i) r = Reshape(a, flat) y = Cast<to = 7>(r)"
    assert after(PlainLabels(), labels(tail), 1) == {"MatMul": 1, "ArgMax": 1}


@pytest.mark.parametrize(
    ("tail", "result", "left"),
    [
        ("y = ai.onnx.ml.ArrayFeatureExtractor(c, i)", "int32[1,N] y", {"Reshape": 1, "Cast": 1}),
        ("a = ai.onnx.ml.ArrayFeatureExtractor(c, i) y = Cast<to = 7>(a)", "int64[1,N] y", {"Reshape": 1}),
        ("y = Gather(c, i)", "int32[N,1] y", {"Cast": 1}),
        ("g = Gather(c, i) y = Cast<to = 7>(g)", "int64[N,1] y", {}),
        (
            "a = ai.onnx.ml.ArrayFeatureExtractor(c, i) r = Reshape(a, flat) y = Cast<to = 7>(r) z = Neg(i)",
            "int64[N] y, int64[N,1] z",
            {"Reshape": 1, "Neg": 1},
        ),
    ],
)
def test_shapes_and_types_of_labels_stay(tail: str, result: str, left: dict[str, int]) -> None:
    assert after(PlainLabels(), labels(tail, result), 1) == {"MatMul": 1, "ArgMax": 1} | left


@pytest.mark.parametrize("classes", [np.array([1, 2, 3, 4]), np.array([0, 2, 1, 3]), np.array(["a", "b", "c", "d"])])
def test_other_classes_are_looked_up(classes: np.ndarray) -> None:
    kind = "string" if classes.dtype.kind == "U" else "int64"
    values = classes.astype(object) if kind == "string" else classes
    tail = "y = ai.onnx.ml.ArrayFeatureExtractor(c, i)"
    model = labels(tail, f"{kind}[1,N] y", values)
    assert after(PlainLabels(), model, 0)["ArrayFeatureExtractor"] == 1


def test_places_that_are_no_argmax_are_looked_up() -> None:
    """They may be counted from the end."""
    text = "g (float[N,6] x) => (int32[1] y) { y = Gather(c, last) }"
    assert after(PlainLabels(), model_of(text, c=CLASSES, last=np.array([-1])), 0) == {"Gather": 1}


def votes(classes: int = 4) -> Model:
    """One against another for each pair, as skl2onnx writes it: sums of columns, one for each class."""
    pairs = [(first, second) for first in range(classes) for second in range(first + 1, classes)]
    lines = [f"c{k} = ai.onnx.ml.ArrayFeatureExtractor(x, p{k}) n{k} = Neg(c{k})" for k in range(len(pairs))]
    sums = []
    for each in range(classes):
        terms = [f"{'c' if pair[1] == each else 'n'}{k}" for k, pair in enumerate(pairs) if each in pair]
        lines.append(f"s{each} = Sum({', '.join(terms)}) t{each} = Add(s{each}, one)")
        sums.append(f"t{each}")
    lines.append(f"z = Concat<axis = 1>({', '.join(sums)}) y = Abs(z)")
    text = f"g (float[N,{len(pairs)}] x) => (float[N,{classes}] y) {{ {' '.join(lines)} }}"
    return model_of(text, one=np.float32(1), **{f"p{k}": np.int64(k) for k in range(len(pairs))})


def test_votes_become_one_product() -> None:
    model = votes()
    assert after(ColumnsAsProducts(), model, 1) == {"MatMul": 1, "Add": 1, "Abs": 1}
    assert sorted(tensor.shape for tensor in model.graph.weights) == [(4,), (6, 4)]


def test_votes_are_checked_and_faster() -> None:
    model = votes(6)
    data = np.random.default_rng(1).standard_normal((1, 15)).astype(np.float32)
    outcome = ColumnsAsProducts().run_checked(model, [{"x": data}], Options())
    assert outcome.changed == 1, outcome.notes


def arithmetic(more: int) -> Model:
    """Columns scaled, subtracted and added, and as many negated ones more."""
    lines = [f"c{k} = Gather<axis = 1>(x, p{k}) m{k} = Mul(c{k}, two)" for k in range(5)]
    lines += ["a = Sub(m0, m1) b = Sub(two, m2) d = Add(m3, m4)"]
    lines += [f"e{k} = Gather<axis = 1>(x, p{k}) f{k} = Neg(e{k})" for k in range(more)]
    ends = ", ".join(["a", "b", "d", *(f"f{k}" for k in range(more))])
    lines += [f"y = Concat<axis = 1>({ends})"]
    text = f"g (float[N,6] x) => (float[N,{3 + more}] y) {{ {' '.join(lines)} }}"
    return model_of(text, two=np.float32(2), **{f"p{k}": np.array([k]) for k in range(5)})


def test_differences_and_factors_of_columns() -> None:
    assert after(ColumnsAsProducts(), arithmetic(5), 1) == {"MatMul": 1, "Add": 1}


def test_few_columns_stay() -> None:
    lines = " ".join(f"c{k} = Gather<axis = 1>(x, p) n{k} = Neg(c{k})" for k in range(3))
    text = f"g (float[N,6] x) => (float[N,3] y) {{ {lines} y = Concat<axis = 1>(n0, n1, n2) }}"
    assert after(ColumnsAsProducts(), model_of(text, p=np.array([2])), 0)["Gather"] == 3


def test_columns_of_two_tensors_or_an_unknown_width_stay() -> None:
    lines = [f"c{k} = Gather<axis = 1>({'x' if k % 2 else 'z'}, p) " for k in range(10)]
    sum_of_all = f"y = Sum({', '.join(f'c{k}' for k in range(10))})"
    text = f"g (float[N,6] x) => (float[N,1] y) {{ z = Abs(x) {' '.join(lines)} {sum_of_all} }}"
    assert after(ColumnsAsProducts(), model_of(text, p=np.array([2])), 0)["Gather"] == 10
    text = text.replace("float[N,6] x", "float[N,M] x")
    assert after(ColumnsAsProducts(), model_of(text, p=np.array([2])), 0)["Gather"] == 10


SCALER = "v = ai.onnx.ml.Scaler<offset = [0.5, 1.0, -2.0, 0.0, 3.0, 0.1], scale = [2.0, 0.1, 3.0, 1.0, 0.5, 30.0]>(x)"
WEIGHT = np.random.default_rng(4).standard_normal((6, 4)).astype(np.float32)
BIAS = np.random.default_rng(5).standard_normal(4).astype(np.float32)
LISTED, ENDS = WEIGHT.T.reshape(-1).tolist(), BIAS.tolist()
LINEAR = {"LinearRegressor": 1}


@pytest.mark.parametrize(
    ("rest", "left"),
    [
        ("c = Cast<to = 1>(v) p = MatMul(c, w) y = Add(p, b)", {"MatMul": 1, "Add": 1}),
        ("p = MatMul(v, w) y = Add(b, p)", {"MatMul": 1, "Add": 1}),
        ("y = Gemm(v, w, b)", {"Gemm": 1}),
        ("y = Gemm<transB = 1>(v, t, b)", {"Gemm": 1}),
        ("u = Cast<to = 1>(h) p = MatMul(v, u) y = Add(p, b)", {"Cast": 1, "Mul": 1, "MatMul": 1, "Add": 1}),
        ("d = Cast<to = 1>(k) p = MatMul(v, w) y = Add(p, d)", {"MatMul": 1, "Add": 1}),
        (f"y = ai.onnx.ml.LinearRegressor<coefficients = {LISTED}, intercepts = {ENDS}, targets = 4>(v)", LINEAR),
    ],
)
def test_a_scaler_goes_into_the_weights(rest: str, left: dict[str, int]) -> None:
    weights = {
        "w": WEIGHT,
        "b": BIAS,
        "t": WEIGHT.T.copy(),
        "h": WEIGHT.astype(np.float16),
        "k": BIAS.astype(np.float16),
    }
    used = {name: value for name, value in weights.items() if f" {name}" in rest.replace("(", " ")}
    model = model_of(f"g (float[N,6] x) => (float[N,4] y) {{ {SCALER} {rest} }}", **used)
    assert after(FoldScaler(), model, 1) == left


@pytest.mark.parametrize(
    ("scaler", "rest"),
    [
        (SCALER.replace("3.0, 0.1]", "3.0, 10.0]"), "p = MatMul(v, w) y = Add(p, b)"),  # an offset far from zero
        (SCALER, "p = MatMul(v, w) y = Relu(p)"),  # no bias to move the offset to
        (SCALER, "p = MatMul(v, w) q = Abs(v) r = ReduceSum<keepdims = 1>(q) y = Add(p, r)"),  # read twice
        (SCALER, "q, s, z = DynamicQuantizeLinear(v) d = DequantizeLinear(q, s, z) p = MatMul(d, w) y = Add(p, b)"),
        (SCALER, "p = MatMul(v, w) n = Neg(w) m = MatMul(x, n) y = Add(p, m)"),  # the weight is not its own
    ],
)
def test_a_scaler_stays(scaler: str, rest: str) -> None:
    used = {"w": WEIGHT} | ({"b": BIAS} if " b)" in rest else {})
    model = model_of(f"g (float[N,6] x) => (float[N,4] y) {{ {scaler} {rest} }}", **used)
    assert after(FoldScaler(), model, 0)["Scaler"] == 1
