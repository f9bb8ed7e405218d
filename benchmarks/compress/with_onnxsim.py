"""onnxsim, which simplifies before and after: what is left of the float weights goes only then.

dynamic: int8 weights, activations quantized while running.
static: QDQ, int8 weights per channel, the way of finding a range chosen per tensor.
gptq: weights of linear layers in 4 bits, blocks of 32, rounded by GPTQ on the samples; needs opset 21.
"""

from __future__ import annotations

import job
import onnx
import onnxsim


def simplified(model: onnx.ModelProto, opset: int | None = None) -> onnx.ModelProto:
    """The same model, smaller."""
    return onnxsim.simplify(model, target_opset_version=opset)[0]


def dynamic(work: job.Job) -> None:
    """quantize_dynamic."""
    work.save(simplified(onnxsim.quantize_dynamic(simplified(onnx.load(work.source)))))


def static(work: job.Job) -> None:
    """quantize_static."""
    model = simplified(onnx.load(work.source))
    work.save(simplified(onnxsim.quantize_static(model, list(work.samples()), method="auto")))


def gptq(work: job.Job) -> None:
    """quantize_weight_only_int4 and apply_gptq."""
    model = simplified(onnx.load(work.source))
    if max(each.version for each in model.opset_import if each.domain in {"", "ai.onnx"}) < 21:
        model = simplified(model, 21)
    rounded = onnxsim.quantize_weight_only_int4(model)
    work.save(simplified(onnxsim.apply_gptq(model, rounded, list(work.samples()))))


if __name__ == "__main__":
    job.main({"dynamic": dynamic, "static": static, "gptq": gptq})
