"""Small graphs of one operator, in float64 where gradients are held against finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxc.model import Model


@dataclass(frozen=True)
class Case:
    """An operator with float64 inputs that vary and constants that do not; ``extra`` outputs are not looked at."""

    op: str
    inputs: Sequence[Any]  # a shape varies, an array is constant, None is left out
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 21
    outputs: int = 1
    low: float = -1.0
    high: float = 1.0
    distinct: bool = False

    @property
    def label(self) -> str:
        return "-".join([self.op, *(f"{key}={value}" for key, value in self.attributes.items() if np.ndim(value) == 0)])


def build(case: Case, dtype: int = TensorProto.DOUBLE) -> tuple[Model, dict[str, np.ndarray]]:
    """The model, and values for what varies."""
    random = np.random.default_rng(0)
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    names, infos, weights, feeds = [], [], [], {}
    for place, each in enumerate(case.inputs):
        name = f"x{place}"
        if each is None:
            names.append("")
            continue
        names.append(name)
        if isinstance(each, np.ndarray):
            array = each.astype(kind) if each.dtype.kind == "f" else each
            weights.append(numpy_helper.from_array(array, name))
        else:
            count = int(np.prod(each))
            flat = random.uniform(case.low, case.high, count)
            if case.distinct:  # far enough apart that a small step changes no order
                flat = random.permutation(np.linspace(case.low, case.high, count))
            feeds[name] = flat.reshape(each).astype(kind)
            infos.append(helper.make_tensor_value_info(name, dtype, list(each)))
    made = [f"y{place}" for place in range(case.outputs)]
    node = helper.make_node(case.op, names, made, name="node", **case.attributes)
    result = helper.make_tensor_value_info("y0", dtype, None)
    graph = helper.make_graph([node], "graph", infos, [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)])
    model.ir_version = 10
    return Model.load(model), feeds


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


UNARY = """
    Abs Acos Asin Asinh Atan Atanh Cos Cosh Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Selu
    Sigmoid Sin Sinh Softplus Softsign Tan Tanh Celu Elu ThresholdedRelu Shrink
