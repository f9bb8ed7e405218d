"""NNCF on ONNX.

static: nncf.quantize for a CPU, preset "mixed": asymmetric activations.
transformer: the same with model_type=TRANSFORMER (its SmoothQuant, attention left alone).
int4: nncf.compress_weights in 4 bits with blocks, embeddings and the last layer in 8; needs opset 21.
"""

from __future__ import annotations

import job
import nncf
import onnx
from onnx import version_converter


def quantized(work: job.Job, model_type: nncf.ModelType | None) -> None:
    """nncf.quantize."""
    samples = list(work.samples())
    work.save(
        nncf.quantize(
            onnx.load(work.source),
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(samples),
            model_type=model_type,
        )
    )


def static(work: job.Job) -> None:
    """For models of any kind."""
    quantized(work, None)


def transformer(work: job.Job) -> None:
    """For transformers."""
    quantized(work, nncf.ModelType.TRANSFORMER)


def int4(work: job.Job) -> None:
    """nncf.compress_weights; convolutions, which ONNX Runtime would unfold in every run, are left alone."""
    model = onnx.load(work.source)
    if max(each.version for each in model.opset_import if each.domain in {"", "ai.onnx"}) < 21:
        model = version_converter.convert_version(model, 21)
    kept = nncf.IgnoredScope(types=["Conv", "Gemm"], validate=False)
    mode = nncf.CompressWeightsMode.INT4_ASYM
    work.save(nncf.compress_weights(model, mode=mode, group_size=32, ratio=1.0, ignored_scope=kept))


if __name__ == "__main__":
    job.main({"static": static, "transformer": transformer, "int4": int4})
