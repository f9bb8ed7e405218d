"""Linears that see one or two rows multiply 4- or 8-bit weights as they are: reading the weight is what takes the time.

    x [1, K] ── MatMul(W) ── Add(b) ──
    becomes   x [1, K] ── MatMul(DequantizeLinear(W_q (int4 [K, N]), scales [K / 128, N])) ── Add(b) ──

In: a site. Out: one candidate per number of bits, or the reason why not. ONNX Runtime makes MatMulNBits of the pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar

import ml_dtypes
import numpy as np

from onnxc.codes.formats import FULL, Format
from onnxc.contract.candidates import Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.fields import OneOf
from onnxc.contract.passes import RoundingPass
from onnxc.encoding import BlockCodes, block_bytes
from onnxc.rewriting.rewriter import Rewriter
from onnxc.sites import Site, matrix_axes

BITS, BLOCKS = (4, 8), (128, 64, 32)
MOST_ROWS = 2  # from four on int8 activations are faster (measured: docs/cpu-facts.md)


@dataclass(frozen=True)
class QuantizeDecode(RoundingPass):
    """Weights in symmetric blocks along the inputs, solved by GPTQ with a scale for every block.

    1. MatMul and Gemm whose input has at most two rows in every sample, as the step of a decoder or a single row of
       features; in bodies of If/Loop/Scan where the shape is known.
    2. The largest block of 128, 64 or 32 that divides the inputs; no zero points, which odd numbers of blocks lack.
    3. It must not act beside quantized activations, on weights with another reader, or below opset 21.

    Attributes:
        bits: of a code, 4 or 8; 0: the planner chooses.
        block: inputs that share a scale; 0: the largest that divides them.
        rounding: "gptq", or "nearest" as a baseline.
    """

    name: ClassVar[str] = "quantize-decode"
    opset: ClassVar[int] = 21

    bits: Annotated[int, OneOf(0, *BITS)] = 0
    block: Annotated[int, OneOf(0, *BLOCKS)] = 0

    def propose(self, site: Site, context: Context) -> Iterable[Candidate | Refusal]:
        """Candidates for a linear."""
        if site.kind != "linear":
            return
        reason, block = self.impossible(site, context), self.fitting(site)
        if reason is not None or not block:
            yield Refusal(self.name, site.name, reason or "no block of 128, 64 or 32 divides its inputs")
            return
        assert site.weight is not None
        for bits in (self.bits,) if self.bits else BITS:
            chosen = Format(16 if bits == 4 else FULL, block, scaled=True)
            yield Candidate(
                self.name,
                "compute",
                site.name,
                f"decode{bits}",
                f"int{bits} weight, block {block}, for one or two rows",
                form=chosen.name,
                bytes=block_bytes(site.weight, chosen),
                apply=lambda rewriter: apply(rewriter, site),
            )

    def fitting(self, site: Site) -> int:
        """The block that is used; 0 where none divides the inputs."""
        axes = matrix_axes(site)
        depth = site.weight.shape[axes[0]] if site.weight is not None and axes is not None else 1
        return next((size for size in ((self.block,) if self.block else BLOCKS) if depth % size == 0), 0)

    def impossible(self, site: Site, context: Context) -> str | None:
        """Why this site cannot compute so, or None."""
        if "decode" not in context.target.ways:
            return f"the target '{context.target.name}' has no kernels that read weights in blocks"
        assert site.weight is not None
        axes, attributes = matrix_axes(site), site.node.attrs
        if axes is None or site.weight.channel_axis != axes[1] or site.transposed:
            return "the weight is not a plain matrix here, or another reader needs its scales along another axis"
        if len(site.weight.readers) > 1:
            return "the weight has another reader"
        if attributes.get("transA", 0) or any(attributes.get(k, 1.0) != 1.0 for k in ("alpha", "beta")):
            return "Gemm with alpha, beta or transA"
        if site.weight.elements < context.target.smallest_linear and not context.told:
            return "too small for it to pay"
        if made_in_island(site, context):
            return "what makes its input may run in int8: beside quantized activations such weights are slow"
        rows = rows_of(site, context)
        if rows is None:
            return "how many rows it sees is not known without calibration data (--calib)"
        if rows > MOST_ROWS and not context.told:
            return f"it sees {rows} rows: int8 activations are faster from 4 rows on"
        return None


def made_in_island(site: Site, context: Context) -> bool:
    """Whether a convolution or joint makes the site's input, perhaps through data movement."""
    results = {other.result.name for other in context.sites if other.kind in ("convolution", "joint")}
    tensor = site.input
    while tensor.name not in results:
        if not tensor.inputs or tensor.inputs[0].op not in context.target.carriers:
            return False
        tensor = tensor.inputs[0].inputs[0]
    return True


def rows_of(site: Site, context: Context) -> int | None:
    """The rows of the site's input, in the samples or by its type; None where neither says."""
    shape = context.observations.shapes.get(site.input.name)
    known = context.sites.types.get(site.input.name)
    if shape is None and known is not None and known.shape is not None and None not in known.shape[:-1]:
        shape = tuple(int(size or 0) for size in known.shape)
    return None if shape is None else prod(shape[:-1])


def apply(rewriter: Rewriter, site: Site) -> None:
    """Write the DequantizeLinear; a Gemm becomes a MatMul and an Add, its weight turned."""
    assert site.weight is not None
    model, node, name = rewriter.model, rewriter.nodes[site.name], site.weight.name
    codes, graph = rewriter.codes[name], rewriter.home(node)
    assert isinstance(codes, BlockCodes)
    stored = codes.values.astype(ml_dtypes.int4) if codes.bits == 4 else codes.values
    inputs = [model.constant(f"{name}_q", stored), model.constant(f"{name}_scale", codes.scale)]
    matrix = model.insert(
        "DequantizeLinear", inputs, [f"{name}_dq"], name=f"{name}_dq", graph=graph, axis=0, block_size=codes.block
    ).outputs[0]
    matrix.dtype, matrix.shape = np.dtype(np.float32), list(codes.values.shape)
    if node.op == "MatMul":
        node.inputs[1] = matrix
        return
    source, result = node.inputs[0], node.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    node.inputs.clear()
    node.outputs.clear()
    product = result if bias is None else f"{result.name}_product"
    made = model.insert("MatMul", [source, matrix], [product], name=f"{site.name}_decode", graph=graph).outputs[0]
    if bias is not None:
        model.insert("Add", [made, bias], [result], name=f"{site.name}_bias", graph=graph)
