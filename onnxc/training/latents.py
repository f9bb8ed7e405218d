"""What is learned in place of a weight. In: a parameter. Out: the weight's value with a gradient, and in the file.

Rounding passes the gradient straight through (Bengio et al., 2013); scales learn as in LSQ (Esser et al., 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from onnxc.file.shell import is_constant
from onnxc.model import Constant, Tensor
from onnxc.training.operators.table import straight


@dataclass(eq=False)
class Latent:
    """Something that is learned.

    Attributes:
        tensors: of the model, whose values ``value`` gives; an initializer, or what a node makes of one.
        parameter: what the optimizer changes. rate: its step, in units of the rate of the training.
        kind: "float", "scale", "codes", "words" or "bias", for reports.
    """

    tensors: list[Tensor]
    parameter: torch.Tensor
    rate: float
    kind: str

    def value(self) -> torch.Tensor:
        """What the model computes with, with a gradient to the parameter."""
        return self.parameter

    def write(self) -> None:
        """Put the learned value where it came from."""
        assign(self.tensors[0], self.value().detach().cpu().double().numpy())

    def weight(self) -> torch.Tensor:
        """The parameter as a weight decays or is measured: itself."""
        return self.parameter


@dataclass(eq=False)
class FloatLatent(Latent):
    """A float initializer. What was pruned stays zero.

    Attributes:
        mask: 0 where the file has a zero that stays, else 1; None where all of it is learned.
        dtype: of the file; halves are rounded on the way.
    """

    mask: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32
    cast: bool = False

    def value(self) -> torch.Tensor:
        value = self.parameter if self.mask is None else self.parameter * self.mask
        if self.dtype == torch.float32:
            return value
        if self.cast:  # its readers cast it to float32: in halves small gradients would be lost
            return straight(value.to(self.dtype).to(value.dtype), value)
        return value.to(self.dtype)


@dataclass(eq=False)
class ScaleLatent(Latent):
    """A scale: the file's value times the exponential of the parameter, which starts at 0."""

    start: torch.Tensor = field(default_factory=lambda: torch.ones(()))
    dtype: torch.dtype = torch.float32

    def value(self) -> torch.Tensor:
        value = self.start * torch.exp(self.parameter)
        return value if self.dtype == torch.float32 else straight(value.to(self.dtype).float(), value)

    def write(self) -> None:
        value = self.value().detach().cpu().double().numpy()
        for constant in self.tensors:
            assign(constant, value)


@dataclass(eq=False)
class ListedLatent(ScaleLatent):
    """Scales that the file has as places in a list: each is the nearest entry.

    Attributes:
        source: the initializer that holds places; entries: what the list says, ascending.
    """

    source: Constant | None = None
    entries: torch.Tensor = field(default_factory=lambda: torch.ones(1))

    def places(self) -> torch.Tensor:
        """Numbers of entries: the borders between them are their geometric means."""
        borders = (self.entries[1:] * self.entries[:-1]).sqrt()
        return torch.bucketize(self.start * torch.exp(self.parameter), borders)

    def value(self) -> torch.Tensor:
        value = self.start * torch.exp(self.parameter)
        return straight(self.entries[self.places()], value)

    def write(self) -> None:
        assert self.source is not None
        assign(self.source, self.places().detach().cpu().numpy())


@dataclass(eq=False)
class CodesLatent(Latent):
    """Codes: the parameter, rounded and kept in the range that the file's codes have."""

    low: float = -127
    high: float = 127
    mask: torch.Tensor | None = None

    def value(self) -> torch.Tensor:
        value = straight(torch.round(self.parameter), self.parameter).clamp(self.low, self.high)
        return value if self.mask is None else value * self.mask


@dataclass(eq=False)
class WordsLatent(Latent):
    """Digits behind a table of all their combinations.

    Attributes:
        source: the initializer that holds words. levels: of a digit. low, step: digit d stands for low + step d.
        rows: number of a combination, its first digit counting least -> row of the table; single: the table is flat.
    """

    source: Constant | None = None
    levels: int = 16
    low: float = 0.0
    step: float = 1.0
    rows: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    single: bool = False

    def digits(self) -> torch.Tensor:
        """Whole numbers from 0 to levels - 1."""
        return straight(torch.round(self.parameter), self.parameter).clamp(0, self.levels - 1)

    def value(self) -> torch.Tensor:
        return self.low + self.step * self.digits()

    def write(self) -> None:
        assert self.source is not None
        digits = self.digits().detach().long()
        if self.single:
            digits = digits.unsqueeze(-1)
        powers = self.levels ** torch.arange(digits.shape[-1], device=digits.device)
        words = self.rows[(digits * powers).sum(-1)].cpu().numpy()
        assign(self.source, words)


@dataclass(eq=False)
class BiasLatent(Latent):
    """An int32 bias as a real number; written after the scales it is measured in.

    Attributes:
        source, scale: initializers: the codes and their scale.
        factors: the scales of input and weight whose product the scale is, where it is.
        made: gives the scale where nodes of the model make it.
    """

    source: Constant | None = None
    scale: Constant | None = None
    factors: tuple[Constant, Constant] | None = None
    made: Callable[[], np.ndarray] | None = None

    def write(self) -> None:
        assert self.source is not None
        if self.made is not None:
            scale = self.made()
        else:
            assert self.scale is not None
            if self.factors is not None:
                first, second = (np.asarray(each.values, np.float32) for each in self.factors)
                product = np.asarray(first * second, np.float32)
                assign(self.scale, np.broadcast_to(product.reshape(-1), self.scale.shape or (1,)))
            scale = self.scale.values
        real = self.parameter.detach().cpu().double().numpy()
        codes = np.rint(real / np.asarray(scale, np.float64))
        assign(self.source, np.clip(codes, -(2**31), 2**31 - 1))


def assign(tensor: Tensor, values: np.ndarray) -> None:
    """Give a constant other values of its own type and shape; equal ones leave it as it is in the file."""
    assert is_constant(tensor)
    fresh = values.reshape(tensor.shape).astype(tensor.dtype)
    if not np.array_equal(fresh, np.asarray(tensor.values)):
        tensor.values = fresh


def values_of(found: Iterable[Latent]) -> dict[Tensor, torch.Tensor]:
    """The current values, for a Program."""
    made: dict[Tensor, torch.Tensor] = {}
    for latent in found:
        value = latent.value()
        for tensor in latent.tensors:
            shaped = is_constant(tensor) and tuple(value.shape) != tuple(tensor.shape)
            made[tensor] = value.reshape(tensor.shape) if shaped else value
    return made


def tensors_of(found: Iterable[Latent]) -> list[Tensor]:
    """The tensors whose values latents give."""
    return [tensor for latent in found for tensor in latent.tensors]


def write(found: Iterable[Latent]) -> None:
    """Write everything back into the model; biases last, since they are measured in scales."""
    for latent in sorted(found, key=lambda each: each.kind == "bias"):
        latent.write()
