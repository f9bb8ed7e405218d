"""Sums over columns become products with ones, with the same outputs and faster."""

from __future__ import annotations

import numpy as np
import pytest

from onnxc.model import Model
from onnxc.passes.sums_as_products import SumsAsProducts
from onnxc.session import Options, Session
from tests.passes.test_exact_passes import after, model_of

DATA = np.random.default_rng(5).standard_normal((1, 128, 64)).astype(np.float32)


def summed(operator: str, keep: int, opset: int, axis: int = -2, shape: str = "1,128,64") -> Model:
    attributes = opset < (13 if operator == "ReduceSum" else 18)
    node = (
        f"{operator}<keepdims = {keep}, axes = [{axis}]>(x)" if attributes else f"{operator}<keepdims = {keep}>(x, a)"
    )
    result = "1,1,64" if keep else "1,64"
    weights = {} if attributes else {"a": np.array([axis])}
    return model_of(f"g (float[{shape}] x) => (float[{result}] y) {{ y = {node} }}", opset, **weights)


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("axis", [-2, 1])
def test_a_product(operator: str, keep: int, opset: int, axis: int) -> None:
    made = after(SumsAsProducts(), summed(operator, keep, opset, axis), DATA, 1)
    assert made == {"Expand": 1, "MatMul": 1} | ({} if keep else {"Squeeze": 1})


def test_ones_are_made_at_load() -> None:
    model = summed("ReduceSum", 1, 13)
    SumsAsProducts().run(model)
    assert len(model.serialized()) < 500
    assert [node.op_type for node in Session(model, dump=True).optimized().graph.node] == ["MatMul"]


@pytest.mark.parametrize(
    ("axis", "shape"),
    [(-1, "1,128,64"), (0, "1,128,64"), (-2, "8,128,64"), (-2, "1,8,64"), (-2, "1,M,64"), (-2, "1,128,4")],
)
def test_elsewhere_sums_stay(axis: int, shape: str) -> None:
    """Over another axis, over several matrices, over few or unknown rows."""
    model = summed("ReduceSum", 1, 13, axis, shape)
    assert SumsAsProducts().run(model).changed == 0


def test_a_large_one_is_checked_and_faster() -> None:
    text = "g (float[b,512,256] x) => (float[b,256] y) { y = ReduceSum<keepdims = 0>(x, a) }"
    model = model_of(text, 13, a=np.array([1]))
    data = np.random.default_rng(0).standard_normal((1, 512, 256)).astype(np.float32)
    outcome = SumsAsProducts().run_checked(model, [{"x": data}], Options())
    assert outcome.changed == 1, outcome.notes
