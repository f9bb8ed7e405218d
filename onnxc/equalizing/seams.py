"""Where a factor per channel can move from what reads a tensor into what makes it, the outputs staying equal.

In: a model and its sites. Out: a Seam for every tensor that only linears and convolutions read, which knows the
constants before and after; or the name of the node in the way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxc.equalizing.carrying import BlockedError, Walk, alone
from onnxc.equalizing.scaling import Seam, input_channels
from onnxc.model import Constant, Model, Tensor
from onnxc.sites import Site, Sites


def seams(model: Model, sites: Sites, *, insert: bool = False) -> tuple[list[Seam], list[str]]:
    """Every tensor that linears and convolutions alone read, and why the others are none.

    Args:
        insert: where nothing before takes the factors, the seam is one with a Mul.
    """
    inputs = {id(t) for graph in model.graphs() for t in graph.inputs}
    outputs = {id(t) for graph in model.graphs() for t in graph.outputs}
    by_tensor: dict[int, list[Site]] = {}
    for site in sites:
        usable = site.kind in ("linear", "convolution") and site.operator != "ConvTranspose"
        if usable and isinstance(site.node.inputs[1], Constant):
            by_tensor.setdefault(id(site.input), []).append(site)
    found, refused = [], []
    for group in by_tensor.values():
        tensor = group[0].input
        try:
            seam = readers_of(tensor, group)
            walk = Walk(seam, inputs, outputs, sites.types)
            try:
                if id(tensor) in inputs or id(tensor) in outputs:
                    raise BlockedError("it is an input or output of the model")
                alone(tensor, [site.node for site in group])
                walk.from_seam(start(group[0], seam.channels))
            except BlockedError:
                if not insert or any(site.graph is not group[0].graph for site in group):
                    raise
                seam = Seam(tensor, group, seam.channels, insert=True)
            found.append(seam)
        except BlockedError as reason:
            refused.append(f"'{tensor.name}': {reason}")
    return found, refused


def readers_of(tensor: Tensor, group: list[Site]) -> Seam:
    """The seam at ``tensor`` so far: its sites, whose weights nobody else may read."""
    channels = {input_channels(site) for site in group}
    for site in group:
        assert site.weight is not None
        shape = site.weight.shape
        if len(shape) != 2 and site.kind == "linear":
            raise BlockedError(f"the weight of '{site.name}' is not a matrix")
        if site.node.inputs[1] is not site.weight.tensor or site.node.attrs.get("transA", 0):
            raise BlockedError(f"'{site.name}' ({site.operator}) multiplies from the left")
        if any(reader not in [other.node for other in group] for reader, _ in site.weight.readers):
            raise BlockedError(f"the weight of '{site.name}' has other readers")
    if len(channels) != 1:
        raise BlockedError("its readers see different channels")
    return Seam(tensor, group, channels.pop())


def start(site: Site, channels: int) -> NDArray[np.intp]:
    """The channel of every entry of the site's input, as an array that broadcasts against its last axes."""
    index = np.arange(channels)
    if site.operator != "Conv":
        return index
    assert site.weight is not None
    return index.reshape(-1, *[1] * (len(site.weight.shape) - 2))
