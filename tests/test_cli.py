"""What the command line takes, prints and returns; the work behind it has its own tests."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxc
from onnxc import cli, progress, registry
from onnxc.command_line.arguments import parser
from onnxc.command_line.values import shape
from onnxc.command_line.verbs import recipe
from onnxc.contract.passes import ExactPass, Outcome
from onnxc.errors import ModelError, RecipeError, UsageError
from onnxc.propose import with_training
from onnxc.recipe import (
    Budget,
    PassRequest,
    Recipe,
    load_recipe,
    parse_decibels,
    parse_fraction,
    parse_passes,
    parse_speed,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 128])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def parsed(*flags: str) -> Any:
    return parser().parse_args(["optimize", "in", "out", *flags])


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (parse_fraction, "25%", 0.25),
        (parse_fraction, "0.25", 0.25),
        (parse_fraction, 0.25, 0.25),
        (parse_fraction, "12.5 %", 0.125),
        (parse_speed, "2x", 2.0),
        (parse_speed, "1.5", 1.5),
        (parse_decibels, "20", 20.0),
        (parse_decibels, "20dB", 20.0),
    ],
)
def test_limits_parse(read: Any, text: Any, value: float) -> None:
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("read", "text"),
    [(parse_fraction, t) for t in ("", "x", "150%", "-1", "nan", "1,5")]
    + [(parse_speed, t) for t in ("0", "-2x", "fast", "inf", "nan")]
    + [(parse_decibels, t) for t in ("loud", "nan", "1e9")],
)
def test_limits_that_are_none(read: Any, text: str) -> None:
    with pytest.raises(UsageError, match=f"'{text}'"):
        read(text)


def test_flags_make_a_recipe_and_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(
        'size = "30%"\nspeed = 2\nthreads = 2\nops = "ort"\n'
        '[[pass]]\nuse = "quantize-static"\nrange = "minmax"\n[[pass]]\nuse = "store-int8"\n'
    )
    loaded = load_recipe(file)
    assert loaded.budget == Budget(size=0.3, speed=2.0)
    assert loaded.passes == (PassRequest("quantize-static", {"range": "minmax"}), PassRequest("store-int8"))
    assert (loaded.threads, loaded.ops) == (2, "ort")
    made = recipe(parsed("--recipe", str(file), "--size", "20%", "--threads", "1", "--passes", "store-int8"))
    assert made.budget == Budget(size=0.2, speed=2.0)
    assert made.passes == (PassRequest("store-int8"),)
    assert (made.threads, made.ops) == (1, "ort")
    assert recipe(parsed()) == Recipe()


def test_passes_with_fields() -> None:
    found = parse_passes("store-int8, quantize-static:range=percentile:percentile=99.9")
    assert found[1] == PassRequest("quantize-static", {"range": "percentile", "percentile": "99.9"})
    for text, says in (
        ("quantise-static", "did you mean 'quantize-static'"),
        ("store-int8:bits", "write store-int8:field=value"),
        (",", "no pass is named"),
    ):
        with pytest.raises(RecipeError, match=says):
            parse_passes(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("size = ", "is not TOML"),
        ("sise = 1", "did you mean 'size'"),
        ("size = 3", "'3' is not between 0 and 1"),
        ("size = true", "must be a number"),
        ("threads = 'two'", "'threads' cannot be 'two'"),
        ("[[pass]]\nname = 'x'", "needs use"),
        ("[[pass]]\nuse = 'simplfy'", "did you mean 'simplify'"),
    ],
)
def test_recipes_that_are_wrong(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=says):
        load_recipe(file)


def test_shapes() -> None:
    assert parsed("--shape", "x=1x128", "--shape", "s=").shape == [("x", [1, 128]), ("s", [])]
    assert shape("a=b=2,3") == ("a=b", [2, 3])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "VERB"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        (["optimize", "MODEL"], 2, "OUT"),
        (["optimize", "MODEL", "OUT", "--size", "huge"], 2, "'huge' is not a fraction"),
        (["optimize", "MODEL", "OUT", "--size", "0"], 2, "'0' is no size of a file"),
        (["optimize", "MODEL", "OUT", "--shape", "x"], 2, "'x' is not a shape"),
        (["optimize", "MODEL", "OUT", "--threads", "0"], 2, "'0' is not a whole number above 0"),
        (["optimize", "MODEL", "OUT", "--frontier"], 2, "--frontier"),
        (["optimize", "MODEL", "MODEL"], 2, "same"),
        (["optimize", "MODEL", "OUT", "--max-drop", "1%"], 2, "--eval"),
        (["optimize", "MODEL", "OUT", "--providers", "NoneSuch"], 2, "CPUExecutionProvider"),
        (["optimize", "MODEL", "OUT", "--target", "moon"], 2, "moon"),
        (["optimize", "MODEL", "OUT", "--report", "no/such/folder.json"], 2, "cannot be written"),
        (["optimize", "MODEL", "no/such/out.onnx"], 2, "no/such"),
        (["optimize", "missing.onnx", "OUT"], 3, "missing.onnx"),
        (["optimize", ".", "OUT"], 3, "folder"),
        (["optimize", "MODEL", "OUT", "--recipe", "none.toml"], 3, "none.toml"),
        (["optimize", "MODEL", "OUT", "--passes", "prune"], 3, "unknown pass 'prune'"),
        (["optimize", "MODEL", "OUT", "--passes", "store-int8:bits=4"], 3, "bits"),
        (["optimize", "MODEL", "OUT", "--calib", "none.npz"], 3, "none.npz"),
        (["optimize", "MODEL", "OUT", "--eval", "none.py:f"], 3, "none.py"),
        (["compare", "MODEL", "missing.onnx"], 3, "missing.onnx"),
        (["inspect", "missing.onnx"], 3, "missing.onnx"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    arguments: list[str], code: int, says: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = model.read_bytes()
    out = model.with_name("out.onnx")
    places = {"MODEL": str(model), "OUT": str(out)}
    assert cli.main([places.get(word, word) for word in arguments]) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("onnxc: error: ")
    assert says in lines[0]
    assert captured.out == ""
    assert model.read_bytes() == before
    assert not out.exists()


@pytest.mark.parametrize(
    ("problem", "code", "says"),
    [
        (ModelError("the file\nis odd"), 3, "onnxc: error: the file is odd"),
        (ZeroDivisionError("by zero"), 70, "this is a bug in onnxc"),
        (MemoryError(), 3, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_whatever_happens_is_one_line(
    problem: BaseException,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise problem

    monkeypatch.setattr("onnxc.inspection.inspect", fail)
    assert cli.main(["inspect", "x"]) == code
    plain = capsys.readouterr().err
    assert says in plain
    assert len(plain.splitlines()) == 1
    assert cli.main(["inspect", "x", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_what_a_hook_starts_does_not_print_into_the_report(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A child process and a library write to file descriptor 1, whatever sys.stdout is."""
    hook = model.with_name("noisy.py")
    hook.write_text(
        "import os, subprocess\nos.write(1, b'loading\\n')\n"
        "def score(session):\n    subprocess.run(['echo', 'scoring'])\n    return 1.0\n"
    )
    assert cli.main(["compare", str(model), str(model), "--json", "--eval", f"{hook}:score"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["score_new"] == 1.0
    assert "loading" in printed.err
    assert "scoring" in printed.err


def test_json_is_the_only_thing_on_stdout(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hook = model.with_name("hook.py")
    hook.write_text("def score(session):\n    print('talking')\n    return 1.0\n")
    out = model.with_name("out.onnx")
    prices = str(model.with_name("prices"))
    flags = ["--eval", f"{hook}:score", "--json", "--prices", prices]
    assert cli.main(["optimize", str(model), str(out), *flags, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["comparison"]["drop"] == 0
    assert not out.exists()
    assert cli.main(["optimize", str(model), str(out), "--quiet", "--prices", prices]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert cli.main(["compare", str(model), str(out), "--json", "--eval", f"{hook}:score"]) == 0
    assert json.loads(capsys.readouterr().out)["score_new"] == 1.0


def test_progress_waits_a_second_and_is_terse_outside_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.Progress() as say:
        say("loading")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    with progress.Progress() as say:
        say("loading")
        time.sleep(0.2)
        say("planning")
    assert capsys.readouterr().err == "onnxc: loading\nonnxc: planning\n"
    with progress.Progress(quiet=True) as say:
        time.sleep(0.05)
        say("loading")
    assert capsys.readouterr().err == ""


def test_version_is_fast_and_the_face_is_complete() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(onnxc.__file__).parents[1])}
    code = "import sys, onnxc; from onnxc.cli import main; main(['--version']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    first, modules = done.stdout.splitlines()
    assert first == f"onnxc {onnxc.__version__}"
    assert not {"numpy", "onnx", "onnxruntime", "rich"} & set(modules.split())
    for name in onnxc.__all__:
        assert getattr(onnxc, name).__name__ == name
        assert name in dir(onnxc)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = onnxc.nonsense


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interrupting_leaves_what_was_there(model: Path) -> None:
    hook = model.with_name("hook.py")
    hook.write_text("import time\n\ndef score(session):\n    print('ready', flush=True)\n    time.sleep(60)\n")
    out = model.with_name("out.onnx")
    out.write_bytes(b"before")
    environment = os.environ | {"PYTHONPATH": str(Path(onnxc.__file__).parents[1])}
    command = [sys.executable, "-m", "onnxc", "optimize", str(model), str(out), "--eval", f"{hook}:score"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "ready" in line:
                break
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
        assert child.wait(30) == 130
    assert rest.splitlines()[-1] == "onnxc: error: interrupted; nothing was written"
    assert "Traceback" not in rest
    assert out.read_bytes() == b"before"
    assert sorted(path.name for path in model.parent.iterdir() if path.is_file()) == [
        "hook.py",
        "model.onnx",
        "out.onnx",
    ]


class Foreign(ExactPass):
    """A pass of somebody else's."""

    name = "foreign"

    def run(self, model: Any) -> Outcome:
        return Outcome()


def entry(value: str) -> EntryPoint:
    return EntryPoint("theirs", value, registry.GROUP)


def install(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    """A module of another distribution, found through its entry point."""
    module = ModuleType("foreign_passes")
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, "foreign_passes", module)


def test_passes_of_other_packages_come_in_through_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, PASS=Foreign, TWO=(Foreign,), WRONG=(3,))
    builtin = list(registry.load_passes())
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry("foreign_passes:TWO")])
    assert list(registry.load_passes()) == [*builtin, "foreign"]
    monkeypatch.setattr(registry, "entry_points", lambda group: [registry.BUILTIN, entry("foreign_passes:PASS")])
    assert registry.load_passes()["foreign"] is Foreign
    assert parse_passes("foreign:field=1") == (PassRequest("foreign", {"field": "1"}),)
    for value, says in (("foreign_passes:WRONG", "not a pass class"), ("no_such_module:X", "does not load")):
        monkeypatch.setattr(registry, "entry_points", lambda group, value=value: [entry(value)])
        with pytest.raises(RecipeError, match=says):
            registry.load_passes()


def test_two_passes_of_one_name_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Simplify(Foreign):
        name = "simplify"

    install(monkeypatch, PASS=Simplify)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry("foreign_passes:PASS")])
    with pytest.raises(RecipeError, match="two passes are called 'simplify'"):
        registry.load_passes()


