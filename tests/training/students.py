"""Models of models/ to train, and samples to train them with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxc.model import Model

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
