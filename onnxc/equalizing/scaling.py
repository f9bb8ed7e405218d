"""Factors per channel on one side of a tensor, their inverses on the other.

      x ── Conv(W, b) ── Relu ── Conv(V) ── y     is     x ── Conv(W / s, b / s) ── Relu ── Conv(V * s) ── y

In: a tensor, what makes and what reads it, and factors. Out: other constants, the outputs staying equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxc.model import Constant, Model, Node, Tensor
from onnxc.sites import Site


@dataclass(eq=False)
class Seam:
    """A tensor whose channels may be scaled.

    Attributes:
        tensor: what the sites read.
        sites: the linears and convolutions that read it: all of its readers.
        channels: how many channels it has.
        before: constants to be divided by the factors: (constant, order, power), where ``order`` has the constant's
            rank and holds for every entry the channel whose factor, to that power, divides it (axes of size 1 spread).
        makers: linears and convolutions whose weights are among them.
        passed: every node between those constants and the tensor, nearest first.
        clips: those that cut at an upper bound, each with the channel of every entry of its result.
        insert: nothing before takes the factors: a Mul by them is put in front of the sites.
    """

    tensor: Tensor
    sites: list[Site]
    channels: int
    before: list[tuple[Constant, NDArray[np.intp], float]] = field(default_factory=list)
    makers: list[Node] = field(default_factory=list)
    passed: list[Node] = field(default_factory=list)
    clips: list[tuple[Node, NDArray[np.intp]]] = field(default_factory=list)
    insert: bool = False

    @property
    def name(self) -> str:
        return str(self.tensor.name)

    def apply(self, model: Model, factors: NDArray[np.floating]) -> None:
        """Divide what comes before by ``factors`` [channels] and multiply the sites' weights by them."""
        exact = np.asarray(factors, np.float64)
        if self.insert:
            rank = 1 if self.sites[0].kind == "linear" else len(weight_shape(self.sites[0]))
            shape = (-1, *[1] * max(rank - 2, 0))
            inverse = model.constant(f"{self.name}_inverse", np.asarray(1 / exact, np.float32).reshape(shape))
            label, graph = f"{self.name}_scaled", self.sites[0].graph
            made = model.insert("Mul", [self.tensor, inverse], [label], name=label, graph=graph)
            made.outputs[0].dtype, made.outputs[0].shape = self.tensor.dtype, self.tensor.shape
            for site in self.sites:
                site.node.inputs[0] = made.outputs[0]
        for constant, order, power in self.before:
            values = np.asarray(constant.values)
            divided = values.astype(np.float64) / exact[order] ** power
            constant.values = divided.astype(values.dtype)
        for weight in {id(site.weight): site.weight for site in self.sites if site.weight is not None}.values():
            reader = next(site for site in self.sites if site.weight is weight)
            values = np.asarray(weight.tensor.values)
            scaled = values.astype(np.float64) * exact[input_order(reader, self.channels)]
            weight.tensor.values = scaled.astype(values.dtype)


def weight_shape(site: Site) -> tuple[int, ...]:
    """The shape of a site's weight."""
    assert site.weight is not None
    return site.weight.shape


def input_order(site: Site, channels: int) -> NDArray[np.intp]:
    """For every entry of the site's weight, the input channel that it multiplies; axes of size 1 broadcast."""
    assert site.weight is not None
    shape, index = site.weight.shape, np.arange(channels)
    if site.operator == "MatMul" or (site.operator == "Gemm" and not site.node.attrs.get("transB", 0)):
        return index.reshape(-1, 1)
    if site.operator == "Gemm":
        return index.reshape(1, -1)
    group = int(site.node.attrs.get("group", 1))
    grouped = np.repeat(index.reshape(group, -1), shape[0] // group, axis=0)  # [outputs, inputs of a group]
    return grouped.reshape(*grouped.shape, *[1] * (len(shape) - 2))


def input_channels(site: Site) -> int:
    """How many input channels a linear or a convolution has."""
    assert site.weight is not None
    shape = site.weight.shape
    if site.operator == "Conv":
        return shape[1] * int(site.node.attrs.get("group", 1))
    return shape[1] if site.operator == "Gemm" and site.node.attrs.get("transB", 0) else shape[0]


def as_rows(site: Site, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weight of a site as [K, N], per input channel: a convolution's kernel positions count as outputs."""
    channels = input_channels(site)
    if site.operator != "Conv":
        return np.ascontiguousarray(values.T if site.node.attrs.get("transB", 0) else values)
    group = int(site.node.attrs.get("group", 1))
    parts = values.reshape(group, values.shape[0] // group, values.shape[1], -1)
    return parts.swapaxes(1, 2).reshape(channels, -1)
