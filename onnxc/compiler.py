"""The walk through the compiler. In: a model and what the user asked for. Out: a Report, and the file.

load      model.py       one graph, weights mapped from disk, nothing of the file lost
simplify  passes/        exact rewrites; they must pay too
shrink    structure/     channels, ranks or zeros, where asked for: a smaller model to compress
find      sites.py       weights and sites
observe   observe.py     one streamed run over the calibration data
propose   passes/        candidates: specifications with their activations and bytes
price     cost.py        measured seconds per site and mode
plan      planning.py    compute per site, storage per weight, under the limits
rewrite   rewriting/     the chosen candidates, applied to a copy
recover   training/      what was lost is learned back from the original, when asked
validate  reference.py   against the original; below the floor: plan again with a higher price of noise
choose    structure/     smaller forms of the model, planned afresh where that is predicted to pay; the best is taken
save      deliver.py     never larger, never slower; atomically
report    report.py      what was done, what was refused and why
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import onnx

from onnxc import __version__
from onnxc.coder import Coder
from onnxc.codes.sparse_tensors import unfold
from onnxc.contract.context import Context
from onnxc.data import Calibration, generate
from onnxc.deliver import gate, write
from onnxc.errors import BudgetError, DataError, ModelError, UsageError
from onnxc.exactness import Exactness
from onnxc.file.storage import drop_pages
from onnxc.frequent import frequent_rows
from onnxc.head_start import head_start
from onnxc.judge import Judge
from onnxc.model import Model, Tensor
from onnxc.naming import name_nodes
from onnxc.observe import Observations, observe
from onnxc.planning import Planning
from onnxc.price_file import PriceFile
from onnxc.propose import Chosen, check_kept, collect, passes_of, with_training
from onnxc.recipe import Budget, PassRequest, Recipe, load_recipe, parse_passes
from onnxc.remembered import OutdatedError
from onnxc.report import Report
from onnxc.samples.hooks import Evaluation
from onnxc.samples.images import is_image
from onnxc.samples.inputs import index_limits
from onnxc.session import Options, Session, runtime_version
from onnxc.sites import Site, Sites, find
from onnxc.structure.choice import Choice
from onnxc.structure.named import shrunk
from onnxc.structure.planned import Planned
from onnxc.structure.raising import raised
from onnxc.summary import summarize
from onnxc.targets import target as target_named
from onnxc.trial import Trial

Progress = Callable[[str], None]
FORM_TRIALS = 6  # plans that are built of a smaller form
FORMS = 3  # trials of a smaller form that go to the gate: the best one and two that load faster


@dataclass
class Run:
    """One call of optimize(), with everything opened and checked."""

    original: Model
    recipe: Recipe
    chosen: Chosen
    options: Options
    samples: Calibration
    judge: Judge
    prices: PriceFile
    say: Progress
    notes: list[str]
    work: Path | None = None
    seen: Context | None = None  # what was last observed
    lead: float = 1.0  # how many times as fast as the original its simplified form is


def optimize(
    model: str | Path | onnx.ModelProto,
    output: str | Path | None = None,
    *,
    calib: Any = None,
    eval: Any = None,  # the contract's name
    budget: Budget | None = None,
    recipe: Recipe | str | Path | None = None,
    passes: str | Sequence[PassRequest] | None = None,
    target: str | None = None,
    ops: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    custom_ops: Iterable[str] | None = None,
    external_data: bool | None = None,
    seed: int | None = None,
    recover: float | None = None,
    work: str | Path | None = None,
    prices: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compress ``model`` and write it to ``output``.

    Args:
        model: a file, or a message in memory.
        output: where the result goes; None: ``report.model`` holds it.
        calib: calibration data (see Calibration.open); without it inputs are generated.
        eval: "FILE.py:FUNCTION" or a callable: takes an onnxruntime.InferenceSession, returns a score.
        budget, passes, target, ops, providers, threads, custom_ops, external_data, seed, recover: replace what
            ``recipe`` says; recover: minutes of training.
        work: a folder for the state of the training, so that one that was interrupted goes on.
        recipe: a Recipe or a TOML file.
        shapes, batch: of generated inputs; with calibration data, what models are timed with.
        prices: the file of measured times; fresh: measure again.
        progress: called with what is being done.

    Raises:
        BudgetError: a limit cannot be met; nothing is written, its report describes the best that was found.
        UsageError: the call is wrong. InputError: the model, the data, the hook or the recipe is bad.
    """
    start, started = perf_counter(), process_time()
    wanted = recipe if isinstance(recipe, Recipe) else load_recipe(recipe) if recipe is not None else Recipe()
    settings: dict[str, Any] = {
        "budget": budget,
        "passes": parse_passes(passes) if isinstance(passes, str) else tuple(passes) if passes is not None else None,
        "target": target,
        "ops": ops,
        "providers": tuple(providers) if providers else None,
        "threads": threads,
        "custom_ops": tuple(custom_ops) if custom_ops else None,
        "external_data": external_data,
        "seed": seed,
        "recover": recover,
    }
    wanted = with_training(replace(wanted, **{name: value for name, value in settings.items() if value is not None}))
    if work is not None and not wanted.recover:
        raise UsageError("--work keeps the state of a training: give --recover MINUTES too")
    say = progress or (lambda message: None)
    run = opened(model, output, wanted, calib, eval, shapes or {}, batch, PriceFile.open(prices, fresh=fresh), say)
    run.work = Path(work) if work is not None else None
    stamp = receipt(run)
    best = planned(run, smaller(run), stamp=stamp)
    if run.chosen.unasked and not wanted.recover:
        spent, form = process_time() - started, partial(planned, replace(run, notes=[]), stamp=stamp, most=FORMS)
        choice = Choice(best, spent, form, run.judge, run.prices, str(stamp), say)
        best = choice.best(run.chosen.unasked)
    planning, delivery = best.planning, best.delivery
    say("measuring the result")
    run.prices.save()
    said = delivery.trial.notes if delivery.trial is not None else ()
    report = summarize(planning, delivery, [*run.notes, *best.notes, *said])
    report.input, report.output = (
        str(run.original.path or "model"),
        str(output) if output is not None else None,
    )
    report.recipe, report.receipt = asdict(wanted), stamp if report.changed else {}
    if not report.missed:
        say("writing")
        report.model = write(run.original, delivery, output, external_data=wanted.external_data)
    report.seconds = perf_counter() - start
    if report.missed:
        raise BudgetError(f"{report.missed[0]}; nothing was written", report)
    return report


