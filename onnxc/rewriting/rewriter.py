"""Chosen candidates, written into one copy of a model. In: the copy, codes of weights. Out: the copy, rewritten.

Codes of a weight, the Q/DQ pair of an activation and a dynamic quantization are made once, and shared between sites.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx.helper import np_dtype_to_tensor_dtype

from onnxc.codes.floats import PackedFloats
from onnxc.codes.sheets import Packed, Sheet, emit_together
from onnxc.contract.candidates import Activation
from onnxc.encoding import Codes
from onnxc.model import Constant, Graph, Model, Node, Tensor
from onnxc.rewriting.biases import CodedBiases
from onnxc.rewriting.weights import CodedWeights
from onnxc.sites import STORED
from onnxc.targets import CPU, Target


@dataclass(eq=False)
class Rewriter:
    """What candidates are applied through.

    Attributes:
        model: the copy; codes: weight name -> its codes.
        plain: nothing is packed, so that codes can be changed after they were written.
        floats: weights that no operator is expected to read as codes.
        target: what the model is for: says how biases and codes may lie in it.
        nodes, tensors: of all graphs of the model, by name.
        sheet: where nodes that unfold stored weights are written.
        weights: the tensors that coded weights become.
    """

    model: Model
    codes: dict[str, Codes]
    plain: bool = False
    floats: Collection[str] = ()
    target: Target = CPU
    nodes: dict[str, Node] = field(default_factory=dict, init=False)
    tensors: dict[str, Tensor] = field(default_factory=dict, init=False)
    sheet: Sheet = field(init=False)
    weights: CodedWeights = field(init=False)
    _homes: dict[int, Graph] = field(default_factory=dict, init=False)
    _makers: dict[str, Graph] = field(default_factory=dict, init=False)
    _biases: CodedBiases = field(init=False)
    _pairs: dict[str, dict[int, Tensor]] = field(default_factory=dict, init=False)
    _steps: dict[str, list[Constant]] = field(default_factory=dict, init=False)
    _replaced: dict[str, Tensor] = field(default_factory=dict, init=False)
    _dynamic: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.sheet = Sheet(self.model)
        plain = self.plain or bool(self.target.plain)
        self.weights = CodedWeights(self.model, self.codes, self.sheet, plain, self.floats)
        self._biases = CodedBiases(self.weights)
        for graph in self.model.graphs():
            for tensor in graph.inputs:
                self.tensors.setdefault(tensor.name, tensor)
                self._makers.setdefault(tensor.name, graph)
            for node in graph.nodes:
                self.nodes[node.name] = node
                self._homes[id(node)] = graph
                for tensor in node.outputs:
                    self._makers.setdefault(tensor.name, graph)
                for tensor in (*node.inputs, *node.outputs):
                    self.tensors.setdefault(tensor.name, tensor)

    def home(self, node: Node) -> Graph:
        """The graph that holds ``node``."""
        return self._homes[id(node)]

    def maker(self, tensor: str) -> Graph:
        """The graph that makes a tensor or is given it."""
        return self._makers.get(tensor, self.model.graph)

    def unfold(self, weight: str) -> None:
        """Let every remaining reader of ``weight`` read Cast(codes) * scale, which ONNX Runtime folds at load; where
        the target wants plain codes, DequantizeLinear(codes).
        """
        tensor, weights = self.tensors[weight], self.weights
        if tensor.outputs:
            made = (weights.dequantized if self.target.plain else weights.unfolded)(weight)
            self.model.redirect(tensor, self.in_type_of(tensor, made))

    def in_type_of(self, weight: Tensor, unfolded: Tensor) -> Tensor:
        """What a weight unfolds to in float32, cast to the type of the weight where that is another."""
        if np.dtype(weight.dtype) == np.float32:
            return unfolded
        name, kind = f"{weight.name}_typed", int(np_dtype_to_tensor_dtype(np.dtype(weight.dtype)))
        made: Tensor = self.model.insert("Cast", [unfolded], [name], name=name, to=kind).outputs[0]
        made.dtype, made.shape = np.dtype(weight.dtype), unfolded.shape
        return made

    def shorten(self, types: Mapping[str, str]) -> None:
        """Let every remaining reader of these weights read a Cast of a smaller float, which ONNX Runtime folds at load.

        Those of one type unfold together, where the target does not want initializers; 8-bit ones have a scale per
        channel.
        """
        left = {name: kind for name, kind in types.items() if self.tensors[name].outputs}
        if self.target.plain:
            for name in left:
                values = np.asarray(self.model.values(self.tensors[name])).astype(np.float16)
                half = self.model.constant(f"{name}_half", values)
                self.model.redirect(self.tensors[name], self.sheet.cast(half, f"{name}_unfolded"))
            return
        forms: dict[str, Packed] = {}
        for name, kind in left.items():
            forms[f"{name}_unfolded"] = PackedFloats.of(np.asarray(self.model.values(self.tensors[name])), kind)
        for label, made in emit_together(self.sheet, forms).items():
            tensor = self.tensors[label.removesuffix("_unfolded")]
            made.dtype, made.shape = np.dtype(np.float32), list(np.asarray(self.model.values(tensor)).shape)
            self.model.redirect(tensor, self.in_type_of(tensor, made))

    def quantized(self, activation: Activation, graph: Graph | None = None) -> Tensor:
        """DequantizeLinear(QuantizeLinear(tensor)), made once per tensor and graph that reads it.

        Args:
            graph: of the operator that is to fuse with it, which it cannot with a pair in a graph around it; the one
                that makes the tensor by default.
        """
        name, home = activation.tensor, graph or self.maker(activation.tensor)
        pairs = self._pairs.setdefault(name, {})
        if id(home) not in pairs:
            if name not in self._steps:
                self._steps[name] = [
                    self.model.constant(f"{name}_scale", np.asarray(activation.scale, np.float32)),
                    self.model.constant(f"{name}_zero", np.asarray(activation.zero_point)),
                ]
            source, parameters = self._replaced.get(name, self.tensors[name]), self._steps[name]
            quantize = self.model.insert(
                "QuantizeLinear", [source, *parameters], [f"{name}_q"], name=f"{name}_q", graph=home
            )
            restore = self.model.insert(
                "DequantizeLinear", [quantize.outputs[0], *parameters], [f"{name}_dq"], name=f"{name}_dq", graph=home
            )
            restore.outputs[0].dtype = np.dtype(np.float32)
            restore.outputs[0].shape = self.tensors[name].shape
            pairs[id(home)] = restore.outputs[0]
        return pairs[id(home)]

    def quantize_result(self, activation: Activation) -> None:
        """Every reader of the tensor, and the graph output it may be, gets the quantized form."""
        pair = self.quantized(activation)
        self.model.redirect(self.tensors[activation.tensor], pair)
        self._replaced[activation.tensor] = pair

    def dynamic(self, tensor: str, graph: Graph) -> list[Tensor]:
        """[codes, scale, zero point] of DynamicQuantizeLinear(tensor), made once per tensor and graph."""
        key = (tensor, id(graph))
        if key not in self._dynamic:
            node = self.model.insert(
                "DynamicQuantizeLinear",
                [self.tensors[tensor]],
                [f"{tensor}_q", f"{tensor}_q_scale", f"{tensor}_q_zero"],
                name=f"{tensor}_q",
                graph=graph,
            )
            self._dynamic[key] = list(node.outputs)
        return self._dynamic[key]

    def read_as(self, tensor: str) -> str:
        """The name of what readers of ``tensor`` really see: its quantized form if anything reads that, or itself."""
        pairs = self._pairs.get(tensor, {}).values()
        return next((str(pair.name) for pair in pairs if pair.outputs), tensor)

    def bias(self, tensor: Tensor, weight: str, activation: Activation, graph: Graph | None = None) -> Tensor:
        """The bias [N] as DequantizeLinear(int32, scale of the input times scale of the weight), in ``graph``; itself
        where the target wants floats.
        """
        if self.target.float_biases:
            return tensor
        step = self._steps.get(activation.tensor)
        return self._biases.dequantized(tensor, weight, activation, step[0] if step else None, graph)

    def has_bias(self, name: str) -> bool:
        """Whether the bias called ``name`` can be shifted: it is coded, or a vector of floats that one node reads."""
        held = self.tensors.get(name)
        return name in self._biases or (
            isinstance(held, Constant)
            and len(held.outputs) == 1
            and held.dtype is not None
            and np.dtype(held.dtype) in STORED
        )

    def shift_bias(self, name: str, error: NDArray[np.float64]) -> None:
        """Take ``error`` [N] out of the bias called ``name``."""
        if name in self._biases:
            self._biases.shift(name, error)
            return
        held = self.tensors[name]
        if isinstance(held, Constant):
            values = np.asarray(self.model.values(held))
            held.values = (values.astype(np.float64) - error.reshape(values.shape)).astype(values.dtype)

    def recode(self, weight: str, codes: Codes) -> None:
        """``codes`` in place of those that were written for ``weight``, with all that depends on them; only where
        nothing is packed.
        """
        self.weights.recode(weight, codes)
        self._biases.recode(weight)
