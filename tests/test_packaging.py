"""What gets installed: the wheel and the source distribution, built the way a user's pip builds them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxc

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders(top: Path) -> Iterator[Path]:
    """``top`` and every folder in it that holds Python."""
    if any(top.glob("*.py")):
        yield top
    for each in sorted(top.iterdir()):
        if each.is_dir() and not each.is_symlink() and each.name != "__pycache__":
            yield from folders(each)


def expected() -> dict[str, str]:
    """Package name -> folder, from what is on disk."""
    found = {}
    for top, name in (("onnxc", "onnxc"), ("passes", "onnxc.passes")):
        for folder in folders(ROOT / top):
            inner = folder.relative_to(ROOT / top).parts
            found[".".join([name, *inner])] = folder.relative_to(ROOT).as_posix()
    return found


def test_the_package_list_is_complete() -> None:
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(expected())


def test_passes_are_reached_through_a_committed_symlink() -> None:
    link = ROOT / "onnxc" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")


def test_the_entry_points_name_what_is_there() -> None:
    project = PROJECT["project"]
    assert project["scripts"] == {"onnxc": "onnxc.cli:main"}
    assert project["entry-points"] == {"onnxc.passes": {"builtin": "onnxc.passes:PASSES"}}
    from onnxc.registry import BUILTIN, GROUP

    assert (BUILTIN.group, BUILTIN.name, BUILTIN.value) == (GROUP, "builtin", "onnxc.passes:PASSES")


def test_every_dependency_is_imported_somewhere() -> None:
    source = "\n".join(
        path.read_text(encoding="utf-8") for top in ("onnxc", "passes") for path in (ROOT / top).rglob("*.py")
    )
    for line in PROJECT["project"]["dependencies"]:
        module = line.split(">")[0].replace("-", "_")
        assert f"import {module}" in source or f"from {module}" in source, line


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel made from it."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def modules() -> set[str]:
    """Every module as the wheel should hold it."""
    return {
        f"{name.replace('.', '/')}/{path.name}"
        for name, folder in expected().items()
        for path in (ROOT / folder).glob("*.py")
    }


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"onnxc-{onnxc.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entries,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(entries).decode()
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    recipes = {f"onnxc/recipes/{path.name}" for path in (ROOT / "onnxc" / "recipes").glob("*.toml")}
    assert recipes
    assert names == modules() | recipes | {"onnxc/py.typed"}
    assert "onnxc = onnxc.cli:main" in text
    assert "builtin = onnxc.passes:PASSES" in text
    assert licences


def test_the_source_distribution_can_be_built_from(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "onnxc/__init__.py", "passes/__init__.py"} <= names


def test_the_installed_wheel_finds_its_passes(built: Path, tmp_path: Path) -> None:
    """The wheel alone, in an environment that borrows this one's dependencies."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *borrowed])}
    code = "import onnxc, sys; from onnxc.cli import main; print(onnxc.__file__); sys.exit(main(['passes']))"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert "quantize-dynamic" in done.stdout