def opened(
    source: str | Path | onnx.ModelProto,
    output: str | Path | None,
    recipe: Recipe,
    calib: Any,
    hook: Any,
    shapes: Mapping[str, Sequence[int]],
    batch: int | None,
    prices: PriceFile,
    say: Progress,
) -> Run:
    """Load the model and the data, check that they fit, and run the original once."""
    if output is not None:
        check_output(source, Path(output))
    if recipe.budget.max_drop is not None and hook is None:
        raise UsageError("--max-drop needs a score to drop: give a hook with --eval FILE.py:FUNCTION")
    if recipe.recover:
        import onnxc.training  # noqa: F401 - says now, not after the work, that torch is missing

        if calib is None:
            raise UsageError("--recover learns from real inputs: give them with --calib PATH")
    chosen = passes_of(recipe)
    target_named(recipe.target)
    say("loading")
    original = Model.load(source)
    options = Options(recipe.providers, recipe.threads, recipe.custom_ops, known=prices.entries)
    evaluation = Evaluation.open(hook) if hook is not None else None
    session = Session(original.path or original, options)
    if calib is not None:
        samples = Calibration.open(calib, session.inputs, optional=session.optional, limits=index_limits(original))
    else:
        samples = generate(original, session, shapes=shapes, batch=batch, seed=recipe.seed)
    say("running the original")
    judge = Judge(original, samples, recipe.budget, options, evaluation, finishing=chosen.finishing)
    judge.careful = not any(told for _, told in chosen.lossy)
    judge.patient = any(told for _, told in (*chosen.lossy, *chosen.structural))
    judge.batch, judge.shapes, judge.inputs = batch, shapes, (*session.inputs, *session.optional)
    if judge.resized:
        session.run(judge.timed(1)[0])  # now rather than after the work
    judge.prepare(session)
    return Run(original, recipe, chosen, options, samples, judge, prices, say, list(chosen.notes))


