"""How codes are stored: the formats there are, and what each costs. In: a weight's shape. Out: formats, bits.

A code has ``levels`` values. So many codes as fit are written into one word of 8 or 16 bits, in base ``levels``: 16
levels take 4 bits, 9 and 8 take 3.2, 6 take 2.67, 4 take 2, 3 take 1.6, 40 take 5.33; 144 take 7.2 and 64 take 6, as
two digits. A table with a row per word turns words back into codes with one Gather, which ONNX Runtime runs once, at
load, faster than any chain of shifts. Codes along a trellis are written so too: their table has a row per word and
state, or their path bits have words of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

# levels -> (type of a word, codes in it)
WORDS: dict[int, tuple[type[np.unsignedinteger], int]] = {
    40: (np.uint16, 3),
    16: (np.uint8, 2),
    9: (np.uint16, 5),
    8: (np.uint16, 5),
    6: (np.uint8, 3),
    4: (np.uint8, 4),
    3: (np.uint8, 5),
}
# levels -> (levels of its high digit, of its low digit): two words stand for the two digits of a code.
PLANES: dict[int, tuple[int, int]] = {144: (16, 9), 64: (16, 4)}
# levels of codes along a trellis -> codes that are looked up together: in a byte, or in one with path bits of their own
TRELLISES: dict[int, int] = {32: 2, 16: 2, 8: 4, 6: 3, 4: 4, 2: 8}
DOUBLED = (16, 6, 4)  # levels of which twice as many are, where there are many: a segment is whole words of both kinds
LARGE = 1 << 17  # codes of a weight that is likely to be one of many
FEWEST_OUTPUTS = 16  # fewer neighbours make no path
ROUND = 48  # codes that fill whole words of any kind
SEGMENT, SEGMENTS = 16, range(12, 33, 2)  # neighbouring outputs of a path: about so many, and what is tried
FULL = 255  # levels of int8: one code a byte, no table
CODE_WORDS = 256  # entries of a vector codebook: one byte each
DIMENSIONS = (2, 4, 8)
PALETTES = (16, 256)  # entries of codebooks of single values
HALF = "float16"
# Smaller floats: type -> (bits, first opset that can cast it, largest value).
FLOATS: dict[str, tuple[int, int, float]] = {
    HALF: (16, 7, 65504.0),
    "bfloat16": (16, 13, 3.38e38),
    "float8e4m3fn": (8, 19, 448.0),
    "float8e5m2": (8, 19, 57344.0),
}
NAME = re.compile(
    r"levels(?P<levels>\d+)(?:/(?P<block>\d+)|@(?P<zeros>\d+))?(?:-(?P<rounding>nearest|hqq))?|codebook(?P<dimension>\d+)"
    r"|palette(?P<entries>\d+)"
    r"|trellis(?P<trellis>\d+)"
    r"|int(?P<bits>[48])/(?P<scaled>\d+)"
)


@dataclass(frozen=True)
class Format:
    """One way to store codes.

    Attributes:
        levels: values that a code may take.
        block: inputs of one output that share a step and an offset; 0: all of them share the output's scale.
        dimension: of a codebook: neighbouring outputs that one of its ``entries`` stands for; 0: no codebook. Of one
            dimension it is a palette.
        scaled: blocks have a float scale each, and an operator reads them as they are: nothing unfolds at load.
        rounding: "gptq", on the inputs that a weight meets; "nearest", whatever it meets; "hqq", to nearest in
            blocks whose steps and offsets let few outliers be wrong.
        zeros: percent of the codes that are made zero, while they are solved: pruned and rounded in one sweep.
        trellis: codes of ``levels`` stand for twice as many values, by the codes before them.
    """

    levels: int = FULL
    block: int = 0
    dimension: int = 0
    entries: int = CODE_WORDS
    scaled: bool = False
    rounding: str = "gptq"
    zeros: int = 0
    trellis: bool = False

    @property
    def name(self) -> str:
        """What plans, reports and the command line call it."""
        if self.dimension:
            return f"codebook{self.dimension}" if self.dimension > 1 else f"palette{self.entries}"
        if self.trellis:
            return f"trellis{self.levels}"
        if self.scaled:
            return f"int{4 if self.levels == 16 else 8}/{self.block}"
        if self.levels == FULL:
            return "int8"
        after = f"/{self.block}" if self.block else f"@{self.zeros}" if self.zeros else ""
        return f"levels{self.levels}{after}" + (f"-{self.rounding}" if self.rounding != "gptq" else "")

    @property
    def whole(self) -> bool:
        """Whether codes are those of int8, however they are rounded."""
        return self.even and self.levels == FULL

    @property
    def bits(self) -> float:
        """Of one code in the file, without scales and tables."""
        if self.dimension:
            return (self.entries - 1).bit_length() / self.dimension
        if self.levels == FULL:
            return 8.0
        if self.trellis:
            return 8.0 * trellis_bytes(ROUND, self.levels) / ROUND
        return sum(
            8.0 * np.dtype(word).itemsize / count for word, count in map(WORDS.__getitem__, digits_of(self.levels))
        )

    @property
    def even(self) -> bool:
        """Whether codes are evenly spaced, the same for all weights, with a scale per output."""
        return not (self.block or self.dimension or self.trellis)

    def load_seconds(self, elements: int) -> float:
        """About what a weight of so many elements more costs at load, beside others of the format, until its codes have
        its shape; measured with ONNX Runtime 1.32, AVX2 and AVX512. The first one of a format takes ``chain_seconds``
        more.
        """
        if self == INT8 or self.scaled:
            return 1e-9 * elements
        if self.trellis:
            rows = (0.65 if self.levels in DOUBLED and elements >= LARGE else 1.0) / TRELLISES[self.levels]
            return NODE_SECONDS + elements * (1.0 + 11.0 * rows + bits_apart(self.levels)) * 1e-9
        if self.levels in PLANES and elements >= LARGE:  # floats of all codes at once, several times over
            return NODE_SECONDS + elements * 25e-9
        return NODE_SECONDS + elements * (6.5e-9 if self.block or self.levels in PLANES else 3.5e-9)

    def chain_seconds(self, elements: int) -> float:
        """About what the nodes cost at load that unfold all weights of the format, so many elements in all, in the
        measure of load_seconds; more where words are looked up in a table that nodes make.
        """
        if self == INT8 or self.scaled:
            return 0.0
        nodes = 8 if self.dimension else 24 if self.trellis else 12 if self.levels in PLANES else 5
        if self.even or self.block:
            digits = [WORDS[levels][1] for levels in digits_of(self.levels)]
            nodes += sum(count + 1 for count in digits if elements > FEW * count)
        return (nodes + 7 * bool(self.block)) * NODE_SECONDS

    @property
    def words(self) -> str:
        """In a sentence of the report."""
        if self.dimension == 1:
            return f"palette of {self.entries} values, {self.bits:g} bits"
        if self.dimension:
            return f"{self.bits:g}-bit codebook of {self.dimension} weights"
        if self.scaled:
            return f"int{self.bits:.0f} codes, block {self.block}, multiplied as they are"
        if self.levels == FULL:
            return "int8 codes"
        if self.trellis:
            return f"{self.bits:.3g}-bit codes along a trellis"
        further = f", block {self.block}" if self.block else f", {self.zeros} % of them zero" if self.zeros else ""
        how = {"gptq": "", "nearest": ", to nearest", "hqq": ", half-quadratic"}[self.rounding]
        return f"{self.bits:.3g}-bit codes{further}{how}"


def digits_of(levels: int) -> tuple[int, ...]:
    """The levels of the digits that a code of so many levels is written in, the highest first."""
    return PLANES.get(levels, (levels,))


def word_bytes(elements: int, levels: int) -> int:
    """Bytes of the words of so many codes."""
    found = [WORDS[digit] for digit in digits_of(levels)]
    return sum(-(-elements // count) * np.dtype(word).itemsize for word, count in found)


def trellis_segment(outputs: int, levels: int) -> tuple[int, int]:
    """How many segments so many neighbouring outputs are cut into, and the codes of each: whole words, as few as
    possible beyond the outputs.
    """
    word = 8 if bits_apart(levels) else TRELLISES[levels] * (1 + (levels in DOUBLED))
    lengths = [length for length in SEGMENTS if length % word == 0]
    length = min(lengths, key=lambda each: (-(-outputs // each) * each, abs(each - SEGMENT)))
    return -(-outputs // length), length


def bits_apart(levels: int) -> bool:
    """Whether codes of so many levels that are looked up together have more than a byte: path bits have their own."""
    return bool(levels ** TRELLISES[levels] > 256)


def trellis_bytes(elements: int, levels: int) -> int:
    """Bytes of the words of so many codes along a trellis, whole segments."""
    return elements // TRELLISES[levels] + (elements // 8 if bits_apart(levels) else 0)


FEW = 1 << 14  # words whose codes are divided out of them: of more they are looked up
NODE_SECONDS = 2.6e-5  # what a node costs at load that makes little
INT8 = Format()


def float_seconds(elements: int) -> float:
    """About what a weight stored as smaller floats costs at load."""
    return NODE_SECONDS + elements * 1.5e-9


def parse_format(name: str) -> Format:
    """The format called ``name``; ValueError where there is none."""
    if name == "int8":
        return INT8
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"no format '{name}'")
    part = {key: int(value or 0) for key, value in found.groupdict().items() if key != "rounding"}
    if part["trellis"]:
        return Format(part["trellis"], trellis=True)
    if part["scaled"]:
        return Format(16 if part["bits"] == 4 else FULL, part["scaled"], scaled=True)
    if part["dimension"]:
        return Format(dimension=part["dimension"])
    if part["entries"]:
        return Format(dimension=1, entries=part["entries"])
    return Format(part["levels"], part["block"], rounding=found["rounding"] or "gptq", zeros=part["zeros"])


def is_small(mode: str) -> bool:
    """Whether a weight stored so has fewer than 8 bits for codes."""
    return mode not in FLOATS and parse_format(mode).bits < 8


def fitting_block(depth: int, block: int) -> int:
    """The block size used for ``depth`` inputs: the largest divisor of ``depth`` between half of ``block`` and
    ``block``; 0 where there is none, or where one block would be all.
    """
    if depth <= block:
        return 0
    return next((size for size in range(block, block // 2, -1) if depth % size == 0), 0)
