"""Biases in units of their operator's codes. In: floats, and what they are added to. Out: int32 codes in a model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxc.contract.candidates import Activation
from onnxc.encoding import Codes
from onnxc.model import Constant, Graph, Tensor
from onnxc.rewriting.weights import CodedWeights

LONG_BIAS = 32  # values from which on a bias's scale is not stored


@dataclass(eq=False)
class Bias:
    """An int32 bias as written.

    Attributes:
        values: [N], in float; weight: whose codes it is added to the products of; activation: the other factor.
        codes: the constant of its codes; step: that of their scale, None where it is made at load.
    """

    values: NDArray[np.float64]
    weight: str
    activation: Activation
    codes: Constant
    step: Constant | None = None

    def scale(self, weight: Codes) -> NDArray[np.float32]:
        """The input's scale times the weight's."""
        return np.asarray(self.activation.scale * weight.scale, np.float32)

    def write(self, weight: Codes) -> None:
        """Codes and scale, in units of ``weight``."""
        scale, limits = self.scale(weight), np.iinfo(np.int32)
        self.codes.values = np.clip(np.rint(self.values / scale), limits.min, limits.max).astype(np.int32)
        if self.step is not None:
            self.step.values = scale


@dataclass(eq=False)
class CodedBiases:
    """The biases of a model that are codes, by the names they had."""

    weights: CodedWeights
    _made: dict[str, Bias] = field(default_factory=dict, init=False)

    def __contains__(self, name: str) -> bool:
        return name in self._made

    def dequantized(
        self, tensor: Tensor, weight: str, activation: Activation, step: Tensor | None, graph: Graph | None = None
    ) -> Tensor:
        """The bias [N] as DequantizeLinear(int32, scale of the input times scale of the weight).

        Args:
            step: the scale of the input where the model has it as a tensor.
            graph: of the operator that reads it; the main graph by default.
        """
        model, codes = self.weights.model, self.weights.codes[weight]
        base = f"{weight}_bias" if not tensor.name else tensor.name
        values = np.asarray(model.values(tensor), np.float64)
        made = Bias(values, weight, activation, model.constant(f"{base}_q", np.zeros(values.shape, np.int32)))
        scale: Tensor
        if values.size >= LONG_BIAS and step is not None and not self.weights.plain:
            # made at load: it takes fewer bytes
            scale = self.weights.sheet.node("Mul", [self.weights.scale(weight), step], f"{base}_scale")
        else:
            scale = made.step = model.constant(f"{base}_scale", made.scale(codes))
        made.write(codes)
        self._made[tensor.name] = made
        axis = 0 if codes.scale.ndim else None
        return model.insert(
            "DequantizeLinear", [made.codes, scale], [f"{base}_dq"], name=f"{base}_dq", graph=graph, axis=axis
        ).outputs[0]

    def recode(self, weight: str) -> None:
        """Every bias that is in units of ``weight``, in those of its codes as they are now."""
        for bias in self._made.values():
            if bias.weight == weight:
                bias.write(self.weights.codes[weight])

    def shift(self, name: str, error: NDArray[np.float64]) -> None:
        """Take ``error`` [N] out of the bias called ``name``."""
        made = self._made[name]
        made.values = made.values - error.reshape(made.values.shape)
        made.write(self.weights.codes[made.weight])
