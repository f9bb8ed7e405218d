"""Small models of every awkward kind, for the tests that put models through ``optimize``.

In: nothing. Out: ``MODELS``: name -> function that makes the ModelProto, the same one every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

MODELS: dict[str, Callable[[], ModelProto]] = {}
MICROSOFT = "com.microsoft"


def model(function: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
    """Register a model under its function's name."""
    MODELS[function.__name__] = function
    return function


class Builder:
    """Collects nodes and initializers. Inputs and outputs are (name, type, shape)."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def weight(self, *shape: int, scale: float | None = None, name: str | None = None) -> str:
        """A random float32 initializer; by default scaled so that activations keep their size."""
        scale = scale if scale is not None else 1 / np.sqrt(max(1, int(np.prod(shape)) // max(shape[-1], 1)))
        return self.value((scale * self.random.standard_normal(shape)).astype(np.float32), name)

    def value(self, values: Any, name: str | None = None) -> str:
        name = name or self.name("w")
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        return self.value(np.array(values, np.int64))

    def add(
        self,
        op: str,
        *inputs: str,
        out: str | Sequence[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """A node; the name of its first output."""
        outputs = [out] if isinstance(out, str) else list(out or [self.name(op.lower())])
        self.nodes.append(
            helper.make_node(op, list(inputs), outputs, name=f"{op}_of_{outputs[0]}", domain=domain, **attributes)
        )
        return outputs[0]

    def graph(self, inputs: Sequence[Any], outputs: Sequence[Any], name: str = "g") -> GraphProto:
        return helper.make_graph(
            self.nodes,
            name,
            [info(*each) for each in inputs],
            [info(*each) for each in outputs],
            self.initializers,
        )

    def model(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        opset: int = 17,
        ir: int = 8,
        domains: Sequence[str] = (),
    ) -> ModelProto:
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(each, 1) for each in domains)]
        return helper.make_model(self.graph(inputs, outputs), opset_imports=imports, ir_version=ir)


def info(name: str, kind: int | onnx.TypeProto = TensorProto.FLOAT, shape: Any = None) -> onnx.ValueInfoProto:
    if isinstance(kind, onnx.TypeProto):
        return helper.make_value_info(name, kind)
    return helper.make_tensor_value_info(name, kind, shape)


F = TensorProto.FLOAT
X: tuple[str, int, list[Any]] = ("x", F, ["n", 64])
IMAGE: tuple[str, int, list[Any]] = ("x", F, ["n", 8, 12, 12])


def body(make: Callable[[Builder], str], seed: int, shape: list[Any], inputs: Sequence[Any] = ()) -> GraphProto:
    """A body with weights of its own whose one output is what ``make`` returns."""
    builder = Builder(seed)
    builder.count = 1000 * seed
    out = make(builder)
    return builder.graph(inputs, [(out, F, shape)], f"body_{seed}")


@model
def plain_linear() -> ModelProto:
    b = Builder()
    h = b.add("Relu", b.add("Add", b.add("MatMul", "x", b.weight(64, 96)), b.weight(96)))
    b.add("Add", b.add("MatMul", h, b.weight(96, 64)), b.weight(64), out="y")
    return b.model([X], [("y", F, ["n", 64])])


@model
def small_cnn() -> ModelProto:
    b = Builder(1)
    h = b.add("Relu", b.add("Conv", "x", b.weight(16, 8, 3, 3, scale=0.1), b.weight(16, scale=0.1), pads=[1] * 4))
    side = b.add("Conv", h, b.weight(16, 16, 3, 3, scale=0.1), pads=[1] * 4)
    scale, shift, mean = (b.weight(16, scale=0.1) for _ in range(3))
    side = b.add("BatchNormalization", side, scale, shift, mean, b.value(np.ones(16, np.float32)))
    h = b.add("Relu", b.add("Add", h, side))
    h = b.add("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    h = b.add("Concat", h, b.add("AveragePool", h, kernel_shape=[1, 1]), axis=1)
    h = b.add("Flatten", b.add("GlobalAveragePool", h))
    b.add("Softmax", b.add("Gemm", h, b.weight(10, 32), b.weight(10), transB=1), out="y", axis=1)
    return b.model([IMAGE], [("y", F, ["n", 10])])


@model
def attention() -> ModelProto:
    b = Builder(2)
    q, k, v = (b.add("MatMul", "x", b.weight(64, 64)) for _ in range(3))
    scores = b.add("Mul", b.add("MatMul", q, b.add("Transpose", k, perm=[0, 2, 1])), b.value(np.float32(0.125)))
    mixed = b.add("MatMul", b.add("MatMul", b.add("Softmax", scores, axis=-1), v), b.weight(64, 64))
    h = b.add(
        "LayerNormalization",
        b.add("Add", mixed, "x"),
        b.value(np.ones(64, np.float32)),
        b.weight(64),
        axis=-1,
    )
    h = b.add("MatMul", h, b.weight(64, 128))
    h = b.add("Mul", h, b.add("Sigmoid", h))
    b.add("MatMul", h, b.weight(128, 64), out="y")
    return b.model([("x", F, ["n", "t", 64])], [("y", F, ["n", "t", 64])])


@model
def if_bodies() -> ModelProto:
    b = Builder(3)
    h = b.add("MatMul", "x", b.weight(64, 64))
    then = body(lambda c: c.add("MatMul", h, c.weight(64, 80)), 1, ["n", 80])
    other = body(lambda c: c.add("Relu", c.add("Gemm", h, c.weight(64, 80), c.weight(80))), 2, ["n", 80])
    b.add("If", "c", out="y", then_branch=then, else_branch=other)
    return b.model([X, ("c", TensorProto.BOOL, [])], [("y", F, ["n", 80])])


@model
def loop_body() -> ModelProto:
    b = Builder(4)
    c = Builder(5)
    c.count = 500
    c.add("Identity", "go", out="again")
    state = c.add("Tanh", c.add("MatMul", "state", c.weight(64, 64)))
    shared = c.add("MatMul", state, "outer_weight", out="seen")
    inner = c.graph(
        [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("state", F, ["n", 64])],
        [("again", TensorProto.BOOL, []), (state, F, ["n", 64]), (shared, F, ["n", 64])],
    )
    b.weight(64, 64, name="outer_weight")
    b.add("MatMul", "x", "outer_weight", out="first")
    b.add("Loop", b.value(np.int64(3)), b.value(np.array(True)), "first", out=["y", "all"], body=inner)
    return b.model([X], [("y", F, ["n", 64]), ("all", F, [3, "n", 64])])


@model
def scan_body() -> ModelProto:
    b = Builder(6)
    c = Builder(7)
    c.count = 500
    mixed = c.add("Add", c.add("MatMul", "state", c.weight(64, 64)), c.add("MatMul", "step", c.weight(32, 64)))
    c.add("Tanh", mixed, out="next")
    c.add("Identity", "next", out="seen")
    inner = c.graph([("state", F, [1, 64]), ("step", F, [1, 32])], [("next", F, [1, 64]), ("seen", F, [1, 64])])
    b.add(
        "Scan",
        b.value(np.zeros((1, 64), np.float32)),
        "x",
        out=["last", "all"],
        body=inner,
        num_scan_inputs=1,
    )
    b.add("MatMul", "all", b.weight(64, 96), out="y")
    return b.model([("x", F, [5, 1, 32])], [("y", F, [5, 1, 96]), ("last", F, [1, 64])])


@model
def local_function() -> ModelProto:
    b = Builder(8)
    b.add(
        "Dense",
        b.add("Dense", "x", b.weight(64, 64), domain="mine"),
        b.weight(64, 96),
        out="y",
        domain="mine",
    )
    made = b.model([X], [("y", F, ["n", 96])], domains=["mine"])
    nodes = [helper.make_node("MatMul", ["a", "w"], ["p"]), helper.make_node("Relu", ["p"], ["q"])]
    opset = [helper.make_opsetid("", 17)]
    made.functions.append(helper.make_function("mine", "Dense", ["a", "w"], ["q"], nodes, opset))
    return made


@model
def constant_nodes() -> ModelProto:
    b = Builder(9)
    for name, shape in (("w1", (8, 8, 3, 3)), ("w2", (8, 70))):
        values = (0.1 * b.random.standard_normal(shape)).astype(np.float32)
        b.add("Constant", out=name, value=numpy_helper.from_array(values))
    h = b.add("GlobalAveragePool", b.add("Relu", b.add("Conv", "x", "w1")))
    b.add("MatMul", b.add("Flatten", h), "w2", out="y")
    return b.model([IMAGE], [("y", F, ["n", 70])])


@model
def tied_embedding() -> ModelProto:
    b = Builder(10)
    b.weight(200, 64, name="table", scale=0.3)
    h = b.add("Gather", "table", "ids")
    h = b.add("MatMul", h, b.weight(64, 64))
    b.add("MatMul", h, b.add("Transpose", "table", perm=[1, 0]), out="y")
    return b.model([("ids", TensorProto.INT64, ["n", "t"])], [("y", F, ["n", "t", 200])])


@model
def shared_weight() -> ModelProto:
    b = Builder(11)
    w = b.weight(64, 64)
    left = b.add("MatMul", w, b.add("Transpose", "x", perm=[1, 0]))
    right = b.add("MatMul", "x", w)
    gemm = b.add("Gemm", right, w, transB=1)
    b.add(
        "Add",
        b.add("Add", b.add("Transpose", left, perm=[1, 0]), gemm),
        b.add("Mul", right, b.add("ReduceMean", w)),
        out="y",
    )
    return b.model([X], [("y", F, ["n", 64])])


@model
def initializers_are_inputs() -> ModelProto:
    b = Builder(12)
    w, bias = b.weight(64, 64), b.weight(64)
    b.add("Relu", b.add("Gemm", "x", w, bias), out="y")
    return b.model([X, (w, F, [64, 64]), (bias, F, [64])], [("y", F, ["n", 64])], opset=9, ir=3)


@model
def overridable_weight() -> ModelProto:
    b = Builder(13)
    w = b.weight(64, 64)
    b.add("MatMul", b.add("MatMul", "x", w), b.weight(64, 64), out="y")
    return b.model([X, (w, F, [64, 64])], [("y", F, ["n", 64])])


@model
def overridable_activation() -> ModelProto:
    """An input with a default value takes part in an int8 island."""
    b = Builder(54)
    h = b.add("Conv", "x", b.weight(8, 8, 1, 1, scale=0.3))
    mask = b.value(np.ones((1, 8, 12, 12), np.float32), "mask")
    h = b.add("Add", h, mask)
    b.add("Conv", b.add("Concat", h, h, axis=1), b.weight(8, 16, 1, 1, scale=0.3), out="y")
    return b.model([IMAGE, (mask, F, [1, 8, 12, 12])], [("y", F, None)])


@model
def no_images() -> ModelProto:
    b = Builder(55)
    h = b.add("Relu", b.add("Conv", "x", b.weight(16, 8, 3, 3, scale=0.1)))
    b.add("Conv", h, b.weight(8, 4, 3, 3, scale=0.1), group=4, out="y")
    return b.model([("x", F, [0, 8, 12, 12])], [("y", F, None)])


@model
def no_rows() -> ModelProto:
    b = Builder(14)
    b.add("Relu", b.add("MatMul", "x", b.weight(64, 64)), out="y")
    return b.model([("x", F, [0, 64])], [("y", F, [0, 64])])


@model
def empty_weight() -> ModelProto:
    b = Builder(15)
    h = b.add("Concat", "x", b.value(np.zeros((0, 64), np.float32)), axis=0)
    b.add(
        "MatMul",
        b.add("MatMul", h, b.value(np.zeros((64, 0), np.float32))),
        b.value(np.zeros((0, 64), np.float32)),
        out="y",
    )
    return b.model([X], [("y", F, None)])


@model
def scalar_output() -> ModelProto:
    b = Builder(16)
    h = b.add("MatMul", "x", b.weight(64, 96))
    b.add("ReduceMean", b.add("Mul", h, h), out="y", keepdims=0)
    return b.model([X], [("y", F, [])])


@model
def string_input() -> ModelProto:
    b = Builder(17)
    words = ["alpha", "beta", "gamma", "delta"]
    ids = b.add(
        "LabelEncoder",
        "s",
        domain="ai.onnx.ml",
        keys_strings=words,
        values_int64s=[1, 2, 3, 4],
        default_int64=0,
    )
    b.add("MatMul", b.add("Gather", b.weight(100, 64, scale=0.5), ids), b.weight(64, 64), out="y")
    made = b.model([("s", TensorProto.STRING, ["n"])], [("y", F, ["n", 64]), ("copy", TensorProto.STRING, ["n"])])
    made.graph.node.append(helper.make_node("Identity", ["s"], ["copy"]))
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    return made


@model
def sequences() -> ModelProto:
    b = Builder(18)
    h = b.add("MatMul", "x", b.weight(64, 64))
    parts = b.add("SplitToSequence", h, b.value(np.int64(32)), axis=1, out="parts")
    first = b.add("SequenceAt", parts, b.value(np.int64(0)))
    b.add("MatMul", first, b.weight(32, 128), out="y")
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, None))
    return b.model([X], [("y", F, ["n", 128]), ("parts", kind)])


@model
def sequence_input() -> ModelProto:
    b = Builder(19)
    h = b.add("ConcatFromSequence", "s", axis=0)
    b.add("MatMul", h, b.weight(3, 600), out="y")
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, [None, 3]))
    return b.model([("s", kind)], [("y", F, None)])


@model
def optional_output() -> ModelProto:
    b = Builder(20)
    h = b.add("MatMul", "x", b.weight(64, 64))
    b.add("Optional", h, out="y")
    b.add("OptionalGetElement", "y", out="z")
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(F, None))
    return b.model([X], [("y", kind), ("z", F, ["n", 64])])


def typed(kind: int, dtype: Any, opset: int = 17) -> ModelProto:
    """A MatMul and an Add in another float type, with a float32 linear between casts."""
    b = Builder(21)
    w = b.value(helper.np.asarray(b.random.standard_normal((64, 64)) / 8).astype(dtype))
    h = b.add("Cast", b.add("MatMul", "x", w), to=F)
    b.add("Cast", b.add("MatMul", h, b.weight(64, 64)), to=kind, out="y")
    return b.model([("x", kind, ["n", 64])], [("y", kind, ["n", 64])], opset=opset)


@model
def half() -> ModelProto:
    return typed(TensorProto.FLOAT16, np.float16)


@model
def double() -> ModelProto:
    return typed(TensorProto.DOUBLE, np.float64)


@model
def bfloat16() -> ModelProto:
    import ml_dtypes

    b = Builder(22)
    table = b.value((b.random.standard_normal((64, 64)) / 8).astype(ml_dtypes.bfloat16))
    h = b.add("MatMul", b.add("Cast", "x", to=F), b.add("Cast", table, to=F))
    b.add("Cast", h, out="y", to=TensorProto.BFLOAT16)
    return b.model([("x", TensorProto.BFLOAT16, ["n", 64])], [("y", TensorProto.BFLOAT16, ["n", 64])])


@model
def already_qdq() -> ModelProto:
    b = Builder(23)
    scale, zero = b.value(np.float32(0.05)), b.value(np.uint8(128))
    h = b.add("DequantizeLinear", b.add("QuantizeLinear", "x", scale, zero), scale, zero)
    codes = b.value(b.random.integers(-127, 128, (64, 64)).astype(np.int8))
    w = b.add(
        "DequantizeLinear",
        codes,
        b.value(np.full(64, 0.002, np.float32)),
        b.value(np.zeros(64, np.int8)),
        axis=1,
    )
    h = b.add("MatMul", h, w)
    h = b.add("DequantizeLinear", b.add("QuantizeLinear", h, scale, zero), scale, zero)
    b.add("MatMul", h, b.weight(64, 96), out="y")
    return b.model([X], [("y", F, ["n", 96])])


@model
def already_operators() -> ModelProto:
    b = Builder(24)
    scale, zero, signed = b.value(np.float32(0.05)), b.value(np.uint8(128)), b.value(np.int8(0))
    codes = b.value(b.random.integers(-127, 128, (8, 8, 3, 3)).astype(np.int8))
    quantized = b.add("QuantizeLinear", "x", scale, zero)
    h = b.add("QLinearConv", quantized, scale, zero, codes, b.value(np.float32(0.004)), signed, scale, zero)
    h = b.add("Conv", b.add("DequantizeLinear", h, scale, zero), b.weight(8, 8, 3, 3, scale=0.1))
    dynamic, size, offset = (b.name("dyn") for _ in range(3))
    b.add("DynamicQuantizeLinear", h, out=[dynamic, size, offset])
    other = b.value(b.random.integers(-127, 128, (8, 64)).astype(np.int8))
    product = b.add("Cast", b.add("MatMulInteger", dynamic, other, offset), to=F)
    b.add("Mul", product, size, out="y")
    return b.model([IMAGE], [("y", F, ["n", 8, 8, 64])])


@model
def already_nbits() -> ModelProto:
    b = Builder(25)
    packed = b.value(b.random.integers(0, 256, (64, 2, 16)).astype(np.uint8))
    scales = b.value(np.full(128, 0.01, np.float32))
    h = b.add("MatMulNBits", "x", packed, scales, domain=MICROSOFT, K=64, N=64, bits=4, block_size=32)
    b.add("MatMul", h, b.weight(64, 64), out="y")
    return b.model([X], [("y", F, ["n", 64])], domains=[MICROSOFT])


@model
def integers_only() -> ModelProto:
    b = Builder(26)
    i = TensorProto.INT32
    w = b.value(b.random.integers(-5, 6, (64, 64)).astype(np.int32))
    b.add("Mod", b.add("MatMul", "x", w), b.value(np.int32(97)), out="y")
    return b.model([("x", i, ["n", 64])], [("y", i, ["n", 64])])


@model
def zero_weights() -> ModelProto:
    b = Builder(27)
    h = b.add("MatMul", "x", b.value(np.zeros((64, 64), np.float32)))
    h = b.add("Add", h, b.weight(64))
    w = np.zeros((64, 96), np.float32)
    w[:, :5] = 1
    b.add("MatMul", h, b.value(w), out="y")
    return b.model([X], [("y", F, ["n", 96])])


@model
def zero_convolution() -> ModelProto:
    b = Builder(28)
    h = b.add(
        "Relu",
        b.add("Conv", "x", b.value(np.zeros((16, 8, 3, 3), np.float32)), b.value(np.zeros(16, np.float32))),
    )
    b.add("Conv", h, b.weight(8, 16, 3, 3, scale=0.1), out="y")
    return b.model([IMAGE], [("y", F, None)])


@model
def conv1d() -> ModelProto:
    b = Builder(29)
    h = b.add(
        "Relu",
        b.add("Conv", "x", b.weight(32, 16, 3, scale=0.1), b.weight(32), auto_pad="SAME_UPPER", strides=[2]),
    )
    b.add("Conv", h, b.weight(16, 32, 5, scale=0.1), out="y", dilations=[2])
    return b.model([("x", F, ["n", 16, 40])], [("y", F, None)])


@model
def conv3d() -> ModelProto:
    b = Builder(30)
    h = b.add("Relu", b.add("Conv", "x", b.weight(8, 4, 3, 3, 3, scale=0.1), pads=[1] * 6))
    b.add("Conv", h, b.weight(4, 8, 3, 3, 3, scale=0.1), b.weight(4), out="y")
    return b.model([("x", F, ["n", 4, 6, 6, 6])], [("y", F, None)])


@model
def conv_transpose() -> ModelProto:
    b = Builder(31)
    h = b.add("Relu", b.add("Conv", "x", b.weight(16, 8, 3, 3, scale=0.1)))
    h = b.add("ConvTranspose", h, b.weight(16, 8, 2, 2, scale=0.1), b.weight(8), strides=[2, 2])
    h = b.add("ConvTranspose", h, b.weight(8, 2, 3, 3, scale=0.1), group=4)
    b.add("Conv", h, b.weight(8, 8, 3, 3, scale=0.1), out="y")
    return b.model([IMAGE], [("y", F, None)])


@model
def grouped() -> ModelProto:
    b = Builder(32)
    h = b.add(
        "Clip",
        b.add("Conv", "x", b.weight(16, 4, 3, 3, scale=0.1), group=2),
        b.value(np.float32(0)),
        b.value(np.float32(6)),
    )
    h = b.add("Relu", b.add("Conv", h, b.weight(16, 1, 3, 3, scale=0.3), b.weight(16), group=16, pads=[1] * 4))
    h = b.add("Conv", h, b.weight(32, 1, 3, 3, scale=0.3), group=16)
    b.add("Conv", h, b.weight(8, 32, 1, 1, scale=0.2), out="y")
    return b.model([IMAGE], [("y", F, None)])


@model
def island_outputs() -> ModelProto:
    """Every tensor of an int8 island is an output, one of them twice."""
    b = Builder(33)
    first = b.add("Conv", "x", b.weight(8, 8, 3, 3, scale=0.1), pads=[1] * 4, out="first")
    active = b.add("Relu", first, out="active")
    summed = b.add("Add", active, b.add("Conv", active, b.weight(8, 8, 1, 1, scale=0.2)), out="summed")
    joined = b.add("Concat", summed, active, axis=1, out="joined")
    b.add("GlobalAveragePool", joined, out="pooled")
    b.add("Flatten", "pooled", out="flat")
    b.add("Identity", "flat", out="twice")
    names = ("first", "active", "summed", "joined", "pooled", "flat", "twice")
    return b.model([IMAGE], [(name, F, None) for name in names])


@model
def odd_joints() -> ModelProto:
    """Joints with constants, with one operand twice, with broadcasting, and data movement of all kinds."""
    b = Builder(34)
    h = b.add("Conv", "x", b.weight(8, 8, 3, 3, scale=0.1), pads=[1] * 4)
    h = b.add("Add", b.add("Add", h, h), b.weight(8, 1, 1))
    h = b.add("Add", h, b.add("GlobalAveragePool", h))
    h = b.add("Concat", h, b.value(np.ones((1, 8, 12, 12), np.float32)), axis=0)
    left, right = b.name("half"), b.name("half")
    b.add("Split", h, out=[left, right], axis=1)
    h = b.add("Concat", right, left, right, axis=1)
    h = b.add("Slice", h, b.ints(0), b.ints(8), b.ints(1))
    h = b.add("Conv", b.add("DepthToSpace", h, blocksize=2), b.weight(4, 2, 3, 3, scale=0.2), b.weight(4))
    h = b.add("LeakyRelu", h, alpha=0.1)
    pooled, where = b.name("pool"), b.name("where")
    b.add("MaxPool", h, out=[pooled, where], kernel_shape=[2, 2], strides=[2, 2])
    h = b.add(
        "Clip",
        b.add("Conv", pooled, b.weight(8, 4, 1, 1, scale=0.3)),
        b.value(np.float32(-1)),
        b.value(np.float32(1)),
    )
    h = b.add("Resize", h, "", b.value(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    h = b.add("Pad", h, b.ints(0, 0, 1, 1, 0, 0, 1, 1))
    h = b.add("Transpose", b.add("Conv", h, b.weight(8, 8, 3, 3, scale=0.1)), perm=[0, 2, 3, 1])
    b.add("Squeeze", b.add("Unsqueeze", h, b.ints(0)), b.ints(0), out="y")
    b.add("Cast", where, to=F, out="z")
    return b.model([("x", F, [1, 8, 12, 12])], [("y", F, None), ("z", F, None)])


@model
def gemms() -> ModelProto:
    b = Builder(35)
    h = b.add("Gemm", "x", b.weight(64, 64), b.weight(64), alpha=0.5, beta=2.0)
    h = b.add("Gemm", h, b.weight(96, 64), transB=1)
    h = b.add("Gemm", h, b.weight(96, 64), b.weight(1), transA=0)
    h = b.add("Gemm", h, b.weight(64, 64), b.weight(1, 64), transB=1, alpha=2.0)
    h = b.add("Gemm", h, b.weight(64, 64), h)
    t = b.add("Transpose", h, perm=[1, 0])
    b.add("Gemm", t, b.weight(96, 64), transA=1, transB=1, out="y")
    b.add("Gemm", b.weight(96, 64), h, transB=1, out="z")
    return b.model([X], [("y", F, ["n", 96]), ("z", F, [96, "n"])])


@model
def odd_matmuls() -> ModelProto:
    """Weights on the left, of rank 3, of rank 1, and a scalar-like one."""
    b = Builder(36)
    h = b.add("MatMul", b.weight(70, 16), "x")
    h = b.add("MatMul", h, b.weight(2, 64, 64))
    h = b.add("MatMul", b.weight(2, 64, 70), h)
    b.add("MatMul", h, b.weight(64, scale=0.1), out="y")
    b.add("MatMul", b.weight(64, scale=0.1), h, out="z")
    return b.model([("x", F, [2, 16, 64])], [("y", F, None), ("z", F, None)])


@model
def everything_dynamic() -> ModelProto:
    b = Builder(37)
    shape = b.add("Concat", b.ints(-1), b.ints(1), axis=0)
    b.add("MatMul", b.add("Reshape", "x", shape), b.weight(1, 5000), out="y")
    return b.model([("x", F, None)], [("y", F, None)])


@model
def recurrent() -> ModelProto:
    b = Builder(38)
    length = b.name("h")
    b.add(
        "LSTM",
        "x",
        b.weight(2, 128, 16, scale=0.2),
        b.weight(2, 128, 32, scale=0.2),
        b.weight(2, 256, scale=0.1),
        out=[length, "state", "cell"],
        hidden_size=32,
        direction="bidirectional",
    )
    h = b.add("Reshape", b.add("Transpose", length, perm=[0, 2, 1, 3]), b.ints(0, 0, 64))
    gru = b.add(
        "GRU",
        h,
        b.weight(1, 96, 64, scale=0.2),
        b.weight(1, 96, 32, scale=0.2),
        hidden_size=32,
        linear_before_reset=1,
    )
    h = b.add("Squeeze", gru, b.ints(1))
    b.add(
        "Squeeze",
        b.add("RNN", h, b.weight(1, 32, 32, scale=0.2), b.weight(1, 32, 32, scale=0.2), hidden_size=32),
        b.ints(1),
        out="y",
    )
    return b.model([("x", F, ["t", "n", 16])], [("y", F, None), ("state", F, None), ("cell", F, None)])


@model
def not_finite() -> ModelProto:
    """Weights with NaN and infinities that reach the output."""
    b = Builder(39)
    w = b.random.standard_normal((64, 96)).astype(np.float32) / 8
    w[3, 4], w[5, 6], w[7, 8] = np.nan, np.inf, -np.inf
    h = b.add("MatMul", "x", b.value(w))
    b.add("MatMul", b.add("Clip", h, b.value(np.float32(-3)), b.value(np.float32(3))), b.weight(96, 64), out="y")
    b.add("Identity", h, out="z")
    return b.model([X], [("y", F, ["n", 64]), ("z", F, ["n", 96])])


@model
def not_finite_convolution() -> ModelProto:
    b = Builder(40)
    w = b.random.standard_normal((16, 8, 3, 3)).astype(np.float32) / 8
    w[3, 4, 0, 0], w[5, 6, 1, 1] = np.nan, np.inf
    h = b.add("Relu", b.add("Conv", "x", b.value(w), b.value(np.full(16, np.nan, np.float32))))
    b.add("Conv", h, b.weight(8, 16, 1, 1, scale=0.1), out="y")
    return b.model([IMAGE], [("y", F, None)])


@model
def extreme_weights() -> ModelProto:
    """The largest and the smallest floats, and channels that differ by 1e30."""
    b = Builder(41)
    w = b.random.standard_normal((64, 64)).astype(np.float32)
    w[:, 0] *= np.float32(1e30)
    w[:, 1] *= np.float32(1e-38)
    w[:, 2] = np.float32(1e-45)
    w[0, 3] = np.float32(3e38)
    b.add(
        "Tanh",
        b.add("Add", b.add("MatMul", "x", b.value(w)), b.value(np.full(64, 1e20, np.float32))),
        out="y",
    )
    h = b.add(
        "Conv",
        b.add("Reshape", "x", b.ints(-1, 1, 8, 8)),
        b.weight(16, 1, 3, 3, scale=1e-20),
        b.value(np.full(16, 1e10, np.float32)),
    )
    b.add("Relu", h, out="z")
    return b.model([X], [("y", F, ["n", 64]), ("z", F, None)])


@model
def no_nodes() -> ModelProto:
    return Builder().model([("x", F, ["n", 64])], [("x", F, ["n", 64])])


@model
def no_inputs() -> ModelProto:
    b = Builder(42)
    b.add("MatMul", b.weight(64, 64), b.weight(64, 64), out="y")
    return b.model([], [("y", F, [64, 64])])


@model
def input_is_output() -> ModelProto:
    b = Builder(43)
    b.add("MatMul", "x", b.weight(64, 64), out="y")
    b.value(np.arange(64, dtype=np.float32), "held")
    return b.model([X], [("x", F, ["n", 64]), ("y", F, ["n", 64]), ("held", F, [64])])


@model
def weight_is_output() -> ModelProto:
    b = Builder(44)
    w = b.weight(64, 64, name="w")
    b.add("MatMul", "x", w, out="y")
    return b.model([X], [("y", F, ["n", 64]), ("w", F, [64, 64])])


@model
def odd_names() -> ModelProto:
    """No node names, and tensor names that collide with those that rewrites would choose."""
    b = Builder(45)
    h = b.add("MatMul", "x", b.weight(64, 64, name="w"), out="w_q")
    h = b.add("Add", h, b.weight(64, name="w_scale"), out="w_zero")
    h = b.add("MatMul", h, b.weight(64, 64, name="w/ü 1"), out="x_q")
    b.add("MatMul", h, b.weight(64, 64, name="w_cast"), out="x_q_scale")
    made = b.model([X], [("x_q_scale", F, ["n", 64])])
    for node in made.graph.node:
        node.ClearField("name")
    return made


@model
def same_node_names() -> ModelProto:
    made = plain_linear()
    for node in made.graph.node:
        node.name = "node"
    return made


@model
def random_outputs() -> ModelProto:
    b = Builder(46)
    h = b.add("Add", b.add("MatMul", "x", b.weight(64, 64)), b.add("RandomNormalLike", "x"))
    b.add("MatMul", h, b.weight(64, 64), out="y")
    return b.model([X], [("y", F, ["n", 64])])


@model
def captured_island() -> ModelProto:
    """A body reads a tensor that lies inside an int8 island."""
    b = Builder(47)
    h = b.add("Relu", b.add("Conv", "x", b.weight(8, 8, 3, 3, scale=0.1)))
    g = b.add("Conv", h, b.weight(8, 8, 3, 3, scale=0.1))
    then = body(lambda c: c.add("Conv", h, c.weight(8, 8, 3, 3, scale=0.1)), 1, None)
    other = body(lambda c: c.add("Relu", g), 2, None)
    b.add("Add", g, b.add("If", "c", then_branch=then, else_branch=other), out="y")
    return b.model([IMAGE, ("c", TensorProto.BOOL, [1])], [("y", F, None)])


@model
def embeddings() -> ModelProto:
    """Tables read along rows, along columns, with negative ids, of rank 1 and 3, by two readers."""
    b = Builder(48)
    table = b.weight(64, 64, scale=0.5)
    rows = b.add("Gather", table, "ids")
    columns = b.add("Transpose", b.add("Gather", table, "ids", axis=1), perm=[1, 0])
    third = b.add("ReduceSum", b.add("Gather", b.weight(64, 4, 64, scale=0.5), "ids", axis=-3), b.ints(1), keepdims=0)
    line = b.add("Unsqueeze", b.add("Gather", b.weight(64), b.add("Neg", "ids")), b.ints(1))
    h = b.add("Add", b.add("Add", rows, columns), b.add("Mul", third, line))
    b.add("MatMul", h, b.weight(64, 64), out="y")
    return b.model([("ids", TensorProto.INT64, ["n"])], [("y", F, ["n", 64])])


@model
def class_scores_only_labels() -> ModelProto:
    b = Builder(49)
    b.add("ArgMax", b.add("MatMul", "x", b.weight(64, 96)), out="y", axis=1, keepdims=0)
    return b.model([X], [("y", TensorProto.INT64, ["n"])])


@model
def microsoft_operators() -> ModelProto:
    b = Builder(50)
    h = b.add("FusedMatMul", "x", b.weight(64, 64), domain=MICROSOFT, alpha=0.5)
    h = b.add("Gelu", h, domain=MICROSOFT)
    b.add("MatMul", h, b.weight(64, 64), out="y")
    return b.model([X], [("y", F, ["n", 64])], domains=[MICROSOFT])


@model
def sparse_weight() -> ModelProto:
    b = Builder(51)
    values = numpy_helper.from_array(b.random.standard_normal(200).astype(np.float32), "sparse")
    places = np.sort(b.random.choice(64 * 64, 200, replace=False)).astype(np.int64)
    b.add("MatMul", b.add("MatMul", "x", "sparse"), b.weight(64, 64), out="y")
    made = b.model([X], [("y", F, ["n", 64])], ir=11)
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(places, "places"), [64, 64])
    )
    return made


@model
def unused_parts() -> ModelProto:
    b = Builder(52)
    b.weight(64, 64, name="nobody_reads_this")
    b.add("MatMul", "x", b.weight(64, 96))
    b.add("MatMul", "x", b.weight(64, 64), out="y")
    return b.model([X, ("idle", F, [3])], [("y", F, ["n", 64])])


def of_opset(opset: int, ir: int = 8) -> ModelProto:
    """A convolution, a pooling and a linear, written so that every opset from 7 on has them."""
    b = Builder(53)
    h = b.add("Relu", b.add("Conv", "x", b.weight(8, 8, 3, 3, scale=0.1), b.weight(8, scale=0.1)))
    h = b.add("Flatten", b.add("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]))
    b.add("Gemm", h, b.weight(200, 32), b.weight(32), out="y")
    return b.model([("x", F, [1, 8, 12, 12])], [("y", F, [1, 32])], opset=opset, ir=ir)
