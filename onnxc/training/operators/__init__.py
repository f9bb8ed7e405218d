"""Operators as torch functions, one file per family; importing this fills the table."""

from onnxc.training.operators import (
    attention,
    control,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    sequences,
    shaping,
    vision,
)
from onnxc.training.operators.table import OPERATORS

__all__ = [
    "OPERATORS",
    "attention",
    "control",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "sequences",
    "shaping",
    "vision",
]
