"""The command line. In: arguments. Out: pages on stdout, progress on stderr, an exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onnxc.errors import BudgetError, OnnxcError, UsageError
from onnxc.streams import console, open_streams

if TYPE_CHECKING:
    from onnxc.recipe import Recipe
    from onnxc.session import Options

EXIT_CODES = (
    "exit codes: 0 done; 1 a limit was not met, OUT was not written; 2 usage; 3 bad input; 130 Ctrl-C; "
    "70 a bug in onnxc"
)
BAD_INPUT = 3
INTERRUPTED = 130
BUG = 70
NO_MEMORY = 3
FLOORS = ("max_drop", "min_sqnr", "min_agreement")
GOES_ON = "interrupted; the same command goes on from here"


class Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and leave with exit code 2."""
        self.exit(2, f"onnxc: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    debug = False
    open_streams()
    pressed = _note_interrupts()
    try:
        parsed = parser().parse_args(arguments)
        debug = getattr(parsed, "debug", False)
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except SystemExit as leaving:  # argparse
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return complain("interrupted; nothing was written", INTERRUPTED, debug)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OnnxcError as error:
        return complain(str(error), error.exit_code, debug)
    except MemoryError:
        return complain("out of memory: the model or its inputs need more than there is", NO_MEMORY, debug)
    except OSError as error:  # what we know how to name is an OnnxcError; this is a temporary folder or the like
        where = f" ({error.filename})" if error.filename else ""
        return complain(f"the system refuses: {error.strerror or error}{where}; nothing was written", BAD_INPUT, debug)
    except Exception as error:  # noqa: BLE001  # whatever is not an error of ours is our bug
        if pressed:  # an extension that is being imported turns Ctrl-C into an error of its own
            return complain("interrupted; nothing was written", INTERRUPTED, debug)
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        hint = "" if debug else " with what --debug prints"
        return complain(f"this is a bug in onnxc, please report it{hint}: {text}", BUG, debug)


def _note_interrupts() -> list[int]:
    """A list that is not empty once Ctrl-C was pressed; it raises KeyboardInterrupt as always."""
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, note)
    return pressed


