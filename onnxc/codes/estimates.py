"""What every format would damage, before any is solved. In: weights, what meets them. Out: expected damages.

Each is looked at through some of its outputs: what rounding to nearest damages, and what GPTQ gains over it, which is
measured at few formats and interpolated between them. Weights of one shape are looked at together: a step of GPTQ takes
little longer for many of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.fitting import make_grid
from onnxc.codes.formats import Format
from onnxc.codes.gptq import Factor, damage, gptq
from onnxc.codes.solve import as_groups, importance_of, sparser
from onnxc.sites import Weight

LOOKED_AT, FEW = 64, 1 << 16  # outputs of a weight that an estimate looks at; elements of one that it sees whole
GAINS = (Format(16), Format(4))  # formats at which the gain of GPTQ is measured; between them it is interpolated
ENDS = (4, 16)  # levels of trellises that are tried; what others damage lies on a line through the logarithms
BLOCKED = 9  # levels near which its gain in blocks is measured: it hardly depends on the bits there
NEIGHBOURS = 8  # outputs that stay together: a codebook's dimension, at most
TOGETHER = 128 << 20  # bytes of the factors of weights that are looked at together
TINY = 1e-30

Matrix = NDArray[np.float32]
Damages = NDArray[np.float64]  # of every weight of a batch


@dataclass(frozen=True)
class Seen:
    """What is looked at of a weight.

    Attributes:
        matrix: some of its outputs, [G, K, N].
        factor: of the second moments of what meets it; None where nothing is known.
        formats: whose damage is asked for.
    """

    name: str
    matrix: Matrix
    factor: Factor | None
    formats: tuple[Format, ...]

    @classmethod
    def of(cls, weight: Weight, values: Matrix, factor: Factor | None, formats: Sequence[Format]) -> Seen:
        """LOOKED_AT groups and outputs of a large weight, all of a small one."""
        assert weight.channel_axis is not None
        groups = len(factor.order) if factor is not None else 1
        matrix = as_groups(values, weight.channel_axis, groups)
        outputs = matrix.shape[2]
        if groups > LOOKED_AT and weight.elements > FEW:
            some = np.linspace(0, groups - 1, LOOKED_AT).astype(int)
            matrix = matrix[some]
            if factor is not None:
                factor = replace(factor, order=factor.order[some], upper=factor.upper[some], moment=factor.moment[some])
        if outputs > LOOKED_AT and weight.elements > FEW:
            starts = np.linspace(0, outputs - NEIGHBOURS, LOOKED_AT // NEIGHBOURS).astype(int)
            starts = starts // NEIGHBOURS * NEIGHBOURS
            matrix = matrix[:, :, (starts[:, None] + np.arange(NEIGHBOURS)).reshape(-1)]
        return cls(weight.name, np.ascontiguousarray(matrix), factor, tuple(formats))

    @property
    def kind(self) -> tuple[object, ...]:
        """Weights of one kind can be looked at together."""
        return self.matrix.shape[1:], self.factor is None, self.formats


@dataclass(eq=False)
class Batch:
    """Weights of one kind, one behind the other as groups of one matrix.

    Attributes:
        levels: largest magnitude of an int8 code.
    """

    weights: list[Seen]
    levels: int
    matrix: Matrix = field(init=False)
    factor: Factor | None = field(init=False)
    importance: Matrix = field(init=False)
    _plain: dict[Format, Damages] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.matrix = np.concatenate([each.matrix for each in self.weights])
        factors = [each.factor for each in self.weights if each.factor is not None]
        self.importance = np.concatenate([importance_of(each.factor, each.matrix) for each in self.weights])
        self.factor = factors[0] if len(factors) == 1 else None
        if len(factors) > 1:
            orders, uppers, moments = zip(*((each.order, each.upper, each.moment) for each in factors), strict=True)
            self.factor = Factor(np.concatenate(orders), np.concatenate(uppers), np.concatenate(moments))

    def rounded(self, chosen: Format, factor: Factor | None) -> Damages:
        """The damage in a format, solved with ``factor``, or to nearest without one."""
        if chosen.dimension and len(self.weights) > 1:  # of which each weight has its own codebook
            alone = [Batch([each], self.levels) for each in self.weights]
            return np.concatenate([each.rounded(chosen, factor and each.factor) for each in alone])
        fitted = sparser(self.matrix, factor.moment if factor is not None else None, chosen)
        grid, scale = make_grid(fitted, chosen, self.importance, self.levels)
        values = gptq(fitted / scale[:, None], factor, grid)[0] * scale[:, None]
        found, start = [], 0
        for each in self.weights:
            part = slice(start, start + len(each.matrix))
            start = part.stop
            found.append(damage(each.matrix, values[part], each.factor.moment if each.factor is not None else None))
        return np.array(found)

    def plainly(self, each: Format) -> Damages:
        """The damage of rounding to nearest."""
        if each not in self._plain:
            self._plain[each] = self.rounded(each, None)
        return self._plain[each]

    def gained(self, each: Format) -> Damages:
        """By what GPTQ multiplies that, as a logarithm."""
        return np.log(self.rounded(each, self.factor) / np.maximum(self.plainly(each), TINY) + TINY)

    def estimates(self) -> dict[str, dict[str, float]]:
        """Weight -> format -> expected damage."""
        formats = self.weights[0].formats
        paths, ends = [each for each in formats if each.trellis], [Format(levels, trellis=True) for levels in ENDS]
        nearest = {each.name: self.plainly(each) for each in formats if not each.trellis or len(paths) <= len(ENDS)}
        if len(paths) > len(ENDS):
            tried = [np.log(self.plainly(each) + TINY) for each in ends]
            nearest |= {each.name: np.exp(between(np.log(each.levels), np.log(ENDS), tried)) for each in paths}
        found = self.solved(formats, nearest) if self.factor is not None else nearest
        return {
            each.name: {name: float(damages[number]) for name, damages in found.items()}
            for number, each in enumerate(self.weights)
        }

    def solved(self, formats: Sequence[Format], nearest: Mapping[str, Damages]) -> dict[str, Damages]:
        """Format -> expected damage with GPTQ, whose gain is never a loss. A scale for a whole channel leaves it more
        to gain at few bits than scales per block, which adapt to small weights; a trellis less: at 2 bits of a
        projection that few images were seen with, what a scale would gain is twice what it does.
        """
        bits, gains = [each.bits for each in reversed(GAINS)], [self.gained(each) for each in reversed(GAINS)]
        blocked = [each for each in formats if each.block and each.rounding == "gptq" and not each.zeros]
        typical = min(blocked, key=lambda each: (each.scaled, abs(each.levels - BLOCKED)), default=None)
        in_blocks = self.gained(typical) if typical is not None else np.zeros(len(self.weights))
        along = (
            [np.minimum(self.gained(Format(levels, trellis=True)), 0.0) for levels in ENDS]
            if any(each.trellis for each in formats)
            else []
        )

        def expected(each: Format) -> Damages:
            plain = nearest[each.name]
            if each.rounding != "gptq":
                return plain
            if each.trellis:
                gain = between(np.log(each.levels), np.log(ENDS), along, beyond=False)
            elif each.dimension or each.zeros:
                return np.minimum(plain, self.rounded(each, self.factor))
            else:
                gain = in_blocks if each.block else between(each.bits, bits, gains, beyond=False)
            return np.asarray(plain * np.exp(np.minimum(gain, 0.0)))

        return {each.name: expected(each) for each in formats}


def between(
    at: float, ends: Sequence[float] | NDArray[np.float64], values: Sequence[Damages], *, beyond: bool = True
) -> Damages:
    """What lies ``at`` a place on the line through ``values`` at both ``ends``; outside of them as at the nearer end,
    unless ``beyond`` them too.
    """
    share = (at - ends[0]) / (ends[1] - ends[0])
    return np.asarray(values[0] + (values[1] - values[0]) * (share if beyond else float(np.clip(share, 0.0, 1.0))))


def estimated(wanted: Iterable[Seen], levels: int) -> dict[str, dict[str, float]]:
    """Weight -> format -> expected damage.

    Args:
        wanted: weights that share what meets them one after the other; levels: largest magnitude of an int8 code.
    """
    found: dict[str, dict[str, float]] = {}
    waiting: dict[tuple[object, ...], list[Seen]] = {}
    held = 0

    def look() -> None:
        for batch in waiting.values():
            found.update(Batch(batch, levels).estimates())
        waiting.clear()

    for each in wanted:
        size = each.matrix.nbytes + (each.factor.nbytes if each.factor is not None else 0)
        if held and held + size > TOGETHER:
            look()
            held = 0
        waiting.setdefault(each.kind, []).append(each)
        held += size
    look()
    return found
