"""Operators as torch functions, one file per family; importing this fills the table."""

from onnxc.training.operators import (
    attention,
    control,
    elementwise,
    linear,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    shaping,
    vision,
)
from onnxc.training.operators.table import OPERATORS

__all__ = [
    "OPERATORS",
    "attention",
    "control",
    "elementwise",
    "linear",
    "normalization",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "shaping",
    "vision",
]
