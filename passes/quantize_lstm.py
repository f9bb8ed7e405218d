"""LSTM in int8: codes of both weights, the input and the hidden state quantized at run time.

    LSTM(x, W [D, 4H, I], R [D, 4H, H], ...)
    becomes   com.microsoft.DynamicQuantizeLSTM(x, W_q [D, I, 4H], R_q [D, H, 4H], ..., scales, zero points)

In: a recurrent site. Out: one candidate with ``--ops ort``, or the reason why not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxc.contract.candidates import Activation, Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.passes import RoundingPass
from onnxc.model import Constant, Graph, Tensor
from onnxc.rewriting.rewriter import Rewriter
from onnxc.sites import Site

FIRST_OPSET = 7  # before it LSTM has other inputs
OPTIONAL = 8  # X, W, R, B, sequence_lens, initial_h, initial_c, P: the same in both operators


@dataclass(frozen=True)
class QuantizeLstm(RoundingPass):
    """DynamicQuantizeLSTM with int8 weights, one scale per row of W and R.

    1. LSTM in every direction, with initial states, sequence lengths, peepholes, clip and any activations.
    2. Also in the bodies of If/Loop/Scan; no calibration data is needed.
    3. It must not act on GRU and RNN, which have no int8 operator, on layout=1, which DynamicQuantizeLSTM
       lacks, or where the operators must be standard ones.

    Attributes:
        rounding: of the codes of both weights: "gptq" where inputs and states were seen, or "nearest" as a baseline.
    """

    name: ClassVar[str] = "quantize-lstm"

    def propose(self, site: Site, context: Context) -> Iterable[Candidate | Refusal]:
        """One int8 candidate for an LSTM."""
        if site.kind != "recurrent":
            return
        reason = impossible(site, context)
        if reason is not None:
            yield Refusal(self.name, site.name, reason)
            return
        yield Candidate(
            self.name,
            "compute",
            site.name,
            "dynamic",
            "int8, input and hidden state quantized at run time",
            (Activation(site.input.name, dynamic=True),),
            weights=(site.node.inputs[2].name,),
            apply=lambda rewriter: apply(rewriter, site),
        )


def impossible(site: Site, context: Context) -> str | None:
    """Why this site cannot be a DynamicQuantizeLSTM, or None."""
    if site.operator != "LSTM":
        return f"{site.operator} has no int8 operator"
    if context.recipe.ops != "ort":
        return "no standard int8 operator; --ops ort allows DynamicQuantizeLSTM"
    if site.node.attrs.get("layout", 0):
        return "layout=1: DynamicQuantizeLSTM takes the sequence first"
    if context.model.opset < FIRST_OPSET:
        return f"LSTM of opset {context.model.opset} has other inputs"
    recurrent = site.node.inputs[2]
    known = {weight.name: weight for weight in context.sites.weights}
    if not isinstance(recurrent, Constant) or recurrent.name not in known:
        return "the recurrent weight is computed"
    if site.weight is None or {site.weight.channel_axis, known[recurrent.name].channel_axis} != {1}:
        return "another reader needs the scales of a weight along another axis"
    return None


def apply(rewriter: Rewriter, site: Site) -> None:
    """Replace the node; its inputs up to the peepholes and its outputs stay."""
    model, node = rewriter.model, rewriter.nodes[site.name]
    graph = rewriter.home(node)
    inputs: list[Tensor | None] = [tensor if tensor.name else None for tensor in node.inputs]
    inputs += [None] * (OPTIONAL - len(inputs))
    attributes = {key: value for key, value in node.attrs.items() if key != "layout"}
    outputs = list(node.outputs)
    for position in (1, 2):
        tensor = node.inputs[position]
        inputs[position], scale, zero = parts(rewriter, tensor, graph)
        inputs += [scale, zero]
    node.inputs.clear()
    node.outputs.clear()
    model.insert(
        "DynamicQuantizeLSTM",
        inputs,
        outputs,
        name=f"{site.name}_int8",
        domain="com.microsoft",
        graph=graph,
        **attributes,
    )


def parts(rewriter: Rewriter, tensor: Tensor, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [D, K, 4H], transposed once at load, scales and zero points [D, 4H] of a weight [D, 4H, K]."""
    model, name, codes = rewriter.model, tensor.name, rewriter.codes[tensor.name]
    directions, outputs = codes.values.shape[0], codes.scale.size
    label = f"{directions}x{outputs}"
    shape = rewriter.sheet.shared(f"shape_{label}", np.asarray([directions, outputs], np.int64))
    scale = rewriter.sheet.node("Expand", [rewriter.weights.scale(name), shape], f"{name}_scales")
    turned = model.insert(
        "Transpose", [rewriter.weights.coded(name)], [f"{name}_transposed"], graph=graph, perm=[0, 2, 1]
    ).outputs[0]
    return (
        turned,
        scale,
        rewriter.sheet.shared(f"zero_{label}", np.zeros((directions, outputs), np.int8)),
    )
