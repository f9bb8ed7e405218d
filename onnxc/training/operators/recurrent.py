"""LSTM, GRU and RNN: torch's own where it computes the same, else step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from onnxc.training.operators.table import Call, filled, ints, operator

Activation = Callable[[torch.Tensor], torch.Tensor]
Step = Callable[[torch.Tensor, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]

_ACTIVATIONS: dict[str, Callable[[torch.Tensor, float | None, float | None], torch.Tensor]] = {
    "affine": lambda x, a, b: (1.0 if a is None else a) * x + (0.0 if b is None else b),
    "elu": lambda x, a, b: functional.elu(x, 1.0 if a is None else a),
    "hardsigmoid": lambda x, a, b: ((0.2 if a is None else a) * x + (0.5 if b is None else b)).clamp(0, 1),
    "leakyrelu": lambda x, a, b: functional.leaky_relu(x, 0.01 if a is None else a),
    "relu": lambda x, a, b: torch.relu(x),
    "scaledtanh": lambda x, a, b: (1.0 if a is None else a) * torch.tanh((1.0 if b is None else b) * x),
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "softplus": lambda x, a, b: functional.softplus(x),
    "softsign": lambda x, a, b: functional.softsign(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "thresholdedrelu": lambda x, a, b: torch.where(x > (1.0 if a is None else a), x, torch.zeros_like(x)),
}
_USES_ALPHA = {"affine", "elu", "hardsigmoid", "leakyrelu", "scaledtanh", "thresholdedrelu"}
_USES_BETA = {"affine", "hardsigmoid", "scaledtanh"}
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def activations(call: Call, directions: int) -> list[list[Activation]]:
    """The functions of every direction; limits of ``clip`` go before them."""
    kind = call.node.op.removeprefix("DynamicQuantize")
    names = call.get("activations") or _DEFAULTS[kind] * directions
    names = [str(each.decode() if isinstance(each, bytes) else each).lower() for each in names]
    alphas, betas = list(call.get("activation_alpha") or []), list(call.get("activation_beta") or [])
    limit = call.get("clip")
    made: list[Activation] = []
    for name in names:
        if name not in _ACTIVATIONS:
            raise call.refuse(f"activation {name}")
        alpha = alphas.pop(0) if alphas and name in _USES_ALPHA else None
        beta = betas.pop(0) if betas and name in _USES_BETA else None

        def function(x: torch.Tensor, name: str = name, alpha: Any = alpha, beta: Any = beta) -> torch.Tensor:
            return _ACTIVATIONS[name](x if limit is None else x.clamp(-limit, limit), alpha, beta)

        made.append(function)
    each = len(made) // directions
    return [made[index * each : (index + 1) * each] for index in range(directions)]


def _plain(call: Call, lengths: Any, steps: int, sizes: Sequence[Any]) -> bool:
    """Whether nothing asks for more than torch's own recurrent functions do."""
    kind = call.node.op.removeprefix("DynamicQuantize")
    names = [str(each.decode() if isinstance(each, bytes) else each) for each in call.get("activations") or []]
    default = _DEFAULTS[kind] * (len(names) // len(_DEFAULTS[kind]))
    full = lengths is None or all(each == steps for each in ints(lengths))
    return (
        full
        and all(each is None for each in sizes)
        and (not names or [each.lower() for each in names] == [each.lower() for each in default])
        and call.get("clip") is None
        and call.get("direction", "forward") != "reverse"
        and not call.get("input_forget", 0)
        and all(extent > 0 for extent in (steps,))
    )


def recurrent(
    call: Call,
    gates: int,
    cell: Callable[..., Step],
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: Any,
    lengths: Any,
    states: Sequence[Any],
    peepholes: Any = None,
) -> tuple[torch.Tensor, ...]:
    """A recurrence over time in both directions.

    Args:
        call: the node; its attributes say direction, layout and activations.
        gates: blocks in the rows of ``w``.
        cell: (activations, weights of a direction) -> step function.
        x: [T, B, I] (or [B, T, I] in layout 1). w: [D, gates H, I]. r: [D, gates H, H]. b: [D, 2 gates H] or None.
        lengths: valid steps per sample, or None.
        states: initial h (and c): [D, B, H] or None.
        peepholes: [D, 3 H] or None.

    Returns:
        Y [T, D, B, H], and the last states [D, B, H], in the node's layout.
    """
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        states = [None if each is None else each.transpose(0, 1) for each in states]
    steps, batch, _ = x.shape
    directions, hidden = w.shape[0], r.shape[-1]
    b = x.new_zeros(directions, 2 * gates * hidden) if b is None else b
    given = [x.new_zeros(directions, batch, hidden) if each is None else each for each in states]
    if _plain(call, lengths, steps, [peepholes]) and (fast := _by_torch(call, x, w, r, b, given)) is not None:
        made, *last = fast
    else:
        functions = activations(call, directions)
        made, last = _by_steps(call, functions, cell, x, w, r, b, lengths, given, peepholes)
    if batch_first:
        return made.permute(2, 0, 1, 3), *(each.transpose(0, 1) for each in last)
    return made, *last


def _by_torch(
    call: Call, x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor, states: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...] | None:
    """By torch.lstm, torch.gru or torch.rnn_tanh; gates are in another order there."""
    kind = call.node.op.removeprefix("DynamicQuantize")
    order = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}[kind]
    if kind == "GRU" and not call.get("linear_before_reset", 0):
        return None
    directions, hidden = w.shape[0], r.shape[-1]

    def moved(block: torch.Tensor) -> torch.Tensor:
        parts = block.reshape(len(order), hidden, *block.shape[1:])
        return torch.cat([parts[place] for place in order])

    parameters = []
    half = len(order) * hidden
    for d in range(directions):
        parameters += [moved(w[d]), moved(r[d]), moved(b[d, :half]), moved(b[d, half:])]
    learns = x.device.type != "cpu" and torch.is_grad_enabled()  # cuDNN goes backward only from what it keeps then
    settings = (parameters, True, 1, 0.0, learns, directions == 2, False)
    if kind == "LSTM":
        out, *last = torch.lstm(x, (states[0].contiguous(), states[1].contiguous()), *settings)
    else:
        function = torch.gru if kind == "GRU" else torch.rnn_tanh
        out, *last = function(x, states[0].contiguous(), *settings)
    return out.unflatten(-1, (directions, hidden)).transpose(1, 2), *last


