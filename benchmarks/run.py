"""onnxc side by side with ONNX Runtime's own quantizers. In: models and their data. Out: a table and a plot.

    python benchmarks/run.py                  # models/: results.*, the README's table
    python benchmarks/run.py --only lstm      # one of them, printed
    python benchmarks/run.py --render         # table and plot from results.json, nothing is measured
    python benchmarks/run.py MODEL.onnx --calib PATH [--eval FILE.py:FUNCTION]      # yours, printed

Every tool gets the same 128 calibration samples (fewer where there are fewer). The scores of models/ are
accuracies on the test items, which no tool has seen; onnxc is given the hook that judges the select items.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from measure import open_session, speeds
from plot import draw
from tables import Row, readme_table, results_page, text_table
from tools import TOOLS, samples_of

from onnxc import __version__
from onnxc.cost import cpu_name

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results.json"
PATIENCE = 900  # seconds for one compression


@dataclass(frozen=True)
class Task:
    """A model, its data, the hook that tools may use, and the score that judges."""

    name: str
    model: Path
    calib: str
    hook: str | None
    score: Callable[[Path], float] | None


def stored_tasks() -> list[Task]:
    """The models of models/."""
    evaluate = module(ROOT / "models" / "evaluate.py")

    def judged_by(name: str) -> Callable[[Path], float]:
        return lambda path: float(evaluate.score(name, path)["value"])

    return [
        Task(
            name,
            ROOT / "models" / f"{name}.onnx",
            str(ROOT / "models" / "data" / f"{name}_calib.npz"),
            f"{ROOT / 'models' / 'evaluate.py'}:quality_{name}",
            judged_by(name),
        )
        for name in evaluate.TASKS
    ]


def module(path: Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def own_task(model: Path, calib: str, hook: str | None) -> Task:
    """A model of the user's; its hook is both search and judge."""
    score = None
    if hook is not None:
        file, _, function = hook.rpartition(":")
        judge = getattr(module(Path(file)), function)

        def score(path: Path) -> float:
            return float(judge(open_session(path)))

    return Task(model.stem, model, calib, hook, score)


def compress(task: Task, tool: str, target: Path) -> tuple[float, str]:
    """Run one tool in a process of its own: seconds, and what went wrong ("" if nothing did)."""
    command = [
        sys.executable,
        str(HERE / "tools.py"),
        tool,
        str(task.model),
        str(target),
        "--calib",
        task.calib,
    ]
    command += ["--eval", task.hook] if task.hook else []
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return PATIENCE, f"no result after {PATIENCE} s"
    seconds = time.perf_counter() - start
    if done.returncode or not target.exists():
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return seconds, lines[-1][:160]
    return seconds, ""


def measured(task: Task) -> list[Row]:
    """A row per tool."""
    size = task.model.stat().st_size
    before = task.score(task.model) if task.score else None
    rows, files = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for number, tool in enumerate(TOOLS):
            print(f"{task.name}: {tool}", file=sys.stderr, flush=True)
            target = Path(folder, f"{number}.onnx")
            seconds, failure = compress(task, tool, target)
            row = Row(task.name, tool, size, before, seconds=seconds, failure=failure)
            rows.append(row)
            if failure:
                continue
            try:
                open_session(target)
                row.bytes = target.stat().st_size
                row.score = task.score(target) if task.score else None
            except Exception as error:  # noqa: BLE001  # a model that does not run is a result, whatever it raised
                row.failure = " ".join(str(error).split())[:160]
                continue
            files[tool] = target
        print(f"{task.name}: times", file=sys.stderr, flush=True)
        found = speeds(task.model, files, samples_of(task.model, task.calib, 16))
    for row in rows:
        if row.tool in found:
            times = found[row.tool]
            row.speed, row.low, row.high = times["speed"], times["low"], times["high"]
            row.milliseconds, row.milliseconds_original = (
                times["milliseconds"],
                times["milliseconds_original"],
            )
    return rows


def write(document: dict[str, Any]) -> None:
    """Results as a page and a plot, and the README's table."""
    rows = [Row(**row) for row in document["rows"]]
    (HERE / "results.md").write_text(results_page(rows, document["versions"]), encoding="utf-8")
    (HERE / "results.svg").write_text(draw(rows), encoding="utf-8")
    readme = ROOT / "README.md"
    begin, end = "<!-- results -->\n", "<!-- end of results -->"
    text = readme.read_text(encoding="utf-8")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    readme.write_text(f"{head}{begin}{readme_table(rows)}{end}{tail}", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="onnxc side by side with ONNX Runtime's own quantizers.")
    parser.add_argument("model", nargs="?", type=Path, help="yours; default: all of models/")
    parser.add_argument("--calib", help="calibration data for MODEL")
    parser.add_argument("--eval", metavar="FILE.py:FUNCTION", help="score for MODEL")
    parser.add_argument("--only", metavar="A,B", help="some of models/; printed, the stored results stay")
    parser.add_argument("--render", action="store_true", help="write table and plot from results.json")
    given = parser.parse_args()
    if given.render:
        write(json.loads(RESULTS.read_text(encoding="utf-8")))
        return
    if given.model is not None:
        if not given.calib:
            parser.error("MODEL needs --calib")
        print(text_table(measured(own_task(given.model, given.calib, given.eval))))
        return
    wanted = given.only.split(",") if given.only else None
    rows = [row for task in stored_tasks() if wanted is None or task.name in wanted for row in measured(task)]
    print(text_table(rows))
    if wanted is None:
        versions = {"onnxc": __version__, "onnxruntime": onnxruntime.__version__, "processor": cpu_name()}
        versions |= {"python": platform.python_version()}
        document = {"versions": versions, "rows": [asdict(row) for row in rows]}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        write(document)


if __name__ == "__main__":
    main()
