"""A plan becomes a model. In: the simplified model, a plan, the codes of its weights. Out: a copy, rewritten."""

from __future__ import annotations

from collections.abc import Mapping

from onnxc.codes.formats import HALF
from onnxc.encoding import Codes
from onnxc.file.storage import drop_pages
from onnxc.model import Model
from onnxc.planner import Plan
from onnxc.rewrite import Rewriter


def written(model: Model, plan: Plan, codes: Mapping[str, Codes]) -> Rewriter:
    """``plan`` applied to a copy of ``model``. The order of sites is the file's, so names come out the same."""
    copy = model.copy()
    rewriter = Rewriter(copy, dict(codes))
    for candidate in plan.compute.values():
        if candidate.apply is not None:
            candidate.apply(rewriter)
    for name, mode in sorted(plan.stored.items()):
        if mode == HALF:
            rewriter.halve(name)
        else:
            rewriter.unfold(name)
    copy.tidy()
    drop_pages()
    return rewriter
