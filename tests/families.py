"""Untrained models of every family that channels are cut in, small, as exporters write them.

In: nothing. Out: ``FAMILIES``: name -> function that makes the ModelProto, the same one every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from tests.builders import Builder

FAMILIES: dict[str, Callable[[], ModelProto]] = {}
F, I64 = TensorProto.FLOAT, TensorProto.INT64


def family(function: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
    """Register a model under its function's name."""
    FAMILIES[function.__name__] = function
    return function


class Net(Builder):
    """A builder that knows layers."""

    def conv(
        self,
        x: str,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        act: str = "Relu",
        bias: bool = True,
        **attributes: Any,
    ) -> str:
        groups = attributes.get("group", 1)
        scale = float(np.sqrt(2 / (inputs // groups * kernel * kernel)))
        weight = self.weight(outputs, inputs // groups, kernel, kernel, scale=scale)
        pads = [kernel // 2] * 4
        extra = [self.weight(outputs, scale=0.1)] if bias else []
        x = self.add("Conv", x, weight, *extra, kernel_shape=[kernel] * 2, pads=pads, **attributes)
        return self.add(act, x) if act else x

    def norm(self, x: str, channels: int) -> str:
        """BatchNormalization whose statistics are not those of zero and one."""
        scale, shift, mean = (self.weight(channels, scale=0.2) for _ in range(3))
        variance = self.value((1 + self.random.random(channels)).astype(np.float32))
        one = self.value(np.ones((channels,), np.float32))
        return self.add("BatchNormalization", x, self.add("Add", scale, one), shift, mean, variance)

    def layer_norm(self, x: str, width: int) -> str:
        scale = self.value((1 + 0.1 * self.random.standard_normal(width)).astype(np.float32))
        return self.add("LayerNormalization", x, scale, self.weight(width, scale=0.1), axis=-1)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        x = self.add("MatMul", x, self.weight(inputs, outputs, scale=inputs**-0.5))
        return self.add("Add", x, self.weight(outputs, scale=0.1))

    def head(self, x: str, channels: int, classes: int = 10) -> str:
        x = self.add("Flatten", self.add("GlobalAveragePool", x), axis=1)
        return self.add(
            "Gemm", x, self.weight(classes, channels, scale=0.1), self.weight(classes, scale=0.1), out="y", transB=1
        )

    def heads(self, x: str, heads: int, width: int, order: tuple[int, ...] = (0, 2, 1, 3)) -> str:
        return self.add("Transpose", self.add("Reshape", x, self.ints(0, -1, heads, width)), perm=list(order))

    def attend(self, query: str, key: str, value: str, width: int, heads: int, mask: str | None = None) -> str:
        """``key`` comes as [batch, heads, width, tokens]."""
        scores = self.add("Div", self.add("MatMul", query, key), self.value(np.float32(np.sqrt(width))))
        scores = self.add("Add", scores, mask) if mask else scores
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        return self.add("Reshape", self.add("Transpose", mixed, perm=[0, 2, 1, 3]), self.ints(0, -1, heads * width))

    def attention(self, x: str, hidden: int, heads: int) -> str:
        """Separate projections."""
        width = hidden // heads
        query, value = (self.heads(self.linear(x, hidden, hidden), heads, width) for _ in range(2))
        key = self.heads(self.linear(x, hidden, hidden), heads, width, (0, 2, 3, 1))
        return self.linear(self.attend(query, key, value, width, heads), hidden, hidden)

    def mlp(self, x: str, hidden: int, wide: int) -> str:
        x = self.linear(x, hidden, wide)
        erf = self.add("Erf", self.add("Div", x, self.value(np.float32(np.sqrt(2)))))
        x = self.add(
            "Mul", self.add("Mul", x, self.add("Add", erf, self.value(np.float32(1)))), self.value(np.float32(0.5))
        )
        return self.linear(x, wide, hidden)

    def image(self, opset: int = 17, size: int = 16) -> ModelProto:
        return self.model([("x", F, ["n", 3, size, size])], [("y", F, ["n", 10])], opset)


@family
def vgg() -> ModelProto:
    """Convolutions, then wide Gemms behind a Flatten of channels and positions."""
    net = Net()
    x, before = "x", 3
    for channels in (16, 32, 64):
        x = net.conv(net.conv(x, before, channels), channels, channels)
        x, before = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), channels
    x = net.add("Flatten", x)
    x = net.add("Relu", net.add("Gemm", x, net.weight(128, 256, scale=0.1), net.weight(128, scale=0.1), transB=1))
    net.add("Gemm", net.add("Dropout", x), net.weight(10, 128, scale=0.1), net.weight(10, scale=0.1), out="y", transB=1)
    return net.image()


@family
def resnet() -> ModelProto:
    """Residual blocks with and without a projection, BatchNormalization not folded, a grouped convolution."""
    net = Net()
    x = net.add("Relu", net.norm(net.conv("x", 3, 32, act="", bias=False), 32))
    for before, after in ((32, 32), (32, 64), (64, 64)):
        y = net.add("PRelu", net.norm(net.conv(x, before, after, act=""), after), net.weight(after, 1, 1, scale=0.2))
        y = net.conv(y, after, after, group=8)
        y = net.norm(net.conv(y, after, after, 1, act=""), after)
        x = x if before == after else net.conv(x, before, after, 1, act="")
        x = net.add("Relu", net.add("Add", y, x))
    net.head(x, 64)
    return net.image()


@family
def mobilenet() -> ModelProto:
    """Inverted residuals around depthwise convolutions."""
    net = Net()
    x = net.conv("x", 3, 16, strides=[2, 2])
    for before, after in ((16, 24), (24, 24), (24, 32)):
        wide = 4 * before
        y = net.conv(net.conv(x, before, wide, 1), wide, wide, group=wide)
        y = net.conv(y, wide, after, 1, act="")
        x = net.add("Add", x, y) if before == after else y
    net.head(net.conv(x, 32, 96, 1, act="HardSwish"), 96)
    return net.image()


@family
def densenet() -> ModelProto:
    """Every layer reads the concatenation of all layers before it."""
    net = Net()
    x, channels = net.conv("x", 3, 32), 32
    for _ in range(4):
        y = net.conv(net.add("Relu", net.norm(x, channels)), channels, 64, 1)
        x, channels = net.add("Concat", x, net.conv(y, 64, 16, act=""), axis=1), channels + 16
    net.head(net.add("Relu", net.norm(x, channels)), channels)
    return net.image()


@family
def shufflenet() -> ModelProto:
    """Channels are split in half, one half goes through a branch, both are joined and shuffled."""
    net = Net()
    x, channels = net.conv("x", 3, 64), 64
    for _ in range(3):
        half = channels // 2
        left, right = net.name("left"), net.name("right")
        net.add("Split", x, net.ints(half, half), out=[left, right], axis=1)
        y = net.conv(net.conv(right, half, half, 1), half, half, act="", group=half)
        x = net.add("Concat", left, net.conv(y, half, half, 1), axis=1)
        x = net.add("Reshape", x, net.ints(-1, 2, half, 16, 16))
        x = net.add("Reshape", net.add("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(-1, channels, 16, 16))
    net.head(x, channels)
    return net.image()


@family
def shufflenet_grouped() -> ModelProto:
    """Grouped convolutions on either side of the shuffle."""
    net = Net()
    x = net.conv("x", 3, 96)
    for _ in range(2):
        y = net.conv(x, 96, 96, 1, group=4)
        y = net.add("Reshape", y, net.ints(0, 4, 24, 16, 16))
        y = net.add("Reshape", net.add("Transpose", y, perm=[0, 2, 1, 3, 4]), net.ints(0, 96, 16, 16))
        y = net.conv(net.conv(y, 96, 96, act="", group=96), 96, 96, 1, act="", group=4)
        x = net.add("Relu", net.add("Add", x, y))
    net.head(x, 96)
    return net.image()


@family
def inception() -> ModelProto:
    """Branches of different width, joined; an average pool beside convolutions of 1x7 and 7x1."""
    net = Net()
    x, channels = net.add("LRN", net.conv("x", 3, 32), size=5), 32
    for _ in range(2):
        wide = net.conv(net.conv(x, channels, 24, 1), 24, 48)
        tall = net.add("Conv", net.conv(x, channels, 16, 1), net.weight(16, 16, 1, 7), pads=[0, 3, 0, 3])
        tall = net.add("Relu", net.add("Conv", tall, net.weight(32, 16, 7, 1), net.weight(32), pads=[3, 0, 3, 0]))
        pooled = net.add("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)
        x = net.add("Concat", net.conv(x, channels, 32, 1), wide, tall, net.conv(pooled, channels, 16, 1), axis=1)
        channels = 128
    net.head(x, channels)
    return net.image()


@family
def efficientnet() -> ModelProto:
    """Inverted residuals with squeeze and excite."""
    net = Net()
    x = net.conv("x", 3, 16)
    for before, after in ((16, 24), (24, 24)):
        wide = 4 * before
        y = net.norm(net.conv(x, before, wide, 1, act="", bias=False), wide)
        y = net.add("Mul", y, net.add("Sigmoid", y))
        y = net.conv(y, wide, wide, group=wide)
        squeezed = net.add("ReduceMean", y, axes=[2, 3], keepdims=1)
        gate = net.conv(net.conv(squeezed, wide, 16, 1), 16, wide, 1, act="Sigmoid")
        y = net.conv(net.add("Mul", y, gate), wide, after, 1, act="")
        x = net.add("Add", x, y) if before == after else y
    net.head(net.conv(x, 24, 64, 1), 64)
    return net.image()


@family
def unet() -> ModelProto:
    """Skips into a decoder of transposed convolutions, resizes and pixel shuffles; groups normalized by reshapes."""
    net = Net()
    first = net.conv("x", 3, 16)
    second = net.conv(first, 16, 32, strides=[2, 2])
    third = net.conv(second, 32, 64, strides=[2, 2])
    y = net.add("Reshape", third, net.ints(0, 8, -1))
    ones, zeros = net.value(np.ones(8, np.float32)), net.value(np.zeros(8, np.float32))
    y = net.add("Reshape", net.add("InstanceNormalization", y, ones, zeros), net.add("Shape", third))
    y = net.add("Mul", y, net.weight(64, 1, 1, scale=1.0))
    y = net.add("ConvTranspose", y, net.weight(64, 32, 2, 2), net.weight(32), kernel_shape=[2, 2], strides=[2, 2])
    y = net.conv(net.add("Concat", y, second, axis=1), 64, 64)
    shuffled = net.add("DepthToSpace", y, blocksize=2)
    scales = net.value(np.array([1, 1, 2, 2], np.float32))
    resized = net.add("Resize", net.conv(second, 32, 16, 1), "", scales, mode="nearest")
    y = net.conv(net.add("Concat", shuffled, resized, first, axis=1), 48, 32)
    net.add("Conv", y, net.weight(10, 32, 1, 1), net.weight(10), out="y")
    return net.model([("x", F, ["n", 3, 16, 16])], [("y", F, ["n", 10, 16, 16])])


@family
def vit() -> ModelProto:
    """Patches, a class token that is expanded, positions, blocks with one matrix for queries, keys and values."""
    net = Net()
    hidden, heads, width = 64, 4, 16
    x = net.add(
        "Conv", "x", net.weight(hidden, 3, 4, 4, scale=0.15), net.weight(hidden), kernel_shape=[4, 4], strides=[4, 4]
    )
    x = net.add("Transpose", net.add("Reshape", x, net.ints(0, hidden, 16)), perm=[0, 2, 1])
    batch = net.add("Slice", net.add("Shape", "x"), net.ints(0), net.ints(1))
    token = net.add(
        "Expand", net.weight(1, 1, hidden, scale=1.0), net.add("Concat", batch, net.ints(1), net.ints(hidden), axis=0)
    )
    x = net.add("Add", net.add("Concat", token, x, axis=1), net.weight(1, 17, hidden, scale=0.5))
    for _ in range(2):
        y = net.linear(net.layer_norm(x, hidden), hidden, 3 * hidden)
        y = net.add("Transpose", net.add("Reshape", y, net.ints(0, 17, 3, heads, width)), perm=[2, 0, 3, 1, 4])
        query, key, value = (net.add("Gather", y, net.value(np.int64(number)), axis=0) for number in range(3))
        key = net.add("Transpose", key, perm=[0, 1, 3, 2])
        x = net.add("Add", x, net.linear(net.attend(query, key, value, width, heads), hidden, hidden))
        x = net.add("Add", x, net.mlp(net.layer_norm(x, hidden), hidden, 128))
    x = net.add("Gather", net.layer_norm(x, hidden), net.value(np.int64(0)), axis=1)
    net.add("Gemm", x, net.weight(10, hidden, scale=0.1), net.weight(10), out="y", transB=1)
    return net.image()


@family
def bert() -> ModelProto:
    """Embeddings of words and positions, attention with a mask, LayerNormalization as eight operators."""
    net = Net()
    hidden, heads = 64, 4
    ids = net.add("Gather", net.weight(40, hidden, scale=1.0), "ids")
    length = net.add("Slice", net.add("Shape", "ids"), net.ints(1), net.ints(2))
    places = net.add("Slice", net.value(np.arange(16)[None]), net.ints(0), length, net.ints(1))
    x = net.add("Add", ids, net.add("Gather", net.weight(16, hidden, scale=0.5), places))

    def decomposed(x: str) -> str:
        centred = net.add("Sub", x, net.add("ReduceMean", x, axes=[-1]))
        squared = net.add("Pow", centred, net.value(np.float32(2)))
        variance = net.add("Add", net.add("ReduceMean", squared, axes=[-1]), net.value(np.float32(1e-6)))
        scaled = net.add("Mul", net.add("Div", centred, net.add("Sqrt", variance)), net.weight(hidden, scale=1.0))
        return net.add("Add", scaled, net.weight(hidden, scale=0.1))

    for _ in range(2):
        x = decomposed(net.add("Add", x, net.attention(x, hidden, heads)))
        x = decomposed(net.add("Add", x, net.mlp(x, hidden, 256)))
    pooled = net.add("Tanh", net.linear(net.add("Gather", x, net.value(np.int64(0)), axis=1), hidden, hidden))
    net.add("Gemm", pooled, net.weight(10, hidden, scale=0.1), net.weight(10), out="y", transB=1)
    return net.model([("ids", I64, ["n", "s"])], [("y", F, ["n", 10])])


@family
def gpt() -> ModelProto:
    """A head tied to the embedding, one matrix split into queries, keys and values, a causal mask, a gated MLP."""
    net = Net()
    hidden, heads, width, wide, tokens = 64, 4, 16, 128, 8
    table = net.weight(50, hidden, scale=0.3)
    x = net.add("Gather", table, "ids")
    mask = net.value(np.triu(np.full((tokens, tokens), -1e4, np.float32), 1))
    for _ in range(2):
        y = net.linear(net.layer_norm(x, hidden), hidden, 3 * hidden)
        parts = [net.name("part") for _ in range(3)]
        net.add("Split", y, out=parts, axis=-1)
        query, value = net.heads(parts[0], heads, width), net.heads(parts[2], heads, width)
        key = net.heads(parts[1], heads, width, (0, 2, 3, 1))
        x = net.add("Add", x, net.linear(net.attend(query, key, value, width, heads, mask), hidden, hidden))
        y = net.layer_norm(x, hidden)
        gate = net.linear(y, hidden, wide)
        y = net.add("Mul", net.add("Mul", gate, net.add("Sigmoid", gate)), net.linear(y, hidden, wide))
        x = net.add("Add", x, net.linear(y, wide, hidden))
    net.add("MatMul", net.layer_norm(x, hidden), net.add("Transpose", table, perm=[1, 0]), out="y")
    return net.model([("ids", I64, ["n", tokens])], [("y", F, ["n", tokens, 50])])


@family
def lstm_tagger() -> ModelProto:
    """An embedding, an LSTM of two directions, a GRU, a tag per word."""
    net = Net()
    x = net.add("Transpose", net.add("Gather", net.weight(60, 32, scale=1.0), "ids"), perm=[1, 0, 2])
    x = net.add("LSTM", x, *[net.weight(2, *shape, scale=0.2) for shape in ((192, 32), (192, 48), (384,))],
                hidden_size=48, direction="bidirectional")  # fmt: skip
    x = net.add("Reshape", net.add("Transpose", x, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    x = net.add("GRU", x, *[net.weight(1, *shape, scale=0.2) for shape in ((96, 96), (96, 32), (192,))], hidden_size=32)
    x = net.add("Transpose", net.add("Squeeze", x, net.ints(1)), perm=[1, 0, 2])
    net.add("Add", net.add("MatMul", x, net.weight(32, 9)), net.weight(9), out="y")
    return net.model([("ids", I64, ["n", "s"])], [("y", F, ["n", "s", 9])])
