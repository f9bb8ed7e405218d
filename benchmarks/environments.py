"""A virtual environment per tool, made when it is first needed. In: a tool's environment. Out: its python.

They lie in benchmarks/.bench/environments. Versions are pinned: another version is another result. PyTorch is
installed before what needs it, from what --torch says, because the plain package brings gigabytes for CUDA. Some tools
do not name all that they import: it stands here too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE / ".bench"
RUNTIME = "onnxruntime==1.32.0"
MODELOPT = (  # its extra [onnx] with onnxruntime instead of onnxruntime-gpu, without cupy
    *("onnx~=1.21.0", "onnxruntime~=1.24.2", "onnxconverter-common~=1.16.0", "onnx-graphsurgeon>=0.6.1"),
    *("cppimport", "lief", "ml_dtypes", "onnxscript", "onnxslim>=0.1.76", "polygraphy>=0.53.4"),
)


@dataclass(frozen=True)
class Environment:
    """What to install, the tool first; ``torch``: PyTorch comes before it."""

    requirements: tuple[str, ...]
    torch: bool = False


ENVIRONMENTS = {
    "onnxruntime": Environment((RUNTIME, "onnx==1.23.2", "onnx-ir", "sympy")),
    "onnxsim": Environment(("onnxsim==0.8.1", RUNTIME)),
    "nncf": Environment(("nncf==3.4.0", "onnx", RUNTIME)),
    "aimet": Environment(("aimet-onnx==2.42.0", "torchvision==0.28.0", RUNTIME), torch=True),
    "quark": Environment(("amd-quark==0.13", RUNTIME), torch=True),
    "modelopt": Environment(("nvidia-modelopt==0.47.0", *MODELOPT), torch=True),
    "olive": Environment(("olive-ai==0.13.0", "requests", RUNTIME), torch=True),
    "neural-compressor": Environment(
        ("onnx-neural-compressor==1.0", "numpy<2", "prettytable", "psutil", "py-cpuinfo", "scipy", RUNTIME)
    ),
}


class InstallError(Exception):
    """A tool does not install here; the message is one line."""


def python_of(name: str, torch: str) -> Path:
    """The interpreter of an environment, which is made if it is not there.

    Raises:
        InstallError: if something does not install; half an environment is not left behind.
    """
    folder = WORK / "environments" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / ".installed"
    wanted = ENVIRONMENTS[name]
    if stamp.exists() and stamp.read_text(encoding="utf-8").split("\n") == list(wanted.requirements):
        return python
    print(f"installing {wanted.requirements[0]}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    commands = [[sys.executable, "-m", "venv", str(folder)]]
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands += [[*install, torch]] if wanted.torch else []
    commands += [[*install, *wanted.requirements]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise InstallError(f"does not install: {lines[-1][:140]}")
    stamp.write_text("\n".join(wanted.requirements), encoding="utf-8")
    return python
