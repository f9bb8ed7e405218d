"""The second moment of what meets a weight: measured, or assumed. In: a weight and its sites. Out: H per group.

H = E[x xT] decides how rounding errors add up in the output. With data it is measured on sampled input rows. Without,
it is assumed from the graph: neighbouring positions of a convolution's kernel see nearly the same value, and inputs
behind a Relu share a positive mean; so errors that sum to zero over them cancel. Half of what is assumed of a model of
images is what it shows on made-up ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.gptq import Factor, factorize, shrunk_moment
from onnxc.model import Constant, Tensor
from onnxc.observe import Observations, recurrent_key, rows_key
from onnxc.sites import Site, Sites, Weight, clip_range

SPATIAL = 0.8  # assumed correlation of two kernel positions of one channel
SHARED_MEAN = 0.3  # assumed correlation of two non-negative channels: their means
IMAGINED = 0.5  # share of what made-up images show in what is assumed: with any of 0.1 to 1 less is lost than without
KEPT = 2  # of the last factors, and as many of the first as fit into KEPT_BYTES: trials ask in the same order again
KEPT_BYTES = 144 << 20
LARGEST_ASSUMED = 2048  # K above which a moment is not worth assuming
NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt", "Softplus"})
KEEPING = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Flatten", "Transpose", "Squeeze",
     "Unsqueeze", "Identity", "Resize", "Concat", "Pad", "Slice", "Split"}
)  # fmt: skip

Moments = NDArray[np.float32]


class Factors:
    """The factors of moments, the last few and as many of the first as memory allows: Q, K and V read one tensor, and
    share its factor; every plan that is tried asks for all of them again.
    """

    def __init__(self, sites: Sites, seen: Observations) -> None:
        self.sites, self.seen = sites, seen
        self.kept: dict[tuple[str, ...], Factor | None] = {}
        self.first: dict[tuple[str, ...], Factor] = {}
        self.held = 0

    def of(self, weight: Weight) -> Factor | None:
        """The factor of what meets ``weight``; None where rounding to nearest is all that can be said."""
        key = factor_key(weight, self.sites)
        if key in self.first:
            return self.first[key]
        if key not in self.kept:
            while len(self.kept) >= KEPT:
                self.kept.pop(next(iter(self.kept)))
            moments = weight_moments(weight, self.sites, self.seen)
            found = factorize(moments) if moments is not None else None
            if found is not None and self.held + found.nbytes <= KEPT_BYTES:
                self.held += found.nbytes
                self.first[key] = found
                return found
            self.kept[key] = found
        return self.kept[key]


@dataclass(frozen=True)
class Given:
    """One factor, whatever the weight: in the place of Factors where what meets it was seen elsewhere."""

    factor: Factor | None

    def of(self, weight: Weight) -> Factor | None:
        """The factor."""
        return self.factor


def factor_key(weight: Weight, sites: Sites) -> tuple[str, ...]:
    """What the moments of ``weight`` depend on."""
    linear = tuple(rows_key(site) for site in sites if site.weight is weight and site.kind in ("linear", "convolution"))
    return linear or tuple(recurrent_key(site, part) for site, part in recurrent_readers(weight, sites))


def recurrent_readers(weight: Weight, sites: Sites) -> list[tuple[Site, int]]:
    """Recurrent sites that read ``weight``, and as which of their inputs: 1 for W, 2 for R."""
    loops = [site for site in sites if site.kind == "recurrent"]
    return [(site, part) for site in loops for part in (1, 2) if site.node.inputs[part].name == weight.name]


def recurrent_moments(weight: Weight, sites: Sites, seen: Observations) -> Moments | None:
    """[1, K, K] of what meets W or R of a recurrent operator, its directions one after the other."""
    known = [seen.moments.get(recurrent_key(site, part)) for site, part in recurrent_readers(weight, sites)]
    found = [each for each in known if each is not None]
    if not found or len(weight.shape) != 3:
        return None
    total = np.asarray(sum(found), np.float32)
    directions, size = weight.shape[0], weight.shape[2]
    moment = np.zeros((directions, size, directions, size), np.float32)
    for direction in range(directions):
        moment[direction, :, direction] = total[direction % len(total)]
    return moment.reshape(1, directions * size, directions * size)


def weight_moments(weight: Weight, sites: Sites, seen: Observations) -> Moments | None:
    """[G, K, K] for the G groups of ``weight`` (1 but for grouped convolutions), K the inputs of one output; None where
    rounding to nearest is all that can be said.
    """
    if weight.channel_axis is None:
        return None
    if weight.channel_axis == 1 and (recurrent := recurrent_moments(weight, sites, seen)) is not None:
        return recurrent
    readers = [site for site in sites if site.weight is weight and site.kind in ("linear", "convolution")]
    readers = [site for site in readers if site.operator != "ConvTranspose"]
    groups = {int(site.node.attrs.get("group", 1)) for site in readers}
    depth = weight.elements // weight.shape[weight.channel_axis]
    if len(groups) != 1 or depth < 2:
        return None
    group = groups.pop()
    measured = measured_moments(readers, seen, (group, depth, depth))
    if measured is not None:
        return measured
    first = next((moment for site in readers if (moment := assumed_moment(site)) is not None), None)
    assumed = np.repeat(first[None], group, 0) if first is not None else None
    imagined = None if seen.imagined is None else measured_moments(readers, seen.imagined, (group, depth, depth))
    if imagined is None or depth > LARGEST_ASSUMED:
        return assumed
    imagined = imagined * (depth / max(float(np.trace(imagined, axis1=1, axis2=2).mean()), 1e-30))
    return (1 - IMAGINED) * (np.eye(depth, dtype=np.float32) if assumed is None else assumed) + IMAGINED * imagined


def measured_moments(readers: Sequence[Site], seen: Observations, shape: tuple[int, ...]) -> Moments | None:
    """The sum over the sites that read a weight, None where nothing was measured."""
    measured = [found for site in readers if (found := moment_of(site, seen)) is not None and found.shape == shape]
    return np.asarray(sum(measured), np.float32) if measured else None


def moment_of(site: Site, seen: Observations) -> Moments | None:
    """The measured moments [G, K, K] of one site."""
    if site.name in seen.moments:
        return seen.moments[site.name]
    rows = seen.rows_of(site)
    return shrunk_moment(rows)[None] if rows is not None else None


def assumed_moment(site: Site) -> Moments | None:
    """H [K, K] as far as the graph tells; None where it would be the identity."""
    assert site.weight is not None
    positive = non_negative(site.input)
    positions = int(np.prod(site.weight.shape[2:])) if site.operator == "Conv" else 1
    channels = site.weight.elements // site.weight.shape[site.weight.channel_axis or 0] // positions
    depth = channels * positions
    if (not positive and positions == 1) or depth > LARGEST_ASSUMED:
        return None
    mean = SHARED_MEAN if positive else 0.0
    moment = np.full((depth, depth), mean, np.float32)
    if positions > 1:
        moment += np.kron(
            np.eye(channels, dtype=np.float32), np.full((positions, positions), SPATIAL - mean, np.float32)
        )
    np.fill_diagonal(moment, 1.0)
    return moment


def non_negative(tensor: Tensor) -> bool:
    """Whether ``tensor`` cannot be negative, as far as a walk back through pooling and data movement tells."""
    for _ in range(16):
        if isinstance(tensor, Constant) or not tensor.inputs:
            return False
        node = tensor.inputs[0]
        if node.op in NON_NEGATIVE or (node.op == "Clip" and clip_range(node)[0] >= 0):
            return True
        if node.op not in KEEPING:
            return False
        tensor = node.inputs[0]
    return False
