"""Codes with many zeros in less than a bit each, as standard operators that unfold them to int8. In: int8 codes. Out:
the smallest form: nodes, bytes.

Weights of few levels unfold together, and so do all others; each such group takes the form of codes/sparse_forms.py
that is smallest for all of it, nodes and tables included.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.sheets import OVERHEAD, Packed, Piece, Sheet, by_kind, joined, spread
from onnxc.codes.sparse_forms import (
    GAP_NODES,
    LOW,
    MASK_NODES,
    PLACE_NODES,
    TOGETHER,
    Gaps,
    Mask,
    Places,
    SparseCodes,
    digits_in,
    forms,
    longest_gap,
)
from onnxc.model import Tensor

MASK_PRICE = 1.1  # how much smaller than other forms a mask must be: it unfolds in more memory
GAIN = 1.1  # how much smaller than packed codes a sparse form must be: it takes longer to unfold
FEWEST = 0.3  # share of zeros below which no form is worth trying
SPARSE_OPSET = 11  # the first with ScatterElements and CumSum
SHARERS = 4  # weights that are expected to share nodes and tables, when what one adds is told
FEW_LEVELS = 16  # values of which a byte holds several
LARGEST = 1 << 28  # codes whose int32 indices ONNX Runtime still folds

Array = NDArray[Any]


@dataclass(frozen=True)
class PackedSparse:
    """Codes of which only what is not zero is stored."""

    told: ClassVar[str] = "zeros left out"
    codes: SparseCodes

    @cached_property
    def form(self) -> Gaps | Places | Mask:
        """The smallest form beside those of other weights."""
        return best_form(self.codes, SHARERS)

    @property
    def kind(self) -> Hashable:
        palette = self.codes.palette
        if int(palette[-1]) - int(palette[0]) < FEW_LEVELS:  # of evenly spaced codes, whether or not all occur
            return "sparse", FEW_LEVELS
        return "sparse", palette.tobytes() if len(palette) <= FEW_LEVELS else None

    @property
    def size(self) -> int:
        return int(self.codes.flat.size)

    @property
    def bytes(self) -> int:
        """Of words."""
        return self.form.bytes

    def emit(self, sheet: Sheet, forms: Mapping[str, PackedSparse]) -> dict[str, Tensor]:
        """Write the nodes that unfold the codes of ``forms``."""
        pieces = {name: Piece.of(forms[name].codes.shape) for name in forms}
        pieces = {name: pieces[name] for name in by_kind(pieces)}
        codes = SparseCodes.of(joined(forms[name].codes.flat for name in pieces))
        whole, total = best_form(codes, 1).unfolded(sheet, next(iter(pieces)))
        return spread(sheet, whole, pieces, total)


def best_form(codes: SparseCodes, sharers: int) -> Gaps | Places | Mask:
    """The smallest form of codes among so many weights that share nodes and tables."""

    def expected(form: Gaps | Places | Mask) -> float:
        return (form.bytes + form.shared / sharers) * (MASK_PRICE if isinstance(form, Mask) else 1.0)

    return min(forms(codes), key=expected)


def smallest_sparse(codes: NDArray[np.int8], sharers: int = 1) -> PackedSparse | None:
    """int8 codes of any shape in sparse form; None where the codes themselves take no more bytes than that and its part
    of what so many weights share.
    """
    if not 0 < codes.size <= LARGEST:
        return None
    found = PackedSparse(SparseCodes.of(codes))
    return found if found.bytes + found.form.shared / sharers < codes.size else None


def smaller(codes: NDArray[np.int8], packed: Packed | None, weights: int = 1) -> Packed | None:
    """``packed``, or a sparse form of ``codes`` where that takes clearly fewer bytes in a model of so many weights;
    None: the codes as they are.
    """
    if codes.size - np.count_nonzero(codes) < FEWEST * codes.size:
        return packed
    sharers = min(weights, SHARERS)
    sparse = smallest_sparse(codes, sharers)
    if sparse is None or packed is None:
        return sparse or packed
    return sparse if (sparse.bytes + sparse.form.shared / sharers) * GAIN < packed.bytes else packed


def expected_bytes(elements: int, zeros: int, levels: int) -> int:
    """Bytes of the smallest form of codes whose zeros lie anywhere, before they are made; never more than a byte for
    each where there are few zeros.
    """
    share, given, count = zeros / max(elements, 1), elements - zeros, digits_in(levels)
    if share < FEWEST:
        return elements
    sizes = [
        (given * (1 / count + 1 / digits_in(low) + 1 / 8) + elements / low / 8, PLACE_NODES + 256 * digits_in(low), 1.0)
        for low in LOW
    ]
    for together in TOGETHER:
        longest = longest_gap(levels, together)
        if longest >= 2:
            stays = share**longest  # another step of that length is needed
            entries = given * (1 + stays / max(1 - stays, 1e-6))
            sizes.append((entries / together, GAP_NODES + 2 * 256 * together, 1.0))
    sizes.append((elements / 8 + given / count, MASK_NODES + 256 * 17, MASK_PRICE))
    least, shared, _ = min(sizes, key=lambda size: (size[0] + size[1] / SHARERS) * size[2])
    return int(least) + OVERHEAD if least + shared < elements else elements
