"""A plan becomes a model. In: the simplified model, a plan, the codes of its weights. Out: a copy, rewritten."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.formats import FLOATS
from onnxc.encoding import Codes
from onnxc.file.storage import drop_pages
from onnxc.model import Model
from onnxc.problem import Plan
from onnxc.rewriting.bounds import keep_fused
from onnxc.rewriting.rewriter import Rewriter
from onnxc.rewriting.weights import FEW_SCALES, MANY_SCALES
from onnxc.targets import CPU, Target


def written(
    model: Model,
    plan: Plan,
    codes: Mapping[str, Codes],
    shifts: Mapping[str, NDArray[np.float64]] | None = None,
    *,
    plain: bool = False,
    target: Target = CPU,
    late: bool = False,
) -> Rewriter:
    """``plan`` applied to a copy of ``model``. The order of sites is the file's, so names come out the same.

    Args:
        shifts: name of a bias -> [N], what is taken out of it.
        plain: nothing is packed, so that codes can be changed afterwards.
        target: what the model is for; late: whether it takes too long to load.
    """
    copy = model.copy()
    short = sorted(codes, key=lambda name: (len(name), name))  # what weights share is named after the first of them
    floats = set() if plain or target.plain else set(codes) - read_as_codes(copy, plan)
    rewriter = Rewriter(copy, {name: codes[name] for name in short}, plain=plain, floats=floats, target=target)
    rewriter.weights.few_scales = MANY_SCALES if late else FEW_SCALES
    for candidate in plan.compute.values():
        if candidate.apply is not None:
            candidate.apply(rewriter)
    linears = [rewriter.nodes[name] for name, candidate in plan.compute.items() if candidate.mode == "static"]
    keep_fused(copy, [node for node in linears if node.op in ("Gemm", "MatMul")])
    for name, error in (shifts or {}).items():
        rewriter.shift_bias(name, error)
    for name in sorted(plan.coded):
        rewriter.unfold(name)
    if not plain:
        rewriter.shorten({name: mode for name, mode in sorted(plan.stored.items()) if mode in FLOATS})
        rewriter.sheet.name_steps()
    copy.tidy()
    drop_pages()
    return rewriter


def read_as_codes(model: Model, plan: Plan) -> set[str]:
    """The weights of operators that run on integers."""
    sites = [node for node in model.nodes() if node.name in plan.compute]
    read = {str(tensor.name) for node in sites for tensor in node.inputs}
    return read.union(*(candidate.weights for candidate in plan.compute.values()))
