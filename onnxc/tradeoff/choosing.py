"""Which models stay. In: points, floors and limits, the user's metric. Out: those that no other one beats."""

from __future__ import annotations

import math
from dataclasses import fields, replace

from onnxc.compiler import Progress, Run
from onnxc.errors import BudgetError
from onnxc.judge import step
from onnxc.quality import FLOOR_SQNR_WITH_HOOK_DB, floor_met, relative_drop
from onnxc.recipe import Budget
from onnxc.session import Session
from onnxc.tradeoff.expecting import expected_drop, expected_items, followed
from onnxc.tradeoff.points import Point
from onnxc.tradeoff.record import Record

SPEED_NOISE, SMALLER = 0.97, 0.98  # a model that much slower is not known to be slower; what is worth another model


def floored(budget: Budget) -> Budget:
    """The floors of a frontier: those of the user, else 10 dB and nothing said of answers."""
    return replace(
        budget,
        min_sqnr=FLOOR_SQNR_WITH_HOOK_DB if budget.min_sqnr is None else budget.min_sqnr,
        min_agreement=0.0 if budget.min_agreement is None else budget.min_agreement,
    )


def floor(run: Run, point: Point) -> str | None:
    """The floor of the outputs that a point misses, None if it holds all."""
    return floor_met(point.quality, floored(run.judge.budget), generated=run.samples.generated)


def candidates(run: Run, record: Record) -> list[Point]:
    """Points with a model that hold the floors of the outputs, least noise first."""
    held = [p for p in record.points.values() if p.files and p.rejected is None and floor(run, p) is None]
    return sorted(held, key=lambda point: (-(point.sqnr_db or -math.inf), point.size))


def score(run: Run, record: Record, say: Progress) -> None:
    """Ask the hook about every point: the ends first, then what lies farthest from all that is known. Where its calls
    are bounded, none is spent on what is noisier than a point whose score is too low.
    """
    judge, budget = run.judge, run.recipe.budget
    points = candidates(run, record)
    while judge.evaluation is not None and (budget.evals is None or judge.evaluations < budget.evals):
        known = [index for index, point in enumerate(points) if point.score is not None]
        worst = min((i for i in known if budget.evals is not None and too_low(run, points[i])), default=len(points))
        unknown = [index for index, point in enumerate(points[:worst]) if point.score is None]
        if not unknown:
            return
        if worst < len(points):  # where the drop becomes too large is between what passed last and what failed first
            unknown = [
                index for index in unknown if index > max((i for i in known if i < worst), default=-1)
            ] or unknown
        chosen = max(unknown, key=lambda index: (min((abs(index - each) for each in known), default=0), index))
        say("asking the hook")
        path = record.folder / points[chosen].files[0]
        points[chosen].score = judge.evaluation(Session(path, judge.options))
        judge.evaluations += 1
        record.save(budget, complete=False, notes=())


def expect(run: Run, record: Record) -> None:
    """What the score of every point is expected to lose, as the other points tell."""
    if (before := run.judge.score) is None:
        return
    noises = {key: heard(point) for key, point in record.points.items() if point.sqnr_db is not None}
    drops = {
        key: relative_drop(before, point.score)
        for key, point in record.points.items()
        if point.score is not None and key in noises
    }
    item = step(before, [point.score for point in record.points.values() if point.score is not None])
    for key, noise in noises.items():
        others = [(noises[other], drop) for other, drop in drops.items() if other != key]
        which = followed(others)
        if which not in noise:
            continue
        known = [(each[which], drop) for each, drop in others]
        expected = expected_items(noise[which], known, item) if item else expected_drop(noise[which], known)
        record.points[key].predicted_drop = expected


def heard(point: Point) -> dict[str, float]:
    """SQNR of a point in dB: of the worst output by the name of "", and of every output. Both the noise that was
    planned and what some samples show tell what other samples will hear: it is the mean of the two.
    """
    assert point.sqnr_db is not None
    planned = 0.0 if point.predicted_sqnr_db is None else (point.predicted_sqnr_db - point.sqnr_db) / 2
    return {name: db + planned for name, db in {"": point.sqnr_db, **point.outputs}.items()}


