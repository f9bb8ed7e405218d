"""The exact rewrites one by one: what they change, what they leave alone, and that outputs stay equal."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxc.contract.passes import ExactPass
from onnxc.exactness import Exactness
from onnxc.model import Model
from onnxc.passes.flush_subnormals import FlushSubnormals
from onnxc.passes.fold_batchnorm import FoldBatchNorm
from onnxc.passes.fold_constants import FoldConstants
from onnxc.passes.inline_branches import InlineBranches
from onnxc.passes.merge_duplicates import MergeDuplicates
from onnxc.passes.merge_pads import MergePads
from onnxc.passes.raise_opset import RaiseOpset
from onnxc.passes.remove_identities import RemoveIdentities

IMAGE = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
ROWS = np.random.default_rng(2).standard_normal((2, 8)).astype(np.float32)


def model_of(text: str, opset: int = 17, **weights: Any) -> Model:
    """A model from ONNX's text format; ``weights`` become initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    return Model.load(proto)


def after(pass_: ExactPass, model: Model, feed: np.ndarray, changed: int) -> Counter[str]:
    """Run a pass, check outputs and that a second run finds nothing; operators with their number."""
    before = model.copy()
    assert pass_.run(model).changed == changed
    assert Exactness(before, [{"x": feed}]).differs(model) is None
    assert pass_.run(model).changed == 0
    return Counter(node.op for node in model.nodes())


def random(*shape: int) -> np.ndarray:
    """Small reproducible weights."""
    return np.random.default_rng(sum(shape)).uniform(0.5, 1.5, shape).astype(np.float32)


def test_identities_go_and_outputs_keep_their_names() -> None:
    model = model_of(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z) "
        "{ a = Identity(x) c = Constant<value_float: float = 2.0>() b = Mul(a, c) d = Dropout(b) "
        "y = Identity(d) z = Identity(x) }"
    )
    assert after(RemoveIdentities(), model, ROWS, 4) == {"Mul": 1, "Identity": 1}
    assert [tensor.name for tensor in model.graph.outputs] == ["y", "z"]


def test_a_cast_to_the_type_that_is_there_goes_in_branches_too() -> None:
    model = model_of(
        "g (float[2,8] x, bool c) => (float[2,8] y) "
        "{ y = If(c) <then_branch = t () => (float[2,8] u) { a = Exp(x) s = Cast<to: int = 1>(a) u = Neg(s) }, "
        "else_branch = e () => (float[2,8] v) { b = Cast<to: int = 11>(x) d = Exp(b) v = Cast<to: int = 1>(d) }> }"
    )
    assert RemoveIdentities().run(model).changed == 1
    assert Counter(node.op for node in model.nodes()) == {"If": 1, "Exp": 2, "Neg": 1, "Cast": 2}


def test_a_name_of_two_branches_with_two_types_tells_no_type() -> None:
    model = model_of(
        "g (float[2,8] x, bool c) => (float[2,8] y) "
        "{ y = If(c) <then_branch = t () => (float[2,8] u) { a = Exp(x) u = Cast<to: int = 1>(a) }, "
        "else_branch = e () => (float[2,8] v) { a = Cast<to: int = 11>(x) v = Cast<to: int = 1>(a) }> }"
    )
    assert RemoveIdentities().run(model).changed == 0


def test_two_branches_that_put_the_same_weight_together_share_it() -> None:
    part = "{{ p{0}, q{0} = Split<axis: int = 0>(w) r{0} = Concat<axis: int = 0>(q{0}, p{0}) u{0} = MatMul(x, r{0}) }}"
    model = model_of(
        "g (float[2,128] x, bool c) => (float[2,8] y) { y = If(c) <then_branch = t () => (float[2,8] u1) "
        f"{part.format(1)}, else_branch = e () => (float[2,8] u2) {part.format(2)}> }}",
        w=random(128, 8),
    )
    assert FoldConstants().run(model).changed == 4
    weights = [tensor for graph in model.graphs() for tensor in graph.weights]
    assert [(tensor.shape, len(tensor.outputs)) for tensor in weights] == [((128, 8), 2)]


