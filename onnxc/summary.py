"""The report of a run. In: what was proposed, chosen and measured. Out: a Report."""

from __future__ import annotations

import tempfile
from dataclasses import fields, replace
from math import log10
from pathlib import Path

from onnxc.codes.formats import INT8, parse_format
from onnxc.contract.candidates import Activation, Candidate
from onnxc.convergence import convergence_note
from onnxc.deliver import Delivery
from onnxc.explain import ceiling, computed, further, predicted_bytes, runner_up, stopped, stored, too_late, would_help
from onnxc.judge import Judge
from onnxc.kernels import leftover_weights, operators
from onnxc.macs import multiplications
from onnxc.planning import Planning
from onnxc.predictions import predicted_noise
from onnxc.problem import Plan
from onnxc.quality import Quality, differing, relative_drop
from onnxc.report import Report, SiteRow
from onnxc.session import Session
from onnxc.sites import Site
from onnxc.validate import Comparison
from onnxc.zeros import zeros_lost


def summarize(planning: Planning, delivery: Delivery, notes: list[str]) -> Report:
    """Rows for every site and weight, refusals, totals, and the limits that are missed."""
    context, proposals = planning.context, planning.proposals
    problem, judge = planning.problem, planning.judge
    report = Report(generated=judge.samples.generated, data=judge.samples.description, notes=list(notes))
    report.bytes_before, report.bytes_after = judge.original.source_bytes, delivery.size
    report.changed = delivery.trial is not None
    report.unchanged = "" if report.changed else stopped(planning, delivery)
    plan = delivery.trial.plan if delivery.trial is not None else Plan()
    report.rows = rows(planning, plan)
    if plan.seconds > 0:
        report.predicted_speed = problem.original_seconds / plan.seconds
    if delivery.trial is not None and planning.attempts:
        report.predicted_bytes = predicted_bytes(planning, plan)
        noise = planning.before + predicted_noise(
            problem, plan.compute, plan.stored
        )  # the plan may be older than the prediction
        report.predicted_sqnr_db = -10 * log10(noise) if noise > 0 else None
        report.allowed_noise = planning.allowed + planning.before
        report.further = further(planning, plan)
    for refusal in proposals.refusals:
        if refusal.place not in plan.compute:
            report.refuse(refusal.pass_name, refusal.reason, refusal.place)
    report.notes += dict.fromkeys(delivery.rejected)
    if (note := too_late(planning, delivery.size)) is not None:
        report.notes.append(note)
    if not context.target.measured:
        report.notes.append(
            f"this machine cannot run target '{context.target.name}': times are estimates from multiply-accumulates, "
            f"its rules are those of {context.target.source}; the time to load and memory are those of this CPU"
        )
    if (note := saturation_note(planning, plan)) is not None:
        report.notes.append(note)
    if any(a.dynamic for c in plan.compute.values() for a in c.reads):
        report.notes.append("ranges taken at run time span the whole batch: an answer may depend on who shares it")
    rounded = {name for each in static_activations(plan) for name in (each.tensor, each.source)}
    if (note := convergence_note(context.observations, rounded, *range_choice(planning))) is not None:
        report.notes.append(note)
    if delivery.trial is not None:
        sample = judge.samples.take(1)[0]
        if (note := zeros_lost(context, plan, delivery.trial.model, sample, judge.options)) is not None:
            report.notes.append(note)
    reached = delivery.ratio.median if delivery.ratio is not None else 0.0
    if report.changed and (note := ceiling(planning, reached)):
        report.notes.append(note)
    report.comparison = measured(judge, delivery, kernels=context.target.measured)
    if report.comparison is not None:
        report.notes += differing(report.comparison, scored=judge.score is not None)
    report.limits = {
        each.name: value for each in fields(judge.budget) if (value := getattr(judge.budget, each.name)) is not None
    }
    report.missed = missed(planning, delivery)
    return report