def too_low(run: Run, point: Point) -> bool:
    """Whether the score of a point has dropped by more than the user allows."""
    allowed, before = run.recipe.budget.max_drop, run.judge.score
    if allowed is None or before is None or point.score is None:
        return False
    return relative_drop(before, point.score) > allowed * point.allowed_share + 1e-12


def within_limits(run: Run, record: Record) -> list[Point]:
    """The points that hold every floor and limit."""
    budget, points = run.recipe.budget, candidates(run, record)
    failing = {point.key for point in points if too_low(run, point)}
    if budget.max_drop is not None and run.judge.score is not None:  # what has no score counts as what lies below it
        for index, point in enumerate(points):
            below = next((p for p in points[index:] if p.score is not None), None)
            if point.score is None and below is not None and below.key in failing:
                failing.add(point.key)
            if point.score is None and below is None and any(p.score is not None for p in points):
                failing.add(point.key)
    within = [p for p in points if p.key not in failing]
    within = [p for p in within if budget.size is None or p.share <= budget.size]
    return [p for p in within if budget.speed is None or (p.speed or 0.0) >= budget.speed]


def select(run: Run, record: Record) -> None:
    """Leave the points that hold every limit and that no other one beats; the files of the others go."""
    within, kept = within_limits(run, record), list[Point]()
    everywhere = all(point.score is not None for point in within)
    for point in sorted(within, key=lambda p: worth(p, run.judge.score if everywhere else None), reverse=True):
        better = next((other for other in kept if beats(other, point)), None)
        point.beaten_by = better.key if better is not None else None
        if better is None:
            kept.append(point)
    for point in record.points.values():  # limits that nothing holds take no model away that was there before
        if point not in kept and point.files and (kept or point.key not in record.before):
            record.discard(point)


def worth(point: Point, reference: float | None) -> tuple[float, float, float]:
    """By score, up to the original's, where there is one; then by SQNR; then the smaller one."""
    score = min(point.score, reference) if point.score is not None and reference is not None else 0.0
    return score, point.sqnr_db if point.sqnr_db is not None else -math.inf, -point.size


def beats(better: Point, point: Point) -> bool:
    """Whether ``better``, whose outputs are, is hardly larger and not known to be slower: the same kernels take the
    same time, whatever a busy machine measures.
    """
    slower = (better.speed or 0.0) < SPEED_NOISE * (point.speed or 0.0) and better.kernels != point.kernels
    return point.size > SMALLER * better.size and not slower


def nothing(run: Run, record: Record) -> None:
    """No point is left: BudgetError where limits are the reason, a sentence where there is nothing to compress."""
    budget = run.recipe.budget
    asked = [each.name for each in fields(Budget) if each.name != "evals" and getattr(budget, each.name) is not None]
    tried = [point for point in record.points.values() if point.sqnr_db is not None]
    if asked and record.points:
        near = ""
        if tried:
            small = min(tried, key=lambda point: reached(point)[0])
            fast = max(tried, key=lambda point: reached(point)[1])
            close = max(tried, key=lambda point: point.sqnr_db or 0.0)
            near = f"; {described('smallest', small)}, {described('fastest', fast)}, {described('closest', close)}"
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise BudgetError(f"none of {len(record.points)} models holds {flags}{near}")
    reasons = [point.rejected for point in record.points.values() if point.rejected]
    why = f": {reasons[0]}" if reasons else ": no float weights that onnxc can store or compute smaller"
    run.notes.append(f"the input is the only point{why}")


def reached(point: Point) -> tuple[float, float]:
    """Share of the bytes and speed-up of a point, predicted where its model was not kept."""
    share = point.share if point.size else point.predicted_share or 1.0
    return share, point.speed if point.speed is not None else point.predicted_speed or 1.0


def described(what: str, point: Point) -> str:
    """One of the points that were reached."""
    share, speed = reached(point)
    return f"the {what} has {share:.1%} of the bytes, {speed:.2f} times the speed and {point.sqnr_db or 0.0:.1f} dB"
