"""What it would cost to have a site in float again. In: two models and their pairs. Out: bytes and seconds of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxc.culprits.matching import Pair
from onnxc.culprits.restoring import restored
from onnxc.culprits.scales import Factors
from onnxc.exactness import file_bytes
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.profiling import FLOAT, profile
from onnxc.session import Options
from onnxc.sites import find
from onnxc.targets import target

NEW = "new"
SECONDS = 2.0


def kept_bytes(new: Model, pairs: Sequence[Pair], factors: Factors) -> dict[str, int]:
    """Site -> bytes that the file of ``new`` grows by when that site alone is as in the reference."""
    before = file_bytes(new)
    return {pair.site: file_bytes(restored(new, [pair], factors)) - before for pair in pairs}


def kept_seconds(reference: Model, new: Model, sample: Mapping[str, np.ndarray], options: Options) -> dict[str, float]:
    """Site -> seconds that a run takes longer when that site runs as in the reference, from profiles of both models.

    Kernels of the new model are given to the site whose node or tensor their names begin with; a site to which none
    can be given is absent.
    """
    named, fresh = reference.copy(), new.copy()
    name_nodes(named)
    name_nodes(fresh)  # files leave out names of nodes that had none: they are made anew from the same tensors
    found = find(named, target("cpu"))
    spent = profile({FLOAT: lambda: named, NEW: lambda: fresh}, found, sample, options, SECONDS)
    before, after = spent.sites[FLOAT], spent.sites[NEW]
    return {name: seconds - after[name] for name, seconds in before.items() if name in after}
