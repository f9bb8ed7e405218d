"""The benchmark: what it says of figures, that its page is that of its results, and that it runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "benchmarks"


def run(*command: str | Path, cwd: Path) -> str:
    """What a Python script prints."""
    given = [sys.executable, *(str(part) for part in command)]
    return subprocess.run(given, cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The benchmark without what it made, and what it writes and reads, somewhere else."""
    shutil.copytree(BENCH, tmp_path / "benchmarks", ignore=shutil.ignore_patterns(".bench", "__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    return tmp_path


def test_the_committed_page_plot_and_table_are_those_of_the_results(copy: Path) -> None:
    written = [copy / "README.md", *(copy / "benchmarks" / f"results.{kind}" for kind in ("json", "md", "svg"))]
    before = [path.read_text(encoding="utf-8") for path in written]
    run(copy / "benchmarks" / "run.py", "--render", cwd=copy)
    assert [path.read_text(encoding="utf-8") for path in written] == before


def test_the_results_are_of_every_tool_and_name_no_folder_of_a_machine() -> None:
    text = (BENCH / "results.json").read_text(encoding="utf-8")
    tools = {row["tool"] for row in json.loads(text)["rows"]}
    assert tools == {
        "onnxc",
        "ONNX Runtime",
        "onnxsim",
        "NNCF",
        "AIMET",
        "Quark",
        "ModelOpt",
        "Olive",
        "Neural Compressor",
    }
    assert not [folder for folder in ("/tmp/", "/home/", "/root/", "/usr/", "site-packages") if folder in text]


def test_every_tool_has_an_environment_a_script_that_knows_its_modes_and_a_color(tmp_path: Path) -> None:
    script = tmp_path / "tools_of.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(BENCH)!r})
from environments import ENVIRONMENTS, HERE
from plot import COLORS
from tools import TOOLS

for tool in TOOLS:
    assert tool.name in COLORS, tool
    if tool.script:
        assert tool.environment in ENVIRONMENTS, tool
        assert f'"{{tool.mode}}": ' in (HERE / "compress" / tool.script).read_text(encoding="utf-8"), tool
print(len(TOOLS))
""")
    assert int(run(script, cwd=tmp_path)) == 25


def test_another_tool_is_ahead_by_score_at_no_more_bytes_or_by_speed_at_no_lower_score(tmp_path: Path) -> None:
    script = tmp_path / "ahead.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(BENCH)!r})
from rows import Row, ahead_in_score, ahead_in_size, ahead_in_speed

def row(tool, size, score, speed, decibels=20.0, interval=None):
    return Row("models", "m", tool, "", 1000, 0.9, size, score, interval, decibels=decibels, speed=speed)

own = row("onnxc", 200, 0.895, 2.0)
others = [
    row("smaller and worse", 100, 0.892, 1.0),
    row("larger and better", 300, 0.899, 1.0),
    row("as small and better", 200, 0.899, 1.0),
    row("better, of other outputs", 200, 0.899, 3.0, 5.0),
    row("faster and as good", 500, 0.895, 2.1),
    row("faster by a hair", 500, 0.895, 2.02),
    row("faster and worse", 500, 0.894, 3.0, interval=[-0.008, -0.0055]),
    row("faster and worse by chance", 500, 0.894, 3.0, interval=[-0.008, -0.004]),
]
rows = [own, *others]
print([other.tool for other in others if ahead_in_score(other, rows)])
print([other.tool for other in others if ahead_in_speed(other, rows)])
print([other.tool for other in others if ahead_in_size(other, rows)])
print(ahead_in_score(own, rows), ahead_in_speed(own, rows), ahead_in_size(own, rows))
# a score above the original's counts as the original's
print(ahead_in_score(row("x", 200, 0.95, 1.0), [row("onnxc", 200, 0.9, 1.0)]))
""")
    assert run(script, cwd=tmp_path).splitlines() == [
        "['as small and better']",
        "['faster and as good', 'faster and worse by chance']",
        "['smaller and worse']",
        "False False False",
        "False",
    ]


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3); open({str(tmp_path / "late")!r}, 'w')"])
print("started", flush=True)
time.sleep(60)
""")
    start = time.perf_counter()
    run(BENCH / "limited.py", "1", "took.json", "log.txt", sys.executable, script, cwd=tmp_path)
    assert time.perf_counter() - start < 20
    assert json.loads((tmp_path / "took.json").read_text())["code"] is None
    assert (tmp_path / "log.txt").read_text() == "started\n"
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_a_model_of_yours_is_a_row_with_all_figures(copy: Path) -> None:
    model, data = ROOT / "models" / "sklearn_mlp.onnx", ROOT / "models" / "data" / "sklearn_mlp_calib.npz"
    judge = f"{ROOT / 'models' / 'evaluate.py'}:quality_sklearn_mlp"
    only = ["--only", "onnxc without data"]
    printed = run(copy / "benchmarks" / "run.py", model, "--calib", data, "--eval", judge, *only, cwd=copy)
    (row,) = [line.split("|") for line in printed.splitlines() if line.startswith("| onnxc without data")]
    size, speed, score = (float(row[index].split()[0]) for index in (2, 3, 4))
    assert 20 < size < 30
    assert speed > 0.9
    assert score == pytest.approx(0.98, abs=0.01)
    made = copy / "benchmarks" / ".bench" / "made" / "own" / "sklearn_mlp" / "onnxc-without-data"
    assert (made / "model.onnx").stat().st_size == pytest.approx(size / 100 * model.stat().st_size, rel=0.01)
