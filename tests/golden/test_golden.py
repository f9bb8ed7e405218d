"""Golden graphs: what each pass writes for a small model, as text, so that review sees a change of emission.

``pytest tests/golden --refresh-golden`` writes them anew. Initializers are replaced by type, shape and mean
magnitude to two digits: ranges and GPTQ depend on the last bits of arithmetic, the structure does not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from onnxc import coder
from onnxc.contract.passes import LossyPass
from onnxc.passes.quantize_dynamic import QuantizeDynamic
from onnxc.passes.quantize_embedding import QuantizeEmbedding
from onnxc.passes.quantize_lstm import QuantizeLstm
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.passes.store_int8 import StoreInt8
from tests.emission import Sample, emitted, model, node

FOLDER = Path(__file__).parent


def wave(*shape: int, step: float = 0.7) -> np.ndarray:
    """Numbers between -1 and 1 that are the same everywhere."""
    return np.sin(np.arange(1, np.prod(shape) + 1) * step).reshape(shape).astype(np.float32)


def convolutions() -> tuple[ModelProto, Sample]:
    nodes = [
        node("Conv", "x w0 b0", "c0", pads=[1] * 4),
        node("Relu", "c0", "r0"),
        node("Conv", "r0 w1 b1", "c1", pads=[1] * 4),
        node("Add", "c1 r0", "s"),
        node("Relu", "s", "r1"),
        node("MaxPool", "r1", "k", kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", "k", "t", perm=[0, 1, 3, 2]),
        node("Concat", "t k", "j", axis=1),
        node("GlobalAveragePool", "j", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w2 b2", "y", transB=1),
    ]
    weights = {
        "w0": wave(8, 4, 3, 3),
        "b0": wave(8),
        "w1": wave(8, 8, 3, 3),
        "b1": wave(8),
        "w2": wave(24, 16),
        "b2": wave(24),
    }
    return model(nodes, {"x": ["n", 4, 8, 8]}, {"y": ["n", 24]}, weights), {"x": wave(1, 4, 8, 8, step=1.3)}


def linears() -> tuple[ModelProto, Sample]:
    nodes = [
        node("MatMul", "x w0", "m0"),
        node("Add", "b0 m0", "a0"),
        node("MatMul", "x w1", "m1"),
        node("Sum", "a0 m1", "s"),
        node("Gemm", "s w2 b2", "y", transB=1),
    ]
    weights = {"w0": wave(24, 32), "b0": wave(32), "w1": wave(24, 32), "w2": wave(16, 32), "b2": wave(16)}
    return model(nodes, {"x": ["n", 24]}, {"y": ["n", 16]}, weights), {"x": wave(8, 24, step=1.3)}


def tied() -> tuple[ModelProto, Sample]:
    nodes = [node("Gather", "table ids", "e"), node("Gemm", "e table b", "y", transB=1)]
    weights = {"table": wave(40, 16), "b": wave(40)}
    proto = model(nodes, {"ids": [6]}, {"y": [6, 40]}, weights, integers=["ids"])
    return proto, {"ids": np.array([3, 1, 39, 0, 3, -1])}


def recurrent() -> tuple[ModelProto, Sample]:
    nodes = [node("LSTM", "x w r b", "y last _", hidden_size=16, direction="bidirectional")]
    weights = {"w": wave(2, 64, 12), "r": wave(2, 64, 16), "b": wave(2, 128)}
    return model(nodes, {"x": [5, "n", 12]}, {"y": None, "last": None}, weights), {"x": wave(5, 2, 12, step=1.3)}


CASES: list[tuple[Callable[[], tuple[ModelProto, Sample]], list[LossyPass]]] = [
    (convolutions, [QuantizeStatic()]),
    (convolutions, [StoreInt8()]),
    (linears, [QuantizeStatic()]),
    (linears, [QuantizeDynamic()]),
    (linears, [StoreInt8()]),
    (tied, [QuantizeEmbedding(), QuantizeDynamic()]),
    (tied, [QuantizeEmbedding(), QuantizeStatic()]),
    (recurrent, [QuantizeLstm()]),
    (recurrent, [StoreInt8()]),
]


def title(make: Callable[..., object], passes: list[LossyPass]) -> str:
    return ".".join([make.__name__, *(each.name for each in passes)])


def described(tensor: TensorProto) -> str:
    values = onnx.numpy_helper.to_array(tensor)
    magnitude = float(np.abs(values.astype(np.float64)).mean()) if values.size else 0.0
    shape = ", ".join(map(str, values.shape))
    return f"{values.dtype}[{shape}] {tensor.name}: {magnitude:.2g}"


def as_text(proto: ModelProto) -> str:
    """The graph as text, its initializers as one line each."""
    lines = [described(tensor) for tensor in proto.graph.initializer]
    del proto.graph.initializer[:]
    return onnx.printer.to_text(proto) + "\n\n" + "\n".join(sorted(lines)) + "\n"


@pytest.mark.parametrize(("make", "passes"), CASES, ids=[title(*case) for case in CASES])
def test_golden(
    make: Callable[[], tuple[ModelProto, Sample]],
    passes: list[LossyPass],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(coder, "machine_saturates", lambda: False)  # the same bits on every machine
    proto, sample = make()
    found = as_text(emitted(proto, [sample], *passes, ops="ort").model.proto())
    path = FOLDER / f"{title(make, passes)}.txt"
    if request.config.getoption("--refresh-golden"):
        path.write_text(found, encoding="utf-8", newline="\n")
    assert found == path.read_text(encoding="utf-8"), f"{path.name} has changed; see --refresh-golden"


def test_no_golden_graph_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == {title(*case) for case in CASES}
