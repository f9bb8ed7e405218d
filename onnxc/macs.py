"""How many multiplications a site takes. In: the site, shapes of activations. Out: multiply-accumulates per run."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from onnxc.model import Tensor
from onnxc.sites import Site, Sites


def multiplications(site: Site, shapes: Mapping[str, tuple[int, ...]], sites: Sites) -> int | None:
    """Multiply-accumulates per run, from the shapes of activations seen or inferred; None where they are not known."""

    def shape_of(tensor: Tensor) -> tuple[int, ...] | None:
        if tensor.name in shapes:
            return shapes[tensor.name]
        known = sites.types.get(tensor.name)
        if known is None or known.shape is None or None in known.shape:
            return None
        return tuple(int(size or 0) for size in known.shape)

    if site.weight is None or site.kind == "embedding":
        return 0
    elements, rank = site.weight.elements, len(site.weight.shape)
    source = shape_of(site.input)
    result = shape_of(site.result) or shape_of(site.node.outputs[0])  # of one shape; what is absorbed is not observed
    if site.kind == "recurrent":
        return None if source is None else elements * prod(source[:2])
    if site.operator == "ConvTranspose":
        return None if source is None else elements * source[0] * prod(source[2:])
    if result is None or rank < 2:
        return None
    if site.operator == "Conv":
        return elements * result[0] * prod(result[2:])
    if rank == 2:
        return elements * prod(result) // max(1, result[-1])
    return None if source is None else prod(result) * source[-1]