def _by_steps(
    call: Call,
    functions: list[list[Activation]],
    cell: Callable[..., Step],
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor,
    lengths: Any,
    states: Sequence[torch.Tensor],
    peepholes: Any,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One step after the other; samples whose length is reached keep their state and give zeros."""
    steps, directions = x.shape[0], w.shape[0]
    outputs, last = [], []
    for d in range(directions):
        backward = call.get("direction", "forward") == "reverse" or d == 1
        step = cell(call, functions[d], w[d], r[d], b[d], None if peepholes is None else peepholes[d])
        state = tuple(each[d] for each in states)
        rows: list[Any] = [None] * steps
        for time in range(steps - 1, -1, -1) if backward else range(steps):
            fresh = step(x[time], state)
            if lengths is None:
                state, rows[time] = fresh, fresh[0]
            else:
                valid = (lengths > time)[:, None]
                state = tuple(torch.where(valid, new, old) for new, old in zip(fresh, state, strict=True))
                rows[time] = torch.where(valid, fresh[0], torch.zeros_like(fresh[0]))
        outputs.append(torch.stack(rows) if rows else x.new_zeros(0, x.shape[1], r.shape[-1]))
        last.append(state)
    return torch.stack(outputs, 1), [torch.stack(each) for each in zip(*last, strict=True)]


def lstm_cell(
    call: Call, functions: list[Activation], w: torch.Tensor, r: torch.Tensor, b: torch.Tensor, peepholes: Any
) -> Step:
    """One step of an LSTM with gates i, o, f, c (Hochreiter and Schmidhuber, 1997), with peepholes if given."""
    sigmoid, squash, out = functions
    bias = b.reshape(2, -1).sum(0)
    coupled = bool(call.get("input_forget", 0))

    def step(x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        h, c = state
        i, o, f, g = (x @ w.T + h @ r.T + bias).chunk(4, -1)
        if peepholes is not None:
            p_i, p_o, p_f = peepholes.chunk(3)
            i, f = i + p_i * c, f + p_f * c
        i = sigmoid(i)
        f = 1 - i if coupled else sigmoid(f)
        c = f * c + i * squash(g)
        o = sigmoid(o + p_o * c if peepholes is not None else o)
        return o * out(c), c

    return step


def gru_cell(
    call: Call, functions: list[Activation], w: torch.Tensor, r: torch.Tensor, b: torch.Tensor, peepholes: Any
) -> Step:
    """One step of a GRU with gates z, r, h (Cho et al., 2014)."""
    sigmoid, squash = functions
    hidden = r.shape[-1]
    b_w, b_r = b.reshape(2, -1)
    linear = bool(call.get("linear_before_reset", 0))

    def step(x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (h,) = state
        from_x = x @ w.T + b_w
        gates = from_x[:, : 2 * hidden] + h @ r[: 2 * hidden].T + b_r[: 2 * hidden]
        z, reset = sigmoid(gates).chunk(2, -1)
        if linear:
            inner = reset * (h @ r[2 * hidden :].T + b_r[2 * hidden :])
        else:
            inner = (reset * h) @ r[2 * hidden :].T + b_r[2 * hidden :]
        candidate = squash(from_x[:, 2 * hidden :] + inner)
        return ((1 - z) * candidate + z * h,)

    return step


def rnn_cell(
    call: Call, functions: list[Activation], w: torch.Tensor, r: torch.Tensor, b: torch.Tensor, peepholes: Any
) -> Step:
    """One step of a plain recurrence."""
    (squash,) = functions
    bias = b.reshape(2, -1).sum(0)
    return lambda x, state: (squash(x @ w.T + state[0] @ r.T + bias),)


@operator("LSTM")
def lstm(call: Call, x: Any, w: Any, r: Any, *rest: Any) -> tuple[torch.Tensor, ...]:
    """Y, the last h, the last c."""
    b, lengths, h, c, peepholes = filled(rest, 5)
    return recurrent(call, 4, lstm_cell, x, w, r, b, lengths, [h, c], peepholes)


@operator("GRU")
def gru(call: Call, x: Any, w: Any, r: Any, *rest: Any) -> tuple[torch.Tensor, ...]:
    """Y and the last h."""
    b, lengths, h = filled(rest, 3)
    return recurrent(call, 3, gru_cell, x, w, r, b, lengths, [h])


@operator("RNN")
def rnn(call: Call, x: Any, w: Any, r: Any, *rest: Any) -> tuple[torch.Tensor, ...]:
    """Y and the last h."""
    b, lengths, h = filled(rest, 3)
    return recurrent(call, 1, rnn_cell, x, w, r, b, lengths, [h])
