"""How hard samples are. In: a model. Out: the same with noise on its weights that is fitted to no sample.

What is fitted to some samples does less harm on them than on those that are kept apart. But samples differ without that
too: of four clips of audio one may end in a state that any noise changes, and four are soon hard ones. So what noise
that knows no sample does tells what share of all harm the samples kept apart should have.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.model import Constant, Model

LOUDNESS = 0.01  # of a weight: about what 7 bits make
LARGEST = 1 << 30  # bytes of a model that is not held twice for this


def disturbed(model: Model, seed: int = 0) -> Model | None:
    """A copy of ``model`` with normal noise on every float weight of two axes or more; None where there is none, or too
    much to hold twice.
    """
    if model.source_bytes > LARGEST:
        return None
    copy, random, found = model.copy(), np.random.default_rng(seed), False
    for weight in weights(copy):
        values = weight.values
        if values.dtype.kind == "f" and values.ndim > 1 and values.size:
            weight.values = noisy(values, random)
            found = True
    return copy if found else None


def noisy(values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """``values`` in their own type, each with noise in proportion to itself: no mask of zeros and -inf is broken."""
    factors = (1 + LOUDNESS * random.standard_normal(values.shape, np.float32)).astype(values.dtype)
    limits = np.finfo(values.dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # the largest floats become infinite, and are taken back
        return np.where(np.isfinite(values), np.clip(values * factors, limits.min, limits.max), values)


def weights(model: Model) -> Iterator[Constant]:
    """The constants of all graphs, initializers and Constant nodes."""
    for graph in model.graphs():
        yield from (tensor for tensor in graph.weights if isinstance(tensor, Constant))
        for node in graph.nodes:
            attributes: MutableMapping[str, object] = node.attrs
            value = attributes.get("value") if node.op == "Constant" else None
            if isinstance(value, Constant):
                attributes["value"] = own = Constant("", value.values)
                yield own
