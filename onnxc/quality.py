"""How far one model's outputs are from another's, and how far they may be. In: figures. Out: which floor is missed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxc.recipe import Budget

HIGHEST_SQNR_DB = 200.0
"""Equal outputs have no noise; this stands for them."""
FLOOR_SQNR_DB = 20.0
"""Default of --min-sqnr when no hook judges the model."""
FLOOR_SQNR_WITH_HOOK_DB = 10.0
"""The same with a hook: the user's metric decides, this only stops nonsense."""
FLOOR_DROP = 0.01
"""Default of --max-drop."""
FLOOR_CHANGED = 0.02
"""Largest share of changed top-1 answers by default; one changed answer is always allowed."""

FITTED_DB = 0.5  # worth a word: less is chance


@dataclass(frozen=True)
class OutputError:
    """How one output differs over all samples.

    Attributes:
        sqnr_db: signal to quantization noise ratio; None for what is no quantity, and where nothing is finite.
        max_error, mean_error: of |ref - new| over the finite entries; None as sqnr_db.
        cosine: similarity of all entries taken as one vector; None as sqnr_db.
        equal: fraction of equal entries; None for quantities.
        top1_agreement: fraction of unchanged answers; None when the output is not judged by answers.
        is_class_scores: whether its largest entry is an answer.
        samples, changed, judged: samples compared; answers that changed, out of those judged.
        problem: what makes the outputs incomparable, None if nothing does.
        nowhere_finite: of numbers, all NaN or infinite in both models, so that nothing can be told of it.
    """

    name: str
    sqnr_db: float | None
    max_error: float | None
    mean_error: float | None
    cosine: float | None
    equal: float | None
    top1_agreement: float | None
    is_class_scores: bool
    samples: int
    changed: int = 0
    judged: int = 0
    problem: str | None = None
    nowhere_finite: bool = False


@dataclass
class Quality:
    """The differences of all outputs.

    Attributes:
        outputs: one entry per output of the reference.
        sqnr_db: of the worst float output; 200 when no output is float, -inf when one cannot be compared. Over all
            samples, or as those kept apart tell where that is lower.
        fitted: how many dB lower they tell: what was fitted to the others.
        agreement: of the output with most changed answers; None when no output is judged by answers.
        changed, judged: the answers of that output.
        problem: the first thing that makes outputs incomparable.
        scored_changed, scored_judged: answers on the items of the user's score, as far as they were overheard.
    """

    outputs: list[OutputError] = field(default_factory=list)
    sqnr_db: float = HIGHEST_SQNR_DB
    agreement: float | None = None
    changed: int = 0
    judged: int = 0
    problem: str | None = None
    fitted: float = 0.0
    scored_changed: int = 0
    scored_judged: int = 0

    @property
    def has_floats(self) -> bool:
        """Whether any output is a quantity, so that sqnr_db says something."""
        return any(each.sqnr_db is not None for each in self.outputs)

    @property
    def worst(self) -> str:
        """The name of the float output with the lowest SQNR; empty when there is none."""
        floats = [(each.sqnr_db, each.name) for each in self.outputs if each.sqnr_db is not None]
        return min(floats)[1] if floats else ""


def floor_met(
    quality: Quality,
    budget: Budget,
    *,
    generated: bool,
    score: tuple[float, float] | None = None,
) -> str | None:
    """None, or the sentence that says which quality floor is missed.

    Args:
        quality: what ReferenceOutputs.judge() found.
        budget: the user's limits, which replace the defaults.
        generated: the samples were generated: top-1 answers on them are not judged unless asked for.
        score: (reference, new) of the evaluation hook, if there is one.
    """
    if quality.problem:
        return quality.problem
    lowest = budget.min_sqnr
    if lowest is None:
        lowest = FLOOR_SQNR_DB if score is None else FLOOR_SQNR_WITH_HOOK_DB
    if quality.sqnr_db < lowest:
        where = "" if quality.fitted < FITTED_DB else " by samples that nothing was fitted to"
        return f"output '{quality.worst}' has an SQNR of {quality.sqnr_db:.1f} dB{where}, below {lowest:g} dB"
    if score is not None:
        allowed_drop = FLOOR_DROP if budget.max_drop is None else budget.max_drop
        drop = relative_drop(*score)
        if drop > allowed_drop + 1e-12:
            fell = f"the score fell from {score[0]:.6g} to {score[1]:.6g}, by {drop:.2%}"
            return f"{fell}; at most {100 * allowed_drop:g} % is allowed"
    if not quality.judged:
        return None
    if budget.min_agreement is not None:
        allowed = int((1 - budget.min_agreement) * quality.judged + 1e-9)
    elif score is not None or (generated and quality.has_floats):
        return None
    else:
        allowed = max(1, int(FLOOR_CHANGED * quality.judged))
    if quality.changed > allowed:
        changed = f"{quality.changed} of {quality.judged} top-1 answers changed"
        return f"{changed}, more than the {allowed} allowed (--min-agreement)"
    return None


def differing(quality: Quality, *, scored: bool) -> list[str]:
    """A sentence for every output whose integers, flags or texts differ in more than 2 % of the places, and for every
    one that holds no number; ``scored``: the user's metric judged the model.
    """
    found = list[str]()
    for each in quality.outputs:
        if each.nowhere_finite:
            found.append(f"output '{each.name}' is not a number anywhere, in both models: it could not be judged")
        if each.equal is None or each.equal >= 1 - FLOOR_CHANGED:
            continue
        floor = "" if scored or each.judged else "; no floor holds for them beside floats: --eval can judge them"
        found.append(f"output '{each.name}': {1 - each.equal:.1%} of its discrete values differ{floor}")
    return found


def relative_drop(reference: float, new: float) -> float:
    """(reference - new) / |reference|, at least 0: a score above the original's counts as the original's."""
    return max(0.0, (reference - new) / abs(reference))
