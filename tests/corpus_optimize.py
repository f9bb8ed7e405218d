"""What ``optimize`` without data makes of the ONNX backend suite: ``python -m tests.corpus_optimize``.

In: the installed onnx package. Out: how many models were compressed, stayed as they were, or were refused
because ONNX Runtime does not run them. Failures (exit code 1): an exception that is not one of onnxc's, a
refusal of a model that runs, a wrong output on the suite's own inputs, a larger file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from onnxc import OnnxcError, Report, optimize
from onnxc.exactness import difference
from tests.corpus import Case, cases, run

FLOOR_DB = 20.0
FAILURES = ("crash", "wrong", "larger", "refused though it runs")


def judge(case: Case, folder: Path) -> str:
    """The words that describe what became of a model; they begin with one of FAILURES if it is a failure."""
    source, target = folder / "in.onnx", folder / "out.onnx"
    source.write_bytes(case.model.SerializeToString())
    target.unlink(missing_ok=True)
    try:
        report = optimize(source, target, prices=folder / "prices.json")
    except OnnxcError as error:
        if error.exit_code != 3 or target.exists():
            return f"crash: exit code {error.exit_code}: {error}"
        if "give --calib PATH" in str(error):
            return "refused: no generated input runs"
        return f"refused though it runs: {error}" if _outputs(case.model, case) else "refused: not run by ONNX Runtime"
    except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
        return f"crash: {type(error).__name__}: {str(error)[:300]}"
    if target.stat().st_size > source.stat().st_size:
        return f"larger: {source.stat().st_size} bytes became {target.stat().st_size}"
    return _judge_output(case, report, onnx.load(target))


def _judge_output(case: Case, report: Report, made: ModelProto) -> str:
    if not report.changed:
        return "as it was" if made == case.model else "wrong: another model, reported as unchanged"
    if _interface(case.model) != _interface(made):
        return "wrong: its inputs or outputs changed"
    wanted = _outputs(case.model, case)
    if wanted is None:
        return "compressed, the suite's inputs do not run"
    got = _outputs(made, case)
    if got is None:
        return "wrong: no longer runs"
    exact = all(row.choice == "float" for row in report.rows)
    word = "simplified" if exact else "compressed"
    reason = next((why for pair in zip(wanted, got, strict=True) if (why := _differs(*pair, exact))), None)
    if reason is None:
        return word
    return f"wrong: {reason}" if _repeatable(case, wanted) else f"{word}, random outputs"


def _interface(model: ModelProto) -> list[str]:
    """Inputs and outputs as text, without the initializers that had to be inputs before IR version 4."""
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in held]
    return [f"{each.name} {each.type}" for each in (*inputs, *model.graph.output)]


def _differs(wanted: Any, got: Any, exact: bool) -> str | None:
    """None when ``got`` is as near as it must be: equal to float rounding, or above the quality floor."""
    if exact or not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f" or wanted.shape != np.shape(got):
        return difference(wanted, got)
    old, new = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
    noise = float(((old - new) ** 2).sum())
    if noise == 0:
        return None
    sqnr = 10 * np.log10(max(float((old**2).sum()), 1e-300) / noise)
    return None if sqnr >= FLOOR_DB else f"SQNR {sqnr:.1f} dB on the suite's inputs"


def _outputs(proto: ModelProto, case: Case) -> list[Any] | None:
    try:
        return run(proto, case.feeds())
    except Exception:  # noqa: BLE001  # ONNX Runtime's own classes; not running is an answer
        return None


def _repeatable(case: Case, wanted: list[Any]) -> bool:
    again = _outputs(case.model, case)
    return again is not None and all(difference(*pair) is None for pair in zip(wanted, again, strict=True))


def main() -> int:
    """Print counts and every failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--match", default="", help="only models whose name contains this")
    parser.add_argument("--every", type=int, default=1, help="only every n-th model")
    parser.add_argument("--verbose", action="store_true", help="a line per model, with its seconds")
    asked = parser.parse_args()
    start, total, found = time.perf_counter(), 0, Counter[str]()
    failures: list[str] = []
    slowest: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory(prefix="onnxc-corpus-", ignore_cleanup_errors=True) as folder:
        for number, case in enumerate(cases()):
            if asked.match not in case.name or number % asked.every:
                continue
            total += 1
            began = time.perf_counter()
            what = judge(case, Path(folder))
            spent = time.perf_counter() - began
            slowest = sorted([*slowest, (spent, case.name)], reverse=True)[:8]
            if asked.verbose:
                print(f"{spent:7.2f} {case.name}: {what}", flush=True)
            if what.startswith(FAILURES):
                failures.append(f"{case.name}: {what}")
            found[what.split(": ")[0] if what.startswith(FAILURES) else what] += 1
    print(f"{total} models in {time.perf_counter() - start:.0f} s")
    for what, count in found.most_common():
        print(f"{count:6} {what}")
    print("slowest:", ", ".join(f"{name} {spent:.1f} s" for spent, name in slowest))
    for line in failures:
        print(f"FAILED {line}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
