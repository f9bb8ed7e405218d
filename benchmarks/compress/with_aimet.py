"""AIMET on ONNX: int8 weights per channel and int8 activations of the default configuration, exported as QDQ.

int8: ranges by minimum and maximum.
cle: the same after cross-layer equalization.
adaround: learned rounding, 200 steps a layer instead of 10,000.
"""

from __future__ import annotations

import aimet_onnx
import job
import onnx
from aimet_onnx.common.quantsim_config.config_utils import get_path_for_target_config
from aimet_onnx.cross_layer_equalization import equalize_model

STEPS = 200


def quantized(work: job.Job, *, equalize: bool = False, learn: bool = False) -> None:
    """QuantizationSimModel, and what it exports."""
    model = onnx.load(work.source)
    if equalize:
        equalize_model(model)
    chosen = get_path_for_target_config("default_config_per_channel")
    simulated = aimet_onnx.QuantizationSimModel(model, param_type="int8", activation_type="int8", config_file=chosen)
    samples = list(work.samples())
    if learn:
        aimet_onnx.apply_adaround(simulated, samples, num_iterations=STEPS)
    simulated.compute_encodings(samples)
    work.save(simulated.to_onnx_qdq(prequantize_constants=True))


if __name__ == "__main__":
    job.main(
        {
            "int8": quantized,
            "cle": lambda work: quantized(work, equalize=True),
            "adaround": lambda work: quantized(work, learn=True),
        }
    )
