"""Linears in int8 with activation ranges taken at run time: no calibration data, nearly the speed of static ranges.

    x ── MatMul(W) ── Add(b) ──
    becomes   x ── DynamicQuantizeLinear ── MatMulInteger(W_q) ── Cast ── Mul(x scale * W scale) ── Add(b) ──

In: a site. Out: one candidate, or the reason why not. ONNX Runtime fuses the chain to one kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from onnxc.contract.candidates import Activation, Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.passes import SolvingPass
from onnxc.rewriting.rewriter import Rewriter
from onnxc.sites import Site, matrix_axes


@dataclass(frozen=True)
class QuantizeDynamic(SolvingPass):
    """DynamicQuantizeLinear and MatMulInteger with int8 weights, one scale per output.

    1. MatMul with a constant matrix on the right, in any graph, bodies of If/Loop/Scan included.
    2. Gemm without alpha, beta, transA; a transposed weight is transposed once, at load: also an embedding that is the
       head of a language model, whose codes are stored once.
    3. It must not act on convolutions: ConvInteger is slower than float (0.04 to 0.8 times, measured).

    Attributes:
        rounding, feedback, bias: how the int8 codes of its weights are found; see "SolvingPass".
    """

    name: ClassVar[str] = "quantize-dynamic"
    opset: ClassVar[int] = 11

    def propose(self, site: Site, context: Context) -> Iterable[Candidate | Refusal]:
        """One int8 candidate for a linear."""
        if site.kind == "convolution" and site.operator == "Conv":
            yield Refusal(self.name, site.name, "ConvInteger is slower than a float Conv (0.04 to 0.8 times, measured)")
            return
        if site.kind != "linear":
            return
        assert site.weight is not None
        axes = matrix_axes(site)
        attributes = site.node.attrs
        if "dynamic" not in context.target.ways:
            reason = f"the target '{context.target.name}' has no int8 kernels for ranges taken at run time"
        elif axes is None or site.weight.channel_axis != axes[1]:
            reason = "the weight is not a plain matrix here, or another reader needs its scales along another axis"
        elif site.weight.elements < context.target.smallest_linear and not context.told:
            reason = "too small for an int8 kernel to pay"
        elif attributes.get("transA", 0) or any(attributes.get(k, 1.0) != 1.0 for k in ("alpha", "beta")):
            reason = "Gemm with alpha, beta or transA"
        else:
            reads = (Activation(site.input.name, dynamic=True),)
            yield Candidate(
                self.name,
                "compute",
                site.name,
                "dynamic",
                "int8, activations quantized at run time",
                reads,
                apply=lambda rewriter: apply(rewriter, site),
            )
            return
        yield Refusal(self.name, site.name, reason)


def apply(rewriter: Rewriter, site: Site) -> None:
    """Write the chain; the tensor that carried the float result keeps its name."""
    assert site.weight is not None
    model, node, weight = rewriter.model, rewriter.nodes[site.name], site.weight.name
    graph = rewriter.home(node)
    codes, scale, zero = rewriter.dynamic(site.input.name, graph)
    matrix = rewriter.weights.coded(weight)
    if site.transposed or (site.operator == "Gemm" and node.attrs.get("transB", 0)):
        matrix = rewriter.weights.transposed(weight)
    result = node.outputs[0]
    bias = node.inputs[2] if site.operator == "Gemm" and len(node.inputs) > 2 else None
    name = site.name
    node.outputs.clear()
    node.inputs.clear()
    product = model.insert(
        "MatMulInteger",
        [codes, matrix, zero, rewriter.weights.scale(weight, "zero")],
        [f"{result.name}_int32"],
        name=f"{name}_int8",
        graph=graph,
    ).outputs[0]
    cast = model.insert("Cast", [product], [f"{result.name}_cast"], name=f"{name}_cast", graph=graph, to=1).outputs[0]
    scales = model.insert(
        "Mul",
        [scale, rewriter.weights.scale(weight)],
        [f"{result.name}_scale"],
        name=f"{name}_scale",
        graph=graph,
    ).outputs[0]
    last = [f"{result.name}_scaled"] if bias is not None else [result]
    scaled = model.insert("Mul", [cast, scales], last, name=f"{name}_scaled", graph=graph).outputs[0]
    if bias is not None:
        model.insert("Add", [scaled, bias], [result], name=f"{name}_bias", graph=graph)
