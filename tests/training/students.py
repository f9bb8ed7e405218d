"""Models of models/ to train, and samples to train them with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxc.codes.fitting import make_grid
from onnxc.codes.formats import Format
from onnxc.codes.gptq import factorize, gptq
from onnxc.codes.layouts import layout_of
from onnxc.codes.packing import packed, possible
from onnxc.codes.solve import as_groups, from_groups
from onnxc.encoding import Codes
from onnxc.file.shell import is_constant
from onnxc.model import Model
from onnxc.rewriting.rewriter import Rewriter

MODELS = Path(__file__).parents[2] / "models"


def samples(name: str, count: int = 24) -> list[dict[str, np.ndarray]]:
    with np.load(MODELS / "data" / f"{name}_calib.npz") as file:
        arrays = {key: file[key][:count] for key in file.files}
    return [{key: array[place : place + 1] for key, array in arrays.items()} for place in range(count)]


def rounded(model: Model, levels: int = 3) -> Model:
    """Every matrix and filter as int8 codes from -levels to levels and a scale per first axis."""
    model = model.copy()
    for tensor in list(model.graph.weights):
        values = np.asarray(tensor.values)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < 256:
            continue
        axes = tuple(range(1, values.ndim))
        scale = np.abs(values).max(axis=axes, keepdims=True) / (levels + 0.5)
        codes = np.clip(np.rint(values / scale), -levels, levels).astype(np.int8)
        name = tensor.name
        cast = model.insert("Cast", [model.constant(f"{name}_q", codes)], [f"{name}_cast"], to=1).outputs[0]
        scale_tensor = model.constant(f"{name}_scale", scale.astype(np.float32))
        restored = model.insert("Mul", [cast, scale_tensor], [f"{name}_unfolded"]).outputs[0]
        model.redirect(tensor, restored)
    model.tidy()
    return model


def stored(model: Model, chosen: Format, *, native: bool) -> Model:
    """Every matrix in the packed form of a format, as the storage passes write it."""
    model = model.copy()
    codes = {}
    for tensor in model.graph.weights:
        values = np.asarray(tensor.values)
        if values.ndim != 2 or not possible(chosen, layout := layout_of(values.shape, 1)):
            continue
        matrix = as_groups(values, 1, 1)
        factor = factorize(np.eye(matrix.shape[1], dtype=np.float32)[None])
        grid, scale = make_grid(matrix, chosen, np.ones(matrix.shape[:2], np.float32), 127)
        found, digits = gptq(matrix / scale[:, None], factor, grid)
        form = packed(chosen, grid, digits, layout, native=native)
        codes[tensor.name] = Codes(from_groups(found, values.shape, 1), scale.reshape(-1), 1, 127, form)
    rewriter = Rewriter(model, codes)
    for name in codes:
        rewriter.unfold(name)
    assert len(codes) > 1
    model.tidy()
    return model


def pruned(model: Model, share: float = 0.8) -> Model:
    """That share of every matrix zero."""
    model = model.copy()
    for tensor in model.graph.weights:
        if len(tensor.shape) == 2:
            values = np.array(tensor.values)
            values[np.abs(values) < np.quantile(np.abs(values), share)] = 0
            tensor.values = values
    return model


def paired(model: Model, rank: int = 16) -> Model:
    """Two thin matrices in place of every large one."""
    model = model.copy()
    for node in [each for each in model.graph.nodes if each.op == "MatMul" and is_constant(each.inputs[1])]:
        name, values = node.inputs[1].name, np.asarray(node.inputs[1].values)
        if values.ndim == 2 and values.size >= 4096:
            u, s, v = np.linalg.svd(values, full_matrices=False)
            first = model.constant(f"{name}_first", u[:, :rank] * s[:rank])
            node.inputs[0] = model.insert("MatMul", [node.inputs[0], first], [f"{name}_inner"]).outputs[0]
            node.inputs[1] = model.constant(f"{name}_second", v[:rank])
    model.tidy()
    return model
