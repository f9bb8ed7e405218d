"""Imports run downward: the order of the modules, and who may import the libraries behind one door."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Highest first; a module or folder imports only from rows below its own, or from its own row. No cycles anywhere.
LAYERS = """
    __main__
    cli
    command_line
    frontier
    tradeoff
    inspection compiler summary explain
    structure
    planning
    fallbacks size_limit
    weighing remembered
    deliver head_start judge price training validate
    search
    bracket room under_noise fewer_formats load_room load_pace
    trial
    limits
    culprits
    feedback
    written
    coder propose
    overheads
    planner zeros
    predictions
    islands
    problem
    cheapest
    equalizing
    factors cost sensitivity refining exactness
    profiling price_file
    convergence loading macs
    codes contract coupling owners rewriting encoding frequent observe histograms sites shapes sequential pruning
    report reports
    reference
    differences overheard
    quality answers hardness kernels parts
    recipe
    registry
    targets progress streams
    data samples
    bodies session runtime
    naming
    model file flow windows
    errors
    __init__
"""
ROW = {name: row for row, names in enumerate(LAYERS.split("\n")) for name in names.split()}
DOORS = {"onnx_graphsurgeon": {"onnxc/model.py"}, "onnxruntime": {"onnxc/session.py"}}


def files() -> list[Path]:
    return sorted([*modules(), *ROOT.glob("passes/**/*.py")])


def modules() -> list[Path]:
    """Every file of the frame; passes/ is a link inside it."""
    return [path for path in sorted(ROOT.glob("onnxc/**/*.py")) if "passes" not in path.relative_to(ROOT).parts]


def part(path: Path) -> str:
    """The module of onnxc that ``path`` is, or the folder that it lies in."""
    return path.relative_to(ROOT / "onnxc").parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    """The full name of the module at ``path``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> list[str]:
    """Names of modules imported when ``path`` runs: type-only imports do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [node.module or ""]
            found += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "onnxc"]
    return found


def below(path: Path) -> set[str]:
    """The modules of onnxc that ``path`` imports."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("onnxc.")}
    return names - {"__version__"}


def test_every_module_has_its_place() -> None:
    assert {part(path) for path in modules()} == set(ROW), "LAYERS lists every module and folder once"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_run_downward(path: Path) -> None:
    assert "passes" not in below(path), "passes come in through the entry point"
    assert not {name for name in below(path) if ROW[name] < ROW[part(path)]}


def test_there_is_no_cycle() -> None:
    known = {dotted(path) for path in modules()}
    graph = {dotted(path): {name for name in imported(path) if name in known} - {"onnxc"} for path in modules()}
    TopologicalSorter({name: found - {name} for name, found in graph.items()}).prepare()


@pytest.mark.parametrize("library", DOORS)
def test_libraries_behind_one_door(library: str) -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in files()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert importers <= DOORS[library]
    assert len(importers) == 1


def test_nobody_imports_a_top_level_package_called_passes() -> None:
    everywhere = [
        *files(),
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("models/**/*.py"),
        *ROOT.glob("docs/**/*.py"),
    ]
    for path in everywhere:
        assert not any(name == "passes" or name.startswith("passes.") for name in imported(path)), path