def complain(message: str, code: int, debug: bool) -> int:
    """One line on stderr (with --debug the traceback before it); returns ``code``."""
    if debug:
        traceback.print_exc()
    print(f"onnxc: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def parser() -> Parser:
    """Every verb and flag; one that is not here does not work yet."""
    from onnxc import __version__

    top = Parser(prog="onnxc", description="Makes ONNX models smaller and faster, and proves it.", epilog=EXIT_CODES)
    top.add_argument("--version", action="version", version=f"onnxc {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)
    _add_optimize(verbs)
    _add_frontier(verbs)
    _add_distill(verbs)
    _add_compare(verbs)
    _add_inspect(verbs)
    _add_passes(verbs)
    return top


def _verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str) -> Parser:
    made: Parser = verbs.add_parser(name, help=summary, description=summary, epilog=EXIT_CODES)
    made.set_defaults(run=run)
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def _value(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type whose complaint is our own sentence."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _limit(name: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        from onnxc.recipe import LIMITS

        return LIMITS[name](text)

    return _value(read)


def _add_optimize(verbs: Any) -> None:
    made = _verb(verbs, "optimize", run_optimize, "Write a smaller and faster model.")
    made.add_argument("input", metavar="IN", help="an .onnx file")
    made.add_argument("output", metavar="OUT", help="where the result goes; never IN itself")
    _add_limits(made)
    _add_data(made, evals=True)
    choice = _add_choice(made)
    choice.add_argument(
        "--recover",
        type=_value(minutes),
        metavar="MINUTES",
        help="train the result back to IN; needs --calib and torch",
    )
    choice.add_argument("--work", metavar="DIR", help="keep the state of --recover here: if interrupted it goes on")
    _add_where(made)
    made.add_argument("--target", help="what the model is to run on (cpu)")
    output = made.add_argument_group("output")
    output.add_argument("--report", metavar="FILE.json|.html", help="write the whole report, as data or as a page")
    output.add_argument("--external-data", action="store_true", help="weights in a file beside OUT")
    output.add_argument("--dry-run", action="store_true", help="do everything but write OUT")
    _add_output(output)


def _add_frontier(verbs: Any) -> None:
    made = _verb(verbs, "frontier", run_frontier, "Write several models, from almost lossless to very small.")
    made.add_argument("input", metavar="IN", help="an .onnx file")
    made.add_argument("output", metavar="DIR", help="where models, table and plots go; a run that stopped goes on")
    _add_limits(made)
    _add_data(made, evals=True)
    _add_choice(made)
    _add_where(made)
    made.add_argument("--target", help="what the models are to run on (cpu)")
    output = made.add_argument_group("output")
    output.add_argument("--external-data", action="store_true", help="weights in files beside the models")
    output.add_argument(
        "--plot",
        action=argparse.BooleanOptionalAction,
        help="frontier.png too, or not; by default where matplotlib is installed",
    )
    _add_output(output)


def _add_limits(made: Parser) -> None:
    limits = made.add_argument_group("limits", "quality is a floor; the result is never slower or larger than IN")
    limits.add_argument("--size", type=_limit("size"), metavar="25%", help="largest file, as a share of IN")
    limits.add_argument("--speed", type=_limit("speed"), metavar="2x", help="smallest speed-up")
    _add_floors(limits)
    limits.add_argument(
        "--max-load-time",
        type=_limit("max_load_time"),
        metavar="2x",
        help="longest time to create a session, beside IN's (2x)",
    )


def _add_floors(limits: Any) -> None:
    limits.add_argument(
        "--max-drop",
        type=_limit("max_drop"),
        metavar="1%",
        help="largest relative loss of the score; needs --eval",
    )
    limits.add_argument(
        "--min-sqnr",
        type=_limit("min_sqnr"),
        metavar="20",
        help="smallest signal to noise ratio of an output, in dB",
    )
    limits.add_argument(
        "--min-agreement",
        type=_limit("min_agreement"),
        metavar="98%",
        help="smallest share of unchanged top-1 answers",
    )


def _add_choice(made: Parser) -> Any:
    choice = made.add_argument_group("choice")
    choice.add_argument(
        "--recipe",
        metavar="NAME|FILE.toml",
        help="limits, settings and passes from a file, or one of download, server, edge, browser; flags win",
    )
    choice.add_argument("--passes", metavar="a,b:field=value", help="only these may propose; with fields: do as told")
    choice.add_argument("--keep-float", metavar="NAME,...", help="sites or weights that stay in float")
    choice.add_argument("--ops", choices=["standard", "ort"], help="ort allows operators of com.microsoft")
    choice.add_argument("--seed", type=int, help="of everything random (0)")
    choice.add_argument("--prices", metavar="FILE", help="where measured times are kept")
    choice.add_argument("--fresh", action="store_true", help="measure times again")
    return choice


def _add_distill(verbs: Any) -> None:
    made = _verb(verbs, "distill", run_distill, "Train a student to answer as a teacher does.")
    made.add_argument("models", metavar="TEACHER [STUDENT] OUT", nargs="+", help="without STUDENT give --student")
    made.add_argument("--data", required=True, metavar="PATH", help="inputs, as for --calib of optimize")
    made.add_argument("--student", metavar="width=0.5|compact", help="make the student out of the teacher")
    learning = made.add_argument_group("learning")
    learning.add_argument("--minutes", type=_value(minutes), default=10.0, help="longest training (10)")
    learning.add_argument("--steps", type=_value(count), default=2000, help="of the optimizer, if time allows (2000)")
    learning.add_argument("--batch", type=_value(count), default=32, help="samples in a step (32)")
    learning.add_argument(
        "--rate", type=_value(positive), default=2e-3, help="step, relative to a weight's size (0.002)"
    )
    learning.add_argument(
        "--loss", choices=["auto", "kl", "mse", "cosine"], default="auto", help="what is made smaller"
    )
    learning.add_argument("--temperature", type=_value(positive), default=1.0, help="of class scores (1)")
    learning.add_argument("--labels", metavar="NAME", help="the array of the data that holds class numbers")
    learning.add_argument(
        "--label-weight", type=_limit("size"), default=0.5, metavar="50%", help="of the labels (50%%)"
    )
    learning.add_argument("--outputs", metavar="STUDENT=TEACHER,...", help="outputs that belong together")
    learning.add_argument("--blocks", action="store_true", help="block by block first; for a compressed teacher")
    learning.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    learning.add_argument("--work", metavar="DIR", help="keep the state here: an interrupted training goes on")
    _add_where(made)
    _add_output(made.add_argument_group("output"))


def _add_compare(verbs: Any) -> None:
    made = _verb(verbs, "compare", run_compare, "Measure one model against another.")
    made.add_argument("reference", metavar="REF", help="the original")
    made.add_argument("new", metavar="NEW", help="the model to judge")
    _add_data(made)
    made.add_argument("--seed", type=int, default=0, help="of generated inputs (0)")
    made.add_argument(
        "--sites", action="store_true", help="local damage of every site, worst first, and its price in float"
    )
    _add_bisect(made)
    _add_where(made)
    _add_output(made.add_argument_group("output"))


def _add_bisect(made: Parser) -> None:
    group = made.add_argument_group(
        "bisect", "the smallest set of sites to leave in float, so that NEW holds the floors"
    )
    group.add_argument("--bisect", action="store_true", help="find it")
    _add_floors(group)
    group.add_argument("--save-recipe", metavar="FILE.toml", help="keep-float = [...], for optimize --recipe")


def _add_inspect(verbs: Any) -> None:
    made = _verb(verbs, "inspect", run_inspect, "Show inputs, outputs, sites, and what could be compressed.")
    made.add_argument("model", metavar="MODEL", help="an .onnx file")
    made.add_argument("--custom-ops", metavar="LIB", action="append", help="library of custom operators")
    made.add_argument("--json", action="store_true", help="one JSON document on stdout")


def _add_passes(verbs: Any) -> None:
    _verb(verbs, "passes", run_passes, "List the passes and their fields.")


def _add_data(made: Parser, *, evals: bool = False) -> None:
    data = made.add_argument_group("data")
    data.add_argument("--calib", metavar="PATH", help="real inputs: folder of .npz, .npz, .npy, or FILE.py:FUNCTION")
    data.add_argument("--eval", metavar="FILE.py:FUNCTION", help="takes an InferenceSession, returns a score")
    if evals:
        data.add_argument("--evals", type=_limit("evals"), metavar="N", help="most calls of --eval, IN's included")
    data.add_argument(
        "--shape",
        type=_value(shape),
        metavar="NAME=1x128",
        action="append",
        help="of a generated input, or to time with",
    )
    data.add_argument(
        "--batch", type=_value(count), metavar="N", help="batch size of generated inputs, or to time with"
    )


def _add_where(made: Parser) -> None:
    where = made.add_argument_group("where")
    where.add_argument("--providers", metavar="A,B", help="execution providers of ONNX Runtime")
    where.add_argument("--threads", type=_value(count), help="threads that measured sessions use (1)")
    where.add_argument("--custom-ops", metavar="LIB", action="append", help="library of custom operators")


def _add_output(group: Any) -> None:
    group.add_argument("--json", action="store_true", help="one JSON document on stdout and nothing else")
    group.add_argument("--quiet", action="store_true", help="no progress, and no page")


def shape(text: str) -> tuple[str, list[int]]:
    """``NAME=1x128`` as (name, sizes)."""
    name, equals, sizes = text.rpartition("=")
    words = sizes.replace(",", "x").split("x") if sizes else []
    if not equals or not name or not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"'{text}' is not a shape: write NAME=1x128")
    return name, [int(word) for word in words]


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise UsageError(f"'{text}' is not a whole number above 0")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"'{text}' is not a number above 0")
    return value


