"""Models to factor and what became of them. In: a ModelProto and samples. Out: contexts, levels, errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from onnxc.contract.context import Context
from onnxc.contract.passes import Level, StructuralPass
from onnxc.data import Calibration, generate
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.observe import Observations
from onnxc.recipe import Recipe
from onnxc.session import Session
from onnxc.sites import find
from onnxc.targets import target

MODELS = Path(__file__).parents[1] / "models"
Data = Sequence[dict[str, np.ndarray]]


def context_of(source: ModelProto | Path, data: Any = None) -> Context:
    """The context in which a structural pass works; without ``data`` inputs are generated."""
    model = Model.load(source)
    name_nodes(model)
    session, where = Session(model), target("cpu")
    samples = generate(model, session) if data is None else Calibration.open(data, session.inputs)
    return Context(model, find(model, where), Observations(), Recipe(), where, samples=samples)


def told(step: StructuralPass, source: ModelProto | Path, data: Any = None) -> Level:
    """The one level of a pass that was told what to do."""
    (level,) = step.levels(context_of(source, data))
    return level


def error(source: ModelProto | Path, level: Level, data: Data) -> float:
    """E|y - y'|^2 / E|y|^2 of the worst output."""
    before, after = Session(source), Session(level.model)
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for sample in data:
        now = after.run(sample)
        for name, values in before.run(sample).items():
            signal[name] = signal.get(name, 0.0) + float(np.square(values, dtype=np.float64).sum())
            noise[name] = noise.get(name, 0.0) + float(np.square(values - now[name], dtype=np.float64).sum())
    return max(noise[name] / signal[name] for name in signal)


def operators(level: Level) -> list[str]:
    return [node.op for node in level.model.nodes()]


def limited(name: str, rank: int, noise: float, smallest: int = 64) -> tuple[ModelProto, list[str]]:
    """A trained model whose large matrices are replaced by the best of ``rank``, plus ``noise`` of their size."""
    proto = onnx.load(MODELS / f"{name}.onnx")
    random = np.random.default_rng(0)
    read = {node.input[1] for node in proto.graph.node if node.op_type in {"MatMul", "Gemm"}}
    names = []
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name in read and values.ndim == 2 and min(values.shape) >= smallest:
            left, energies, right = np.linalg.svd(values, full_matrices=False)
            made = (left[:, :rank] * energies[:rank]) @ right[:rank]
            made += noise * made.std() * random.standard_normal(made.shape)
            tensor.CopyFrom(numpy_helper.from_array(made.astype(np.float32), tensor.name))
            names.append(tensor.name)
    return proto, names
