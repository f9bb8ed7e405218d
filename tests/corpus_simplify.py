"""What simplify makes of the models of the ONNX backend test suite: ``python -m tests.corpus_simplify``.

In: the installed onnx package. Out: how many became smaller, stayed, or could not be checked because ONNX
Runtime does not run them; a wrong output, a model that no longer runs and an exception are failures (exit 1).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxc.exactness import difference
from onnxc.model import Model
from onnxc.passes.raise_opset import RaiseOpset
from onnxc.passes.simplify import Simplify
from tests.corpus import Case, cases, run


def judge(case: Case, raised: bool) -> str:
    """The one word, or the failure, that describes what became of a model."""
    try:
        model = Model.load(case.model)
        before = sum(1 for _ in model.nodes())
        pass_ = RaiseOpset(21) if raised else Simplify()
        changed = pass_.run(model).changed
        proto = model.proto()
        again = 0 if raised else Simplify().run(model).changed
    except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
        return f"crash: {type(error).__name__}: {str(error)[:200]}"
    if not changed:
        return "not run by ONNX Runtime" if _outputs(case.model, case) is None else "unchanged"
    wanted = _outputs(case.model, case)
    if wanted is None:
        return "not run by ONNX Runtime"
    got = _outputs(proto, case)
    if got is None:
        return "wrong: no longer runs"
    reason = next((why for pair in zip(wanted, got, strict=True) if (why := difference(*pair))), None)
    if reason is not None:
        return f"wrong: {reason}" if _repeatable(case, wanted) else "random outputs"
    if again:
        return f"wrong: a second run still changes {again}"
    after = sum(1 for _ in model.nodes())
    return "smaller" if after < before else "changed"


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
    parser.add_argument("--raise-opset", action="store_true", help="the pass raise-opset to 21 instead")
    arguments = parser.parse_args()
    np.seterr(all="ignore")
    counts: Counter[str] = Counter()
    start = time.monotonic()
    for index, case in enumerate(cases()):
        if arguments.match in case.name and index % arguments.every == 0:
            began = time.monotonic()
            verdict = judge(case, arguments.raise_opset)
            counts[verdict.partition(":")[0]] += 1
            if ":" in verdict:
                print(f"{case.name}: {verdict}", flush=True)
            if time.monotonic() - began > 10:
                print(f"{case.name}: took {time.monotonic() - began:.0f} s", flush=True)
    print(f"{sum(counts.values())} models in {time.monotonic() - start:.0f} s:", dict(counts))
    return 1 if counts["wrong"] or counts["crash"] else 0


if __name__ == "__main__":
    sys.exit(main())
