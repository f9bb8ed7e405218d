"""Weights in fewer than 8 bits that unfold to int8 at load: the file shrinks further, the speed of int8 stays.

    W (float32)    becomes    W_q = Gather(table, words), with a step and an offset per block, folded at load to int8

In: a weight. Out: storage candidates, one per number of levels and block size, or the reason why not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from onnxc.codes.formats import PLANES, WORDS, Format, fitting_block
from onnxc.codes.packing import BLOCK_OPSET
from onnxc.contract.candidates import Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.fields import Between, OneOf
from onnxc.contract.passes import LossyPass, no_feedback
from onnxc.contract.rounding import Asked, Bias, Feedback
from onnxc.encoding import stored_bytes
from onnxc.sites import Weight

BLOCKS = (0, 64, 32)
LEVELS = (*PLANES, *WORDS)
CHOICES = tuple(levels for levels in LEVELS if levels != 8)  # 9 take no more bytes; 8 are what others call 3 bits
PLAIN = (3, *PLANES)  # levels for which blocks are not worth their bytes
BLOCKED = tuple(levels for levels in LEVELS if levels not in PLAIN)


@dataclass(frozen=True)
class StoreLowBit(LossyPass):
    """Evenly spaced codes of 144, 64, 40, 16, 9 (or 8), 6, 4 or 3 levels: 7.2, 6, 5.3, 4, 3.2, 2.7, 2 or 1.6 bits.

    1. Every float weight with a scale per output channel, also in the bodies of If, Loop and Scan, whatever operator
       reads it: what it unfolds to is int8, for int8 kernels or for a Cast and a Mul.
    2. With calibration data, since a weight of few bits needs GPTQ on the inputs that it meets; without, only if it was
       asked for by name.
    3. Blocks only where they divide the inputs of an output, from opset 13 on.
    4. It must not act on vectors (biases, normalization).

    Attributes:
        levels: only so many; 0: the planner chooses.
        block: only this size; -1: the planner chooses among none, 64 and 32.
        rounding: "gptq" (which needs data); "hqq": scales and zero points of blocks, without data; "nearest": scales of
            least squares, as a baseline or for --recover.
        zeros: share of the codes that become zero, by the second order, before what stays is rounded; stored in the
            smallest form that they allow. Only if asked for: where files get as small, fewer channels are more exact.
        feedback, bias: as of "SolvingPass".
    """

    name: ClassVar[str] = "store-low-bit"

    levels: Annotated[int, OneOf(0, *LEVELS)] = 0
    block: Annotated[int, Between(0, beside=-1)] = -1
    rounding: Literal["gptq", "hqq", "nearest"] = "gptq"
    zeros: Annotated[float, Between(0.01, 0.99, beside=0)] = 0.0
    feedback: Feedback = "auto"
    bias: Bias = "auto"

    def asked(self) -> Asked:
        """The fields."""
        return Asked(self.rounding, self.feedback, self.bias)

    def contradiction(self) -> str:
        """Blocks and what has none."""
        if self.feedback == "on" and self.rounding != "gptq":
            return no_feedback(self.rounding)
        if self.zeros and self.block > 0:
            return "zeros is a share of codes without blocks: it takes no block"
        if self.rounding == "hqq" and (self.block == 0 or self.zeros):
            return "rounding=hqq finds the zero points of blocks: it takes no block=0, no zeros"
        if self.levels in PLAIN and (self.block > 0 or self.rounding == "hqq"):
            return f"{self.levels} levels have no blocks: those of {', '.join(map(str, BLOCKED))} have"
        return ""

    def store(self, weight: Weight, context: Context) -> Iterable[Candidate | Refusal]:
        """Candidates for a weight."""
        reason = refused(weight, context)
        if reason:
            yield Refusal(self.name, weight.name, reason)
            return
        depth = weight.elements // weight.shape[weight.channel_axis or 0]
        offered = set()
        for levels in [self.levels] if self.levels else CHOICES:
            for block in [0] if self.zeros else BLOCKS if self.block < 0 else [self.block]:
                fitting = fitting_block(depth, block) if block else 0
                chosen = Format(levels, fitting, rounding=self.rounding, zeros=round(100 * self.zeros))
                if (block and not fitting and self.block < 0) or (fitting and levels in PLAIN) or chosen in offered:
                    continue
                if self.rounding == "hqq" and not fitting:
                    continue
                if fitting and context.model.opset < BLOCK_OPSET:
                    continue
                offered.add(chosen)
                size = stored_bytes(weight, chosen)
                if size < weight.bytes or context.told:
                    yield Candidate(self.name, "storage", weight.name, chosen.name, chosen.words, bytes=size)
        if not offered:
            old = f"blocks need opset {BLOCK_OPSET}, the model has {context.model.opset}"
            why = f"no block of {self.block} divides its {depth} inputs"
            yield Refusal(self.name, weight.name, old if context.model.opset < BLOCK_OPSET else why)


def refused(weight: Weight, context: Context) -> str | None:
    """Why a weight is not stored in fewer than 8 bits, None where it may be."""
    if max(weight.shape, default=0) == weight.elements:
        return "a vector: few bytes, much accuracy"
    if weight.channel_axis is None:
        return "its readers know no scale per channel"
    if not context.observations.samples and context.recipe.passes is None:
        return "fewer than 8 bits need calibration data (--calib)"
    return None