def test_a_weight_that_is_cut_and_joined_is_folded_a_tied_one_is_not() -> None:
    text = (
        "g (float[2,8] x) => (float[2,8] y) { a, b = Split<axis: int = 0>(w) c = Concat<axis: int = 0>(b, a) "
        "t = Transpose(c) u = MatMul(x, t) y = "
    )
    model = model_of(text + "Relu(u) }", w=random(128, 8)[:, :])
    model.graph.outputs[0].shape = [2, 128]
    assert after(FoldConstants(), model, ROWS, 3) == {"MatMul": 1, "Relu": 1}
    tied = model_of(
        "g (float[2,8] x) => (float[2,64] y, float[64,8] z) "
        "{ t = Transpose(w) y = MatMul(x, t) z = Neg(w) q = Exp(z) }",
        w=random(64, 8),
    )
    tied.graph.nodes[1].kept = False
    changed = FoldConstants().run(tied).changed
    assert changed == 0, "the transposed copy would be a second weight"


def test_int8_weights_that_unfold_at_load_stay_small() -> None:
    model = model_of(
        "g (float[2,64] x) => (float[2,64] y) { f = Cast<to: int = 1>(w) s = Mul(f, k) y = MatMul(x, s) }",
        w=np.ones((64, 64), np.int8),
        k=np.float32(0.01),
    )
    assert FoldConstants().run(model).changed == 0


@pytest.mark.parametrize(
    ("linear", "weight", "feed"),
    [
        ("Conv", (6, 4, 3, 3), IMAGE),
        ("Conv<group: int = 2>", (6, 2, 3, 3), IMAGE),
        ("ConvTranspose<group: int = 2>", (4, 3, 3, 3), IMAGE),
        ("Gemm", (8, 6), ROWS),
        ("Gemm<transB: int = 1, alpha: float = 0.5>", (6, 8), ROWS),
    ],
)
def test_batchnorm_is_folded(linear: str, weight: tuple[int, ...], feed: np.ndarray) -> None:
    shape = ",".join(map(str, feed.shape))
    model = model_of(
        f"g (float[{shape}] x) => (float y) {{ c = {linear}(x, w, b) "
        "y = BatchNormalization<epsilon: float = 0.01>(c, s, t, m, v) }",
        w=random(*weight),
        b=random(6),
        s=random(6),
        t=-random(6),
        m=random(6) * 2,
        v=random(6),
    )
    model.graph.outputs[0].shape = None
    assert after(FoldBatchNorm(), model, feed, 1) == {linear.split("<", maxsplit=1)[0]: 1}
    assert sorted(tensor.name for tensor in model.graph.weights) == ["b", "w"]


def test_scales_fold_but_not_into_tied_weights() -> None:
    text = "g (float[1,4,8,8] x) => (float[1,4,6,6] y, float[1,4,6,6] z) { a = Conv(x, w) b = Mul(a, s) y = Sub(k, b) "
    values = {"w": random(4, 4, 3, 3), "s": random(1, 4, 1, 1), "k": np.float32(3)}
    free = model_of(text + "z = Relu(y) }", **values)
    assert after(FoldBatchNorm(), free, IMAGE, 2) == {"Conv": 1, "Relu": 1}
    tied = model_of(text + "z = Conv(x, w) }", **values)
    assert FoldBatchNorm().run(tied).changed == 0


