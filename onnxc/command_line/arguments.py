"""Every verb and flag; one that is not here does not work yet. In: words. Out: a parser that knows what to run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from onnxc.command_line.ending import EXIT_CODES
from onnxc.command_line.values import count, limit, minutes, own_words, positive, shape, student
from onnxc.command_line.verbs import (
    run_compare,
    run_distill,
    run_frontier,
    run_inspect,
    run_optimize,
    run_passes,
)
from onnxc.targets import TARGETS


class Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and leave with exit code 2."""
        self.exit(2, f"onnxc: error: {message}; see {self.prog} --help\n")


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


def _add_optimize(verbs: Any) -> None:
    made = _verb(verbs, "optimize", run_optimize, "Write a smaller and faster model.")
    choice = _add_compression(made, "OUT", "where the result goes; never IN itself")
    choice.add_argument(
        "--recover",
        type=own_words(minutes),
        metavar="MINUTES",
        help="train the result back to IN; needs --calib and torch",
    )
    choice.add_argument("--work", metavar="DIR", help="keep the state of --recover here: if interrupted it goes on")
    _add_where(made)
    _add_target(made)
    output = made.add_argument_group("output")
    output.add_argument("--report", metavar="FILE.json|.html", help="write the whole report, as data or as a page")
    output.add_argument("--external-data", action="store_true", help="weights in a file beside OUT")
    output.add_argument("--dry-run", action="store_true", help="do everything but write OUT")
    _add_output(output)


def _add_frontier(verbs: Any) -> None:
    made = _verb(verbs, "frontier", run_frontier, "Write several models, from almost lossless to very small.")
    _add_compression(made, "DIR", "where models, table and plots go; a run that stopped goes on")
    _add_where(made)
    _add_target(made)
    output = made.add_argument_group("output")
    output.add_argument("--external-data", action="store_true", help="weights in files beside the models")
    output.add_argument(
        "--plot",
        action=argparse.BooleanOptionalAction,
        help="frontier.png too, or not; by default where matplotlib is installed",
    )
    _add_output(output)


def _add_compression(made: Parser, output: str, help: str) -> Any:
    """Files, limits, data and choices of a verb that compresses; the group of choices."""
    made.add_argument("input", metavar="IN", help="an .onnx file")
    made.add_argument("output", metavar=output, help=help)
    _add_limits(made)
    _add_data(made, evals=True)
    return _add_choice(made)


def _add_limits(made: Parser) -> None:
    limits = made.add_argument_group("limits", "quality is a floor; the result is never slower or larger than IN")
    limits.add_argument("--size", type=limit("size"), metavar="25%", help="largest file, as a share of IN")
    limits.add_argument("--speed", type=limit("speed"), metavar="2x", help="smallest speed-up")
    _add_floors(limits)
    limits.add_argument(
        "--max-load-time",
        type=limit("max_load_time"),
        metavar="2x",
        help="longest time to create a session, beside IN's (2x)",
    )


def _add_floors(limits: Any) -> None:
    limits.add_argument(
        "--max-drop",
        type=limit("max_drop"),
        metavar="1%",
        help="largest relative loss of the score; needs --eval",
    )
    limits.add_argument(
        "--min-sqnr",
        type=limit("min_sqnr"),
        metavar="20",
        help="smallest signal to noise ratio of an output, in dB",
    )
    limits.add_argument(
        "--min-agreement",
        type=limit("min_agreement"),
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
    made.add_argument(
        "--student",
        type=own_words(student),
        metavar="width=0.5|compact",
        help="make the student out of the teacher",
    )
    learning = made.add_argument_group("learning")
    learning.add_argument("--minutes", type=own_words(minutes), default=10.0, help="longest training (10)")
    learning.add_argument(
        "--steps", type=own_words(count), default=6000, help="of the optimizer, if time allows (6000)"
    )
    learning.add_argument("--batch", type=own_words(count), default=16, help="samples in a step (16)")
    learning.add_argument(
        "--rate", type=own_words(positive), default=2e-3, help="step, relative to a weight's size (0.002)"
    )
    learning.add_argument(
        "--loss", choices=["auto", "kl", "mse", "cosine"], default="auto", help="what is made smaller"
    )
    learning.add_argument("--temperature", type=own_words(positive), default=1.0, help="of class scores (1)")
    learning.add_argument("--labels", metavar="NAME", help="the array of the data that holds class numbers")
    learning.add_argument("--label-weight", type=limit("size"), default=0.5, metavar="50%", help="of the labels (50%%)")
    learning.add_argument(
        "--mix",
        type=limit("max_drop"),
        default=0.5,
        metavar="50%",
        help="of the samples are mixed of two, where inputs are quantities (50%%)",
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
        data.add_argument("--evals", type=limit("evals"), metavar="N", help="most calls of --eval, IN's included")
    data.add_argument(
        "--shape",
        type=own_words(shape),
        metavar="NAME=1x128",
        action="append",
        help="of a generated input, or to time with",
    )
    data.add_argument(
        "--batch", type=own_words(count), metavar="N", help="batch size of generated inputs, or to time with"
    )


def _add_where(made: Parser) -> None:
    where = made.add_argument_group("where")
    where.add_argument("--providers", metavar="A,B", help="execution providers of ONNX Runtime")
    where.add_argument("--threads", type=own_words(count), help="threads that measured sessions use (1)")
    where.add_argument("--custom-ops", metavar="LIB", action="append", help="library of custom operators")


def _add_target(made: Parser) -> None:
    made.add_argument(
        "--target",
        metavar="NAME",
        help=f"what it is to run on, one of {', '.join(TARGETS)} (cpu); docs/how-it-decides.md says more",
    )


def _add_output(group: Any) -> None:
    group.add_argument("--json", action="store_true", help="one JSON document on stdout and nothing else")
    group.add_argument("--quiet", action="store_true", help="no progress, and no page")
