"""Structural passes that were asked for. In: a simplified model. Out: a smaller one, to be compressed like any other.

A pass that was told what to do does exactly that. One that was only named cuts as deep as the quality floor allows:
its levels are judged one after the other, least cut first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from onnxc.contract.context import Context
from onnxc.contract.passes import StructuralPass
from onnxc.file.storage import drop_pages
from onnxc.judge import Judge
from onnxc.model import Model
from onnxc.naming import name_nodes

SLACK_DB = 1.0  # below what was told, for what is quantized on top of it
SLACK_DROP = 0.01


def shrunk(
    passes: Sequence[tuple[StructuralPass, bool]],
    model: Model,
    observed: Callable[[Model], Context],
    judge: Judge,
    notes: list[str],
    say: Callable[[str], None],
) -> Model:
    """``model`` after every structural pass.

    Args:
        passes: each with whether it was told what to do.
        observed: sites and statistics of a model.
        judge: where a told pass costs more quality than a default floor allows, that floor is lowered: the user
            asked for it. A floor that the user set stays.
        notes: gets what the passes say.
    """
    for instance, told in passes:
        exact = instance.automatic and not told
        say(f"{instance.name}: making the model {'easier to round' if instance.automatic else 'smaller'}")
        found, reason = 0, ""
        context = observed(model).in_float32()
        context = replace(context, told=told, allowed=float(10 ** (-judge.lowest_sqnr / 10)))
        for level in instance.levels(context):
            name_nodes(level.model)
            if not told and not instance.automatic:
                _, _, missed = judge.judge(level.model)
                if missed is not None:
                    reason = f"; {level.specification}: {missed}"
                    break
            model, said, found = level.model, level, found + 1
            if told:
                break
        drop_pages()
        if not found and exact:
            continue
        if not found:
            notes.append(f"{instance.name}: nothing was cut{reason}")
            continue
        notes.append(f"{instance.name}: {said.specification}{reason}")
        notes += [f"{instance.name}: {note}" for note in said.notes if not exact]
        if told:
            lower_floors(judge, model, instance.name, notes)
    return model


def lower_floors(judge: Judge, model: Model, name: str, notes: list[str]) -> None:
    """Default floors that ``model`` already misses no longer bind."""
    quality, score, missed = judge.judge(model)
    if missed is None or quality.problem:
        return
    budget = judge.budget
    set_by_user = (budget.min_sqnr, budget.min_agreement) if judge.score is None else (budget.min_sqnr, budget.max_drop)
    told = "done as told, though" if all(each is None for each in set_by_user) else "told, where floors were set too:"
    notes.append(f"{name}: {told} {missed}")
    if budget.min_sqnr is None and quality.sqnr_db - SLACK_DB < judge.lowest_sqnr:
        budget = replace(budget, min_sqnr=quality.sqnr_db - SLACK_DB)
    if judge.score is not None and budget.max_drop is None:
        score = judge.scored(model) if score is None else score
        budget = replace(budget, max_drop=max((judge.score - score) / abs(judge.score), 0.0) + SLACK_DROP)
    if judge.score is None and budget.min_agreement is None and quality.judged:
        budget = replace(budget, min_agreement=max(1 - quality.changed / quality.judged - 0.02, 0.0))
    judge.budget = budget
