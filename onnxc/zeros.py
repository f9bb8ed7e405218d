"""Zeros of pruned weights that a delivered model does not have any more. In: its plan, and itself. Out: a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.formats import parse_format
from onnxc.contract.context import Context
from onnxc.coupling.consumers import fed, until
from onnxc.errors import DataError, ModelError
from onnxc.model import Model
from onnxc.problem import Plan
from onnxc.session import Options

FORMS = ("q", "unfolded")  # what operators read: codes, or floats that have the same zeros


def zeros_lost(context: Context, plan: Plan, model: Model, sample: Mapping[str, Any], options: Options) -> str | None:
    """A sentence on the zeros that codes of neighbours took from pruned weights; None where all of them stayed.

    Args:
        model: that ``plan`` became; sample: an input of it.
    """
    forms = {name: parse_format(plan.stored[name]) for name in plan.coded}
    at_risk = {name for name, form in forms.items() if form.dimension or form.trellis}
    weights = {weight.name: weight for weight in context.sites.weights if weight.name in at_risk and weight.sparse}
    found = unfolded(model, [f"{name}_{form}" for name in weights for form in FORMS], sample, options)
    lost: dict[str, int] = {}
    for name, weight in weights.items():
        codes = next((found[f"{name}_{form}"] for form in FORMS if f"{name}_{form}" in found), None)
        if codes is not None and codes.shape == weight.shape:
            lost[name] = int(np.count_nonzero(codes[np.asarray(context.model.values(weight.tensor)) == 0]))
    if not sum(lost.values()):
        return None
    whole = sum(weights[name].zeros for name in lost)
    asked = ", ".join(sorted({plan.stored[name] for name in lost}))
    return (
        f"{sum(lost.values()) / whole:.1%} of the {whole:,} zeros of {len(lost)} pruned weights are no zeros any more, "
        f"as {asked} was asked for: store-int8 and store-low-bit keep all of them"
    )


def unfolded(model: Model, names: list[str], sample: Mapping[str, Any], options: Options) -> dict[str, NDArray[Any]]:
    """The tensors called ``names`` that ``model`` has, as ONNX Runtime computes them."""
    made = {tensor.name for node in model.graph.nodes for tensor in node.outputs}
    there = [name for name in names if name in made]
    try:
        session = until(model, there, options) if there else None
        return session.run(fed(session, sample), there) if session is not None else {}
    except (ModelError, DataError):
        return {}
