"""ONNX Runtime's own quantizers, after its own preparation, as its documentation recommends for x86.

dynamic: int8 weights, activations quantized while running; for recurrent and linear layers, so without Conv.
static: QDQ, uint8 activations by minimum and maximum, int8 weights per channel.
nbits: weights of MatMul in 4 bits, blocks of 32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import job
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.registry import IntegerOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

CalibrationDataReader.register(job.Reader)


def prepared(source: Path, folder: str) -> Path:
    """The model after ONNX Runtime's own preparation for quantizing."""
    target = Path(folder, "prepared.onnx")
    quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
    return target


def dynamic(work: job.Job) -> None:
    """quantize_dynamic."""
    kinds = [kind for kind in IntegerOpsRegistry if kind != "Conv"]
    with tempfile.TemporaryDirectory() as folder:
        source = prepared(work.source, folder)
        quantize_dynamic(source, work.target, op_types_to_quantize=kinds, weight_type=QuantType.QInt8)


def static(work: job.Job) -> None:
    """quantize_static."""
    with tempfile.TemporaryDirectory() as folder:
        quantize_static(
            prepared(work.source, folder),
            work.target,
            job.Reader(work),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def nbits(work: job.Job) -> None:
    """MatMulNBitsQuantizer, accuracy level 4: its products are of int8."""
    quantizer = MatMulNBitsQuantizer(onnx.load(work.source), block_size=32, accuracy_level=4)
    quantizer.process()
    work.save(quantizer.model.model)


if __name__ == "__main__":
    job.main({"dynamic": dynamic, "static": static, "nbits": nbits})
