"""The interpreter against ONNX Runtime over the backend suite: ``python -m tests.training.parity [--write]``.

In: the models that the onnx package makes. Out: the table of docs/training.md: operator -> models whose outputs
agree, of the models that ONNX Runtime runs and that have it; and which operators are refused.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import inliner

from onnxc.errors import ModelError
from onnxc.model import Model
from onnxc.training.interpreter import RANDOM, Program, domain_of
from onnxc.training.operators import OPERATORS
from onnxc.training.operators.table import to_numpy
from tests import corpus

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
MARK = "<!-- parity -->"


def agree(expected: Any, got: Any) -> bool:
    """Whether a value of the interpreter equals one of ONNX Runtime, up to float rounding."""
    if isinstance(expected, list):
        return isinstance(got, list) and len(expected) == len(got) and all(map(agree, expected, got))
    if expected is None or not isinstance(got, torch.Tensor):
        return expected is None and got is None
    wanted, made = np.asarray(expected), to_numpy(got)
    if wanted.shape != made.shape or wanted.dtype.kind in "OSU":
        return False
    loose = 2e-2 if wanted.dtype.itemsize == 2 and wanted.dtype.kind == "f" else 1e-3
    if wanted.dtype.kind in "iub" and np.asarray(made).dtype.kind in "iubf":
        return int((wanted.astype(np.float64) != made.astype(np.float64)).sum()) <= 0.001 * wanted.size
    return bool(np.allclose(made.astype(np.complex128), wanted.astype(np.complex128), loose, 1e-5, equal_nan=True))


def judge(case: corpus.Case) -> tuple[str, list[str]]:
    """("ok", "refused OPERATOR", "wrong", "not run" or an error) and the model's operators."""
    proto = inliner.inline_local_functions(case.model) if case.model.functions else case.model
    model = Model.load(proto)
    names = sorted({f"{domain_of(node)}.{node.op}".lstrip(".") for node in model.nodes()})
    try:
        feeds = case.feeds()
        expected = corpus.run(case.model, feeds)
    except Exception:  # noqa: BLE001 - any reason of the runtime's
        return "not run", names
    if any(isinstance(each, tuple) for each in expected) or any(isinstance(each, dict) for each in expected):
        return "not run", names
    try:
        program = Program(model)
        with torch.no_grad():
            got = program({name: corpus._plain(value) for name, value in feeds.items()})
    except ModelError as error:
        found = re.search(r"operator (\S+) cannot be trained", str(error))
        if found or "cannot be trained through" in str(error):  # the operator, or this form of it
            form = re.search(r"\((\w+)\): (.*) cannot be trained", str(error))
            return (f"refused {found[1]}" if found else f"form {form[1]}: {form[2]}" if form else "form"), names
        return f"error {error}", names
    same = all(agree(value, got[each.name]) for value, each in zip(expected, model.graph.outputs, strict=True))
    return ("ok" if same else "wrong"), names


def table(pattern: str = "", talk: bool = False) -> str:
    """The table, as text."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for case in corpus.cases():
        if pattern not in case.name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict, names = judge(case)
        kind = verdict.split()[0] if not verdict.startswith("not") else verdict
        count[kind] += 1
        if talk and kind in {"wrong", "error"}:
            print(case.name, verdict[:200], file=sys.stderr)
        if kind == "refused":
            refused[verdict.split()[1]] += 1
        if kind == "form" and ":" in verdict:
            forms[verdict.removeprefix("form ")] += 1
        if kind in {"ok", "wrong", "error"}:
            total.update(names)
            right.update(names if kind == "ok" else [])
    ran = sum(count.values()) - count["not run"]
    told = count["ok"] + count["wrong"] + count["error"]
    lines = [
        f"{sum(count.values())} models; ONNX Runtime runs {ran} of them on what Python can feed.",
        f"{count['refused']} of these have an operator that is refused, {count['form']} a form of one.",
        f"Of the other {told}, {count['ok']} agree.",
        "",
        "| operator | agree / models | operator | agree / models | operator | agree / models |",
        "|---|---|---|---|---|---|",
    ]
    cells = [f"`{name}` | {right[name]} / {total[name]}" for name in sorted(total) if name]
    cells += [""] * (-len(cells) % 3)
    third = len(cells) // 3
    lines += [f"| {' | '.join(cells[row::third][:3])} |" for row in range(third)]
    without = sorted({name for domain, name in OPERATORS if not domain} - set(total) - RANDOM)
    lines += [
        "",
        "Has a torch function but no model in the suite that runs: " + ", ".join(f"`{n}`" for n in without) + ".",
    ]
    lines += ["", "Refused: " + ", ".join(f"`{name}`" for name in sorted(refused)) + "."]
    lines += ["", "Refused forms: " + "; ".join(f"`{text.replace(': ', '`: ')}" for text in sorted(forms)) + "."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.training.parity", description=__doc__)
    parser.add_argument("--only", default="", help="part of the names of models")
    parser.add_argument("--write", action="store_true", help="put the table into docs/training.md")
    parser.add_argument("--talk", action="store_true", help="name what differs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = table(options.only, options.talk)
    print(text)
    if options.write:
        before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
        PAGE.write_text(f"{before}{MARK}\n{text}\n{MARK}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
