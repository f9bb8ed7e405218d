"""Models with their data and their judge. In: models/, a zoo's folder, or a model of yours. Out: tasks.

A zoo is a folder with a zoo.py that has names(), path(name), calib(name), which yields samples, and score(name,
model, part="test", against=other), which gives a dict with value, higher_is_better and ci95, the 95 % interval of the
difference to the other model on the same items. Where it has a function quality_NAME, that is the hook.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
SAMPLES = 64

Sample = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """A model; ``calib`` makes its samples; ``hook`` is for tools that can use a score; ``judge`` see judge.py."""

    name: str
    collection: str
    model: Path
    calib: str
    hook: str | None
    judge: str


def stored_tasks(names: Iterable[str] | None) -> list[Task]:
    """The models of models/, or those of them that are named."""
    evaluate = MODELS / "evaluate.py"
    return [
        Task(
            name,
            "models",
            MODELS / f"{name}.onnx",
            str(MODELS / "data" / f"{name}_calib.npz"),
            f"{evaluate}:quality_{name}",
            f"models:{name}",
        )
        for name in module(evaluate).TASKS
        if names is None or name in names
    ]


def zoo_tasks(folder: Path, names: Iterable[str] | None) -> list[Task]:
    """The models of a zoo, or those of them that are named; a path is asked for only where it is needed."""
    file = folder.resolve() / "zoo.py"
    zoo = module(file)
    return [
        Task(
            name,
            folder.resolve().name,
            Path(zoo.path(name)),
            f"zoo:{file}:{name}",
            f"{file}:quality_{name}" if hasattr(zoo, f"quality_{name}") else None,
            f"zoo:{file}:{name}",
        )
        for name in zoo.names()
        if names is None or name in names
    ]


def own_task(model: Path, calib: str, hook: str | None) -> Task:
    """A model of the user's; its hook is both search and judge."""
    if hook is not None:
        file, _, function = hook.rpartition(":")
        hook = f"{Path(file).resolve()}:{function}"
    return Task(model.stem, "own", model.resolve(), calib, hook, f"hook:{hook}" if hook else "")


def module(path: Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def write_samples(task: Task, folder: Path) -> None:
    """The task's samples, at most ``SAMPLES``, a file each: every tool gets these."""
    import onnxc
    from onnxc.session import Session

    if task.calib.startswith("zoo:"):
        file, _, name = task.calib.removeprefix("zoo:").rpartition(":")
        samples: Iterable[Sample] = module(Path(file)).calib(name)
    else:
        samples = onnxc.Calibration.open(task.calib, Session(task.model).inputs).take(SAMPLES)
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(samples):
        if number < SAMPLES:
            np.savez(folder / f"{number:04}.npz", **dict(sample))  # type: ignore[arg-type]
