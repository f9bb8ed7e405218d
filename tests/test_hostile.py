"""Bad input to ``onnxc optimize``: one clear line, the right exit code, and nothing on disk harmed."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import onnxc
from onnxc import cli
from onnxc.file import storage
from tests import builders

ROOT = Path(onnxc.__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, in.onnx."""
    (tmp_path / "in.onnx").write_bytes(builders.plain_linear().SerializeToString())
    return tmp_path


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs optimize, expects a refusal in one line with nothing changed on disk, and returns the line."""

    def run(code: int, *flags: str, source: str = "in.onnx", target: str = "out.onnx") -> str:
        before = snapshot(folder)
        prices = ["--prices", str(folder / "prices.json")]
        assert cli.main(["optimize", str(folder / source), str(folder / target), *flags, *prices]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        lines = [line for line in captured.err.splitlines() if line.startswith("onnxc: error:")]
        assert len(lines) == 1
        assert "Traceback" not in captured.err
        assert snapshot(folder) == before
        return lines[0]

    return run


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder but what a hook's import leaves, and the prices, which may stay."""
    found = {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
    return {name: data for name, data in found.items() if "__pycache__" not in name and name != "prices.json"}


def write(folder: Path, model: ModelProto | bytes, name: str = "bad.onnx") -> str:
    (folder / name).write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return name


def damaged(change: Callable[[ModelProto], Any]) -> bytes:
    model = builders.plain_linear()
    change(model)
    return bytes(model.SerializeToString())


def cycle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[1].output[0]


def dangle(model: ModelProto) -> None:
    model.graph.node[0].input[1] = "nowhere"


def foreign(model: ModelProto) -> None:
    model.graph.node[2].op_type, model.graph.node[2].domain = "Frobnicate", "org.example"
    model.opset_import.append(helper.make_opsetid("org.example", 1))


GOOD = builders.plain_linear().SerializeToString()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"This is a text file, not a model.\n" * 10, "bad.onnx"),
        (bytes(4096), "bad.onnx"),
        (GOOD[: len(GOOD) // 2], "bad.onnx"),
        (GOOD[:40], "bad.onnx"),
        (b"\x89PNG\r\n\x1a\n" + GOOD, "bad.onnx"),
        (ModelProto().SerializeToString() or b"\x08\x08", "bad.onnx"),
        (damaged(dangle), "nowhere"),
        (damaged(cycle), "waits for its own result"),
        (damaged(foreign), "Frobnicate"),
        (damaged(lambda m: m.graph.initializer[0].dims.__setitem__(0, 1 << 40)), "w_"),
        (damaged(lambda m: m.graph.initializer[0].dims.__setitem__(0, -3)), "w_"),
        (damaged(lambda m: m.graph.node.append(m.graph.node[0])), "matmul"),
        (builders.of_opset(5).SerializeToString(), "no kernel"),
        (damaged(lambda m: setattr(m.opset_import[0], "version", 999)), "opset"),
    ],
    ids=[
        "empty", "text", "zeros", "half", "head", "picture", "no graph", "dangling", "cycle", "custom",
        "huge", "negative", "twice", "opset 5", "opset 999",
    ],
)  # fmt: skip
def test_files_that_are_no_sound_model(content: bytes, says: str, folder: Path, refused: Callable[..., str]) -> None:
    assert says in refused(3, source=write(folder, content))


def test_a_flipped_bit_is_refused_or_harmless(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for place in random.integers(0, 400, 12):
        data = bytearray(GOOD)
        data[-int(place)] ^= 1 << int(random.integers(8))
        write(folder, bytes(data))
        code = cli.main(["optimize", str(folder / "bad.onnx"), str(folder / "out.onnx"), "--quiet", "--dry-run"])
        assert code in (0, 3)
        assert len(capsys.readouterr().err.splitlines()) == (code == 3)


@pytest.mark.parametrize(
    ("location", "content", "says"),
    [
        ("weights.bin", None, "does not exist"),
        ("weights.bin", b"short", "needs 24576 bytes"),
        ("../weights.bin", bytes(1 << 20), "outside the model's folder"),
        ("/etc/hostname", None, "not a relative path"),
        ("", None, "not a relative path"),
        ("link.bin", None, "outside the model's folder"),
    ],
)
def test_external_data(
    location: str, content: bytes | None, says: str, folder: Path, refused: Callable[..., str]
) -> None:
    inner = folder / "inner"
    inner.mkdir()
    model = builders.plain_linear()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    (folder / "elsewhere.bin").write_bytes(bytes(1 << 20))
    (inner / "link.bin").symlink_to(folder / "elsewhere.bin")
    if content is not None:
        (inner / location).write_bytes(content)
    write(inner, model)
    assert says in refused(3, source="inner/bad.onnx")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": np.zeros((4, 64), np.float32)}, "'z'"),
        ({"x": np.zeros((4, 3), np.float32)}, "64"),
        ({"x": np.zeros((64,), np.float32)}, "rank"),
        ({"x": np.zeros((4, 64), np.complex64)}, "complex"),
        ({"x": np.full((4, 64), np.nan, np.float32)}, "NaN"),
        ({"x": np.zeros((0, 64), np.float32)}, ""),
        ({"x": np.array([["a"] * 64] * 4)}, "x"),
        ({}, ""),
    ],
    ids=["name", "extent", "rank", "type", "nan", "no samples", "strings", "nothing"],
)
def test_calibration_data_that_does_not_fit(
    arrays: dict[str, Any], says: str, folder: Path, refused: Callable[..., str]
) -> None:
    np.savez(folder / "data.npz", **arrays)
    assert says in refused(3, "--calib", str(folder / "data.npz"))


