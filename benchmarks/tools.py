"""What is compared. In: nothing. Out: every tool with its modes, and the command that runs it on a task.

A mode is the best documented way that a tool has for a CPU and a kind of model; what each does is written at the top
of its script in compress/. Nobody has to choose a mode of onnxc: the three differ in what it is given. One more tool is
a line here, one in environments.py, a color in plot.py, and a script.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from environments import HERE, python_of
from tasks import Task

Command = list[str]


@dataclass(frozen=True)
class Tool:
    """A tool in a mode; ``script`` and ``environment`` are empty for onnxc, which runs from here."""

    name: str
    mode: str
    environment: str = ""
    script: str = ""

    @property
    def label(self) -> str:
        """How tables call it."""
        return f"{self.name} {self.mode}".strip()

    @property
    def file(self) -> str:
        """The same, for a path."""
        return self.label.replace(" ", "-").replace("--", "-")

    def command(self, task: Task, source: Path, samples: Path, target: Path, torch: str) -> Command:
        """What to run; makes the environment if it is not there."""
        if self.name == "onnxc":
            prices = ["--prices", f"{target}.prices.json"]
            given = [str(source), str(target), *prices, *ONNXC_MODES[self.mode](task, samples)]
            return [sys.executable, "-m", "onnxc", "optimize", *given]
        python = str(python_of(self.environment, torch))
        script = str(HERE / "compress" / self.script)
        return [python, script, self.mode, str(source), str(target), str(samples)]


def with_all(task: Task, samples: Path) -> Command:
    """Samples, and the score of the select items where there is one."""
    return ["--calib", str(samples), *(["--eval", task.hook] if task.hook else [])]


ONNXC_MODES: dict[str, Callable[[Task, Path], Command]] = {
    "": with_all,
    "--ops ort": lambda task, samples: [*with_all(task, samples), "--ops", "ort"],
    "without data": lambda task, samples: [],
}
PEERS = {
    "ONNX Runtime": ("onnxruntime", "with_onnxruntime.py", ("dynamic", "static", "nbits")),
    "onnxsim": ("onnxsim", "with_onnxsim.py", ("dynamic", "static", "gptq")),
    "NNCF": ("nncf", "with_nncf.py", ("static", "transformer", "int4")),
    "AIMET": ("aimet", "with_aimet.py", ("int8", "cle", "adaround")),
    "Quark": ("quark", "with_quark.py", ("u8s8", "adaround", "transformer")),
    "ModelOpt": ("modelopt", "with_modelopt.py", ("int8", "int4")),
    "Olive": ("olive", "with_olive.py", ("dynamic", "static", "rtn4")),
    "Neural Compressor": ("neural-compressor", "with_neural_compressor.py", ("dynamic", "static")),
}
TOOLS = [Tool("onnxc", mode) for mode in ONNXC_MODES]
TOOLS += [
    Tool(name, mode, environment, script) for name, (environment, script, modes) in PEERS.items() for mode in modes
]
