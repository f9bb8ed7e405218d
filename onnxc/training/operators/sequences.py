"""Operators on sequences, which are lists of values."""

from __future__ import annotations

from typing import Any

import torch

from onnxc.training.operators.table import Call, Value, ints, operator


@operator("SequenceConstruct")
def sequence_construct(call: Call, *values: Value) -> list[Value]:
    """A sequence of its inputs."""
    return list(values)


@operator("SequenceEmpty")
def sequence_empty(call: Call) -> list[Value]:
    """A sequence of nothing."""
    return []


@operator("SequenceInsert")
def sequence_insert(call: Call, values: list[Value], value: Value, place: Any = None) -> list[Value]:
    """A sequence with one more value, at the end by default."""
    made = list(values)
    made.insert(len(made) if place is None else range(-len(made), len(made) + 1)[len(made) + ints(place)[0]], value)
    return made


@operator("SequenceErase")
def sequence_erase(call: Call, values: list[Value], place: Any = None) -> list[Value]:
    """A sequence with one value less, the last by default."""
    made = list(values)
    del made[-1 if place is None else ints(place)[0]]
    return made


@operator("SequenceAt")
def sequence_at(call: Call, values: list[Value], place: torch.Tensor) -> Value:
    """One value of a sequence."""
    return values[ints(place)[0]]


@operator("SequenceLength")
def sequence_length(call: Call, values: list[Value]) -> torch.Tensor:
    """How many values."""
    return torch.tensor(len(values), dtype=torch.int64, device=call.device)


@operator("ConcatFromSequence")
def concat_from_sequence(call: Call, values: list[Value]) -> torch.Tensor:
    """Joined, or stacked, along an axis."""
    axis = int(call.get("axis"))
    return torch.stack(values, axis) if call.get("new_axis", 0) else torch.cat(values, axis)


@operator("SplitToSequence")
def split_to_sequence(call: Call, x: torch.Tensor, sizes: Any = None) -> list[Value]:
    """Parts along an axis: of one size, of stated sizes, or of extent 1."""
    axis = int(call.get("axis", 0))
    if sizes is None:
        parts = list(torch.split(x, 1, axis))
        return parts if call.get("keepdims", 1) else [each.squeeze(axis) for each in parts]
    return list(torch.split(x, ints(sizes) if sizes.ndim else ints(sizes)[0], axis))
