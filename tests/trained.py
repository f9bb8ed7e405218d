"""The trained models of models/ for tests of numbers. In: a name. Out: contexts, statically quantized models, SQNR."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from onnxc.coder import Coder
from onnxc.contract.context import Context
from onnxc.data import Calibration
from onnxc.judge import build
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.observe import observe
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.problem import Plan
from onnxc.propose import collect
from onnxc.recipe import Recipe
from onnxc.session import Options, Session
from onnxc.sites import find
from onnxc.targets import target
from tests.emission import Sample

MODELS = Path(__file__).parents[1] / "models"


@cache
def samples(name: str, count: int = 32) -> tuple[Sample, ...]:
    """The first calibration samples, one item each."""
    with np.load(MODELS / "data" / f"{name}_calib.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return tuple({key: array[i : i + 1] for key, array in arrays.items()} for i in range(count))


def load(name: str) -> Model:
    model = Model.load(MODELS / f"{name}.onnx")
    name_nodes(model)
    return model


def context(model: Model, data: Sequence[Sample]) -> Context:
    """``model`` observed on ``data``."""
    name_nodes(model)
    where = target("cpu")
    found = find(model, where)
    sites = [s for s in found if s.kind in {"linear", "convolution", "joint", "recurrent"}]
    tensors = [t for s in sites for t in (*s.inputs, s.result) if found.is_float(t)]
    calibration = Calibration.open(list(data), Session(model).inputs)
    seen = observe(model, calibration, len(calibration), tensors, sites, Options())
    return Context(model, found, seen, Recipe(), where, samples=calibration)


def static(context: Context, **fields: Any) -> Model:
    """Every site that can be in int8 is, its weights by GPTQ."""
    proposals = collect([(QuantizeStatic(**fields), True)], context)
    compute = {name: found[0] for name, found in proposals.compute.items()}
    weights = {s.weight.name: "int8" for s in context.sites if s.weight is not None and s.name in compute}
    return build(context.model, Plan(compute, weights), Coder(context, proposals))


def sqnr(original: Model, model: Model, data: Sequence[Sample]) -> float:
    """SQNR of the worst output [dB]."""
    before, after = Session(original), Session(model)
    signal: Counter[str] = Counter()
    noise: Counter[str] = Counter()
    for sample in data:
        wanted, found = before.run(sample), after.run(sample)
        for name, values in wanted.items():
            signal[name] += float(np.square(values, dtype=np.float64).sum())
            noise[name] += float(np.square(values - found[name], dtype=np.float64).sum())
    return min(10 * float(np.log10(signal[name] / max(noise[name], 1e-30))) for name in signal)
