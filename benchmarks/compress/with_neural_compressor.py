"""Neural Compressor for ONNX, as in the examples of its README.

dynamic: int8 weights, activations quantized while running.
static: uint8 activations by minimum and maximum, int8 weights.
"""

from __future__ import annotations

import job
from onnx_neural_compressor.quantization import config, quantize


def dynamic(work: job.Job) -> None:
    """DynamicQuantConfig."""
    quantize(str(work.source), str(work.target), config.DynamicQuantConfig())


def static(work: job.Job) -> None:
    """StaticQuantConfig."""
    reader = job.Reader(work)
    chosen = config.StaticQuantConfig(calibration_data_reader=reader, calibration_sampling_size=len(reader))
    quantize(str(work.source), str(work.target), chosen)


if __name__ == "__main__":
    job.main({"dynamic": dynamic, "static": static})
