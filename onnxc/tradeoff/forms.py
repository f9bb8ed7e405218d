"""Smaller forms of the model go down the ladder too: fewer channels, factors. In: the whole model's walk. Out: points.

What a form saves depends on how much noise is left for its codes: the best one for each of two targets in the middle
and the best one at the floor are made, and walk down from there, the smallest and fastest first.
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

ANCHORS_DB = (20.0, 15.0)  # of targets in the middle
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
    floor, cuts = run.judge.lowest_sqnr, dict[str, tuple[float, Cut]]()
    for lowest in dict.fromkeys((*(max(each, floor) for each in ANCHORS_DB), floor)):
        for promise, cut in best_cuts(run, whole, clock, lowest, say):
            if cut.text not in cuts:
                cuts[cut.text] = promise, cut
                break
    for _, cut in sorted(cuts.values(), key=lambda pair: pair[0]):
        ladder = [each for each in targets(floor) if cut.noise < ROOM * 10 ** (-each / 10)]
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


def best_cuts(run: Run, whole: Walk, clock: Clock, lowest: float, say: Progress) -> list[tuple[float, Cut]]:
    """The forms whose plans are predicted to be better with ``lowest`` dB than those of the whole model, each with what
    it promises, the best one first.
    """
    near = max(whole.within(lowest), key=lambda trial: trial.noise, default=None)
    if near is None:
        return []
    judge, budget = run.judge, run.judge.budget
    judge.budget = replace(budget, min_sqnr=lowest)
    try:
        size = whole.planning.size.overheads.file_bytes(whole.planning.problem, near.plan)
        planned = Planned(whole.planning, Delivery(near, round(size), None))
        notes = list[str]()
        stamp = f"{receipt(run)} {lowest} dB"
        prospects = Prospects(planned, near, judge, clock, Aim(Budget()), stamp, say, notes=notes)
        cuts = [cut for each in run.chosen.unasked for cut in prospects.of(each, prospects.context())]
    finally:
        judge.budget = budget
    run.notes += [note for note in notes if note not in run.notes]
    return sorted(((prospects.aim.of(cut.predicted), cut) for cut in cuts), key=lambda pair: pair[0])
