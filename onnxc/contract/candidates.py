"""One way to compute a site or to store a weight. In: a pass's choice. Out: a candidate for the planner, or a refusal.

What the planner chooses is applied through a Rewriter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from onnxc.rewriting.rewriter import Rewriter


@dataclass(frozen=True)
class Refusal:
    """Why a pass does not act on a site."""

    pass_name: str
    place: str
    reason: str


@dataclass(frozen=True)
class Activation:
    """How a tensor is quantized where int8 operators read it: uint8, one scale, any zero point.

    Attributes:
        tensor: name of the float tensor.
        source: the tensor whose values it holds, another one behind data movement; both are rounded alike.
        signed: int8 around zero instead of uint8.
        low, high: the range, zero included; ignored where ``dynamic``.
        dynamic: the range is taken from the data at run time.
    """

    tensor: str
    low: float = 0.0
    high: float = 0.0
    dynamic: bool = False
    source: str = ""
    signed: bool = False

    @property
    def scale(self) -> np.float32:
        if self.signed:
            return np.float32(max(abs(self.low), abs(self.high), 127e-12) / 127.0)
        return np.float32(max((self.high - self.low) / 255.0, 1e-12))

    @property
    def zero_point(self) -> np.uint8 | np.int8:
        if self.signed:
            return np.int8(0)
        return np.uint8(np.clip(np.rint(-self.low / float(self.scale)), 0, 255))


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to compute a site, or to store a weight.

    Attributes:
        pass_name: the pass that proposes it.
        kind: "compute" (of a site) or "storage" (of a weight).
        place: the site's node name or the weight's name.
        mode: "static", "dynamic", "rows" (compute); the name of a format, or "float16" (storage).
        specification: what the report says, e.g. "int8 per channel, activations uint8 by squared error".
        reads: activations that must be quantized for it, empty for storage.
        writes: the activation its result is quantized to, None where the result stays float.
        weights: weights that it needs as codes besides the site's own: the recurrent one of an LSTM.
        form: the format of its weight, where the operator reads none but that.
        bytes: of the stored weight (storage candidates, and compute candidates with a form).
        apply: writes the candidate into a model; storage is applied by the Rewriter itself.
    """

    pass_name: str
    kind: Literal["compute", "storage"]
    place: str
    mode: str
    specification: str
    reads: tuple[Activation, ...] = ()
    writes: Activation | None = None
    weights: tuple[str, ...] = ()
    form: str = ""
    bytes: int = 0
    apply: Callable[[Rewriter], None] | None = None
