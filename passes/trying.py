"""A rewrite that is kept where nothing speaks against it. In: a pass, a model, what judges. Out: what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.data import Sample
from onnxc.exactness import Exactness
from onnxc.model import Model
from onnxc.session import Options

from .skeletons import adopt

FASTER = 1.02  # times as fast that a rewrite has to make a model


def where_faster(each: ExactPass, model: Model, samples: Sequence[Sample], options: Options, left: str) -> Outcome:
    """``model`` rewritten in place by ``each`` where outputs stay equal and it gets faster; else ``left`` is said."""
    return tried(each, model, left, lambda copy: Exactness(model, samples, options).unpaid(copy, FASTER))


def tried(each: ExactPass, model: Model, left: str, refused: Callable[[Model], str | None]) -> Outcome:
    """``model`` rewritten in place by ``each``, unless that is refused.

    Args:
        left: what is said where it is, before the reason.
        refused: why a rewritten copy is not used, None where it is.
    """
    copy = model.copy()
    outcome = each.run(copy)
    if not outcome.changed:
        return outcome
    if (reason := refused(copy)) is not None:
        return Outcome(0, (f"{left}: {reason}",))
    adopt(model, copy)
    return outcome
