"""Equal initializers become one: exporters write a constant as often as it is read.

before: A = [1, 1, 256] -> Reshape      after: A = [1, 1, 256] -> Reshape
        B = [1, 1, 256] -> Reshape                             -> Reshape
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

import numpy as np

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.file.editing import scopes
from onnxc.model import Constant, Graph, Model

from .facts import Borders, rewire


@dataclass(frozen=True)
class MergeDuplicates(ExactPass):
    """Let all readers of equal constants read one of them.

    1. Equal means element type, shape and every bit (0.0 and -0.0 differ, so do two NaNs of different bits).
    2. Within one graph, and in a body with one that an outer graph holds. Two branches do not share with each
       other: what only a branch needs stays in it.
    3. Not initializers that are graph inputs or outputs, and no strings.
    """

    name: ClassVar[str] = "merge-duplicates"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        borders = Borders.of(model)
        first: dict[tuple[int, bytes], Constant] = {}
        saved = changed = 0
        for graph, outer, tensor in list(_homes(model)):
            if not borders.fixed(tensor) or not borders.private(tensor) or not _comparable(tensor):
                continue
            key = _key(model, tensor)
            kept = next((first[(id(g), key)] for g in (*outer, graph) if (id(g), key) in first), None)
            if kept is None:
                first[(id(graph), key)] = tensor
            elif kept is not tensor:
                rewire(tensor, kept)
                changed += 1
                saved += tensor.nbytes
        if changed:
            model.tidy()
        return Outcome(changed, (f"{changed} equal initializers merged, {saved} bytes",) if changed else ())


def _homes(model: Model) -> Iterator[tuple[Graph, tuple[Graph, ...], Constant]]:
    """Every constant that something reads: the graph that owns it, the graphs around that, and itself."""
    for graph, outer in scopes(model):
        for tensor in list(graph.weights):
            if tensor.outputs:
                yield graph, outer, tensor


def _comparable(tensor: Constant) -> bool:
    return tensor.dtype.kind not in "OSU"


def _key(model: Model, tensor: Constant) -> bytes:
    values = np.ascontiguousarray(model.values(tensor))  # at least one axis, so the shape is the tensor's own
    digest = sha256(repr((values.dtype.str, values.dtype.name, tuple(tensor.shape))).encode())
    digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.digest()
