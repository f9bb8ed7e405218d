"""Weights as kernels of convolutions. In: a weight with its readers. Out: a Kernel and how its inputs are observed, or
why it is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxc.contract.context import Context
from onnxc.factors.common import own_bias, quota, unfit
from onnxc.model import Constant, Model
from onnxc.sequential import Reading
from onnxc.sites import Site, Weight
from onnxc.windows import Windows, im2col, places

Array = NDArray[np.float64]
Form = Literal["tucker", "spatial", "channel"]
Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Way:
    """One way to factor a kernel: its ranks, the numbers of its factors, their products per output position, its damage
    (E|y - y'|^2 / E|y|^2).
    """

    form: Form
    ranks: Ranks
    numbers: int
    products: int
    damage: float

    @property
    def text(self) -> str:
        return f"{self.form} rank {' x '.join(map(str, self.ranks))}"


@dataclass(eq=False)
class Kernel:
    """The weight of one or several Conv nodes.

    Attributes:
        sites: its readers; readings: how they are observed, those outside of loops.
        groups, filters, channels: G, outputs and inputs of a group; size: of the window.
        bias: name of a bias that only this convolution reads.
    """

    weight: Weight
    sites: list[Site]
    readings: list[Reading]
    groups: int
    model: Model
    bias: str | None

    @property
    def name(self) -> str:
        return self.sites[0].name

    @property
    def channels(self) -> int:
        return self.weight.shape[1]

    @property
    def filters(self) -> int:
        return self.weight.shape[0] // self.groups

    @property
    def size(self) -> tuple[int, ...]:
        return self.weight.shape[2:]

    @property
    def strides(self) -> list[int]:
        return [int(s) for s in self.sites[0].node.attrs.get("strides", [1] * len(self.size))]

    @property
    def forms(self) -> list[Form]:
        """The forms that this kernel can take."""
        if prod(self.size) == 1:
            return ["channel"]
        spatial: list[Form] = ["spatial"] if len(self.size) == 2 and min(self.size) > 1 else []
        return spatial if self.channels == 1 else ["tucker", "channel", *spatial]

    def values(self) -> Array:
        """[G, O, C, *k]."""
        array = np.asarray(self.model.values(self.weight.tensor), np.float64)
        return array.reshape(self.groups, self.filters, self.channels, *self.size)

    def way(self, form: Form, ranks: Ranks, found: float = 0.0) -> Way:
        """What a form costs at ``ranks``; the first parts run before (some of) the strides."""
        places, filters, channels = prod(self.size), self.filters, self.channels
        if form == "channel":
            numbers = products = ranks[0] * (channels * places + filters)
        elif form == "spatial":
            first, last = ranks[0] * channels * self.size[0], ranks[0] * filters * self.size[1]
            numbers, products = first + last, first * self.strides[1] + last
        else:
            first, rest = channels * ranks[0], ranks[0] * ranks[1] * places + ranks[1] * filters
            numbers, products = first + rest, first * prod(self.strides) + rest
        return Way(form, ranks, self.groups * numbers, self.groups * products, found)


def understood(weight: Weight, context: Context) -> Kernel | str | None:
    """The kernel that ``weight`` is to all its readers; why it is none; None where no reader is a convolution."""
    model = context.model
    by_node = {id(site.node): site for site in context.sites if site.kind == "convolution"}
    sites = [by_node[id(node)] for node, _ in weight.readers if id(node) in by_node]
    if not sites or len(weight.shape) < 3:  # a bias
        return None
    name = sites[0].name
    for node, position in weight.readers:
        if node.op == "ConvTranspose":
            return f"{name}: not factored, a transposed convolution"
        if id(node) not in by_node or position != 1:
            return f"{name}: not factored, {node.name} ({node.op}) needs its weight '{weight.name}' whole"
    groups = {int(site.node.attrs.get("group", 1)) for site in sites}
    if len(groups) > 1:
        return f"{name}: not factored, its weight is read with {' and '.join(map(str, sorted(groups)))} groups"
    refused = unfit(name, weight, model)
    if refused is not None:
        return refused
    bias = own_bias(sites[0], context) if len(sites) == 1 else None
    once = context.sites.once
    seen = [site for site in sites if site.node in once and site.input.name and not isinstance(site.input, Constant)]
    readings = [reading(site, context) for site in seen]
    return Kernel(weight, sites, readings, groups.pop(), model, bias)


def windows(values: NDArray[np.float32], site: Site, quota: int, seed: int) -> NDArray[np.float32] | None:
    """At most ``quota`` im2col rows [R, G, C k] at different random output positions of one sample."""
    assert site.weight is not None
    if values.ndim != len(site.weight.shape):
        return None
    seen = Windows.of(site.node.attrs, values.shape[2:], site.weight.shape[2:]).seen(values)
    if seen is None:
        return None
    spots = places(seen)
    pick = np.sort(np.random.default_rng(seed).permutation(prod(spots))[:quota])
    return im2col(seen, np.unravel_index(pick, spots), int(site.node.attrs.get("group", 1)))


def reading(site: Site, context: Context) -> Reading:
    """How the input of a convolution is observed: im2col rows at random places, as many of every sample."""
    most = quota(context)

    def rows(values: NDArray[Any], seed: int) -> NDArray[np.float32] | None:
        return windows(np.asarray(values, np.float32), site, most, seed)

    return Reading(site.input.name, f"{site.input.name} of {site.name}", rows)
