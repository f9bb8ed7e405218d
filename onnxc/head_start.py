"""How much faster a model is before anything is rounded. In: the original, its simplified form. Out: a ratio.

What simplifying and cutting gain is in no price: prices say what rounding gains on the simplified model. A limit of
speed, and what is predicted, are of the original.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx

from onnxc.kernels import operators
from onnxc.model import Model
from onnxc.price_file import PriceFile, sample_shapes
from onnxc.profiling import raced
from onnxc.session import Options, Session

SECONDS = 0.5  # in which the two run in turn
LARGEST = 1 << 30  # bytes of a model that is not held twice for this


def head_start(
    original: Model, smaller: Model, sample: Mapping[str, np.ndarray], options: Options, prices: PriceFile
) -> float:
    """How many times as fast as ``original`` is ``smaller``: 1 where ONNX Runtime makes the same kernels of both, or
    where they are too large; from the price file where it is known.
    """
    if original.source_bytes > LARGEST:
        return 1.0
    key = f"head start {original.digest()[:24]} {smaller.digest()[:24]} {options.threads} {sample_shapes(sample)}"
    if key not in prices.entries:
        first, second = Session(original.path or original, options, dump=True), Session(smaller, options, dump=True)
        alike = work(first.optimized()) == work(second.optimized())
        prices.entries[key] = 1.0 if alike else np.divide(*raced(first, second, sample, SECONDS)).item()
    return prices.entries[key]


def work(optimized: onnx.ModelProto) -> tuple[Counter[str], int]:
    """The kernels of an optimized graph, and the elements of its weights: kernels of fewer channels are others."""
    return operators(optimized), sum(int(np.prod(each.dims)) for each in optimized.graph.initializer)