def check_output(source: str | Path | onnx.ModelProto, output: Path) -> None:
    """UsageError when OUT is IN, is no file, or is in a folder that is not there or may not be written to."""
    if isinstance(source, str | Path) and output.exists() and Path(source).exists() and output.samefile(source):
        raise UsageError(f"IN and OUT are the same file '{output}'; write the result elsewhere")
    if output.is_dir():
        raise UsageError(f"'{output}' is a folder; name a file to write")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"the folder '{output.absolute().parent}' of OUT does not exist; create it first")
    if not os.access(output.absolute().parent, os.W_OK):
        raise UsageError(f"nothing may be written to the folder '{output.absolute().parent}' of OUT")
    if output.exists() and not output.is_file():
        raise UsageError(f"OUT '{output}' is not a regular file and is not replaced by a model")


def simplified(run: Run) -> Model:
    """The original after every exact pass whose outputs are equal; what a pass says goes into the notes."""
    run.say("simplifying")
    samples = run.samples.take(min(3, len(run.samples)))
    model, exactness = run.original.copy(), None
    unfold(model)
    for each in run.chosen.exact:
        copy = model.copy()
        outcome = each.run_checked(copy, samples, run.options, run.original)
        run.notes += [f"{each.name}: {note}" for note in outcome.notes]
        if not outcome.changed:
            continue
        exactness = exactness or Exactness(run.original, samples, run.options)
        if (reason := exactness.differs(copy)) is not None:
            run.notes.append(f"{each.name}: undone, {reason}")
            continue
        model = copy
    name_nodes(model)
    drop_pages()
    return model


def smaller(run: Run) -> Model:
    """The simplified model after every structural pass that was asked for, in the opset that told ones need; ``run``
    is told how fast it is.
    """
    model = shrunk(run.chosen.structural, simplified(run), partial(observed, run), run.judge, run.notes, run.say)
    few = run.samples.take(min(3, len(run.samples)))
    model = raised(run.chosen.lossy, model, partial(observed, run), few, run.options, run.notes)
    if target_named(run.recipe.target).measured:
        run.lead = head_start(run.original, model, run.judge.timed(1)[0], run.options, run.prices)
    return model


def planned(
    run: Run,
    model: Model,
    lead: float = 1.0,
    before: float = 0.0,
    *,
    stamp: Mapping[str, str],
    most: int | None = None,
) -> Planned:
    """``model``, of which the float form is ``lead`` times as fast as the simplified original and makes the noise
    ``before``, planned; of its trials at most so many go to the gate.
    """
    notes, drops, judged = list(run.notes), list(run.judge.drops), (run.judge.failed, run.judge.late)
    while True:
        planning = proposed(run, model)
        planning.shaped(run.lead * lead, before)
        if most is not None:
            planning.most = FORM_TRIALS
        trials = islice(recovered(run, planning), most)
        told = any(told for _, told in run.chosen.structural)
        here = planning.context.target.measured
        try:
            done = gate(run.judge, trials, run.prices, stamp, run.say, told=told, measured=here)
        except OutdatedError:  # with nothing remembered it is not raised again
            run.judge.remembers = False
            planning.memory.forget()
            run.notes[:], run.judge.drops = list(notes), list(drops)
            run.judge.failed, run.judge.late = judged
            continue
        return Planned(planning, done)


def proposed(run: Run, model: Model) -> Planning:
    """Find the sites, observe them on real data, ask every lossy pass, and price what they say."""
    context = observed(run, model)
    if (note := check_kept(run.original, context)) is not None:
        run.notes.append(note)
    proposals = collect(run.chosen.lossy, context)
    coder = Coder(context, proposals)
    lossy, judge = run.chosen.lossy, run.judge
    return Planning(context, proposals, coder, lossy, judge, run.samples, run.prices, run.notes, run.say, run.lead)


