"""Weights as codes along a trellis, each of which stands for one of twice as many values as it has levels.

    W (float32)    becomes    W_q = Gather(table, words + state), folded at load to int8

In: a weight. Out: storage candidates, one per number of levels, or the reason why not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnxc.codes.formats import FEWEST_OUTPUTS, TRELLISES, Format
from onnxc.codes.layouts import layout_of
from onnxc.codes.packing import possible
from onnxc.contract.candidates import Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.fields import OneOf
from onnxc.contract.passes import SolvingPass
from onnxc.encoding import stored_bytes
from onnxc.sites import Weight

from .store_codebook import groups_of, loses_zeros
from .store_low_bit import refused

LEAST = 1 << 17  # numbers that a weight has


@dataclass(frozen=True)
class StoreTrellis(SolvingPass):
    """Trellis-coded quantization (Marcellin and Fischer, 1990) with GPTQ's error feedback from input to input.

    1. Every float weight with a scale per output channel, whatever reads it: what it unfolds to is int8.
    2. 32, 16, 8, 6, 4 or 2 levels: 5, 4, 3, 2.7, 2 or 1 bit. At equal bits the error of normal weights is
       2 to 3 dB below that of even levels, and at 4 bits 2 dB below that of pairs in a codebook.
    3. A weight takes two to three times as long to load as one of even levels; the planner weighs that. With a score
       MiniLM got to 10.5 % of its bytes instead of 13 to 14.6, a text recognizer to 12.2 instead of 14.8. Unless it was
       asked for by name only weights of 131,072 numbers or more: a smaller one saves less than three kilobytes more
       than other formats do, which its nodes take.
    4. It must not act on vectors, nor where a group has fewer than 16 output channels: paths run along them; nor,
       unless it was asked for by name, on weights that were pruned: their zeros do not stay zeros.

    Attributes:
        levels: only so many; 0: the planner chooses.
        rounding, feedback, bias: how the codes are found; see "SolvingPass".
    """

    name: ClassVar[str] = "store-trellis"

    levels: Annotated[int, OneOf(0, *TRELLISES)] = 0

    def store(self, weight: Weight, context: Context) -> Iterable[Candidate | Refusal]:
        """Candidates for a weight."""
        reason = refused(weight, context) or loses_zeros(weight, context)
        if not reason and weight.elements < LEAST and not context.told and context.recipe.passes is None:
            reason = "too small for a trellis to save more than its nodes take"
        if reason:
            yield Refusal(self.name, weight.name, reason)
            return
        groups = groups_of(weight)
        layout = layout_of(weight.shape, weight.channel_axis, groups)
        for levels in [self.levels] if self.levels else TRELLISES:
            chosen = Format(levels, trellis=True)
            if not possible(chosen, layout):
                yield Refusal(self.name, weight.name, f"fewer than {FEWEST_OUTPUTS} output channels in a group")
                return
            size = stored_bytes(weight, chosen, groups=groups)
            if size < weight.bytes or context.told:
                yield Candidate(self.name, "storage", weight.name, chosen.name, chosen.words, bytes=size)
