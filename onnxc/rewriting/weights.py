"""Weights as codes in a model. In: codes by weight. Out: the tensors that operators read in place of the weights.

Each is made when it is first asked for, and once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.floats import ListedFloats, PackedFloats, fits_bfloat16, lists_of
from onnxc.codes.formats import FLOATS
from onnxc.codes.sheets import Group, Packed, Piece, Sheet, emit_together
from onnxc.encoding import BlockCodes, Codes
from onnxc.model import Constant, Graph, Model, Tensor

FEW_SCALES = 128  # in a model: their unfolding would take as many bytes as it saves
MANY_SCALES = 4096  # in one that loads late: fewer do not pay for the nodes that unfold them
WORTH_A_CAST = 32  # scales that lie together: fewer take no more bytes as float32
SMALL = 1 << 22  # weights of a model that become floats all at once: of more, one at a time, in less memory


@dataclass(eq=False)
class CodedWeights:
    """The codes and scales of weights, and what dequantizes them.

    Attributes:
        codes: weight name -> its codes.
        sheet: where nodes that unfold packed codes are written.
        plain: nothing is packed, so that codes can be changed after they were written.
        floats: weights that no operator is expected to read as codes: they unfold to floats together.
        few_scales: of fewer all are float32.
    """

    model: Model
    codes: dict[str, Codes]
    sheet: Sheet
    plain: bool = False
    floats: Collection[str] = ()
    few_scales: int = FEW_SCALES
    _coded: dict[str, Tensor] = field(default_factory=dict, init=False)
    _floats: dict[str, Tensor] = field(default_factory=dict, init=False)
    _scales: dict[tuple[str, tuple[int, ...]], Tensor] = field(default_factory=dict, init=False)
    _made: dict[str, Tensor] = field(default_factory=dict, init=False)
    _groups: dict[str, Group] = field(default_factory=dict, init=False)
    _unfolded: bool = field(default=False, init=False)

    def coded(self, weight: str) -> Tensor:
        """The int8 tensor that replaces ``weight``, named after it: an initializer, or what unfolds to it at load.

        Those that unfold do so together, when the first of them is asked for.
        """
        if weight not in self._coded:
            if self.codes[weight].packed is None:
                self._coded[weight] = self.model.constant(f"{weight}_q", self.codes[weight].values)
            else:
                names = [name for name in self.codes if name == weight or name not in self.floats]
                self._coded |= self._together([name for name in names if name not in self._coded], self.sheet)
        return self._coded[weight]

    def _together(self, names: Collection[str], sheet: Sheet) -> dict[str, Tensor]:
        """The codes of those of ``names`` that are packed, unfolded on ``sheet``."""
        labels = {f"{name}_q": name for name in names}
        forms = {label: packed for label, name in labels.items() if (packed := self.codes[name].packed) is not None}
        found: dict[str, Tensor] = {}
        for label, made in emit_together(sheet, forms).items():
            made.dtype = np.dtype(np.float32 if made.dtype == np.float32 else np.int8)
            made.shape = list(self.codes[labels[label]].values.shape)
            found[labels[label]] = made
        return found

    def transposed(self, weight: str) -> Tensor:
        """The codes of a matrix [N, K] as [K, N], through a Transpose that is folded at load."""
        key = f"{weight}_transposed"
        if key not in self._made:
            node = self.model.insert("Transpose", [self.coded(weight)], [key], name=key, perm=[1, 0])
            self._made[key] = node.outputs[0]
        return self._made[key]

    def scale(self, weight: str, form: str = "flat") -> Tensor:
        """Its scale: "flat" [channels], "broadcast" in the weight's rank, or "zero" the int8 zero points.

        Scales lie in the file in 8 or 16 bits, all of them together; zero points of one length are one tensor.
        """
        codes = self.codes[weight]
        if form == "zero":
            label = f"zero_{codes.scale.size}" if codes.scale.ndim else "zero"
            return self.sheet.shared(label, np.zeros(codes.scale.shape, np.int8))
        self._all_scales()
        shape = codes.broadcast_scale().shape if form == "broadcast" and not along_last(codes) else codes.scale.shape
        if (weight, shape) not in self._scales:
            made = next((made for (name, _), made in self._scales.items() if name == weight), None)
            self._scales[weight, shape] = (
                self.sheet.reshaped(made, shape, f"{weight}_scales")
                if made is not None
                else self.model.constant(f"{weight}_scale", codes.scale.reshape(shape))
            )
        return self._scales[weight, shape]

    def _all_scales(self) -> dict[tuple[str, tuple[int, ...]], Tensor]:
        """The scales of all weights by name and shape, made when the first is asked for."""
        if not self._scales:
            self._scales |= self.scales()
        return self._scales

    def scales(self) -> dict[tuple[str, tuple[int, ...]], Tensor]:
        """The scale of every weight, in the shape in which it is expected to be read; those of a group are one.

        Those that bfloat16 holds and that are many unfold together, out of lists of all that occur or as they are.
        """
        self._unfold_floats()
        scales, grouped = dict[str, NDArray[np.float32]](), set[str]()
        for label, group in self._groups.items():
            scale = np.concatenate([self.codes[name].broadcast_scale() for name in group.rows], group.axis)
            scales[label] = scale if group.axis < scale.ndim - 1 else scale.reshape(-1)
            grouped |= set(group.rows)
        for name, codes in self.codes.items():
            if name not in grouped and not isinstance(codes, BlockCodes):
                wide = name in self.floats and not along_last(codes)
                scales[name] = codes.broadcast_scale() if wide else codes.scale
        entries = Counter[tuple[int, ...]]()  # of scales that one Cast can unfold
        for scale in scales.values():
            entries[scale.shape[1:]] += scale.size
        many = {name for name, scale in scales.items() if scale.ndim and entries[scale.shape[1:]] >= WORTH_A_CAST}
        short = [name for name, scale in scales.items() if name in many and fits_bfloat16(scale)]
        lists, forms = lists_of({name: scales[name] for name in short}), dict[str, Packed]()
        for name in short:
            listed, scale = lists.get(name), scales[name]
            form = ListedFloats(scale, listed) if listed is not None else PackedFloats.of(scale, "bfloat16")
            forms[f"{name}_scale"] = form
        if (
            self.plain
            or self.model.opset < FLOATS["bfloat16"][1]
            or sum(form.size for form in forms.values()) < self.few_scales
        ):
            forms = {}
        made = {label.removesuffix("_scale"): tensor for label, tensor in emit_together(self.sheet, forms).items()}
        for name, scale in scales.items():
            if name not in made:
                made[name] = self.model.constant(f"{name}_scale", scale)
        return {(name, scale.shape): made[name] for name, scale in scales.items()}

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
        self._unfold_floats()
        key = f"{weight}_unfolded"
        for label, group in self._groups.items():
            if weight in group.rows and key not in self._made:
                self._made |= self._scaled_together(label, group)
        if key in self._made:
            return self._made[key]
        cast = self._floats[weight] if weight in self._floats else self.coded(weight)
        if cast.dtype != np.float32:
            cast = self.sheet.cast(cast, f"{weight}_cast")
        return self._scaled(cast, self.scale(weight, "broadcast"), key, list(self.codes[weight].values.shape))

    def _unfold_floats(self) -> None:
        """Let the weights that no operator reads as codes become floats together, once.

        Those of one shape stay together until they are multiplied with their scales: one Mul for all of them.
        """
        if self._unfolded:
            return
        self._unfolded = True
        names = [name for name in self.codes if name in self.floats and name not in self._coded]
        left = [name for name in names if self.codes[name].packed is not None]
        small = sum(self.codes[name].values.size for name in left) <= SMALL
        groups: list[Group] = []
        self._floats |= self._together(left, replace(self.sheet, floats=small, groups=groups if small else None))
        for group in groups:
            rows = {label.removesuffix("_q"): count for label, count in group.rows.items()}
            if all(self.codes[name].axis == group.axis for name in rows):
                self._groups[f"{next(iter(rows))}_together"] = replace(group, rows=rows)
                continue
            for name, made in zip(rows, self._split(group, [f"{name}_q" for name in rows]), strict=True):
                made.dtype, made.shape = np.dtype(np.float32), list(self.codes[name].values.shape)
                self._floats[name] = made
        for members in [] if self.plain else self._alike([name for name in names if name not in left]):
            label, axis = f"{members[0]}_together", self.codes[members[0]].axis
            assert axis is not None
            values = np.concatenate([self.codes[name].values for name in members], axis)
            cast = self.sheet.cast(self.model.constant(f"{label}_q", values), f"{label}_cast")
            self._groups[label] = Group(cast, axis, {name: self.codes[name].values.shape[axis] for name in members})

    def _alike(self, names: Collection[str]) -> list[list[str]]:
        """Those of ``names`` whose int8 codes can lie in one tensor: of one shape, but for the axis of their scales."""
        kinds: dict[tuple[object, ...], list[str]] = {}
        for name in names:
            codes = self.codes[name]
            if codes.axis is not None and not isinstance(codes, BlockCodes):
                kinds.setdefault(Piece(codes.values.shape, codes.axis).kind, []).append(name)
        sizes = {name: self.codes[name].values.size for name in names}
        return [found for found in kinds.values() if len(found) > 1 and sum(map(sizes.__getitem__, found)) <= SMALL]

    def _split(self, group: Group, names: Collection[str]) -> list[Tensor]:
        """The weights of a group, each on its own."""
        return self.sheet.split(group.tensor, list(group.rows.values()), list(names), group.axis)

    def _scaled_together(self, label: str, group: Group) -> dict[str, Tensor]:
        """The weights of a group, multiplied with their scales and split."""
        ((_, shape),) = (key for key in self._all_scales() if key[0] == label)
        whole = list(self.codes[next(iter(group.rows))].values.shape)
        whole[group.axis] = sum(group.rows.values())
        scaled = self._scaled(group.tensor, self._scales[label, shape], label, whole)
        names = [f"{name}_unfolded" for name in group.rows]
        made = self._split(replace(group, tensor=scaled), names)
        for name, tensor in zip(group.rows, made, strict=True):
            tensor.dtype, tensor.shape = np.dtype(np.float32), list(self.codes[name].values.shape)
        return dict(zip(names, made, strict=True))

    def _scaled(self, values: Tensor, scale: Tensor, name: str, shape: list[int]) -> Tensor:
        """A product of a known shape."""
        made = self.sheet.node("Mul", [values, scale], name)
        made.dtype, made.shape = np.dtype(np.float32), [*shape]
        return made

    def recode(self, weight: str, codes: Codes) -> None:
        """``codes`` in place of those that were written for ``weight``; only where nothing is packed."""
        self.codes[weight] = codes
        held: list[tuple[Tensor | None, NDArray[Any]]] = [(self._coded.get(weight), codes.values)]
        held += [(made, codes.scale.reshape(shape)) for (name, shape), made in self._scales.items() if name == weight]
        for tensor, values in held:
            if isinstance(tensor, Constant):
                tensor.values = values


def along_last(codes: Codes) -> bool:
    """Whether the scale multiplies codes as it is: it is one, or lies along the last axis."""
    return codes.axis in (None, codes.values.ndim - 1)
