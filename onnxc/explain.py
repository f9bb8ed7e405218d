"""Why a plan is as it is. In: a problem and the plan that was delivered. Out: options of every site, a sentence.

Per site: every mode it could be computed in and every format its weight could be stored in, with bytes, time and
noise as they were planned with; what the best other option would have cost; and what kept the model from going on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxc.codes.formats import FLOATS, INT8
from onnxc.contract.candidates import Candidate
from onnxc.deliver import Delivery
from onnxc.limits import worth
from onnxc.planner import plan
from onnxc.planning import Attempt, Planning
from onnxc.problem import Plan, Problem, smallest_bytes
from onnxc.profiling import FLOAT
from onnxc.report import Option, RunnerUp
from onnxc.sensitivity import activation_key
from onnxc.sites import Site, Weight

LITTLE = 0.02  # of the time: as good as nothing
ABOUT = 1.02  # times a limit, within which a predicted size or time is taken for it
SMALLER = 0.9  # of the bytes: what is worth a word


def computed(problem: Problem, found: Plan, site: Site) -> list[Option]:
    """The modes in which a site could be computed, float first; [] where float is the only one."""
    candidates = problem.compute.get(site.name, ())
    if not candidates:
        return []
    chosen = found.compute.get(site.name)
    seconds = problem.prices.of(site.name, FLOAT)
    options = [
        Option("compute", "", FLOAT, "as it was", None, milliseconds(seconds), noise(problem, 0.0), chosen is None)
    ]
    for each in candidates:
        took = chosen is not None and chosen.mode == each.mode
        heard = noise(problem, rounding(problem, each))
        spent = milliseconds(problem.prices.of(site.name, each.mode))
        options.append(Option("compute", each.pass_name, each.mode, each.specification, None, spent, heard, took))
    return options


def stored(problem: Problem, found: Plan, weight: Weight) -> list[Option]:
    """The formats in which a weight could be stored, as it was first; [] where that is the only one."""
    ways, chosen = problem.storage.get(weight.name, ()), found.stored.get(weight.name)
    if not ways:
        return []
    own = str(weight.tensor.dtype) if weight.cast else "as it was"
    options = [Option("storage", "", FLOAT, own, weight.bytes, None, noise(problem, 0.0), chosen is None)]
    for way in ways:
        heard = noise(problem, problem.weight_noise(weight.name, way.mode))
        options.append(
            Option("storage", way.pass_name, way.mode, way.specification, way.bytes, None, heard, way.mode == chosen)
        )
    return options


def milliseconds(seconds: float | None) -> float | None:
    """For the report."""
    return None if seconds is None else 1e3 * seconds


def noise(problem: Problem, value: float) -> float | None:
    """``value`` where the noise of roundings was measured."""
    return value if problem.noise else None


def rounding(problem: Problem, candidate: Candidate) -> float:
    """Noise of the activations that a candidate rounds."""
    activations = (*candidate.reads, *((candidate.writes,) if candidate.writes else ()))
    return sum(problem.activation_noise(key) for key in sorted({activation_key(each) for each in activations}))


def runner_up(problem: Problem, found: Plan, site: Site, options: list[Option]) -> RunnerUp | None:
    """The best change of this site alone, everything else as it is, and what it would have cost; None where there is
    no other option.
    """
    unit, best = smallest_bytes(problem), None
    for each, added, spent, heard in changes(found, site, options):
        worse = problem.byte_price * added / unit + spent / 1e3 / problem.whole + found.price * heard
        if best is None or worse < best[0]:
            best = (
                worse,
                RunnerUp(each.kind, each.mode, each.specification, added, spent, heard if problem.noise else None),
            )
    return best[1] if best is not None else None


def changes(found: Plan, site: Site, options: list[Option]) -> Iterator[tuple[Option, int, float, float]]:
    """Each other option with the bytes, milliseconds and noise that it adds. What an int8 kernel multiplies has to be
    stored as codes: a weight that was not would be stored in int8 with it.
    """
    now = {each.kind: each for each in options if each.chosen}
    for each in options:
        if each.chosen or each.kind not in now:
            continue
        before, added = now[each.kind], 0
        heard = (each.noise or 0.0) - (before.noise or 0.0)
        if each.kind == "storage":
            if site.name in found.compute and each.mode in (FLOAT, *FLOATS):
                continue
            added = (each.bytes or 0) - (before.bytes or 0)
        elif before.mode == FLOAT and site.weight is not None and site.weight.name not in found.coded:
            codes = next((way for way in options if way.kind == "storage" and way.mode == INT8.name), None)
            if codes is not None and "storage" in now:
                added = (codes.bytes or 0) - (now["storage"].bytes or 0)
                heard += (codes.noise or 0.0) - (now["storage"].noise or 0.0)
        yield each, added, (each.milliseconds or 0.0) - (before.milliseconds or 0.0), heard


def further(planning: Planning, found: Plan) -> str:
    """Why the model is not smaller or faster still: the floor that the next plan missed, and by how much."""
    problem = planning.problem
    reached = worth(problem, found)
    ahead = [each for each in planning.attempts if each.missed and worth(problem, each.plan) < reached]
    if ahead:
        nearest = max(ahead, key=lambda each: worth(problem, each.plan))
        share = predicted_bytes(planning, nearest.plan) / planning.judge.original.source_bytes
        speed = problem.original_seconds / nearest.plan.seconds if nearest.plan.seconds > 0 else 1.0
        return (
            f"why not further: the next plan, with about {share:.1%} of the bytes and {speed:.2f} times as fast as "
            f"float, was not taken: {nearest.missed}"
        )
    if found.key == plan(problem).key:
        named = ", of the passes that were asked for" if planning.context.recipe.passes is not None else ""
        return f"why not further: every weight and site is in the smallest and fastest form that pays{named}"
    if problem.most_bytes is not None or problem.most_seconds is not None:
        return "why not further: the limits that were asked for are met"
    return "why not further: no plan that was tried is smaller or faster"


def stopped(planning: Planning, delivery: Delivery) -> str:
    """Where the input itself is delivered: the floor that the nearest plan missed, or what the gate said of the best
    one; "" where no plan would have changed anything.
    """
    judged = [each for each in planning.attempts if each.missed or each.plan.compute or each.plan.stored]
    if any(each.missed is None for each in judged) and delivery.rejected:
        return delivery.rejected[0]
    missed = [each for each in judged if each.missed]
    if not missed:
        return ""
    return "the nearest plan, with about {:.1%} of the bytes, was not taken: {}".format(*nearest(planning, missed))


def nearest(planning: Planning, missed: Sequence[Attempt]) -> tuple[float, str | None]:
    """Of plans that missed a floor the one with the least loss: its bytes as a share of the original's, the floor."""
    found = max(missed, key=lambda each: (each.score or 0.0, each.sqnr_db))
    return predicted_bytes(planning, found.plan) / planning.judge.original.source_bytes, found.missed


