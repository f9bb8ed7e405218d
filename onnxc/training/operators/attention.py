"""Attention and rotary positions as operators of their own (opset 23)."""

from __future__ import annotations

import math
from typing import Any

import torch

from onnxc.training.operators.table import Call, filled, operator

KNOWN = frozenset(
    ("is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision")
)


@operator("Attention")
def attention(call: Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> tuple[Any, ...]:
    """softmax(scale Q KT + mask) V (Vaswani et al., 2017), heads in the second axis or in the last.

    Returns:
        The result, the keys and values with the past before them, and the scores after ``qk_matmul_output_mode``.
    """
    mask, past_key, past_value, lengths = filled(rest, 4)
    if lengths is not None:
        raise call.refuse("attention with lengths of padded keys")
    flat = q.ndim == 3
    if flat:
        q_heads, kv_heads = int(call.get("q_num_heads")), int(call.get("kv_num_heads"))
        q, k, v = (
            each.unflatten(-1, (heads, -1)).transpose(1, 2)
            for each, heads in ((q, q_heads), (k, kv_heads), (v, kv_heads))
        )
    past = 0
    if past_key is not None:
        past = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    keys, values = k, v
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if unknown := set(call.node.attrs) - KNOWN:
        raise call.refuse(f"attention with {', '.join(sorted(unknown))}")
    scale = call.get("scale") or 1 / math.sqrt(q.shape[-1])
    root = math.sqrt(scale)
    plain = scores = torch.matmul(q * root, k.transpose(-1, -2) * root)
    if cap := call.get("softcap", 0.0):
        scores = cap * torch.tanh(scores / cap)
    capped = scores
    if call.get("is_causal", 0):
        rows, columns = (torch.arange(extent, device=q.device) for extent in scores.shape[-2:])
        scores = scores.masked_fill(columns[None, :] > rows[:, None] + past, float("-inf"))
    if mask is not None:
        if mask.shape[-1] < scores.shape[-1]:
            raise call.refuse("attention with a mask shorter than the keys")
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    nothing = torch.isneginf(scores).all(-1, keepdim=True)  # a row that may look at nothing gives zeros
    weights = torch.softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)
    made = torch.matmul(weights, v)
    if flat:
        made = made.transpose(1, 2).flatten(2)
    shown = (plain, capped, scores, weights)[int(call.get("qk_matmul_output_mode", 0))]
    return made, keys, values, shown


@operator("RotaryEmbedding")
def rotary_embedding(
    call: Call, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, positions: Any = None
) -> torch.Tensor:
    """Pairs of entries turned by an angle per position (Su et al., 2021)."""
    flat = x.ndim == 3
    if flat:
        x = x.unflatten(-1, (int(call.get("num_heads")), -1)).transpose(1, 2)
    turned = int(call.get("rotary_embedding_dim", 0)) or x.shape[-1]
    head, tail = x[..., :turned], x[..., turned:]
    if positions is not None:
        cosines, sines = cosines[positions.long()], sines[positions.long()]
    cosines, sines = cosines[..., : turned // 2].unsqueeze(1), sines[..., : turned // 2].unsqueeze(1)
    if call.get("interleaved", 0):
        a, b = head[..., 0::2], head[..., 1::2]
        made = torch.stack([cosines * a - sines * b, sines * a + cosines * b], -1).flatten(-2)
    else:
        a, b = head.chunk(2, -1)
        made = torch.cat([cosines * a - sines * b, sines * a + cosines * b], -1)
    made = torch.cat([made, tail], -1)
    return made.transpose(1, 2).flatten(2) if flat else made
