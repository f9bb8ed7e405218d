"""The documents are true: links lead somewhere, flags and passes exist, and what can be run is run."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import onnxc.passes
from onnxc.cli import main
from onnxc.command_line.arguments import parser
from onnxc.contract.passes import ExactPass
from onnxc.errors import OnnxcError
from onnxc.recipe import parse_recipe
from onnxc.registry import load_passes

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PAGES += [ROOT / "models" / "README.md", *sorted((ROOT / "benchmarks").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VERBS = ("optimize", "frontier", "distill", "compare", "inspect", "passes")


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Every `onnxc ...` line of the unnamed blocks, without its comment; a backslash continues it."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("onnxc "):
                yield shlex.split(line, comments=True)[1:]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_and_passes_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text(encoding="utf-8")
    if page.parent.name in ("models", "benchmarks"):
        text = "\n".join(shlex.join(words) for words in commands(page))
    shown = ""
    for verb in VERBS:
        with pytest.raises(SystemExit):
            parser().parse_args([verb, "--help"])
        shown += capsys.readouterr().out
    there = set(re.findall(r"--[a-z][a-z-]+", shown))
    foreign = {"--yes", "--strict"}  # of pip and mypy
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - foreign <= there
    passes = set(re.findall(r"`((?:quantize|store|flush|merge)-[a-z0-9-]+)[:`]", text))
    assert passes <= set(load_passes())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        assert callable(parser().parse_args(words).run), words


@pytest.fixture
def beside_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with models/ in it, prices of its own, and a calibrated result called out.onnx."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models" / "data").mkdir(parents=True)
    for name in (
        "sklearn_mlp.onnx",
        "evaluate.py",
        "scores.json",
        "data/sklearn_mlp_calib.npz",
        "data/digits.npz",
    ):
        shutil.copy(ROOT / "models" / name, tmp_path / "models" / name)
    shutil.copy(ROOT / "models" / "sklearn_mlp.onnx", tmp_path / "out.onnx")
    return tmp_path


RUN = ["frontier.md", "recipes.md", "report.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_commands_run(page: str, beside_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ROOT / "docs" / page
    for text in blocks(place, "toml"):
        (beside_models / "recipe.toml").write_text(text.replace('size = "30%"', 'size = "60%"'), encoding="utf-8")
    for words in commands(place):
        assert main(words) == 0, f"{words}: {capsys.readouterr().err}"


@pytest.mark.slow
def test_the_readme_leads_from_a_model_to_a_comparison(beside_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The quick start, with a real model under the names it uses."""
    readme = ROOT / "README.md"
    save, score = blocks(readme, "python")
    shutil.copy("models/sklearn_mlp.onnx", "model.onnx")
    rows = np.load("models/data/sklearn_mlp_calib.npz")["X"]
    Path("samples").mkdir()
    exec(save.replace("image=", "X="), {"images": rows[:32, None]})
    assert len(list(Path("samples").iterdir())) == 32
    digits = "import numpy as np\nwith np.load('models/data/digits.npz') as items:\n"
    digits += "    test_images, test_labels = items['select_x'].astype(np.float32), items['select_y']\n"
    fitted = score.replace('"image"', '"X"').replace("[0].argmax", "[-1].argmax")
    Path("score.py").write_text(digits + fitted, encoding="utf-8")
    found = list(commands(readme))[:5]  # what follows has pages of its own
    assert [words[0] for words in found] == ["inspect", "optimize", "optimize", "optimize", "compare"]
    for words in found:
        assert main(words) == 0, f"{words}: {capsys.readouterr().err}"


def python_pages() -> list[Any]:
    return [
        pytest.param(page, id=name_of(page)) for page in PAGES if blocks(page, "python") and page.name != "README.md"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", python_pages())
def test_python_runs(page: Path, beside_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other in one module; tests are called, passes registered."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    names = vars(module)
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec", dont_inherit=True), names)
    for name, value in list(names.items()):
        if name.startswith("test_"):
            value()
        if isinstance(value, type) and value.__module__ == "page" and issubclass(value, ExactPass):
            monkeypatch.setattr(onnxc.passes, "PASSES", (*onnxc.passes.PASSES, value))
            assert load_passes()[value.name] is value


def test_the_functions_of_the_data_page_are_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "data.md", "python"):
        exec(block, names)
    assert [sample["input_ids"].shape for sample in names["samples"]()] == [(1, 7), (1, 19), (1, 64)]
    assert np.load("calib.npz")["input"].shape == (64, 1, 1, 28, 28)


def test_toml_reads_as_a_recipe() -> None:
    for block in blocks(ROOT / "docs" / "recipes.md", "toml"):
        recipe = parse_recipe(tomllib.loads(block))
        assert recipe.budget.max_drop == pytest.approx(0.005)
        assert [request.name for request in recipe.passes or ()] == ["quantize-static", "store-int8"]


def test_exit_codes_are_those_of_the_errors() -> None:
    def below(kind: type[OnnxcError]) -> Iterator[type[OnnxcError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from below(each)

    text = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert listed == {0, 130} | {kind.exit_code for kind in below(OnnxcError)}


def test_every_page_is_reached_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name