def minutes(text: str) -> float:
    """``10``, ``10m`` or ``10min`` as minutes."""
    return positive(text.removesuffix("min").removesuffix("m"))


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


def run_optimize(parsed: argparse.Namespace) -> int:
    """``onnxc optimize``."""
    from onnxc.compiler import optimize
    from onnxc.progress import Progress

    wanted = recipe(parsed)
    if parsed.report:
        check_writable(parsed.report)
    try:
        with Progress(quiet=parsed.quiet) as progress:
            report = optimize(
                parsed.input,
                None if parsed.dry_run else parsed.output,
                calib=parsed.calib,
                eval=parsed.eval,
                recipe=wanted,
                shapes=dict(parsed.shape or ()),
                batch=parsed.batch,
                prices=parsed.prices,
                fresh=parsed.fresh,
                work=parsed.work,
                progress=progress,
            )
    except KeyboardInterrupt:
        if not (parsed.work and wanted.recover):
            raise
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

    wanted = recipe(parsed)
    try:
        with Progress(quiet=parsed.quiet) as progress:
            made = frontier(
                parsed.input,
                parsed.output,
                calib=parsed.calib,
                eval=parsed.eval,
                recipe=wanted,
                shapes=dict(parsed.shape or ()),
                batch=parsed.batch,
                prices=parsed.prices,
                fresh=parsed.fresh,
                plot=parsed.plot,
                progress=progress,
            )
    except KeyboardInterrupt:
        return complain(GOES_ON, INTERRUPTED, parsed.debug)
    if parsed.json:
        import json

        print(json.dumps(made.to_dict(), indent=2))
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
                outputs=parsed.outputs,
                blockwise=parsed.blocks,
                seed=parsed.seed,
                work=parsed.work,
                options=_options(parsed),
                progress=progress,
            )
    except KeyboardInterrupt:
        if not parsed.work:
            raise
        return complain(GOES_ON, INTERRUPTED, parsed.debug)
    if parsed.json:
        import json

        from onnxc.report import plain

        print(json.dumps(plain(made), indent=2))
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
        import json

        from onnxc.report import plain

        print(json.dumps(plain(result), indent=2))
    elif not parsed.quiet:
        from onnxc.reports.comparison_page import print_comparison

        print_comparison(result, console())
    return 0


def run_inspect(parsed: argparse.Namespace) -> int:
    """``onnxc inspect``."""
    import json

    from onnxc.inspection import inspect
    from onnxc.recipe import Recipe
    from onnxc.reports.listings import print_inspection

    found = inspect(parsed.model, recipe=Recipe(custom_ops=tuple(parsed.custom_ops or ())))
    if parsed.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print_inspection(found, console())
    return 0


def run_passes(parsed: argparse.Namespace) -> int:
    """``onnxc passes``."""
    from onnxc.registry import load_passes
    from onnxc.reports.listings import print_passes

    print_passes(load_passes(), console())
    return 0
