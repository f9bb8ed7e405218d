"""What each verb does: arguments to calls, results to pages. In: parsed arguments. Out: an exit code."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxc.command_line.ending import INTERRUPTED, complain
from onnxc.errors import BudgetError, Interrupted, UsageError
from onnxc.streams import console

if TYPE_CHECKING:
    from onnxc.recipe import Recipe
    from onnxc.session import Options

FLOORS = ("max_drop", "min_sqnr", "min_agreement")
GOES_ON = "interrupted; the same command goes on from here"


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(filter(None, (word.strip() for word in text.split(","))))


def _options(parsed: argparse.Namespace) -> Options:
    from onnxc.session import Options

    providers = _names(getattr(parsed, "providers", None)) or Options.providers
    threads = getattr(parsed, "threads", None) or 1
    return Options(providers, threads, tuple(parsed.custom_ops or ()))


def recipe(parsed: argparse.Namespace) -> Recipe:
    """The recipe file with the flags on top."""
    from dataclasses import replace

    from onnxc.recipe import LIMITS, Recipe, load_recipe, parse_passes

    made = load_recipe(parsed.recipe) if parsed.recipe else Recipe()
    limits = {name: getattr(parsed, name) for name in LIMITS if getattr(parsed, name) is not None}
    settings: dict[str, Any] = {
        "target": parsed.target,
        "ops": parsed.ops,
        "providers": _names(parsed.providers),
        "threads": parsed.threads,
        "seed": parsed.seed,
        "recover": getattr(parsed, "recover", None),
        "external_data": parsed.external_data or None,
        "custom_ops": tuple(parsed.custom_ops) if parsed.custom_ops else None,
        "keep_float": _names(parsed.keep_float),
        "passes": parse_passes(parsed.passes) if parsed.passes is not None else None,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return replace(made, budget=replace(made.budget, **limits), **given)


def compression(parsed: argparse.Namespace) -> dict[str, Any]:
    """What the verbs that compress hand on: data, recipe, shapes and prices."""
    return {
        "calib": parsed.calib,
        "eval": parsed.eval,
        "recipe": recipe(parsed),
        "shapes": dict(parsed.shape or ()),
        "batch": parsed.batch,
        "prices": parsed.prices,
        "fresh": parsed.fresh,
    }


def run_optimize(parsed: argparse.Namespace) -> int:
    """``onnxc optimize``."""
    from onnxc.compiler import optimize
    from onnxc.progress import Progress

    wanted = compression(parsed)
    output = None if parsed.dry_run else parsed.output
    if parsed.report:
        check_writable(parsed.report)
    try:
        with Progress(quiet=parsed.quiet) as progress:
            report = optimize(parsed.input, output, **wanted, work=parsed.work, progress=progress)
    except Interrupted:
        return complain(GOES_ON, INTERRUPTED, parsed.debug)
    except BudgetError as error:
        if error.report is not None:
            show_report(error.report, parsed)
        raise
    show_report(report, parsed)
    return 0


def run_frontier(parsed: argparse.Namespace) -> int:
    """``onnxc frontier``."""
    from onnxc.frontier import frontier
    from onnxc.progress import Progress

    wanted = compression(parsed)
    try:
        with Progress(quiet=parsed.quiet) as progress:
            made = frontier(parsed.input, parsed.output, **wanted, plot=parsed.plot, progress=progress)
    except KeyboardInterrupt:
        return complain(GOES_ON, INTERRUPTED, parsed.debug)
    if parsed.json:
        print_document(made.to_dict())
    elif not parsed.quiet:
        from onnxc.reports.frontier_page import print_frontier

        print_frontier(made, console())
    return 0


def show_report(report: Any, parsed: argparse.Namespace) -> None:
    """The page or the JSON document, and the file of --report."""
    if parsed.report:
        write_text(parsed.report, report.to_html() if is_page(parsed.report) else report.to_json() + "\n")
    if parsed.json:
        print(report.to_json())
    elif not parsed.quiet:
        report.render(console())
        if parsed.dry_run:
            print(f"dry run: {parsed.output} was not written")


def print_document(found: Any) -> None:
    """One JSON document on stdout, of a result or of what it gives as plain data."""
    import json

    from onnxc.report import plain

    print(json.dumps(plain(found), indent=2))


def is_page(path: str) -> bool:
    """Whether a report goes to ``path`` as HTML."""
    return Path(path).suffix.lower() in (".html", ".htm")


def check_writable(path: str) -> None:
    """UsageError now rather than after the work: ``path`` is a folder, or its folder is not there."""
    folder = Path(path).parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"'{path}' cannot be written: give a file in a folder that exists and is writable")


def write_text(path: str, text: str) -> None:
    """Write ``text`` to ``path``; UsageError if that fails."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"'{path}' cannot be written: {error.strerror or error}") from error


