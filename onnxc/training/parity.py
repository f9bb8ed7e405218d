"""The interpreter against ONNX Runtime. In: a program and samples. Out: the signal to noise ratio, or an error."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from onnxc.data import Sample
from onnxc.errors import ModelError
from onnxc.model import Model
from onnxc.session import Options, Session
from onnxc.training.interpreter import Program
from onnxc.training.operators.table import to_numpy

ENOUGH_DB = 20.0  # rounding boundaries of quantized models cost some; a wrong operator leaves nothing near it


def check_parity(program: Program, model: Model, samples: Iterable[Sample], options: Options) -> float:
    """The signal to noise ratio of the interpreter's worst output against ONNX Runtime's, in dB, at most 200.

    Raises:
        ModelError: it is below ENOUGH_DB: training would be training of another model.
    """
    session = Session(model, options)
    names = [each.name for each in program.outputs]
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for sample in samples:
        expected = session.run(sample, names)
        with torch.no_grad():
            got = program(sample)
        for name in names:
            reference, made = np.asarray(expected[name], np.float64), to_numpy(got[name]).astype(np.float64)
            if reference.shape != made.shape:
                raise ModelError(
                    f"output {name!r} has shape {list(made.shape)} in torch, {list(reference.shape)} in ONNX Runtime"
                )
            signal[name] += float(np.square(reference).sum())
            noise[name] += float(np.square(reference - made).sum())
    worst, ratio = "", 200.0
    for name in names:
        if noise[name]:
            found = 10 * math.log10(max(signal[name], 1e-30) / noise[name]) if math.isfinite(noise[name]) else -math.inf
            if found < ratio:
                worst, ratio = name, found
    if ratio < ENOUGH_DB:
        raise ModelError(
            f"output {worst!r} of the interpreter is {ratio:.1f} dB from ONNX Runtime's: this model cannot be trained; "
            "please report it"
        )
    return ratio