def test_zero_padding_goes_into_the_convolution_other_padding_stays() -> None:
    text = 'g (float[1,4,8,8] x) => (float[1,4,8,8] y) { p = Pad<mode = "%s">(x, n) y = Conv<pads = [0,0,1,1]>(p, w) }'
    pads = np.array([0, 0, 1, 1, 0, 0, 0, 0])
    model = model_of(text % "constant", w=random(4, 4, 3, 3), n=pads)
    assert after(MergePads(), model, IMAGE, 1) == {"Conv": 1}
    assert model.graph.nodes[0].attrs["pads"] == [1, 1, 1, 1]
    assert MergePads().run(model_of(text % "reflect", w=random(4, 4, 3, 3), n=pads)).changed == 0
    channels = model_of(text % "constant", w=random(4, 5, 3, 3), n=np.array([0, 1, 1, 1, 0, 0, 0, 0]))
    assert MergePads().run(channels).changed == 0


def branches(condition: Any) -> Model:
    """An If whose branches use the same names inside and read a tensor from outside."""
    info = helper.make_tensor_value_info
    body = [
        helper.make_graph(
            [helper.make_node("Mul", ["a", "k"], ["m"]), helper.make_node(op, ["m"], ["r"])],
            op,
            [],
            [info("r", 1, None)],
            [numpy_helper.from_array(np.float32([value] * 8), "k")],
        )
        for op, value in (("Relu", 2), ("Neg", 3))
    ]
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("If", ["c"], ["y"], then_branch=body[0], else_branch=body[1]),
        helper.make_node("If", ["c"], ["z"], then_branch=body[0], else_branch=body[1]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", 1, [2, 8])],
        [info("y", 1, [2, 8]), info("z", 1, [2, 8])],
        [numpy_helper.from_array(np.asarray(condition), "c")],
    )
    return Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize(("condition", "operator"), [(True, "Relu"), (False, "Neg")])
def test_a_known_branch_is_inlined_without_name_clashes(condition: bool, operator: str) -> None:
    assert after(InlineBranches(), branches(condition), ROWS, 2) == {"Exp": 1, "Mul": 2, operator: 2}


def test_equal_constants_merge_across_bodies_but_shapes_count() -> None:
    model = model_of(
        "g (float[2,8] x) => (float[2,8] y) { a = Add(x, k) b = Add(a, l) c = Add(b, m) y = Add(c, n) }",
        k=np.float32([1]),
        l=np.float32([1]),
        m=np.float32([[1]]),
        n=np.float32([2]),
    )
    after(MergeDuplicates(), model, ROWS, 1)
    assert [tensor.name for tensor in model.graph.weights] == ["k", "m", "n"]


def test_subnormal_weights_become_zero_scalars_do_not() -> None:
    weight = np.full((8, 8), 0.5, np.float32)
    weight[0] = 1e-41
    model = model_of(
        "g (float[2,8] x) => (float[2,8] y) { a = MatMul(x, w) y = Add(a, e) }", w=weight, e=np.float32(1e-41)
    )
    after(FlushSubnormals(), model, ROWS, 1)
    values = {tensor.name: tensor.values for tensor in model.graph.weights}
    assert np.count_nonzero(values["w"]) == 56
    assert values["e"] != 0


def test_an_old_opset_is_raised_with_its_axes_and_meanings() -> None:
    model = model_of(
        "g (float[2,8] x) => (float y) { u = Unsqueeze<axes = [1]>(x) s = Softmax<axis: int = 1>(u) "
        "q = Squeeze<axes = [1]>(s) y = ReduceSum<axes = [1], keepdims: int = 0>(q) }",
        opset=11,
    )
    model.graph.outputs[0].shape = None
    after(RaiseOpset(gaining=""), model, ROWS, 1)
    assert model.opset == 13
    assert model.ir_version >= 7


def test_an_opset_stays_when_a_body_would_change_its_meaning() -> None:
    model = branches(True)
    model.set_opset(12)
    for node in model.nodes():
        if node.op == "Neg":
            node.op = "Softmax"
    outcome = RaiseOpset(17, gaining="").run(model)
    assert outcome.changed == 0
    assert "Softmax in a body" in outcome.notes[0]
    assert model.opset == 12
