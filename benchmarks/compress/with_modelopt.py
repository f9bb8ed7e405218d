"""NVIDIA's ModelOpt on ONNX, calibrated on the CPU.

int8: QDQ by entropy, its default; weights stay float in the file.
int4: weights of MatMul in 4 bits by AWQ with clipping.
"""

from __future__ import annotations

import job
from modelopt.onnx.quantization import quantize


def preset(work: job.Job, mode: str, method: str) -> None:
    """Quantize, everything else left as it is: float32 stays float32."""
    quantize(
        str(work.source),
        quantize_mode=mode,
        calibration_method=method,
        calibration_data_reader=job.Reader(work),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(work.target),
    )


if __name__ == "__main__":
    job.main(
        {
            "int8": lambda work: preset(work, "int8", "entropy"),
            "int4": lambda work: preset(work, "int4", "awq_clip"),
        }
    )