def test_calibration_files_that_are_none(folder: Path, refused: Callable[..., str]) -> None:
    (folder / "none").mkdir()
    (folder / "text.npz").write_text("text")
    (folder / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00")
    (folder / "pickle.npy").write_bytes(b"\x80\x04\x95")
    for name in ("none", "text.npz", "cut.npy", "pickle.npy", "missing", "in.onnx"):
        assert name in refused(3, "--calib", str(folder / name))


HOOKS = """
    import numpy as np
    def raises(session): raise ValueError('no\\nluck')
    def nan(session): return float('nan')
    def zero(session): return 0.0
    def word(session): return 'good'
    def nothing(session): pass
    def leaves(session): raise SystemExit(0)
    def no_argument(): return 1.0
    def many(session): return np.ones(3)
    later = []
    def raises_later(session):
        later.append(1)
        if len(later) > 1: raise KeyError('later')
        return 1.0
    def fails(): raise OSError('disk')
    def empty(): return iter(())
    def halfway():
        yield {'x': np.zeros((1, 64), np.float32)}
        raise RuntimeError('halfway')
    def wrong(): yield 3
"""


@pytest.mark.parametrize(
    ("flag", "name", "says"),
    [
        ("--eval", "raises", "ValueError: no luck"),
        ("--eval", "nan", "returned nan"),
        ("--eval", "zero", "returned 0"),
        ("--eval", "word", "'good'"),
        ("--eval", "nothing", "None"),
        ("--eval", "leaves", "SystemExit"),
        ("--eval", "no_argument", "TypeError"),
        ("--eval", "many", "must return a number"),
        ("--eval", "raises_later", "KeyError: 'later'"),
        ("--eval", "missing", "no function 'missing'"),
        ("--calib", "fails", "OSError: disk"),
        ("--calib", "empty", "empty"),
        ("--calib", "halfway", "halfway"),
        ("--calib", "wrong", "wrong"),
    ],
)
def test_hooks_that_fail(flag: str, name: str, says: str, folder: Path, refused: Callable[..., str]) -> None:
    (folder / "hook.py").write_text(textwrap.dedent(HOOKS))
    line = refused(3, flag, f"{folder / 'hook.py'}:{name}")
    assert says in line
    assert "hook.py" in line


def test_hook_files_that_do_not_load(folder: Path, refused: Callable[..., str]) -> None:
    (folder / "syntax.py").write_text("def score(:\n")
    (folder / "breaks.py").write_text("import no_such_module\n")
    assert "line 1" in refused(3, "--eval", f"{folder / 'syntax.py'}:score")
    assert "no_such_module" in refused(3, "--eval", f"{folder / 'breaks.py'}:score")
    assert "FILE.py:FUNCTION" in refused(3, "--eval", str(folder / "breaks.py"))


@pytest.mark.parametrize(
    ("code", "flags", "says"),
    [
        (2, ["--max-drop", "1%"], "--eval"),
        (2, ["--providers", "NoSuchProvider"], "CPUExecutionProvider"),
        (2, ["--target", "abacus"], "cpu"),
        (2, ["--custom-ops", "missing.so"], "missing.so"),
        (2, ["--shape", "z=1x2"], "no such input"),
        (2, ["--shape", "x=1x2x3"], "rank 2"),
        (2, ["--shape", "x=2x65"], "65"),
        (3, ["--passes", "quantise-static"], "quantize-static"),
        (3, ["--passes", "quantize-static:range=guess"], "mse"),
        (3, ["--passes", "quantize-static:percentile=high"], "is not a number"),
        (3, ["--recipe", "RECIPE"], "TOML"),
        (3, ["--prices", "RECIPE"], "price file"),
        (1, ["--size", "1%"], "nothing was written"),
        (1, ["--speed", "500x"], "nothing was written"),
    ],
)
def test_flags_that_cannot_be(
    code: int, flags: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "recipe.toml").write_text("size = [")
    before = snapshot(folder)
    flags = [str(folder / "recipe.toml") if flag == "RECIPE" else flag for flag in flags]
    assert cli.main(["optimize", str(folder / "in.onnx"), str(folder / "out.onnx"), "--quiet", *flags]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert says in lines[0]
    assert snapshot(folder) == before


def test_the_same_file_by_any_name(folder: Path, refused: Callable[..., str]) -> None:
    (folder / "soft.onnx").symlink_to(folder / "in.onnx")
    (folder / "hard.onnx").hardlink_to(folder / "in.onnx")
    for name in ("in.onnx", "soft.onnx", "hard.onnx", "../" + folder.name + "/in.onnx"):
        assert "same file" in refused(2, target=name)


def test_targets_that_cannot_be_written(folder: Path, refused: Callable[..., str]) -> None:
    (folder / "sub").mkdir()
    assert "folder" in refused(2, target="sub")
    assert "does not exist" in refused(2, target="missing/out.onnx")
    assert "in.onnx" in refused(2, target="in.onnx/out.onnx")
    os.mkfifo(folder / "pipe")
    line = refused(2, target="pipe")
    assert "pipe" in line


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused_before_the_work(
    folder: Path, refused: Callable[..., str]
) -> None:
    (folder / "locked").mkdir(mode=0o555)
    assert "locked" in refused(2, target="locked/out.onnx")


class FullDisk(io.RawIOBase):
    """A file on a disk without room."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("flags", [[], ["--external-data"], ["--passes", "simplify"]])
def test_a_full_disk_leaves_what_was_there(
    flags: list[str], folder: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out.onnx").write_bytes(b"before")
    plain, where = os.open, {"full": ""}

    def opened(path: Any, *arguments: Any) -> int:
        where["full"] = str(path)
        return plain(path, *arguments)

    def full(descriptor: int, *arguments: Any) -> Any:
        file = real(descriptor, *arguments)
        return FullDisk(file) if str(folder) in where["full"] else file  # temporary folders have room

    real = os.fdopen
    monkeypatch.setattr(storage.os, "open", opened)
    monkeypatch.setattr(storage.os, "fdopen", full)
    line = refused(3, *flags)
    assert "out.onnx" in line
    assert "No space left" in line


@contextmanager
def started(folder: Path, spare: Path) -> Iterator[subprocess.Popen[str]]:
    """``optimize`` of folder/in.onnx in a process group of its own, all imported; what it leaves goes to ``spare``."""
    start = "import sys; from onnxc.cli import main; print('up', flush=True); sys.exit(main())"
    command = [sys.executable, "-c", start, "optimize", "in.onnx", "out.onnx", "--batch", "8", "--fresh"]
    (spare / "temporary").mkdir()
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(spare), "TMPDIR": str(spare / "temporary")}
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | environment, start_new_session=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        yield child


@pytest.fixture(scope="module")
def seconds(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What a run takes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "in.onnx").write_bytes(builders.attention().SerializeToString())
    with started(folder, tmp_path_factory.mktemp("spare")) as child:
        begin = time.perf_counter()
        child.communicate()
        assert child.returncode == 0
        return time.perf_counter() - begin


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("share", [0.05, 0.25, 0.45, 0.65])
def test_control_c_at_any_moment(
    share: float, seconds: float, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder / "in.onnx").write_bytes(builders.attention().SerializeToString())
    (folder / "out.onnx").write_bytes(b"before")
    before, spare = snapshot(folder), tmp_path_factory.mktemp("spare")
    with started(folder, spare) as child:
        time.sleep(share * seconds)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does, to the helper processes too
        assert child.stderr is not None
        said = child.stderr.read()
        assert child.wait(20) == 130
    assert "Traceback" not in said
    assert snapshot(folder) == before
    left = (spare / "temporary").iterdir()
    assert not [path for path in left if path.name != ".ses"]  # ONNX Runtime leaves it at import


def test_custom_operators_are_named_with_the_way_out(folder: Path, refused: Callable[..., str]) -> None:
    line = refused(3, source=write(folder, damaged(foreign)))
    assert "org.example" in line
    assert "--custom-ops" in line


def test_weights_that_are_not_finite_stay_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("not_finite", "not_finite_convolution", "extreme_weights"):
        made = builders.MODELS[name]()
        write(folder, made)
        out = folder / "out.onnx"
        assert cli.main(["optimize", str(folder / "bad.onnx"), str(out), "--quiet"]) == 0
        assert capsys.readouterr().err == ""
        held = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
        for tensor in made.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if not np.isfinite(values).all():
                np.testing.assert_array_equal(held[tensor.name], values)


def test_a_stale_temporary_file_or_a_read_only_target_is_no_obstacle(folder: Path) -> None:
    out = folder / "out.onnx"
    out.write_bytes(b"before")
    out.chmod(0o444)
    assert cli.main(["optimize", str(folder / "in.onnx"), str(out), "--quiet"]) == 0
    assert out.read_bytes() != b"before"
    assert out.stat().st_mode & 0o777 == 0o444