def saturation_note(planning: Planning, plan: Plan) -> str | None:
    """What was done about weights whose pair sums overflow 16 bits, None where none does or the target has no such
    kernels: written with 7 bits, or a word on processors that need that.
    """
    coder, target = planning.coder, planning.context.target
    computed = {name for name, readers in coder.readers.items() if any(site.name in plan.compute for site in readers)}
    found = sorted(name for name in computed if (name, plan.stored.get(name, "")) in coder.overflowing)
    if not found or target.saturates is False:
        return None
    shown = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
    weights = f"{len(found)} {'weight' if len(found) == 1 else 'weights'} ({shown})"
    if coder.narrows:
        return f"{weights} would overflow pair sums of 16 bits with codes of 8 bits: written with 7 bits, at most 63"
    return (
        f"{weights} would overflow pair sums of 16 bits on processors without int8 dot products, which this one is "
        "not: for those use --target cpu-avx2, which writes 7 bits"
    )


def range_choice(planning: Planning) -> tuple[str, float]:
    """How the pass that has a say in it chooses ranges from distributions, and its percentile."""
    fields_of = next((vars(each) for each, _ in planning.lossy if {"range", "percentile"} <= set(vars(each))), {})
    return str(fields_of.get("range", "mse")), float(fields_of.get("percentile", 99.99))


def static_activations(plan: Plan) -> list[Activation]:
    """Every activation whose range was chosen before the model runs."""
    found = [a for c in plan.compute.values() for a in (*c.reads, *((c.writes,) if c.writes else ()))]
    return [each for each in found if not each.dynamic]


def missed(planning: Planning, delivery: Delivery) -> list[str]:
    """The limits that the delivery does not hold, and what may help; the quality floor always holds."""
    judge, found = planning.judge, list[str]()
    share = delivery.size / judge.original.source_bytes
    if judge.budget.size is not None and share > judge.budget.size:
        found.append(
            f"the best model found within the quality floor has {share:.1%} of the size, not {judge.budget.size:.1%}"
        )
    speed = delivery.ratio.median if delivery.ratio is not None else 1.0
    timed = delivery.trial is None or delivery.ratio is not None
    if judge.budget.speed is not None and timed and speed < judge.budget.speed:
        found.append(
            f"the best model found within the quality floor is {speed:.2f} times as fast, not {judge.budget.speed:g}"
        )
    found = [each + would_help(planning) for each in found]
    allowed = judge.budget.max_load_time
    if allowed is not None and delivery.trial is None and allowed < 1.0:
        found.append(f"no model found within the quality floor loads in {allowed:g} times the input's time")
    return found


