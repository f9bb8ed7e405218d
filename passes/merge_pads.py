"""Padding with zeros goes into the convolution that reads it.

before: x -> Pad([0, 0, 0, 0, 0, 0, 1, 1]) -> Conv(pads 0) -> y
after:  x -> Conv(pads [0, 0, 1, 1]) -> y
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.model import Model, Node

from .facts import Borders, given, number, producer, standard


@dataclass(frozen=True)
class MergePads(ExactPass):
    """Fold a constant Pad into the operator that reads its result.

    1. Pad with zeros before Conv, or before AveragePool that counts its padding.
    2. Not when batch or channels are padded, when something is cut off (negative pads), when the result is
       read by anything else too, when pads or value are computed, in reflect and edge mode, or with auto_pad,
       whose padding depends on the size.
    MaxPool is left alone: it ignores its own padding, but sees zeros that are in its input.
    """

    name: ClassVar[str] = "merge-pads"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        borders = Borders.of(model)
        changed = 0
        for graph in model.graphs():
            for node in list(graph.nodes):
                if standard(node, "Conv", "AveragePool"):
                    changed += _merge(model, borders, node)
        if changed:
            model.tidy()
        return Outcome(changed)


def _merge(model: Model, borders: Borders, node: Node) -> bool:
    pad = producer(node.inputs[0])
    if pad is None or not standard(pad, "Pad") or borders.only_reader(pad.outputs[0]) is not node:
        return False
    if node.attrs.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return False
    if node.op == "AveragePool" and (not node.attrs.get("count_include_pad", 0) or node.attrs.get("ceil_mode", 0)):
        return False
    amounts = _amounts(model, borders, pad)
    if amounts is None or min(amounts) < 0:
        return False
    rank = len(amounts) // 2
    begin, end = amounts[:rank], amounts[rank:]
    if rank < 3 or any((*begin[:2], *end[:2])):
        return False
    old = list(node.attrs.get("pads", [0] * (2 * (rank - 2))))
    if len(old) != 2 * (rank - 2):
        return False
    if node.op == "AveragePool":  # a kernel may not lie in the padding altogether
        kernel = node.attrs.get("kernel_shape", [])
        merged = [a + b for a, b in zip(old, (*begin[2:], *end[2:]), strict=True)]
        if any(amount >= size for amount, size in zip(merged, [*kernel, *kernel], strict=True)):
            return False
    node.attrs["pads"] = [a + b for a, b in zip(old, (*begin[2:], *end[2:]), strict=True)]
    node.attrs.pop("auto_pad", None)
    node.inputs[0] = pad.inputs[0]
    return True


def _amounts(model: Model, borders: Borders, pad: Node) -> list[int] | None:
    """Begins, then ends, of every axis that a Pad fills with zeros; None for any other Pad."""
    if pad.attrs.get("mode", "constant") != "constant" or given(pad, 3) is not None:
        return None
    if "pads" in pad.attrs or "paddings" in pad.attrs:  # before opset 11
        return None if pad.attrs.get("value", 0.0) else [int(n) for n in pad.attrs.get("pads", [-1])]
    amounts, value = given(pad, 1), given(pad, 2)
    if amounts is None or not borders.fixed(amounts):
        return None
    if value is not None and number(model, borders, value) != 0:
        return None
    return [int(n) for n in np.asarray(model.values(amounts)).reshape(-1)]