"""
SUMS = "Sum Mean Prod L1 L2 SumSquare LogSum LogSumExp"
A, B = (2, 3), (4, 3)
CASES = [
    *(Case(op, [A], low=-0.9, high=0.9, opset=20 if op == "Gelu" else 21) for op in UNARY.split()),
    *(Case(op, [A], low=1.2, high=3.0) for op in ("Log", "Sqrt", "Reciprocal", "Acosh")),
    Case("Gelu", [A], {"approximate": "tanh"}),
    Case("Swish", [A], {"alpha": 1.5}, opset=24),
    Case("Clip", [A, np.asarray(-0.5), np.asarray(0.5)]),
    Case("PRelu", [A, (3,)]),
    Case("Cast", [A], {"to": TensorProto.DOUBLE}),
    *(Case(op, [A, A]) for op in ("Add", "Sub", "Mul")),
    *(Case(op, [A, A], low=0.5, high=2.0) for op in ("Div", "Pow")),
    *(Case(op, [A, (1, 3), A]) for op in ("Max", "Min", "Sum", "Mean")),
    Case("Where", [np.asarray([[True, False, True], [False, True, True]]), A, A]),
    Case("CumSum", [A, np.asarray(1)], {"exclusive": 1, "reverse": 1}),
    *(Case(op, [A]) for op in ("Softmax", "LogSoftmax")),
    Case("Softmax", [(2, 3, 2)], {"axis": 1}, opset=11),
    *(Case(f"Reduce{op}", [(2, 3, 2), ints(1)], low=0.3, opset=18) for op in SUMS.split()),
    *(Case(f"Reduce{op}", [(2, 3), ints(1)], {"keepdims": 0}, distinct=True, opset=18) for op in ("Max", "Min")),
    Case("TopK", [(2, 5), ints(2)], outputs=2, distinct=True),
    Case("MatMul", [(2, 2, 3), (3, 2)]),
    Case("Gemm", [A, B, (4,)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Einsum", [A, B], {"equation": "ij,kj->ik"}),
    Case("Det", [(2, 2, 2)], low=0.5, high=2.0),
    Case("Conv", [(1, 4, 5, 5), (4, 2, 3, 3), (4,)], {"group": 2, "pads": [1, 0, 0, 1], "strides": [2, 1]}),
    Case("Conv", [(1, 2, 7), (3, 2, 3)], {"dilations": [2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", [(1, 2, 3, 3), (2, 2, 3, 3), (2,)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [(1, 2, 4, 4)], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}, distinct=True),
    Case("AveragePool", [(1, 2, 5, 5)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("LpPool", [(1, 1, 4, 4)], {"kernel_shape": [2, 2]}, low=0.3),
    *(
        Case(op, [(1, 2, 3, 3)], low=0.3, distinct=True)
        for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
    ),
    Case("BatchNormalization", [(2, 3, 2), (3,), (3,), np.zeros(3), np.ones(3)]),
    Case("InstanceNormalization", [(2, 3, 4), (3,), (3,)]),
    Case("GroupNormalization", [(2, 4, 3), (4,), (4,)], {"num_groups": 2}),
    Case("LayerNormalization", [(2, 3, 4), (4,), (4,)]),
    Case("RMSNormalization", [(2, 4), (4,)], opset=23),
    Case("MeanVarianceNormalization", [(2, 2, 3, 2)]),
    Case("LpNormalization", [A], low=0.3),
    Case("LRN", [(1, 4, 2, 2)], {"size": 3}),
    Case("Reshape", [A, ints(3, -1)]),
    Case("Flatten", [(2, 3, 2)], {"axis": 2}),
    Case("Transpose", [(2, 3, 2)], {"perm": [2, 0, 1]}),
    Case("Squeeze", [(2, 1, 3), ints(1)]),
    Case("Unsqueeze", [A, ints(0, 3)]),
    Case("Concat", [A, B], {"axis": 0}),
    Case("Split", [(4, 3)], {"num_outputs": 2, "axis": 0}, outputs=2),
    Case("Slice", [(4, 5), ints(3, 0), ints(-9, 5), ints(0, 1), ints(-1, 2)]),
    Case("Gather", [(4, 3), ints(3, -1, 0)]),
    Case("GatherElements", [A, np.asarray([[1, 0, 2], [0, -1, 1]])], {"axis": 1}),
    Case("GatherND", [(2, 2, 3), np.asarray([[0, 1], [1, 0]])]),
    Case("ScatterElements", [A, np.asarray([[1, 0, 1]]), (1, 3)], {"axis": 0, "reduction": "add"}),
    Case("ScatterND", [(4, 2), np.asarray([[1], [3]]), (2, 2)]),
    Case("Expand", [(2, 1), ints(2, 3)]),
    Case("Tile", [A, ints(2, 1)]),
    Case("Pad", [(2, 3), ints(0, 1, 1, 2)]),
    Case("Pad", [(2, 4), ints(0, 2, 0, 1)], {"mode": "reflect"}),
    Case("Trilu", [(3, 3)], {"upper": 0}),
    Case("Compress", [A, np.asarray([True, False, True])], {"axis": 1}),
    Case("DepthToSpace", [(1, 4, 2, 2)], {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", [(1, 1, 4, 4)], {"blocksize": 2}),
    Case("ReverseSequence", [(4, 2), ints(3, 2)], {"time_axis": 0, "batch_axis": 1}),
    Case("Resize", [(1, 1, 3, 3), None, np.asarray([1, 1, 1.7, 2], np.float32)], {"mode": "linear"}),
    Case("Resize", [(1, 1, 4, 4), None, None, ints(1, 1, 6, 5)], {"mode": "cubic"}),
    Case("Attention", [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)], {"is_causal": 1}, opset=23),
    Case("LSTM", [(3, 2, 2), (1, 12, 2), (1, 12, 3), (1, 24)], {"hidden_size": 3}),
    Case(
        "LSTM",
        [(3, 2, 2), (2, 12, 2), (2, 12, 3), (2, 24), np.asarray([3, 2], np.int32)],
        {"hidden_size": 3, "direction": "bidirectional"},
    ),
    Case("GRU", [(3, 2, 2), (1, 9, 2), (1, 9, 3), (1, 18)], {"hidden_size": 3, "linear_before_reset": 1}),
    Case("GRU", [(3, 2, 2), (1, 9, 2), (1, 9, 3), (1, 18)], {"hidden_size": 3, "direction": "reverse"}),
    Case("RNN", [(3, 2, 2), (1, 3, 2), (1, 3, 3), (1, 6)], {"hidden_size": 3}),
]
