"""AMD Quark, its presets for ONNX, as named in its list of default configurations.

u8s8: U8S8_AAWS, uint8 activations by percentile, int8 weights.
adaround: U8S8_AAWS_ADAROUND, the same with learned rounding, 300 steps a layer instead of 1,000.
transformer: INT8_TRANSFORMER_DEFAULT, MatMul only, ranges by moving averages.
"""

from __future__ import annotations

import job
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import Config, get_default_config

STEPS = 300


def preset(work: job.Job, name: str) -> None:
    """Quantize with a preset."""
    chosen = get_default_config(name)
    finetune = chosen.extra_options.get("FastFinetune")
    if finetune is not None:
        finetune["NumIterations"] = STEPS
    ModelQuantizer(Config(global_quant_config=chosen)).quantize_model(
        str(work.source), str(work.target), job.Reader(work)
    )


if __name__ == "__main__":
    job.main(
        {
            "u8s8": lambda work: preset(work, "U8S8_AAWS"),
            "adaround": lambda work: preset(work, "U8S8_AAWS_ADAROUND"),
            "transformer": lambda work: preset(work, "INT8_TRANSFORMER_DEFAULT"),
        }
    )
