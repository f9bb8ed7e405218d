"""What runs fast where: per target, which operators have int8 kernels and which patterns fuse. Data, no logic.

The figures of the ``cpu`` targets were measured on ONNX Runtime 1.31 and 1.32, AVX512-VNNI and AVX2; they are listed in
docs/cpu-facts.md. The others come from what their makers write, named in ``source``: nothing of them was run, so times
are estimated from multiply-accumulates, and the report says so. A pass asks the target; it never knows an operator's
speed itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxc.errors import UsageError

# What ONNX Runtime does by itself, on every target. Seen in optimized graphs: a float weight of these operators
# between a DQ and a Q becomes int8 per tensor (a MatMul with its Add is a Gemm by then) ...
QUANTIZED_AT_LOAD = frozenset({"Conv", "ConvTranspose", "Gemm"})
# ... and DQ and Q move towards each other through these.
MOVED_THROUGH = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "MaxPool"})
ABSORBED = frozenset({"Relu", "Clip"})


@dataclass(frozen=True)
class Target:
    """The operators and patterns that a runtime executes in int8.

    Attributes:
        name: what ``--target`` takes.
        joints: operators without weights that have an int8 kernel at least as fast as the float one inside an island.
        carriers: data movement that ONNX Runtime runs on the codes; input and output must share scale and zero point.
        absorbed: activations that vanish into a Q with zero point 0 (and, for Clip, a range inside the clip's).
        rank_share: of a matrix's K N products, that a pair of factors may take to be worth its second kernel call;
            rank_step, channel_step: multiples that kernels like, of ranks and of a convolution's channels.
        smallest_linear: product K * N below which an int8 linear does not pay.
        weight_levels: largest magnitude of a weight code.
        safe_weight_levels: the same where the pair sums of one site would saturate without dot-product instructions.
        opset: lowest default-domain opset that has per-channel Q/DQ.
        ways: how sites may compute on codes there: with static ranges, with ranges taken at run time, or only weights
            are codes (decode).
        signed: activations are int8 around zero, as TensorRT wants them; otherwise uint8 with any zero point.
        float_biases: biases of int8 operators stay float32 initializers; otherwise they are int32 codes.
        plain: operators whose weights may be codes, where only int8 initializers may be, with float32 initializers as
            scales, that nothing but DequantizeLinear reads; a weight of any other is a float. Empty: any weight may be
            codes, in any form that standard operators unfold at load.
        saturates: whether pair sums are added in 16 bits there; None: as on the machine that compresses.
        measured: whether the machine that compresses can run it.
        gain: estimated speed of int8 over float, where it cannot.
        source: where the rules come from.
    """

    name: str
    joints: frozenset[str] = frozenset({"Add", "Concat", "GlobalAveragePool", "MaxPool"})
    carriers: frozenset[str] = frozenset(
        {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "DepthToSpace", "Slice", "Split"}
    )
    absorbed: frozenset[str] = ABSORBED
    rank_share: float = 0.65
    rank_step: int = 8
    channel_step: int = 16
    smallest_linear: int = 64 * 64
    weight_levels: int = 127
    safe_weight_levels: int = 63
    opset: int = 13
    ways: frozenset[str] = frozenset({"static", "dynamic", "decode"})
    signed: bool = False
    float_biases: bool = False
    plain: frozenset[str] = frozenset()
    saturates: bool | None = None
    measured: bool = True
    gain: float = 1.0
    source: str = "docs/cpu-facts.md"


CPU = Target("cpu")
PROVIDERS = "https://onnxruntime.ai/docs/execution-providers/"
QUANTIZATION = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
STATIC, NONE = frozenset({"static"}), frozenset[str]()
# Stored codes unfold by constant folding, one of the basic optimizations: ONNX Runtime runs these before it gives parts
# of a graph to providers, and they "apply to all the execution providers"
# (https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html). So packed weights, and scales
# of biases made at load, hold for every target here that is ONNX Runtime, and so do int32 biases: its quantizer writes
# them for all of its providers, OpenVINO's among them. TensorRT also reads ONNX by a parser of its own.
# Activations have 8 bits on all of them: none has an integer kernel for 16. Between a Q and a DQ of uint16 or int16
# ONNX Runtime 1.32 computes Conv and MatMul in float on the CPU, seen in optimized graphs (its fusions are off for such
# types: microsoft/onnxruntime#17015), and web is the same kernels; XNNPACK takes int8 and uint8 (its conv_base.cc),
# TensorRT INT8, FP8, INT4 and FP4 (the page of its target below), and OpenVINO takes such pairs out, on its NPU, which
# has no such types (microsoft/onnxruntime#20622), and on GPUs (openvinotoolkit/openvino#32719).
TARGETS: dict[str, Target] = {
    each.name: each
    for each in (
        CPU,
        Target("cpu-avx2", saturates=True),
        Target("arm", saturates=False, measured=False, gain=2.0, source=QUANTIZATION),
        # the CUDA provider has no int8 kernels for Q/DQ graphs: weights are stored small, arithmetic stays float
        Target("cuda", ways=NONE, measured=False, source=f"{PROVIDERS}CUDA-ExecutionProvider.html"),
        # Its parser takes DequantizeLinear of int8 with zero points 0, no Q of uint8, no DynamicQuantizeLinear
        # (https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md), refuses int32 biases: "only activation
        # types allowed as input to this layer" (https://github.com/onnx/onnx-tensorrt/issues/850,
        # https://github.com/microsoft/onnxruntime/issues/14229), and reads codes of weights as constants that a DQ
        # stands between "and the linear operator that uses them" (quantized-types-explicit-quantization.html there).
        Target(
            "tensorrt",
            ways=STATIC,
            signed=True,
            float_biases=True,
            plain=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
            saturates=False,
            measured=False,
            gain=2.0,
            source="https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html",
        ),
        Target(
            "openvino",
            ways=STATIC,
            saturates=False,
            measured=False,
            gain=2.0,
            source=f"{PROVIDERS}OpenVINO-ExecutionProvider.html",
        ),
        Target("web", measured=False, gain=1.3, source="https://onnxruntime.ai/docs/tutorials/web/"),
        Target(
            "mobile", saturates=False, measured=False, gain=2.0, source="https://onnxruntime.ai/docs/tutorials/mobile/"
        ),
    )
}


def target(name: str) -> Target:
    """The target called ``name``; UsageError naming those there are."""
    if name not in TARGETS:
        raise UsageError(f"unknown target '{name}'; there are: {', '.join(sorted(TARGETS))}")
    return TARGETS[name]
