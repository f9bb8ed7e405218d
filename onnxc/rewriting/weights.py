"""Weights as codes in a model. In: codes by weight. Out: the tensors that operators read in place of the weights.

Each is made when it is first asked for, and once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxc.codes.floats import PackedFloats, fits_bfloat16
from onnxc.codes.formats import FLOATS
from onnxc.codes.sheets import Sheet, emit_together
from onnxc.encoding import BlockCodes, Codes
from onnxc.model import Constant, Graph, Model, Tensor

FEW_SCALES = 128  # in a model: their unfolding would take as many bytes as it saves


@dataclass(eq=False)
class CodedWeights:
    """The codes and scales of weights, and what dequantizes them.

    Attributes:
        codes: weight name -> its codes.
        sheet: where nodes that unfold packed codes are written.
        plain: nothing is packed, so that codes can be changed after they were written.
    """

    model: Model
    codes: dict[str, Codes]
    sheet: Sheet
    plain: bool = False
    _coded: dict[str, Tensor] = field(default_factory=dict, init=False)
    _scales: dict[tuple[str, str], Tensor] = field(default_factory=dict, init=False)
    _made: dict[str, Tensor] = field(default_factory=dict, init=False)

    def coded(self, weight: str) -> Tensor:
        """The int8 tensor that replaces ``weight``, named after it: an initializer, or what unfolds to it at load.

        Those that unfold do so together, when the first of them is asked for.
        """
        if weight not in self._coded:
            if self.codes[weight].packed is None:
                self._coded[weight] = self.model.constant(f"{weight}_q", self.codes[weight].values)
                return self._coded[weight]
            names = {f"{name}_q": name for name, codes in self.codes.items() if codes.packed is not None}
            forms = {key: packed for key, name in names.items() if (packed := self.codes[name].packed) is not None}
            for key, made in emit_together(self.sheet, forms).items():
                made.dtype, made.shape = np.dtype(np.int8), list(self.codes[names[key]].values.shape)
                self._coded[names[key]] = made
        return self._coded[weight]

    def transposed(self, weight: str) -> Tensor:
        """The codes of a matrix [N, K] as [K, N], through a Transpose that is folded at load."""
        key = f"{weight}_transposed"
        if key not in self._made:
            node = self.model.insert("Transpose", [self.coded(weight)], [key], name=key, perm=[1, 0])
            self._made[key] = node.outputs[0]
        return self._made[key]

    def scale(self, weight: str, form: str = "flat") -> Tensor:
        """Its scale: "flat" [channels], "broadcast" in the weight's rank, or "zero" the int8 zero points.

        Scales lie in the file as bfloat16, all of them together; zero points of one length are one tensor.
        """
        codes = self.codes[weight]
        if form == "zero":
            label = f"zero_{codes.scale.size}" if codes.scale.ndim else "zero"
            return self.sheet.shared(label, np.zeros(codes.scale.shape, np.int8))
        if form == "broadcast" and codes.axis not in (None, codes.values.ndim - 1):
            if (weight, form) not in self._scales:
                shape = codes.broadcast_scale().shape
                self._scales[weight, form] = self.sheet.reshaped(self.scale(weight), shape, f"{weight}_scales")
            return self._scales[weight, form]
        if (weight, "flat") not in self._scales:
            self._scales |= {(name, "flat"): made for name, made in self.scales().items()}
        return self._scales[weight, "flat"]

    def scales(self) -> dict[str, Tensor]:
        """The scale of every weight: those that bfloat16 holds and that are many unfold together."""
        flat = {name: codes for name, codes in self.codes.items() if not isinstance(codes, BlockCodes)}
        short = [name for name, codes in flat.items() if codes.scale.ndim and fits_bfloat16(codes.scale)]
        forms = {f"{name}_scale": PackedFloats.of(self.codes[name].scale, "bfloat16") for name in short}
        if (
            self.plain
            or self.model.opset < FLOATS["bfloat16"][1]
            or sum(form.size for form in forms.values()) < FEW_SCALES
        ):
            forms = {}
        made = {label.removesuffix("_scale"): tensor for label, tensor in emit_together(self.sheet, forms).items()}
        for name, codes in flat.items():
            if name not in made:
                made[name] = self.model.constant(f"{name}_scale", codes.scale)
        return made

    def dequantized(self, weight: str, graph: Graph | None = None) -> Tensor:
        """DequantizeLinear of the codes, for operators of ``graph`` that fuse with it. Zero points are always written:
        without them Gemm does not fuse. In a body it is made again: nothing fuses across its border, while codes and
        scales may lie outside.
        """
        key = f"{weight}_dq{self.place(graph)}"
        if key not in self._made:
            self._made[key] = self.model.insert(
                "DequantizeLinear",
                [self.coded(weight), self.scale(weight), self.scale(weight, "zero")],
                [f"{weight}_dq"],
                name=f"{weight}_dq",
                graph=graph,
                axis=self.codes[weight].axis,
            ).outputs[0]
        return self._made[key]

    def place(self, graph: Graph | None) -> str:
        """What tells a body from the main graph in a key."""
        return "" if graph in (None, self.model.graph) else f" in {id(graph)}"

    def dequantized_transposed(self, weight: str, graph: Graph | None = None) -> Tensor:
        """The same of a matrix [N, K], as [K, N]."""
        key = f"{weight}_transposed_dq{self.place(graph)}"
        if key not in self._made:
            self._made[key] = self.model.insert(
                "DequantizeLinear",
                [self.transposed(weight), self.scale(weight), self.scale(weight, "zero")],
                [f"{weight}_transposed_dq"],
                name=f"{weight}_transposed_dq",
                graph=graph,
                axis=1,
            ).outputs[0]
        return self._made[key]

    def unfolded(self, weight: str) -> Tensor:
        """Cast(codes) * scale, which ONNX Runtime folds at load."""
        cast = self.model.insert("Cast", [self.coded(weight)], [f"{weight}_cast"], name=f"{weight}_cast", to=1).outputs[
            0
        ]
        scaled = self.model.insert(
            "Mul",
            [cast, self.scale(weight, "broadcast")],
            [f"{weight}_unfolded"],
            name=f"{weight}_unfolded",
        ).outputs[0]
        scaled.dtype, scaled.shape = np.dtype(np.float32), list(self.codes[weight].values.shape)
        return scaled

    def recode(self, weight: str, codes: Codes) -> None:
        """``codes`` in place of those that were written for ``weight``; only where nothing is packed."""
        self.codes[weight] = codes
        for held, values in (
            (self._coded.get(weight), codes.values),
            (self._scales.get((weight, "flat")), codes.scale),
        ):
            if isinstance(held, Constant):
                held.values = values
