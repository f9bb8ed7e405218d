"""onnxc side by side with the other tools that compress ONNX models. In: models and their data. Out: tables, a plot.

    python benchmarks/run.py                            # models/, every tool
    python benchmarks/run.py --zoo FOLDER               # the models of a zoo (tasks.py says what that is)
    python benchmarks/run.py --only onnxc,NNCF          # some tools (or one mode: "NNCF static"), other rows stay
    python benchmarks/run.py --models lstm,mixer        # some models
    python benchmarks/run.py --untimed                  # make and score; the speed may come later, on an idle machine:
    python benchmarks/run.py --times                    # measure the speed of what was made before
    python benchmarks/run.py --render                   # page, plot and README from results.json
    python benchmarks/run.py MODEL.onnx --calib PATH [--eval FILE.py:FUNCTION]      # yours, printed

Every tool gets the same 64 samples (or as many as there are). Scores are of test items that no tool has
seen; onnxc is given the hook that judges other items. Tools are installed when they are needed (environments.py),
each runs as a process of its own with a time limit, and whatever goes wrong is a row. What is made lies in
benchmarks/.bench, results in results.json are replaced row by row after each model.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from environments import ENVIRONMENTS, HERE, WORK, InstallError
from page import readme_table, results_page, text_table
from plot import draw
from rows import Row, ahead_in_score
from tasks import Task, own_task, stored_tasks, write_samples, zoo_tasks
from tools import TOOLS, Tool

from onnxc import __version__
from onnxc.codes.saturation import machine_saturates
from onnxc.price_file import cpu_name

RESULTS = HERE / "results.json"
README = HERE.parent / "README.md"


@dataclass(frozen=True)
class Bench:
    """How commands are run: how long at most (seconds), what PyTorch is installed from, whether speed is measured."""

    limit: float
    torch: str
    timed: bool

    def run(self, command: Sequence[str], folder: Path) -> tuple[dict[str, Any], str]:
        """What it took (limited.py), and what went wrong ("" if nothing did); what it litters is swept away."""
        took, log, scratch = folder / "took.json", folder / "log.txt", folder / "scratch"
        took.unlink(missing_ok=True)
        scratch.mkdir(exist_ok=True)
        limited = [sys.executable, str(HERE / "limited.py"), str(self.limit), str(took), str(log)]
        subprocess.run([*limited, *command], check=True, cwd=scratch)
        shutil.rmtree(scratch)
        found = json.loads(took.read_text(encoding="utf-8"))
        if found["code"] is None:
            return found, f"no result after {self.limit:.0f} s"
        if found["code"] < 0:
            return found, f"killed by signal {-found['code']}"
        return found, error_of(log.read_text(encoding="utf-8", errors="replace")) if found["code"] else ""

    def ask(self, what: str, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
        """Run measure.py: what it found, and what went wrong."""
        place = folder / what
        place.mkdir(parents=True, exist_ok=True)
        out = place / "found.json"
        samples = str(folder.parent / "samples") if what == "score" else str(folder / "samples")
        command = [sys.executable, str(HERE / "measure.py"), what, str(out), samples, *arguments]
        _, failure = self.run(command, place)
        return ({} if failure else json.loads(out.read_text(encoding="utf-8"))), failure


def error_of(log: str) -> str:
    """The line of a log that says what went wrong, without paths: the one after the last traceback, or the last one."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if starts:
        after = [line for line in lines[starts[-1] + 1 :] if not line.startswith((" ", "\t"))]
        lines = after[:1] or lines
    if not lines:
        return "no word of why"
    text = re.sub(r"^[\w.]+\.(\w+): ", r"\1: ", " ".join(lines[-1].split()))
    return re.sub(r"/(?:[\w.+-]+/)+", "", text)[:160]


def place_of(task: Task) -> Path:
    """Where everything of a task is kept."""
    return WORK / "made" / task.collection / task.name