def measured(judge: Judge, delivery: Delivery, *, kernels: bool = True) -> Comparison | None:
    """The figures of the delivered model: quality, score, size, speed, load cost, and the ``kernels`` of this machine
    where they are those of the target.
    """
    if delivery.trial is None:
        return None
    trial = delivery.trial
    result = Comparison(**{each.name: getattr(trial.quality, each.name) for each in fields(Quality)})
    result.samples, result.generated = len(judge.reference), judge.samples.generated
    result.size_reference, result.size_new = judge.original.source_bytes, delivery.size
    result.ratio = delivery.ratio
    if delivery.loads is not None:
        result.load_reference, result.load_new = delivery.loads
    if judge.score is not None and trial.score is not None:
        result.score_reference, result.score_new = judge.score, trial.score
        result.drop = relative_drop(judge.score, trial.score)
    if not kernels:
        return result
    with tempfile.TemporaryDirectory(prefix="onnxc-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "new.onnx")
        trial.model.save(path)
        original = Session(judge.original.path or judge.original, judge.options, dump=True)
        result.kernels_reference = operators(original.optimized())
        del original
        optimized = Session(path, judge.options, dump=True).optimized()
        result.kernels_new, result.leftover = operators(optimized), leftover_weights(optimized)
    return result


def rows(planning: Planning, plan: Plan) -> list[SiteRow]:
    """One row per site with a weight, then one per weight that no site reads."""
    context, problem = planning.context, planning.problem
    reasons: dict[str, str] = {}
    for refusal in planning.proposals.refusals:
        reasons.setdefault(refusal.place, refusal.reason)
    found, covered = [], set()
    for site in context.sites:
        if site.weight is None:
            continue
        first = site.weight.name not in covered
        covered.add(site.weight.name)
        found.append(site_row(site, planning, plan, first, reasons))
    for weight in context.sites.weights:
        if weight.name in covered or len(weight.shape) < 2:
            continue
        storage = storage_of(weight.name, planning, plan)
        row = SiteRow(weight.name, str(weight.readers[0][0].op), weight.shape, weight.bytes, weight.bytes)
        row.reason, row.considered = reasons.get(weight.name, "stored as it was"), stored(problem, plan, weight)
        if storage is not None:
            row.choice, row.specification, row.bytes_after = (
                storage.pass_name,
                storage.specification,
                storage.bytes,
            )
            row.reason = ""
        found.append(row)
    return found


def site_row(site: Site, planning: Planning, plan: Plan, first: bool, reasons: dict[str, str]) -> SiteRow:
    """What was decided about one site; the bytes of a shared weight count at its first reader."""
    assert site.weight is not None
    context, problem, sparse = planning.context, planning.problem, planning.coder.sparse
    candidate = plan.compute.get(site.name)
    storage = storage_of(site.weight.name, planning, plan)
    before = problem.prices.of(site.name, "float")
    row = SiteRow(site.name, site.operator, site.weight.shape)
    row.bytes_before = site.weight.bytes if first else 0
    row.bytes_after = row.bytes_before
    row.considered = computed(problem, plan, site) + stored(problem, plan, site.weight)
    row.runner_up = runner_up(problem, plan, site, row.considered)
    if first and storage is not None:
        row.bytes_after = storage.bytes
    row.macs = multiplications(site, context.observations.shapes, context.sites)
    row.milliseconds_before = before * 1e3 if before is not None else None
    row.milliseconds_after = row.milliseconds_before
    if candidate is not None:
        row.choice, row.specification = candidate.pass_name, candidate.specification
        if storage is not None and (
            storage.mode not in (INT8.name, candidate.form) or (site.weight.name, INT8.name) in sparse
        ):
            row.specification += f"; {storage.specification}"
        after = problem.prices.of(site.name, candidate.mode)
        row.milliseconds_after = after * 1e3 if after is not None else row.milliseconds_after
        return row
    if storage is not None:
        row.choice, row.specification = storage.pass_name, storage.specification
    row.reason = reasons.get(site.name, "")
    modes = [c.mode for c in problem.compute.get(site.name, ())]
    after = min((p for m in modes if (p := problem.prices.of(site.name, m)) is not None), default=None)
    if after is not None and before is not None:
        faster = after < before
        row.reason = "int8 would cost more accuracy than allowed, or leave its island" if faster else ""
        row.reason = row.reason or f"int8 is not faster here ({before * 1e6:.3g} to {after * 1e6:.3g} microseconds)"
    return row


def storage_of(weight: str, planning: Planning, plan: Plan) -> Candidate | None:
    """How the plan stores a weight, None where it stays float32. Where only what is not zero is stored, that is said:
    the levels alone tell nothing of the bytes.
    """
    mode = plan.stored.get(weight)
    if mode is None:
        return None
    ways = planning.problem.storage.get(weight, ())
    found = next((way for way in ways if way.mode == mode), None) or read_by_operator(weight, mode, planning, plan)
    sparse = planning.coder.sparse.get((weight, mode))
    return replace(found, specification=f"{found.specification}, {sparse}") if sparse else found


def read_by_operator(name: str, mode: str, planning: Planning, plan: Plan) -> Candidate:
    """The storage of a weight that no pass was to store: an operator reads its codes."""
    weight = planning.coder.weights[name]
    readers = {site.name for site in planning.context.sites if site.weight is not None and site.weight.name == name}
    asked = (c.pass_name for place, c in plan.compute.items() if place in readers or name in c.weights)
    size = planning.problem.bytes_of(weight, mode)
    return Candidate(next(asked, ""), "storage", name, mode, parse_format(mode).words, bytes=size)
