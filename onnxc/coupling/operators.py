"""What every operator does with the indices of its axes: the table of rules. In: an operator's name. Out: its Rule.

Operators that are not in RULES, and tensors that bodies of If, Loop and Scan read, are pinned by graph.py.
"""

from __future__ import annotations

from onnxc.coupling import arithmetic, movement, weights
from onnxc.coupling.graph import Rule

# fmt: off
ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BiasGelu", "BitShift", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div",
    "Dropout", "Elu", "Equal", "Erf", "Exp", "FastGelu", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LRN", "LeakyRelu", "Less", "LessOrEqual", "Log", "LpNormalization",
    "Max", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "SkipLayerNormalization", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh",
    "ThresholdedRelu", "Where", "Xor",
)
# fmt: on
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
REDUCTIONS = (*arithmetic.AVERAGES, "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceLogSum",
              "ReduceLogSumExp", "ArgMax", "ArgMin")  # fmt: skip
MIXING = ("Softmax", "LogSoftmax", "Hardmax")
RECURRENT = ("LSTM", "GRU", "RNN")

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, arithmetic.elementwise),
    **dict.fromkeys(POOLS, arithmetic.spatial),
    **dict.fromkeys(REDUCTIONS, arithmetic.reduction),
    **dict.fromkeys(MIXING, arithmetic.mixing),
    **dict.fromkeys(("Conv", "ConvTranspose"), weights.convolution),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), arithmetic.channelwise),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), arithmetic.layer_normalization
    ),
    **dict.fromkeys(("Resize", "Upsample", "Pad", "Tile", "Expand", "CumSum", "Trilu"), movement.stretched),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), movement.reshaped),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), movement.blocks),
    **dict.fromkeys(RECURRENT, weights.recurrent),
    **dict.fromkeys(("Shape", "Size", "Constant"), movement.nothing),
    "MatMul": weights.product,
    "Gemm": weights.gemm,
    "Einsum": weights.einsum,
    "GroupNormalization": arithmetic.group_normalization,
    "Concat": movement.concatenation,
    "Split": movement.split,
    "Slice": movement.sliced,
    "Gather": movement.gather,
    "Transpose": movement.transpose,
    "Attention": weights.attention,
    "ConstantOfShape": movement.filled,
}