def made(bench: Bench, task: Task, tool: Tool, before: float | None) -> Row:
    """Compress and score, without the speed."""
    row = Row(task.collection, task.name, tool.name, tool.mode, task.model.stat().st_size, before)
    row.processor = processor()
    folder = place_of(task) / tool.file
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target = folder / "model.onnx"
    source = folder / "input" / task.model.name  # a copy: there are tools that write into what they read
    source.parent.mkdir()
    shutil.copy(task.model, source)
    try:
        command = tool.command(task, source, place_of(task) / "samples", target, bench.torch)
    except InstallError as error:
        row.failure = str(error)
        return row
    took, row.failure = bench.run(command, folder)
    shutil.rmtree(source.parent)
    row.seconds, row.megabytes = took["seconds"], took["megabytes"]
    if not row.failure and not target.exists():
        row.failure = "wrote no model"
    if row.failure:
        target.unlink(missing_ok=True)
        return row
    row.bytes = sum(path.stat().st_size for path in folder.glob("model.onnx*") if path.suffix != ".json")
    score(bench, task, row, target)
    return row


def score(bench: Bench, task: Task, row: Row, target: Path) -> None:
    """Fill in score, interval and noise; a model that does not run is a failure, and its file goes."""
    found, failure = bench.ask("score", target.parent, task.judge, str(target), str(task.model))
    if failure:
        row.failure = f"its model does not run: {failure}"
        target.unlink()
        return
    row.score, row.interval, row.decibels = found["score"], found["interval"], found["decibels"]


def speeds_of(bench: Bench, task: Task, tools: Sequence[Tool]) -> dict[str, dict[str, float]]:
    """How fast what ``tools`` made of the task is, by label: each interleaved with the original."""
    print(f"{task.name}: times", file=sys.stderr, flush=True)
    files = {tool.label: place_of(task) / tool.file / "model.onnx" for tool in tools}
    given = [f"{label}={path}" for label, path in files.items() if path.exists()]
    if not given:
        return {}
    found, failure = bench.ask("speeds", place_of(task), str(task.model), *given)
    if failure:
        raise SystemExit(f"{task.name}: speeds: {failure}")
    times: dict[str, dict[str, float]] = found["speeds"]
    return times


def intervals_to_onnxc(bench: Bench, task: Task, rows: Sequence[Row]) -> dict[str, list[float]]:
    """Of tools whose score is higher at no more bytes, by label: the paired interval of the difference to onnxc's."""
    own = place_of(task) / "onnxc" / "model.onnx"
    found = {}
    for tool in TOOLS:
        theirs = place_of(task) / tool.file / "model.onnx"
        ahead = [row for row in rows if row.label == tool.label and ahead_in_score(row, rows)]
        if ahead and own.exists() and theirs.exists():
            answer, failure = bench.ask("score", theirs.parent, task.judge, str(theirs), str(own))
            if not failure and answer["interval"]:
                found[tool.label] = answer["interval"]
    return found


def measured(bench: Bench, task: Task, tools: Sequence[Tool], before: float | None) -> list[Row]:
    """A row of each of the tools; ``before`` is the original's score, if it is known."""
    samples = place_of(task) / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    write_samples(task, samples)
    if before is None:
        found, failure = bench.ask("score", place_of(task) / "original", task.judge, str(task.model), str(task.model))
        if failure:
            raise SystemExit(f"{task.name}: the original does not run: {failure}")
        before = found["score"]
    rows = []
    for tool in tools:
        print(f"{task.name}: {tool.label}", file=sys.stderr, flush=True)
        rows.append(made(bench, task, tool, before))
    if bench.timed:
        fill(rows, speeds_of(bench, task, tools))
    return rows


def fill(rows: Sequence[Row], found: dict[str, dict[str, float]]) -> None:
    """Put figures, by label, into rows."""
    for row in rows:
        for key, value in found.get(row.label, {}).items():
            setattr(row, key, value)


def of_task(rows: Sequence[Row], task: Task) -> list[Row]:
    """The rows of one task."""
    return [row for row in rows if (row.collection, row.model) == (task.collection, task.name)]


