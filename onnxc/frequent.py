"""Which rows of a table are asked for again and again. In: a model, samples. Out: numbers of rows, by table.

The noise that a rounded row makes counts as often as the row is read, and few rows are read most of the time: of the
30,522 of a sentence encoder 200 are half of all words that a text has, new ones too. What only one sample asks for says
nothing of the next one, so a row counts from the second sample on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxc.model import Model, Variable
from onnxc.sequential import Walk
from onnxc.session import Options
from onnxc.sites import Sites, Weight

if TYPE_CHECKING:
    from onnxc.data import Calibration

MOST = 64  # one row in so many of a table, at most
FEWEST = 8  # of so many: a smaller table is left alone

Rows = NDArray[np.int64]


def frequent_rows(model: Model, sites: Sites, samples: Calibration, options: Options) -> dict[str, Rows]:
    """Table name -> the rows that at least two of the samples ask for, ascending; of many those of most samples.

    Samples that are kept apart are not looked at. Tables are what Gather alone reads, along the axis of their scales.

    Raises:
        ModelError, DataError: what comes before a table does not run by itself.
    """
    indices = {weight.name: found for weight in sites.weights if (found := indices_of(weight, model)) is not None}
    names = list(dict.fromkeys(name for found in indices.values() for name in found))
    if not names or samples.generated:
        return {}
    sizes = {weight.name: weight.shape[0] for weight in sites.weights if weight.name in indices}
    asked = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
    for position, values in enumerate(Walk(model, samples, options, sites.types).advance(names)):
        if position in samples.apart:
            continue
        for table, found in indices.items():
            rows = np.unique(np.concatenate([np.asarray(values[name]).reshape(-1) for name in found]) % sizes[table])
            asked[table][rows.astype(np.int64)] += 1
    chosen = {}
    for table, counts in asked.items():
        order = np.argsort(-counts, kind="stable")[: len(counts) // MOST]
        chosen[table] = np.sort(order[counts[order] > 1])
    return {table: rows for table, rows in chosen.items() if len(rows)}


def indices_of(weight: Weight, model: Model) -> list[str] | None:
    """Names of the tensors that index the rows of a table; None of what is none, or too small to single out rows."""
    if weight.channel_axis != 0 or weight.graph is not model.graph or weight.shape[0] < MOST * FEWEST:
        return None
    found = []
    for node, position in weight.readers:
        if node.op != "Gather" or position or int(node.attrs.get("axis", 0)) % len(weight.shape):
            return None
        if not isinstance(node.inputs[1], Variable):
            return None
        found.append(str(node.inputs[1].name))
    return found
