"""What ONNX Runtime really runs. In: the optimized graph of a session. Out: its operators, judged."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

INT32 = 6  # onnx.TensorProto.INT32

_FUSED = (
    "QLinear",
    "QGemm",
    "MatMulNBits",
    "DynamicQuantize",
    "GatherBlockQuantized",
    "QAttention",
    "QEmbed",
    "NhwcMaxPool",
)


def operators(optimized: onnx.ModelProto) -> Counter[str]:
    """Operator types with their number, bodies included."""
    return Counter(node.op_type for graph in _graphs(optimized.graph) for node in graph.node)


def fused(kernels: Counter[str]) -> Counter[str]:
    """Those of ``kernels`` that compute on codes: fused from Q/DQ pairs, or integer operators."""
    return Counter(
        {
            name: count
            for name, count in kernels.items()
            if name.startswith(_FUSED) or name.endswith(("Integer", "IntegerToFloat", "IntegerBias"))
        }
    )


def leftover_weights(optimized: onnx.ModelProto) -> list[str]:
    """Weights of the optimized graph that a DequantizeLinear unfolds at every run: it fused with nothing.

    An int32 bias does not count: behind a linear of three dynamic axes its few values are all that is unfolded.
    """
    found = []
    for graph in _graphs(optimized.graph):
        constants = {tensor.name for tensor in graph.initializer if tensor.data_type != INT32}
        constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
        found += [
            node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
        ]
    return found


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graph and the bodies inside it."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else []
            for body in [*bodies, *attribute.graphs]:
                found += _graphs(body)
    return found