def merged(rows: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """All rows, new ones in place of old ones; models/ first and in its order, tools in that of ``TOOLS``."""
    found = {(row.collection, row.model, row.label): row for row in [*rows, *new]}
    first = [("models", task.name) for task in stored_tasks(None)]
    models = dict.fromkeys([*first, *(key[:2] for key in found)])
    return [found[*model, tool.label] for model in models for tool in TOOLS if (*model, tool.label) in found]


def stored() -> tuple[list[Row], dict[str, str]]:
    """What was measured before, and with which versions."""
    if not RESULTS.exists():
        return [], {}
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    return [Row(**row) for row in document["rows"]], document["versions"]


def write(rows: Sequence[Row], versions: dict[str, str]) -> None:
    """Results as JSON, page and plot, and the README's table."""
    document = {"versions": versions, "rows": [asdict(row) for row in rows]}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (HERE / "results.md").write_text(results_page(rows, versions), encoding="utf-8")
    (HERE / "results.svg").write_text(draw(rows), encoding="utf-8")
    begin, end = "<!-- results -->\n", "<!-- end of results -->"
    head, _, rest = README.read_text(encoding="utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    README.write_text(f"{head}{begin}{readme_table(rows)}{end}{tail}", encoding="utf-8")


def processor() -> str:
    """This machine's, and what decides how fast int8 is on it."""
    return f"{cpu_name()} with{'out' if machine_saturates() else ''} int8 dot products"


def versions_of(tools: Sequence[Tool]) -> dict[str, str]:
    """What was compared."""
    found = {"python": platform.python_version(), "onnxc": __version__}
    found["onnxruntime"] = onnxruntime.__version__
    for tool in tools:
        if tool.environment:
            found[tool.name] = ENVIRONMENTS[tool.environment].requirements[0].partition("==")[2]
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="onnxc side by side with other tools that compress ONNX models.")
    parser.add_argument("model", nargs="?", type=Path, help="yours; default: all of models/")
    parser.add_argument("--calib", help="calibration data for MODEL")
    parser.add_argument("--eval", metavar="FILE.py:FUNCTION", help="score for MODEL")
    parser.add_argument("--zoo", type=Path, metavar="FOLDER", help="its models instead of models/")
    parser.add_argument("--models", metavar="A,B", help="some of the models")
    parser.add_argument("--only", metavar="A,B", help="some of the tools")
    parser.add_argument("--times", action="store_true", help="measure the speed of what was made before, nothing else")
    parser.add_argument("--render", action="store_true", help="write page, plot and README from results.json")
    parser.add_argument("--untimed", action="store_true", help="make and score, without the speed")
    parser.add_argument("--limit", type=float, default=900, metavar="SECONDS", help="for one compression, default 900")
    parser.add_argument("--torch", default="torch==2.13.0", help="what to install as PyTorch, e.g. a CPU wheel")
    given = parser.parse_args()
    bench = Bench(given.limit, given.torch, not given.untimed)
    only = given.only.split(",") if given.only else None
    tools = [tool for tool in TOOLS if only is None or tool.name in only or tool.label in only]
    if not tools:
        parser.error(f"--only names none of: {', '.join(tool.label for tool in TOOLS)}")
    if given.render:
        rows, versions = stored()
        write(merged(rows, []), versions)
        return
    if given.model is not None:
        if not given.calib:
            parser.error("MODEL needs --calib")
        print(text_table(measured(bench, own_task(given.model, given.calib, given.eval), tools, None)))
        return
    names = given.models.split(",") if given.models else None
    tasks = zoo_tasks(given.zoo, names) if given.zoo else stored_tasks(names)
    for task in tasks:
        kept = of_task(stored()[0], task)
        times = speeds_of(bench, task, tools) if given.times else {}
        new = [] if given.times else measured(bench, task, tools, kept[0].score_original if kept else None)
        versus = intervals_to_onnxc(bench, task, of_task(merged(kept, new), task))
        rows, versions = stored()  # again: another process may have measured something else
        rows = merged(rows, new)
        fill(of_task(rows, task), times)
        for row in of_task(rows, task):
            row.versus = versus.get(row.label)
            row.processor = processor() if row.label in times else row.processor
        write(rows, versions | versions_of(tools))
        labels = {tool.label for tool in tools}
        print(text_table(row for row in of_task(rows, task) if row.label in labels), flush=True)


if __name__ == "__main__":
    main()
