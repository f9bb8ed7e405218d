"""Linears, convolutions and the joints between them in int8 with ranges from calibration data.

    x ── MatMul(W) ── Add(b) ──      becomes      x ── Q ── DQ ── MatMul(DQ(W_q)) ── Add(DQ(b_q)) ──
    x ── Conv(W, b) ── Relu ── y     becomes      x ── Q ── DQ ── Conv(DQ(W_q), DQ(b_q)) ── Relu ── Q ── DQ ── y

In: a site and the ranges observed. Out: one candidate, or the reason why not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from onnxc.contract.candidates import Activation, Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.fields import Between, Implies
from onnxc.contract.passes import SolvingPass
from onnxc.model import Tensor
from onnxc.rewriting.rewriter import Rewriter
from onnxc.sites import Site, matrix_axes


@dataclass(frozen=True)
class QuantizeStatic(SolvingPass):
    """Q/DQ pairs that ONNX Runtime fuses to int8 kernels.

    1. A linear reads quantized activations and writes float, so that GELU, LayerNorm and attention keep their own
       fusions; its bias is int32, without which a static shape would fall back to float.
    2. A convolution is quantized on both sides; an absorbed Relu or Clip sits before the Q, whose zero point is 0.
    3. A joint (Add, Concat, GlobalAveragePool) runs on codes between them.
    4. Data movement (Reshape, Transpose, pooling maxima) carries the codes on with the same scale.
    5. In bodies of If/Loop/Scan the pairs, and what dequantizes weights and biases, are in the body itself: nothing
       fuses across its border.
    6. It must not act in a branch that no sample takes (no ranges there), on grouped convolutions that are not
       depthwise, and without calibration data.

    Attributes:
        range: how a range is chosen from the histogram: mse, minmax, percentile or entropy.
        percentile: of the values so many percent are below the range's upper end, and as many above its lower end;
            implies range=percentile.
        rounding, feedback, bias: how the int8 codes of its weights are found; see "SolvingPass".
    """

    name: ClassVar[str] = "quantize-static"
    opset: ClassVar[int] = 13  # scales per channel

    range: Literal["mse", "minmax", "percentile", "entropy"] = "mse"
    percentile: Annotated[float, Between(50, 100, open_low=True, percent=True), Implies("range", "percentile")] = 99.99

    def propose(self, site: Site, context: Context) -> Iterable[Candidate | Refusal]:
        """One int8 candidate for a linear, a convolution or a joint."""
        if site.kind in ("embedding", "recurrent"):
            return
        reason = self.impossible(site, context)
        if reason:
            yield Refusal(self.name, site.name, reason)
            return
        carries = site.operator in context.target.carriers
        reads = tuple(self.activation(tensor, context) for tensor in (site.inputs[:1] if carries else site.inputs))
        writes = None if site.kind == "linear" else self.activation(site.result, context)
        if writes is not None and carries:
            writes = replace(reads[0], tensor=site.result.name)
        apply = {"linear": linear, "convolution": convolution, "joint": joint}[site.kind]
        yield Candidate(
            self.name,
            "compute",
            site.name,
            "static",
            f"int8, {'int8' if context.target.signed else 'uint8'} activations ({self.range})",
            reads,
            writes,
            apply=lambda rewriter: apply(rewriter, site, reads, writes),
        )

    def impossible(self, site: Site, context: Context) -> str | None:
        """Why this site cannot run in int8, or None."""
        if "static" not in context.target.ways:
            return f"the target '{context.target.name}' has no int8 kernels for static ranges"
        if not context.observations.samples:
            return "static ranges need calibration data (--calib)"
        unseen = context.observations.unseen
        for tensor in (*site.inputs, site.result):  # also of a linear: what it reads may be seen where it is not run
            if tensor.name in unseen:
                return unseen[tensor.name]
        if site.kind == "joint":
            return joint_impossible(site, context)
        assert site.weight is not None
        if site.operator == "ConvTranspose":
            return "ConvTranspose has no int8 kernel"
        axes = matrix_axes(site)
        if axes is None or site.weight.channel_axis != axes[1]:
            return "the weight is not a plain matrix here, or another reader needs its scales along another axis"
        if site.kind == "linear":
            if site.weight.elements < context.target.smallest_linear and not context.told:
                return "too small for an int8 kernel to pay"
            attributes = site.node.attrs
            if attributes.get("transA", 0) or any(attributes.get(k, 1.0) != 1.0 for k in ("alpha", "beta")):
                return "Gemm with alpha, beta or transA"
            if site.operator == "Gemm" and len(site.node.inputs) > 2 and site.bias is None:
                return "Gemm with a computed bias"
            if site.bias is not None and tuple(site.bias.shape or ()) != (site.weight.shape[axes[1]],):
                return "the bias is not one value per output"
        elif len(site.node.inputs) > 2 and site.bias is None:
            return "Conv with a computed bias"
        group = int(site.node.attrs.get("group", 1))
        if site.operator == "Conv" and 1 < group != site.weight.shape[0]:
            return "grouped convolutions are slower in int8 (0.45 to 0.6 times, measured)"
        needed = (site.input,) if site.kind == "linear" else (site.input, site.result)
        missing = [t.name for t in needed if t.name not in context.observations.ranges]
        return f"no range was observed for '{missing[0]}'" if missing else None

    def activation(self, tensor: Tensor, context: Context) -> Activation:
        """The quantization of ``tensor``; what a carrier writes has the range of what it reads."""
        source = carried_from(tensor, context)
        low, high = context.observations.limits(source.name, self.range, self.percentile)
        return Activation(tensor.name, low, high, source=source.name, signed=context.target.signed)


def joint_impossible(site: Site, context: Context) -> str | None:
    """A joint runs on codes only if every float it reads is an observed activation."""
    node, ranges = site.node, context.observations.ranges
    data = site.inputs[:1] if site.operator in context.target.carriers else site.inputs
    if site.operator in context.target.joints and len(data) != len(node.inputs):
        return "a constant or repeated operand"
    if any(t.name not in ranges for t in (*data, site.result)):
        return "its tensors are not float activations"
    if site.operator == "MaxPool" and len(node.outputs) > 1:
        return "MaxPool with indices"
    return None


def carried_from(tensor: Tensor, context: Context) -> Tensor:
    """Follow ``tensor`` back through data movement to the tensor whose values it holds."""
    while tensor.inputs and tensor.inputs[0].op in context.target.carriers:
        source = tensor.inputs[0].inputs[0]
        if source.name not in context.observations.ranges:
            break
        tensor = source
    return tensor


def linear(rewriter: Rewriter, site: Site, reads: tuple[Activation, ...], writes: Activation | None) -> None:
    """X and W through DQ, the bias through an int32 DQ."""
    assert site.weight is not None
    node = rewriter.nodes[site.name]
    name, graph, weights = site.weight.name, rewriter.home(node), rewriter.weights
    node.inputs[0] = rewriter.quantized(reads[0], graph)
    node.inputs[1] = (weights.dequantized_transposed if site.transposed else weights.dequantized)(name, graph)
    if site.bias is not None:
        bias = rewriter.bias(rewriter.tensors[site.bias.name], name, reads[0], graph)
        if site.operator == "Gemm":
            node.inputs[2] = bias
        else:
            add = rewriter.nodes[site.tail[0].name]
            position = next(i for i, t in enumerate(add.inputs) if t.name == site.bias.name)
            add.inputs[position] = bias


def convolution(rewriter: Rewriter, site: Site, reads: tuple[Activation, ...], writes: Activation | None) -> None:
    """Q/DQ on both sides, the bias through an int32 DQ."""
    assert site.weight is not None
    assert writes is not None
    node = rewriter.nodes[site.name]
    graph = rewriter.home(node)
    node.inputs[0] = rewriter.quantized(reads[0], graph)
    node.inputs[1] = rewriter.weights.dequantized(site.weight.name, graph)
    if site.bias is not None:
        node.inputs[2] = rewriter.bias(rewriter.tensors[site.bias.name], site.weight.name, reads[0], graph)
    rewriter.quantize_result(writes)


def joint(rewriter: Rewriter, site: Site, reads: tuple[Activation, ...], writes: Activation | None) -> None:
    """Codes in, codes out."""
    assert writes is not None
    node = rewriter.nodes[site.name]
    pairs = {activation.tensor: rewriter.quantized(activation, rewriter.home(node)) for activation in reads}
    for position, tensor in enumerate(node.inputs):
        node.inputs[position] = pairs.get(tensor.name, tensor)
    rewriter.quantize_result(writes)