def test_an_uninstalled_checkout_has_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    builtin = importlib.import_module("onnxc.passes").PASSES
    assert list(registry.load_passes().values()) == list(builtin)


@pytest.mark.skipif(sys.platform == "win32", reason="file descriptors of POSIX shells")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_reason_to_fail(model: Path, closed: str) -> None:
    """Started by a daemon or a cron job; the number of a closed stream must not go to the file that is written."""
    out = model.with_name("out.onnx")
    command = f"'{sys.executable}' -m onnxc optimize '{model}' '{out}' --prices '{model.with_name('prices')}' {closed}"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    onnx.checker.check_model(onnx.load(out), full_check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="file descriptors of POSIX shells")
def test_a_reader_that_leaves_early_is_no_reason_to_fail(model: Path) -> None:
    command = [sys.executable, "-m", "onnxc", "inspect", str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        assert child.stderr.read() == b""
    assert child.returncode == 0


def test_a_training_pass_is_minutes_of_training() -> None:
    """Named beside others, which stay as told; named alone, everything else is chosen as always."""

    def made(text: str, **more: Any) -> Recipe:
        return with_training(Recipe(passes=parse_passes(text), **more))

    assert made("store-int8,recover:minutes=3") == Recipe(passes=parse_passes("store-int8"), recover=3.0)
    assert made("recover") == Recipe(recover=10.0)
    assert made("store-int8") == Recipe(passes=parse_passes("store-int8"))
    for text, more in (("recover:minutes=0", {}), ("recover:hours=1", {}), ("recover", {"recover": 2.0})):
        with pytest.raises(RecipeError, match="recover"):
            made(text, **more)