def observed(run: Run, model: Model) -> Context:
    """The sites of ``model``, with ranges and rows of everything that a static candidate could quantize; of generated
    inputs only what images show of convolutions.
    """
    if run.seen is not None and run.seen.model is model:
        return run.seen
    where = target_named(run.recipe.target)
    found = find(model, where)
    seen = Observations()
    if not run.samples.generated:
        run.say("observing activations")
        kinds = ("linear", "convolution", "joint", "recurrent")
        sites = [s for s in found if s.kind in kinds]
        floats = [t for s in sites for t in (*s.inputs, s.result) if t.name and found.is_float(t)]
        seen = watched(run, found, model, sites, floats)
        if seen.samples:
            try:
                for name, rows in frequent_rows(model, found, run.samples, run.options).items():
                    next(weight for weight in found.weights if weight.name == name).frequent = rows
            except (ModelError, DataError) as error:  # rows that are known only inside: all count alike
                run.notes.append(f"which rows of tables are frequent could not be observed: {error}")
    elif any(is_image(value) for value in run.samples.take(1)[0].values()):
        convolutions = [s for s in found if s.kind == "convolution"]
        inputs = [s.input for s in convolutions if found.is_float(s.input)]
        try:
            count, types = len(run.samples), found.types
            seen.imagined = observe(model, run.samples, count, inputs, convolutions, run.options, types=types)
        except (ModelError, DataError) as error:
            run.notes.append(f"what made-up images show could not be observed: {error}")
    run.seen = Context(model, found, seen, run.recipe, where, samples=run.samples, options=run.options)
    return run.seen


def watched(run: Run, found: Sites, model: Model, sites: Sequence[Site], floats: Sequence[Tensor]) -> Observations:
    """What is observed of ``floats``; of those of the main graph where bodies do not hand theirs out, of none where
    the model does not run with them as outputs.
    """
    types = found.types
    main = {t.name for node in model.graph.nodes for t in (*node.inputs, *node.outputs)}
    for tensors in dict.fromkeys((tuple(floats), tuple(t for t in floats if t.name in main))):
        try:
            seen = observe(model, run.samples, len(run.samples), tensors, sites, run.options, run.samples.apart, types)
            if run.judge.resized:  # times, multiplications and crossings are those of what is timed
                seen.shapes |= observe(model, run.judge.timed(1), 1, tensors, [], run.options, types=types).shapes
            return seen
        except (ModelError, DataError) as error:
            run.notes.append(f"activations could not be observed: {error}")
    return Observations()


def recovered(run: Run, planning: Planning) -> Iterator[Trial]:
    """The trials of ``planning``, the best one trained as long as the recipe says."""
    if not run.recipe.recover:
        return planning.trials()
    from onnxc.training.recover import recovering
    from onnxc.training.tuning import Settings

    recipe = run.recipe
    settings = Settings(recipe.recover, seed=recipe.seed, threads=recipe.threads, work=run.work)
    told = any(told for _, told in run.chosen.lossy)
    return recovering(
        run.judge, planning.trials, settings, run.say, again=planning.solved_anew, told=told, notes=run.notes
    )


def receipt(run: Run) -> dict[str, str]:
    """What the file says of how it was made: versions, seed, and hashes of recipe, input and data."""
    recipe = hashlib.sha256(repr(run.recipe).encode()).hexdigest()[:16]
    source = hashlib.sha256()
    if run.original.path is not None:
        with run.original.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                source.update(chunk)
    else:
        source.update(run.original.serialized())
    data = "generated" if run.samples.generated else run.samples.digest[:16]
    fields = {
        "onnxc": __version__,
        "onnxruntime": runtime_version(),
        "recipe": recipe,
        "seed": run.recipe.seed,
        "input": source.hexdigest()[:16],
        "data": data,
    }
    return {"onnxc": json.dumps(fields, separators=(",", ":"))}