def run_distill(parsed: argparse.Namespace) -> int:
    """``onnxc distill``."""
    from onnxc.progress import Progress
    from onnxc.training.distill import distill

    wanted = 2 if parsed.student else 3
    if len(parsed.models) != wanted:
        words = "TEACHER OUT, since --student makes the student" if parsed.student else "TEACHER STUDENT OUT"
        raise UsageError(f"{len(parsed.models)} models are given: write {words}")
    try:
        with Progress(quiet=parsed.quiet) as progress:
            made = distill(
                parsed.models[0],
                parsed.student or parsed.models[1],
                parsed.models[-1],
                data=parsed.data,
                minutes=parsed.minutes,
                steps=parsed.steps,
                batch=parsed.batch,
                rate=parsed.rate,
                measure=parsed.loss,
                temperature=parsed.temperature,
                labels=parsed.labels,
                label_weight=parsed.label_weight,
                mix=parsed.mix,
                outputs=parsed.outputs,
                blockwise=parsed.blocks,
                seed=parsed.seed,
                work=parsed.work,
                options=_options(parsed),
                progress=progress,
            )
    except Interrupted:
        return complain(GOES_ON, INTERRUPTED, parsed.debug)
    if parsed.json:
        print_document(made)
    elif not parsed.quiet:
        made.render(console())
    return 0


def run_compare(parsed: argparse.Namespace) -> int:
    """``onnxc compare``."""
    from onnxc.progress import Progress
    from onnxc.recipe import Budget, Recipe, recipe_text
    from onnxc.validate import compare

    limits = {name: value for name in FLOORS if (value := getattr(parsed, name)) is not None}
    if (limits or parsed.save_recipe) and not parsed.bisect:
        raise UsageError("floors and --save-recipe belong to --bisect, which finds what to leave in float: give it too")
    if "max_drop" in limits and parsed.eval is None:
        raise UsageError("--max-drop needs a score to drop: give a hook with --eval FILE.py:FUNCTION")
    if parsed.save_recipe:
        check_writable(parsed.save_recipe)
    with Progress(quiet=parsed.quiet) as progress:
        progress(f"comparing {parsed.new} with {parsed.reference}")
        result = compare(
            parsed.reference,
            parsed.new,
            parsed.calib,
            eval=parsed.eval,
            options=_options(parsed),
            shapes=dict(parsed.shape or ()),
            batch=parsed.batch,
            seed=parsed.seed,
            sites=parsed.sites,
            bisect=parsed.bisect,
            budget=Budget(**limits),
            progress=progress,
        )
    if parsed.save_recipe and result.smallest is not None:
        write_text(parsed.save_recipe, recipe_text(Recipe(keep_float=tuple(result.smallest.sites))))
    if parsed.json:
        print_document(result)
    elif not parsed.quiet:
        from onnxc.reports.comparison_page import print_comparison

        print_comparison(result, console())
    return 0


def run_inspect(parsed: argparse.Namespace) -> int:
    """``onnxc inspect``."""
    from onnxc.inspection import inspect
    from onnxc.recipe import Recipe
    from onnxc.reports.listings import print_inspection

    found = inspect(parsed.model, recipe=Recipe(custom_ops=tuple(parsed.custom_ops or ())))
    if parsed.json:
        print_document(found.to_dict())
    else:
        print_inspection(found, console())
    return 0


def run_passes(parsed: argparse.Namespace) -> int:
    """``onnxc passes``."""
    from onnxc.registry import load_passes
    from onnxc.reports.listings import print_passes

    print_passes(load_passes(), console())
    return 0
