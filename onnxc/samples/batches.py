"""Samples as a run will see them. In: calibration data, a batch size or shapes. Out: inputs to time models with.

Eight users at once, or a longer sequence, take other times than one sample: plans for them are priced on inputs of
their size. Samples that are alike are put together along the batch axis; others are repeated. Where a shape is asked
for that the data does not have, values are repeated too: what they say does not matter to a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxc.errors import UsageError

if TYPE_CHECKING:
    from onnxc.session import TensorInfo

Sample = Mapping[str, np.ndarray]


def as_run(
    samples: Sequence[Sample],
    inputs: Sequence[TensorInfo],
    *,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[Sample]:
    """``samples`` with ``batch`` of them in one, and inputs in ``shapes``; as many as there were.

    Args:
        inputs: of the model; the batch axis is the first one of an input where it is not fixed.

    Raises:
        UsageError: the model does not take such a batch or shape; names the input.
    """
    wanted = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    known = {each.name: each for each in inputs}
    for name, shape in wanted.items():
        if name not in known:
            raise UsageError(f"--shape {name}: the model has no such input; its inputs are {', '.join(known)}")
        axes = known[name].shape
        if "seq(" in known[name].dtype:  # of its elements' shapes a session tells nothing
            continue
        if len(axes) != len(shape) or any(
            isinstance(a, int) and a != size for a, size in zip(axes, shape, strict=True)
        ):
            has = "x".join("?" if axis is None else str(axis) for axis in axes) or "a scalar"
            raise UsageError(f"--shape {name}={'x'.join(map(str, shape))}: the model takes {has}")
    joined = [each.name for each in inputs if each.shape and not isinstance(each.shape[0], int)]
    if batch is not None and batch > 1 and not joined:
        raise UsageError(
            f"--batch {batch}: the first axis of every input is fixed; export the model with a dynamic batch"
        )
    made: list[Sample] = []
    for start in range(len(samples)):
        sample: dict[str, Any] = dict(samples[start])
        for name, value in sample.items():
            if name not in known:
                continue
            if value is None or isinstance(value, list | tuple):
                if name in wanted:
                    sample[name] = inside(name, value, wanted[name])
                continue
            array = np.asarray(value)
            if batch is not None and name in joined and array.ndim:
                array = together([np.asarray(samples[(start + i) % len(samples)][name]) for i in range(batch)], batch)
            if name in wanted:
                array = repeated(array, wanted[name])
            sample[name] = array
        made.append(sample)
    return made


def inside(name: str, value: Any, shape: Sequence[int]) -> Any:
    """What a sequence or an optional holds, every array in ``shape``; UsageError where its rank is another."""
    if isinstance(value, list | tuple):
        return [inside(name, each, shape) for each in value]
    if value is None:
        return None
    array = np.asarray(value)
    if array.ndim != len(shape):
        given = "x".join(map(str, shape))
        raise UsageError(f"--shape {name}={given}: the data has arrays of rank {array.ndim} in it")
    return repeated(array, shape)


def together(arrays: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """``batch`` rows [batch, ...] of ``arrays``; of the first one alone where others are of another shape."""
    first = arrays[0]
    alike = [each for each in arrays if each.shape[1:] == first.shape[1:]]
    joined = np.concatenate(alike) if len(alike) > 1 else first
    return repeated(joined, (batch, *first.shape[1:]))


def repeated(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """``array`` in ``shape``: repeated along every axis, and cut."""
    times = [-(-size // max(have, 1)) for size, have in zip(shape, array.shape, strict=True)]
    return np.ascontiguousarray(np.tile(array, times)[tuple(slice(size) for size in shape)])
