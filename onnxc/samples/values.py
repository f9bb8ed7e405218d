"""Values for one input of a model: by its type, its name and what the graph demands of it.

In: a TensorInfo, its Demand and a shape. Out: an array (or a sequence or map) of that type.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxc.errors import DataError
from onnxc.runtime.dtypes import numpy_dtype
from onnxc.samples.images import image_layout, make_image

if TYPE_CHECKING:
    from onnxc.samples.inputs import Demand
    from onnxc.session import TensorInfo

_WORDS = ("alpha", "beta", "gamma", "delta", "one two", "omega")
_STATE = re.compile(r"state|hidden|past|cache|memory|(^|_)[hc]\d*(_?(in|0))?$", re.IGNORECASE)


def is_mask(info: TensorInfo, demand: Demand) -> bool:
    """Whether ones are what lets everything through."""
    return demand.mask or re.search("mask", info.name, re.IGNORECASE) is not None


def _full(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max) + 1
    return (0, 2) if "2" in dtype.name else (0, 8)


def make_value(
    info: TensorInfo, demand: Demand, shape: tuple[int, ...], forced: Any, random: Any, mode: str, number: int
) -> Any:
    """A value for one input.

    Args:
        info: name and type.
        demand: what the graph demands of it.
        shape: the shape to fill; of a sequence, of each of its elements.
        forced: the one value to fill it with, None to choose.
        random: a numpy Generator.
        mode: "random", or "ones" or "zeros" for integers of which nothing is known.
        number: of the sample, from 0.

    Raises:
        DataError: inputs of this type cannot be made up.
    """
    dtype, name = info.numpy, info.name
    if dtype is None:
        return _container(info, demand, shape, random, mode, number)
    if forced is not None:
        return np.full(shape, forced).astype(dtype)
    if dtype.kind == "O":
        words = [word for word in demand.vocabulary if isinstance(word, str)] or list(_WORDS)
        return np.asarray(words, dtype=object)[random.integers(0, len(words), shape)]
    argued = _argument(demand, shape)
    if argued is not None:
        return argued.astype(dtype)
    if dtype.kind == "b" or is_mask(info, demand):
        return np.ones(shape, dtype)
    if dtype.kind not in "iu" and "int" not in dtype.name:
        scale = 0.1 if _STATE.search(name) else 1.0
        if (layout := image_layout(shape)) is not None:
            return make_image(shape, layout, random).astype(dtype)
        return (scale * random.standard_normal(shape)).astype(np.float32).astype(dtype)
    keys = [key for key in demand.vocabulary if isinstance(key, int)]
    if keys:
        return np.asarray(keys)[random.integers(0, len(keys), shape)].astype(dtype)
    if dtype.itemsize == 1:
        low, high = _full(dtype)
    elif demand.bounded is not None:
        low, high = max(demand.bounded[0], min(0, demand.bounded[1])), demand.bounded[1] + 1
    else:
        low, high = 0, 10
    high = max(high, low + 1)
    if re.search("token_type|segment", name, re.IGNORECASE):
        values = np.zeros(shape, np.int64)
        if shape and number % 2:  # the second half of every other sample is the second segment
            values[..., shape[-1] // 2 :] = 1
        return np.clip(values, low, high - 1).astype(dtype)
    if re.search("position", name, re.IGNORECASE) and shape:
        return np.broadcast_to(np.clip(np.arange(shape[-1]), low, high - 1), shape).astype(dtype)
    if mode != "random" and demand.bounded is None:
        return np.full(shape, 1 if mode == "ones" else 0).astype(dtype)
    if demand.bounded is None and len(shape) < 2 and re.search("len|size|num", name, re.IGNORECASE):
        return np.ones(shape, dtype)
    return random.integers(low, high, shape).astype(dtype)


def _argument(demand: Demand, shape: tuple[int, ...]) -> np.ndarray | None:
    """Values for an argument of an operator: a shape, axes, sizes, a count."""
    rule = demand.argument
    if rule == "reshape":  # everything in the first axis: fits any number of elements
        values = np.ones(shape, np.int64)
        values.flat[:1] = -1
        return values
    if rule == "axes":
        return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    if rule == "split" and demand.total is not None:
        count = max(int(np.prod(shape)), 1)
        values = np.full(shape, demand.total // count, np.int64)
        values.flat[-1:] += demand.total % count
        return values
    if rule == "few":
        return np.full(shape, 3, np.int64)
    if rule in {"ones", "zeros"}:
        return np.full(shape, int(rule == "ones"), np.int64)
    return None


def _container(info: TensorInfo, demand: Demand, shape: tuple[int, ...], random: Any, mode: str, number: int) -> Any:
    """Sequences of two elements, optionals and maps: with values and shapes as a tensor of the element type has."""
    inner = re.search(r"tensor\(\w+\)", info.dtype)
    element = numpy_dtype(inner.group()) if inner else None
    if inner is None or element is None:
        raise DataError(f"inputs of type {info.dtype} cannot be generated: give --calib PATH")
    if info.dtype.startswith("map("):
        return {0: 1.0, 1: 2.0} if info.dtype.startswith("map(int") else {"a": 1.0, "b": 2.0}
    held = replace(info, dtype=inner.group(), shape=shape, numpy=element)
    count = 2 if "seq(" in info.dtype else 1
    values = [np.asarray(make_value(held, demand, shape, None, random, mode, number)) for _ in range(count)]
    return values if "seq(" in info.dtype else values[0]
