"""Damaged files: no traceback, no hang, no crash. tests/fuzz.py makes them, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")


def survive(journal: Path, first: int, count: int, *flags: str) -> list[str]:
    """What went wrong for the seeds from ``first``; a crash is noted, and the seeds behind it still run."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    wrong, end = [], first + count
    while first < end:
        command = [sys.executable, str(SCRIPT), "--first", str(first), "--count", str(end - first)]
        command += ["--journal", str(journal), *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        lines = journal.read_text(encoding="utf-8").splitlines()
        if done.returncode == 0:
            break
        last = [line for line in lines if line.endswith(" begins")][-1:]
        if not last or int(last[0].split()[0]) < first:
            return [f"the script itself fails: {done.stderr[-1000:]}"]
        first = int(last[0].split()[0]) + 1
        wrong.append(f"seed {first - 1}: exit code {done.returncode}: {done.stderr[-600:]}")
    text = journal.read_text(encoding="utf-8")
    return wrong + [part for part in text.split(" begins\n") if "BAD" in part]


def verdicts(journal: Path, word: str) -> int:
    return sum(line.endswith(f" {word}") for line in journal.read_text(encoding="utf-8").splitlines())


def test_a_thousand_damaged_files_through_load_and_check(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    wrong = survive(journal, 0, 1000)
    assert not wrong, "\n".join(wrong[:5])
    assert verdicts(journal, "sound") > 50
    assert verdicts(journal, "refused") > 500


def test_sixty_damaged_files_through_optimize(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    wrong = survive(journal, 5000, 60, "--optimize")
    assert not wrong, "\n".join(wrong[:5])
    assert verdicts(journal, "sound") == 60  # optimize() itself turns refusals into exit codes


@pytest.mark.fuzz
def test_as_many_as_you_like(tmp_path: Path) -> None:
    seconds = float(os.environ.get("ONNXC_FUZZ_SECONDS", "600"))
    for first, flags in ((1_000_000, ()), (2_000_000, ("--optimize",))):
        wrong = survive(tmp_path / str(first), first, 500_000, "--seconds", str(seconds / 2), *flags)
        assert not wrong, "\n".join(wrong[:20])