def ceiling(planning: Planning, reached: float = 0.0) -> str:
    """The speed that no plan exceeds, as every site's fastest form was measured: what is left then has no other form.
    "" where nothing was timed, or nothing but float applies.

    Args:
        reached: times as fast as the original the result is: operators together may be faster than each promised.
    """
    prices, able = planning.problem.prices, planning.problem.compute
    times = {name: each for name, each in prices.sites.items() if able.get(name) and each.get(FLOAT, 0.0) > 0}
    if not times or not planning.context.target.measured:
        return ""
    gains = sum(each[FLOAT] - min(each.values()) for each in times.values())
    if gains < LITTLE * prices.total:
        return "kernels: no other form of any operator was measured to be faster than float"
    left = max(prices.total - gains, 1e-9)
    rest = max(prices.total - sum(each[FLOAT] for each in times.values()), 0.0)
    most = max(planning.problem.original_seconds / left, reached)
    return (
        f"kernels: at most {most:.2f} times as fast, with every operator in the fastest form that was measured; "
        f"{rest / left:.0%} of the time is then spent in operators that have no other form"
    )


def turned_away(planning: Planning) -> list[tuple[Plan, float]]:
    """Plans that load too late, and how many times as long as allowed."""
    return planning.loads.too_late if planning.loads is not None else []


def too_late(planning: Planning, size: int) -> str | None:
    """What was not taken as it loads too late, where it is clearly smaller than ``size``; None where nothing is."""
    late = [(predicted_bytes(planning, each), times) for each, times in turned_away(planning) if times > 1]
    found = min(late, default=None)
    if found is None or found[0] > SMALLER * size:
        return None
    share, most = found[0] / planning.judge.original.source_bytes, planning.judge.time_to_load(1.0)
    return (
        f"a plan with {share:.1%} of the bytes takes {found[1] * most:.2f} times as long to load as the input, and was "
        "not taken (--max-load-time)"
    )


def would_help(planning: Planning) -> str:
    """Where a limit of size or speed is missed: what kept the plan within it from being taken, and what may change
    that.
    """
    judge, problem = planning.judge, planning.problem
    size, speed = judge.budget.size or 1.0, judge.budget.speed or 0.0
    most = size * judge.original.source_bytes * ABOUT
    fast = problem.original_seconds / speed * ABOUT if speed else float("inf")

    def within(found: Plan) -> bool:
        return found.seconds <= fast and predicted_bytes(planning, found) <= most

    tried = [each for each in planning.attempts if each.missed and within(each.plan)]
    advice = ["more time to load (--max-load-time)"] if any(within(each) for each, _ in turned_away(planning)) else []
    if judge.samples.generated:
        advice.append("samples (--calib)")
    if judge.evaluation is None:
        advice.append("a score (--eval)")
    if not judge.samples.generated and not planning.context.recipe.recover:
        advice.append("training (--recover)")
    may = f"; {' or '.join(advice)} may help" if advice else ""
    if not tried:
        return may
    return "; with {:.1%} of the size {}".format(*nearest(planning, tried)) + may


def predicted_bytes(planning: Planning, found: Plan) -> int:
    """Of the whole file, before it was built; of the first plan, when nothing was known of others, after it."""
    before = next((each.predicted_bytes for each in planning.attempts if each.plan.key == found.key), None)
    return before if before is not None else planning.size.overheads.file_bytes(planning.problem, found)
