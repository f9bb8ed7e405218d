"""Smaller forms of the model go down the ladder too: fewer channels, factors. In: the whole model's walk. Out: points.

What a form saves depends on how much noise is left for its codes: the best one for a target in the middle and the best
one at the floor are made, and walk down from there.
"""

from __future__ import annotations

from dataclasses import replace
from time import process_time

from onnxc.compiler import Progress, Run, proposed, receipt
from onnxc.deliver import Delivery
from onnxc.errors import DataError, ModelError
from onnxc.recipe import Budget
from onnxc.structure.planned import Aim, Clock, Planned
from onnxc.structure.prospects import Cut, Prospects
from onnxc.tradeoff.building import Builder
from onnxc.tradeoff.walking import Walk, targets

ANCHOR_DB = 20.0  # of the target in the middle
ROOM = 0.8  # of the noise of a target: a form that makes more in float leaves too little for codes
ALWAYS = 30.0  # seconds that may be spent on forms anyway, where the whole model took less
LONGEST = 600.0  # seconds of the processor for the whole model, beyond which no form is walked down


def walk_forms(run: Run, whole: Walk, say: Progress, started: float) -> None:
    """Walk down the best forms that the passes which act unasked offer.

    Args:
        whole: the walk of the whole model; started: when it did, in seconds of the processor.
    """
    passes, planning = run.chosen.unasked, whole.planning
    if not passes or run.samples.generated or not planning.problem.noise:
        return
    clock = Clock(run.prices, f"{receipt(run)} frontier")
    spent = clock.took("the whole model", process_time() - started)
    if spent > LONGEST:
        run.notes.append(f"smaller forms were not tried: the whole model took {spent:.0f} s, they would too")
        return
    clock.allowed, clock.spent = max(spent, ALWAYS), 0.0
    seen = set[str]()
    for lowest in dict.fromkeys((max(ANCHOR_DB, run.judge.lowest_sqnr), run.judge.lowest_sqnr)):
        cut = best_cut(run, whole, clock, lowest, say)
        if cut is None or cut.text in seen:
            continue
        seen.add(cut.text)
        ladder = [each for each in targets(run.judge.lowest_sqnr) if cut.noise < ROOM * 10 ** (-each / 10)]
        if not ladder:
            continue
        if clock.spent > clock.allowed:
            run.notes.append(f"{cut.text}: not walked down, the time for smaller forms is used up")
            return
        start = process_time()
        say(f"walking down {cut.text}")
        try:
            form = proposed(run, cut.level.model)
        except (ModelError, DataError) as error:
            run.notes.append(f"{cut.text}: not walked down, {error}")
            continue
        form.shaped(run.lead * cut.lead, cut.noise)
        builder = Builder(run, whole.record, whole.builder.found, form, say, form=cut.text)
        Walk(run, whole.record, form, builder, ladder=ladder).down()
        clock.took(f"walking down {cut.text}", process_time() - start)


def best_cut(run: Run, whole: Walk, clock: Clock, lowest: float, say: Progress) -> Cut | None:
    """The form whose plan is predicted to be the best one with ``lowest`` dB; None where that is one of the whole
    model.
    """
    near = max(whole.within(lowest), key=lambda trial: trial.noise, default=None)
    if near is None:
        return None
    judge, budget = run.judge, run.judge.budget
    judge.budget = replace(budget, min_sqnr=lowest)
    try:
        size = whole.planning.overheads.file_bytes(whole.planning.problem, near.plan)
        planned = Planned(whole.planning, Delivery(near, round(size), None))
        notes = list[str]()
        stamp = f"{receipt(run)} {lowest} dB"
        prospects = Prospects(planned, near, judge, clock, Aim(Budget()), stamp, say, notes=notes)
        cuts = [cut for each in run.chosen.unasked for cut in prospects.of(each, prospects.context())]
    finally:
        judge.budget = budget
    run.notes += [note for note in notes if note not in run.notes]
    return min(cuts, key=lambda cut: prospects.aim.of(cut.predicted), default=None)
