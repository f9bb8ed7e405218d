"""Functions that users write: FILE.py:FUNCTION, loaded and called so that their faults are one clear line.

In: "FILE.py:FUNCTION" or a callable. Out: the function; for --eval, a score. What it prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import itertools
import math
import numbers
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxc.errors import HookError, InputError, OnnxcError

if TYPE_CHECKING:
    from onnxc.session import Session

_numbers = itertools.count()


class Hook:
    """A user's function with the file it came from.

    Args:
        function: what to call.
        file: where it was read from, None for a callable that was handed in.
        error: the class of what is raised when it fails: HookError for --eval, DataError for --calib.
    """

    def __init__(self, function: Callable[..., Any], file: Path | None, error: type[InputError]) -> None:
        self.function = function
        self.file = file
        self.error = error
        name = getattr(function, "__name__", type(function).__name__)
        self.name = f"{file.name}:{name}" if file else str(name)

    @classmethod
    def load(cls, spec: str | Path | Callable[..., Any], error: type[InputError]) -> Hook:
        """Reads "FILE.py:FUNCTION"; ``error`` when the file does not run or has no such function."""
        if callable(spec):
            return cls(spec, None, error)
        text, _, name = str(spec).rpartition(":")
        if not text or not name.isidentifier():
            raise error(f"{spec}: name the function too, as FILE.py:FUNCTION")
        file = Path(text)
        if not file.is_file():
            raise error(f"{file} {'is a folder' if file.is_dir() else 'does not exist'}: give FILE.py:FUNCTION")
        module = _run_file(file, error)
        function = getattr(module, name, None)
        if not callable(function):
            there = [
                key
                for key, value in vars(module).items()
                if callable(value) and getattr(value, "__module__", None) == module.__name__
            ]
            raise error(f"{file} has no function {name!r}{did_you_mean(name, there, 'it defines')}")
        return cls(function, file, error)

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function; its exceptions become one line with file and line number."""
        with self.guarded():
            return self.function(*arguments)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """User code runs inside: stdout is stderr, its folder can be imported from, its errors are ours."""
        with _printing_to_stderr(), _importable(self.file):
            try:
                yield
            except (OnnxcError, GeneratorExit):
                raise
            except (Exception, SystemExit) as problem:
                raise self.error(f"{self.name} failed: {_described(problem, self.file)}") from problem


class Evaluation:
    """A user's score of a model, higher is better: takes an onnxruntime.InferenceSession, returns it."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self.name = hook.name

    @classmethod
    def open(cls, spec: str | Path | Callable[[Any], float]) -> Evaluation:
        """``spec``: "FILE.py:FUNCTION" or a callable. Raises HookError when it cannot be loaded."""
        return cls(Hook.load(spec, HookError))

    @property
    def identity(self) -> str | None:
        """What tells this hook from others, also in another run; None of a callable, which says nothing of itself."""
        file = self._hook.file
        return None if file is None else f"{self.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"

    def __call__(self, session: Session) -> float:
        """The score of the model; HookError if the hook raises or does not return a finite number."""
        value = self._hook(session.raw)
        if (isinstance(value, np.ndarray) and value.size == 1) or (hasattr(value, "item") and not callable(value)):
            with contextlib.suppress(Exception):  # arrays and tensors of other frameworks
                value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            shown = repr(value)
            raise HookError(
                f"{self.name} returned {shown[:60]} ({type(value).__name__}): it must return a number, higher is better"
            )
        score = float(value)
        if not math.isfinite(score):
            raise HookError(f"{self.name} returned {score}: it must return a finite number")
        return score

    def reference(self, session: Session) -> float:
        """The score of the original model; HookError also if it is 0: no relative loss can be taken of it."""
        score = self(session)
        if score == 0:
            raise HookError(
                f"{self.name} returned 0 for the original model: a relative loss needs a score other than 0"
            )
        return score


def did_you_mean(name: str, known: list[str], there: str) -> str:
    """The end of an error: "; did you mean 'x'?" when one of ``known`` is close, else what there is."""
    close = difflib.get_close_matches(name, known, 1, 0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(sorted(known)[:8]) or "nothing"
    return f"; {there} {shown}{', ...' if len(known) > 8 else ''}"


def _run_file(file: Path, error: type[InputError]) -> ModuleType:
    name = f"onnxc_hook_{next(_numbers)}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise error(f"{file} is not a Python file: give FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up there
    with _printing_to_stderr(), _importable(file):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as problem:
            del sys.modules[name]
            raise error(f"{file} does not load: {_described(problem, file)}") from problem
    return module


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """What is printed inside goes to stderr, also by libraries and processes that only know file descriptor 1: stdout
    is the report's.
    """
    with contextlib.ExitStack() as undo:
        with contextlib.suppress(OSError, ValueError):  # one of the two is closed: nothing to protect
            sys.stdout.flush()
            kept = os.dup(1)
            undo.callback(os.close, kept)
            os.dup2(2, 1)
            undo.callback(os.dup2, kept, 1)
        undo.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


@contextlib.contextmanager
def _importable(file: Path | None) -> Iterator[None]:
    """The folder of ``file`` is first on the import path, as for `python FILE.py`."""
    if file is None:
        yield
        return
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _described(problem: BaseException, file: Path | None) -> str:
    """As "ValueError: text (FILE.py line 7)": the deepest line of the user's own file, if there is one."""
    text = " ".join(str(problem).split())[:300]
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{type(problem).__name__}: {problem.msg} ({Path(problem.filename).name} line {problem.lineno})"
    frames = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in frames if file and Path(frame.filename) == file.resolve()]
    foreign = [frame for frame in frames if Path(frame.filename).name != "hooks.py"]
    place = (own or foreign)[-1:]
    where = "".join(f" ({Path(frame.filename).name} line {frame.lineno})" for frame in place)
    return f"{type(problem).__name__}{f': {text}' if text else ''}{where}"
