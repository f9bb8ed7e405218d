"""One compression by one tool. In: a tool's name, a model, calibration data, a hook. Out: a model file.

    python benchmarks/tools.py "ORT static" IN.onnx OUT.onnx --calib DATA --eval FILE.py:FUNCTION

run.py starts it as a process of its own, so that a crash of a tool costs one row. ONNX Runtime's quantizers
are called as its documentation recommends: quant_pre_process first, then QDQ.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

import onnxc
from onnxc.session import Session

SAMPLES = 128
Sample = Mapping[str, np.ndarray]


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Samples the way onnxruntime.quantization asks for them."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples: Iterator[Sample] = iter(samples)

    def get_next(self) -> Sample | None:
        """The next sample, None after the last."""
        return next(self.samples, None)


def samples_of(model: Path, calib: str, count: int = SAMPLES) -> list[Sample]:
    """At most ``count`` samples of ``calib``, evenly spread; every tool gets the same ones."""
    return onnxc.Calibration.open(calib, Session(model).inputs).take(count)


def prepared(source: Path, folder: str) -> Path:
    """The model after ONNX Runtime's own preparation for quantizing."""
    target = Path(folder, "prepared.onnx")
    quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
    return target


def with_onnxc(source: Path, target: Path, calib: str, hook: str | None) -> None:
    """Everything onnxc has: samples and the score."""
    onnxc.optimize(source, target, calib=samples_of(source, calib), eval=hook, prices=f"{target}.prices")


def with_onnxc_for_ort(source: Path, target: Path, calib: str, hook: str | None) -> None:
    """The same, operators of com.microsoft allowed, as ONNX Runtime's quantizers use them."""
    samples = samples_of(source, calib)
    onnxc.optimize(source, target, calib=samples, eval=hook, ops="ort", prices=f"{target}.prices")


def with_onnxc_alone(source: Path, target: Path, calib: str, hook: str | None) -> None:
    """No data, no score."""
    onnxc.optimize(source, target, prices=f"{target}.prices")


def with_dynamic(source: Path, target: Path, calib: str, hook: str | None) -> None:
    """quantize_dynamic as it comes, int8 weights."""
    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(prepared(source, folder), target, weight_type=QuantType.QInt8)


def with_static(source: Path, target: Path, calib: str, hook: str | None) -> None:
    """quantize_static as it comes: int8 activations and weights per tensor, ranges by minimum and maximum."""
    with tempfile.TemporaryDirectory() as folder:
        quantize_static(prepared(source, folder), target, Reader(samples_of(source, calib)))


def with_static_channels(source: Path, target: Path, calib: str, hook: str | None) -> None:
    """quantize_static with what suits this processor best: uint8 activations, int8 weights per channel."""
    with tempfile.TemporaryDirectory() as folder:
        quantize_static(
            prepared(source, folder),
            target,
            Reader(samples_of(source, calib)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


TOOLS: dict[str, Callable[[Path, Path, str, str | None], None]] = {
    "onnxc": with_onnxc,
    "onnxc --ops ort": with_onnxc_for_ort,
    "onnxc, no data": with_onnxc_alone,
    "ORT dynamic": with_dynamic,
    "ORT static": with_static,
    "ORT static u8s8": with_static_channels,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="One compression by one tool.")
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--eval")
    given = parser.parse_args()
    TOOLS[given.tool](given.source, given.target, given.calib, given.eval)


if __name__ == "__main__":
    main()
