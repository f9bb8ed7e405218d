"""Weights as bytes that each stand for 2, 4 or 8 neighbours, or one of 16 or 256 values, looked up at load.

    W (float32)    becomes    W_q = Gather(codebook (int8 [256, d]), words (uint8)), folded at load to int8

In: a weight. Out: storage candidates, one per dimension, or the reason why not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnxc.codes.formats import CODE_WORDS, DIMENSIONS, PALETTES, Format
from onnxc.codes.layouts import layout_of
from onnxc.codes.packing import possible
from onnxc.contract.candidates import Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.fields import Implies, OneOf
from onnxc.contract.passes import SolvingPass
from onnxc.encoding import stored_bytes
from onnxc.sites import Weight

from .store_low_bit import refused


@dataclass(frozen=True)
class StoreCodebook(SolvingPass):
    """Code words by k-means weighted with the second moment, chosen with GPTQ's error feedback (van Baalen et al.,
    "GPTVQ: The Blessing of Dimensionality for LLM Quantization", 2024).

    1. Every float weight whose output channels the dimension divides: 4, 2 or 1 bit a weight.
    2. At equal bits a codebook fits the weights' distribution better than even steps, and needs no blocks.
    3. Palettes, codebooks of single values, only if asked for: of 16 values they damage 9 % less than other formats of
       their size without a trellis do, and several shapes of weights take more nodes than that saves.
    4. It must not act on small weights, where the codebook takes more than it saves, nor on vectors; nor, unless it
       was asked for by name, on weights that were pruned: a code word stands for zeros only beside what it was made of.

    Attributes:
        dimension: neighbours of a code word, only so many; 0: the planner chooses among 2, 4 and 8.
        entries: of a palette, 16 (4 bits) or 256 (8 bits); implies dimension=1.
        rounding, feedback, bias: how the code words are chosen; see "SolvingPass".
    """

    name: ClassVar[str] = "store-codebook"

    dimension: Annotated[int, OneOf(0, 1, *DIMENSIONS)] = 0
    entries: Annotated[int, OneOf(*PALETTES), Implies("dimension", 1)] = CODE_WORDS

    def store(self, weight: Weight, context: Context) -> Iterable[Candidate | Refusal]:
        """Candidates for a weight."""
        reason = refused(weight, context) or loses_zeros(weight, context)
        if reason:
            yield Refusal(self.name, weight.name, reason)
            return
        groups = groups_of(weight)
        layout, offered = layout_of(weight.shape, weight.channel_axis, groups), 0
        for dimension in [self.dimension] if self.dimension else DIMENSIONS:
            chosen = Format(dimension=dimension, entries=self.entries)
            size = stored_bytes(weight, chosen, groups=groups)
            if possible(chosen, layout) and (size < weight.bytes // 4 or context.told):
                offered += 1
                yield Candidate(self.name, "storage", weight.name, chosen.name, chosen.words, bytes=size)
        if not offered:
            yield Refusal(self.name, weight.name, "too small for a codebook, or no dimension divides its channels")


def loses_zeros(weight: Weight, context: Context) -> str | None:
    """Why a weight is not stored in codes that zeros may get lost in, None where it may be."""
    if not weight.sparse or context.told or context.recipe.passes is not None:
        return None
    return "it was pruned: some of its zeros would be no zeros any more"


def groups_of(weight: Weight) -> int:
    """Groups of the convolution that reads a weight."""
    return max((int(node.attrs.get("group", 1)) for node, _ in weight.readers if node.op == "Conv"), default=1)
