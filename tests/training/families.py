"""Graphs of the operators that graphs.py has no case of: whole numbers, quantization, control flow, sequences.

In: a family's name. Out: its model, and values for its inputs.
"""

from __future__ import annotations

import numpy as np
from onnx import parser

from onnxc.model import Model

OPSET = 'ir_version: 10, opset_import: ["": 21, "com.microsoft": 1, "ai.onnx.ml": 3]'
OLD = 'ir_version: 8, opset_import: ["": 9]'
NEW = 'ir_version: 10, opset_import: ["": 23]'

FAMILIES = {
    "comparisons": (
        OPSET,
        """(float[2, 3] x, float[2, 3] y) => (float[2, 3] chosen, bool[2, 3] none, bool[2, 3] endless) {
            less = Less(x, y)
            more = Greater(x, y)
            most = LessOrEqual(x, y)
            least = GreaterOrEqual(x, y)
            same = Equal(x, y)
            both = And(less, most)
            either = Or(more, same)
            one = Xor(both, either)
            not = Not(one)
            all = And(not, least)
            none = IsNaN(x)
            endless = IsInf(x)
            chosen = Where(all, x, y)
        }""",
    ),
    "whole numbers": (
        OPSET,
        """(int64[2, 3] a, int64[2, 3] b, uint8[2, 3] u) => (int64 m, int64 g, int64 e, int64 t, uint8 s, float[2, 3] f)
        <int64[1] offset = {7}, int64[2, 3] three = {3, 3, 3, 3, 3, 3}> {
            one = Constant<value_int = 1>()
            and = BitwiseAnd(a, b)
            or = BitwiseOr(a, b)
            xor = BitwiseXor(and, or)
            not = BitwiseNot(xor)
            rest = Mod(not, three)
            other = Transpose(b)
            m = MatMul(rest, other)
            g = Gemm<transB = 1>(a, b, offset)
            e = Einsum<equation = "ij,kj->ik">(a, b)
            t = CumSum(a, one)
            s = BitShift<direction = "LEFT">(u, u)
            f = Cast<to = 1>(s)
        }""",
    ),
    "rounding": (
        OPSET,
        """(float[2, 3] x, float16[2, 3] like) => (float[2, 3] y, float16 half, float small, float best, bool mask) {
            up = Ceil(x)
            down = Floor(x)
            near = Round(x)
            sign = Sign(x)
            whole = Cast<to = 3>(x)
            back = Cast<to = 1>(whole)
            narrow = Cast<to = 17>(x)
            small = Cast<to = 1>(narrow)
            half = CastLike(x, like)
            best = Hardmax(x)
            kept, mask = Dropout(x)
            y = Sum(up, down, near, sign, back, kept)
        }""",
    ),
    "places": (
        OPSET,
        """(float[2, 3] x)
        => (float range, float eye, float hot, int64 where, int64 high, int64 low, int64 count, float w)
        <int64 depth = {4}, float[2] levels = {-1.0, 2.0},
         float zero = {0.0}, float three = {3.0}, float half = {0.5}> {
            shape = Shape(x)
            count = Size(x)
            blank = ConstantOfShape<value = float[1] {2.0}>(shape)
            y = Mul(x, blank)
            range = Range(zero, three, half)
            eye = EyeLike(y)
            high = ArgMax<axis = 1, select_last_index = 1>(y)
            low = ArgMin<axis = 1>(y)
            hot = OneHot(high, depth, levels)
            where = NonZero(y)
            w = Constant<value = float[2] {1.0, 2.0}>()
        }""",
    ),
    "images": (
        NEW,
        """(float[1, 2, 4, 4] x, float[1, 3, 3, 2] grid, float[1, 8, 4] columns, float[1, 2, 3, 4] r)
        => (float sampled, float folded, float turned)
        <int64[2] image = {3, 3}, int64[2] block = {2, 2}, float[1, 3, 2] c = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}> {
            sampled = GridSample(x, grid)
            folded = Col2Im(columns, image, block)
            turned = RotaryEmbedding(r, c, c)
        }""",
    ),
    "older": (
        OLD,
        """(float[2, 3] x, float[1, 1, 2, 3] image, float[1, 3] updates) => (float y, float larger)
        <int64[1, 3] indices = {1, 0, 1}, float[4] scales = {1.0, 1.0, 2.0, 1.5}> {
            y = Scatter<axis = 0>(x, indices, updates)
            larger = Upsample<mode = "linear">(image, scales)
        }""",
    ),
    "quantization": (
        OPSET,
        """(float[2, 4] x, float[1, 2, 4, 4] image) => (float y, float product, uint8 codes, float pixels, uint8 far)
        <uint8 zero = {128}, float scale = {0.02}, int8[4, 2] w = {1, -2, 3, -4, 5, -6, 7, -8}, int8 none = {0},
         float[2] each = {0.01, 0.02}, int8[2] nones = {0, 0}, int8[3, 2, 1, 1] filter = {1, -2, 3, -4, 5, -6},
         int32[3] bias = {1, 2, 3}, float fine = {0.0002}, float[2, 2] blocks = {0.1, 0.2, 0.3, 0.4}> {
            q = QuantizeLinear(x, scale, zero)
            d = DequantizeLinear(q, scale, zero)
            wide = DequantizeLinear<axis = 1>(w, each, nones)
            blocked = DequantizeLinear<axis = 0, block_size = 2>(w, blocks)
            both = Add(wide, blocked)
            y = MatMul(d, both)
            dynamic, step, middle = DynamicQuantizeLinear(x)
            summed = MatMulInteger(dynamic, w, middle)
            float = Cast<to = 1>(summed)
            product = Mul(float, step)
            codes = QLinearMatMul(q, scale, zero, w, scale, none, scale, zero)
            seen = QuantizeLinear(image, scale, zero)
            added = ConvInteger(seen, filter, zero)
            pixels = Cast<to = 1>(added)
            far = QLinearConv(seen, scale, zero, filter, scale, none, scale, zero, bias)
        }""",
    ),
    "microsoft": (
        OPSET,
        """(float[2, 4] x, float[3, 2, 4] sequence) => (float y, float t, float g, float n, float made, float s)
        <uint8 zero = {128}, float scale = {0.02}, int8[4, 4] w = {1, -2, 3, -4, 5, -6, 7, -8, 1, 2, 3, 4, 5, 6, 7, 8},
         float[4] one = {1.0, 1.5, 2.0, 0.5}, int8[1, 4, 4] u = {1, -2, 3, -4, 5, -6, 7, -8, 1, 2, 3, 4, 5, 6, 7, 8},
         int8[1, 1, 4] r = {1, 2, -3, 4}, float[1] step = {0.01}, int8[1] none = {0}> {
            q = com.microsoft.QuantizeLinear(x, scale, zero)
            d = com.microsoft.DequantizeLinear(q, scale, zero)
            y = com.microsoft.MatMulIntegerToFloat(q, w, scale, scale, zero)
            t = com.microsoft.FusedMatMul<transB = 1, alpha = 0.5>(d, x)
            g = com.microsoft.Gelu(x)
            n = SimplifiedLayerNormalization(x, one)
            made = com.microsoft.DynamicQuantizeMatMul(x, w, scale)
            s, h, c = com.microsoft.DynamicQuantizeLSTM<hidden_size = 1>(
                sequence, u, r, , , , , , step, none, step, none)
        }""",
    ),
    "control flow": (
        OPSET,
        """(float[3, 2] x, float[2] start, int64 n)
        => (float[2] y, float[k, 2] rows, float[2] chosen, float last, float all)
        <bool yes = {1}> {
            y, rows = Loop<body = body (int64 i, bool going, float[2] a) => (bool goes, float[2] b, float[2] c) {
                goes = Identity(going)
                step = Cast<to = 1>(i)
                b = Add(a, step)
                c = Mul(a, start)
            }>(n, yes, start)
            chosen = If(yes) <
                then_branch = then () => (float[2] p) { p = Mul(start, start) },
                else_branch = else () => (float[2] o) { o = Add(start, start) }>
            last, all = Scan<num_scan_inputs = 1, body = scan (float[2] s, float[2] e) => (float[2] f, float[2] g) {
                f = Add(s, e)
                g = Mul(f, e)
            }>(start, x)
        }""",
    ),
    "sequences": (
        OPSET,
        """(float[2, 3] x, float[2, 3] z) => (float y, int64 count, float[2, 2, 3] stacked)
        <int64 first = {0}, int64 axis = {0}> {
            pair = SequenceConstruct(x, z)
            none = SequenceEmpty()
            one = SequenceInsert(none, x)
            more = SequenceInsert(pair, z, first)
            fewer = SequenceErase(more, first)
            count = SequenceLength(fewer)
            stacked = ConcatFromSequence<axis = 0, new_axis = 1>(fewer)
            rows = SplitToSequence<axis = 0>(x)
            row = SequenceAt(rows, first)
            whole = SequenceAt(one, first)
            y = Add(row, whole)
        }""",
    ),
    "classical": (
        OPSET,
        """(float[2, 3] x) => (float y, float n, float m) <int64[2] columns = {2, 0}> {
            some = ai.onnx.ml.ArrayFeatureExtractor(x, columns)
            y = ai.onnx.ml.Scaler<offset = [0.5, 0.1], scale = [2.0, 3.0]>(some)
            n = ai.onnx.ml.Normalizer<norm = "L2">(x)
            m = ai.onnx.ml.Normalizer<norm = "MAX">(x)
        }""",
    ),
}


def family(name: str) -> tuple[Model, dict[str, np.ndarray]]:
    """A family's model, and values for its inputs."""
    versions, text = FAMILIES[name]
    model = Model.load(parser.parse_model(f"<{versions}> graph {text}"))
    random, feeds = np.random.default_rng(0), {}
    for each in model.graph.inputs:
        assert each.dtype is not None
        shape = [int(extent) for extent in each.shape or []]
        if each.dtype.kind == "f":
            feeds[each.name] = random.uniform(-1, 1, shape).astype(each.dtype)
        else:
            feeds[each.name] = random.integers(1, 5, shape).astype(each.dtype)
    return model, feeds
