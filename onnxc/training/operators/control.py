"""If, Loop and Scan: the bodies run as Python control flow, gradients go through what ran."""

from __future__ import annotations

from typing import Any

import torch

from onnxc.training.operators.table import Call, Value, ints, operator


@operator("If")
def branch(call: Call, condition: torch.Tensor) -> Any:
    """The branch that the condition chooses."""
    name = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    return tuple(call.body(call.node.attrs[name], []))


@operator("Loop")
def loop(call: Call, trips: Any, condition: Any, *carried: Value) -> Any:
    """Repeats its body; returns the carried values and what every trip gave, stacked."""
    body = call.node.attrs["body"]
    limit = ints(trips)[0] if trips is not None else None
    goes_on = True if condition is None else bool(condition.reshape(-1)[0])
    state, rows, trip = list(carried), [list[Value]() for _ in body.outputs[1 + len(carried) :]], 0
    while goes_on and (limit is None or trip < limit):
        number = torch.tensor(trip, dtype=torch.int64, device=call.device)
        fresh, *values = call.body(body, [number, torch.tensor(goes_on, device=call.device), *state])
        goes_on, state = bool(fresh.reshape(-1)[0]), values[: len(state)]
        for row, value in zip(rows, values[len(state) :], strict=True):
            row.append(value)
        trip += 1
    return *state, *(_stacked(row, 0, False, call) for row in rows)


def _stacked(row: list[Value], axis: int, backward: bool, call: Call) -> torch.Tensor:
    if not row:
        return torch.zeros(0, device=call.device)
    return torch.stack(row[::-1] if backward else row, axis)


@operator("Scan")
def scan(call: Call, *values: Value) -> Any:
    """Runs its body over slices of its inputs; opset 9 and later."""
    if call.opset < 9:
        raise call.refuse("Scan of opset 8")
    body, count = call.node.attrs["body"], int(call.get("num_scan_inputs"))
    states = len(values) - count
    axes = ints(call.get("scan_input_axes")) or [0] * count
    backward = ints(call.get("scan_input_directions")) or [0] * count
    outputs = len(body.outputs) - states
    out_axes = ints(call.get("scan_output_axes")) or [0] * outputs
    out_backward = ints(call.get("scan_output_directions")) or [0] * outputs
    state = list(values[:states])
    slices = [each.unbind(axis) for each, axis in zip(values[states:], axes, strict=True)]
    slices = [part[::-1] if back else part for part, back in zip(slices, backward, strict=True)]
    rows = [list[Value]() for _ in range(outputs)]
    for parts in zip(*slices, strict=True):
        made = call.body(body, [*state, *parts])
        state = made[:states]
        for row, value in zip(rows, made[states:], strict=True):
            row.append(value)
    joined = [_stacked(*each, call) for each in zip(rows, out_axes, map(bool, out_backward), strict=True)]
    return *state, *joined
