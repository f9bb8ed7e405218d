"""Weights with many zeros are stored as ONNX sparse tensors: only what is not zero, and where.

    W (initializer)    becomes    W = Constant(sparse_value), or a sparse_initializer where that is asked for

In: the model as it is delivered, its weights pruned, rounded or neither. Out: the same numbers in fewer bytes; memory
and time are those of the dense weight, which ONNX Runtime makes again when it loads the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxc.codes.sparse_tensors import break_even, sparse_bytes, sparse_proto, sparse_value
from onnxc.contract.passes import FinishingPass, Outcome
from onnxc.model import Constant, Graph, Model, Stored, Tensor, Variable

SMALLEST = 1024  # bytes of a tensor that is worth looking at
TELLING = 0.1  # share of zeros from which on it is worth saying why a weight stays dense
MOST = 1 << 30  # bytes of sparse tensors in one model: they cannot lie outside the message, which holds 2 GB
TYPES = tuple(np.dtype(name) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1"))
OPSET, IR_VERSION = 11, 5  # the first with sparse_value, and with sparse_initializer


@dataclass(frozen=True)
class FoldSparse(FinishingPass):
    """Store an initializer of the main graph or of a body as a sparse tensor.

    1. Where that is smaller than the initializer; asked for with fields, every weight of two axes and more that holds
       a zero.
    2. ``form``: a ``constant`` node, which the checker accepts in full, or an ``initializer``, which its full check
       takes for a tensor of another type.
    3. It must not act on defaults of inputs, on outputs, or below opset 11.
    """

    name: ClassVar[str] = "fold-sparse"
    packs: ClassVar[bool] = True
    form: Literal["constant", "initializer"] = "constant"

    def finish(self, model: Model, *, told: bool = False) -> Outcome:
        """Edit ``model`` in place."""
        if model.opset < OPSET or model.ir_version < IR_VERSION:
            return Outcome(0, (f"sparse tensors need opset {OPSET}, the model has {model.opset}",) if told else ())
        fixed = {id(t) for graph in model.graphs() for t in (*graph.inputs, *graph.outputs)}
        named = {t.name for graph in model.graphs() for t in graph.inputs}
        folded, dense, before, after = 0, 0, 0, 0
        limits: dict[str, list[float]] = {}
        for graph in list(model.graphs()):
            for tensor in list(graph.weights):
                if id(tensor) in fixed or tensor.name in named or tensor.dtype not in TYPES or not tensor.outputs:
                    continue
                values = tensor.values
                zeros = values.size - int(np.count_nonzero(values))
                if not zeros or (values.ndim < 2 if told else values.nbytes < SMALLEST):
                    continue
                size = sparse_bytes(values)
                if zeros >= values.size * TELLING:
                    limits.setdefault(str(values.dtype), []).append(break_even(values.shape, values.dtype.itemsize))
                if (size >= values.nbytes and not told) or after + size > MOST:
                    dense += zeros >= values.size * TELLING
                    continue
                self.replace(model, graph, tensor)
                folded, before, after = folded + 1, before + values.nbytes, after + size
        if folded:
            model.tidy()
        return Outcome(folded, told_of(folded, dense, before, after, limits))

    def replace(self, model: Model, graph: Graph, tensor: Constant) -> None:
        """Let the readers of ``tensor`` read its sparse form, which has its name."""
        values = tensor.values
        if self.form == "initializer":
            made: Tensor = Constant(tensor.name, Stored(sparse_proto(values, tensor.name)))
            graph.weights.append(made)
        else:
            made = Variable(tensor.name, values.dtype, list(values.shape))
            attributes = {"sparse_value": sparse_value(values)}
            model.insert("Constant", [], [made], name=tensor.name, graph=graph, **attributes)
        model.redirect(tensor, made)
        graph.weights.remove(tensor)


def told_of(folded: int, dense: int, before: int, after: int, limits: dict[str, list[float]]) -> tuple[str, ...]:
    """What is said: nothing where no weight has zeros worth speaking of."""
    if not folded and not dense:
        return ()
    pays = ", ".join(f"{kind} from {share(found)} zeros on" for kind, found in sorted(limits.items()))
    tensors = "1 tensor is stored sparse" if folded == 1 else f"{folded} tensors are stored sparse"
    done = f"{tensors}, {before:,} -> {after:,} bytes" if folded else "no tensor is stored sparse"
    left = f", {dense} {'stays' if dense == 1 else 'stay'} dense" if dense else ""
    return (f"{done}{left}" + (f"; a sparse tensor is smaller for {pays}" if pays else ""),)


def share(limits: list[float]) -> str:
    """The range of ``limits`` in percent."""
    low, high = min(limits), max(limits)
    return f"{low:.0%}" if round(low, 2) == round(high, 2) else f"{low:.0%} to {high:.0%}"
