"""A 3 GB model through copy and edit, by hand: ``python -m tests.large FOLDER``. Needs 10 GB of disk.

Prints the seconds and the peak of the process's own memory, the pages of mapped files not counted, for:
copying the model with external data, and giving every weight int8 values. Not a test: it takes a minute.

``python -m tests.large FOLDER optimize`` makes a model of 2.6 GB, a chain of real-sized linears, and compresses it
without data, in a process of its own whose peak of resident memory is printed.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx

from onnxc.model import Model

_COUNT, _SHAPE = 30, (2560, 10240)  # 30 weights of 105 MB
_LIMIT = 1 << 30  # bytes of own memory: an attempt at more fails


def write_source(folder: Path) -> Path:
    """The model file; weight i is filled with i, its last element with -i."""
    path = folder / "large.onnx"
    weights, nodes = [], []
    with (folder / "large.data").open("wb") as file:
        for index in range(_COUNT):
            array = np.full(_SHAPE, index, np.float32)
            array[-1, -1] = -index
            tensor = onnx.TensorProto(name=f"w{index}", dims=_SHAPE, data_type=1, data_location=1)
            for key, value in (("location", "large.data"), ("offset", file.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(array.data)
            weights.append(tensor)
            nodes.append(onnx.helper.make_node("MatMul", ["x", f"w{index}"], [f"y{index}"]))
    info = onnx.helper.make_tensor_value_info
    outputs = [info(f"y{index}", 1, ["batch", _SHAPE[1]]) for index in range(_COUNT)]
    inputs = [info("x", 1, ["batch", _SHAPE[0]])]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "large", inputs, outputs, weights)), path)
    return path


def write_chain(folder: Path) -> Path:
    """25 linears [5120, 5120] with Relu and a residual Add between them: 2.6 GB; weights as training leaves them, so
    that activations keep their size.
    """
    path, width = folder / "chain.onnx", 5120
    weights, nodes, last = [], [], "x"
    random = np.random.default_rng(0)
    with (folder / "chain.data").open("wb") as file:
        for index in range(25):
            array = random.standard_normal((width, width), np.float32) * np.float32(width**-0.5)
            tensor = onnx.TensorProto(name=f"w{index}", dims=array.shape, data_type=1, data_location=1)
            for key, value in (("location", "chain.data"), ("offset", file.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(array.data)
            weights.append(tensor)
            nodes.append(onnx.helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"], name=f"linear{index}"))
            nodes.append(onnx.helper.make_node("Relu", [f"m{index}"], [f"r{index}"], name=f"relu{index}"))
            nodes.append(onnx.helper.make_node("Add", [f"r{index}", "x"], [f"y{index}"], name=f"add{index}"))
            last = f"y{index}"
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "chain", [info("x", 1, ["batch", width])], [info(last, 1, ["batch", width])], weights
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def compress(folder: Path) -> None:
    """Optimize the chain without data; check that what was written loads and is a quarter."""
    source, out = write_chain(folder), folder / "small.onnx"
    started = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "onnxc",
        "optimize",
        str(source),
        str(out),
        "--prices",
        str(folder / "prices.json"),
    ]
    subprocess.run([*command, "--fresh"], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    before = sum(path.stat().st_size for path in (source, folder / "chain.data"))
    after = out.stat().st_size + sum(path.stat().st_size for path in folder.glob("small.onnx.*.data"))
    print(f"optimize: {before / 1e9:.2f} GB to {after / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s")
    print(f"peak of a process: {peak:.2f} GB of memory, mapped files counted")
    assert after < 0.3 * before


def own_megabytes() -> int:
    """Memory of this process that is no mapped file, now."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon"))


def main(folder: Path) -> None:
    """Copy, check, edit, check."""
    source = write_source(folder)
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT))
    before = own_megabytes()
    started = time.perf_counter()
    model = Model.load(source)
    print(f"load: {time.perf_counter() - started:.2f} s, {own_megabytes() - before} MB of own memory")
    started = time.perf_counter()
    size = model.save(folder / "copy.onnx")
    print(f"copy: {size / 1e9:.2f} GB in {time.perf_counter() - started:.1f} s, {own_megabytes() - before} MB")
    again = Model.load(folder / "copy.onnx")
    for index, tensor in enumerate(again.graph.weights):
        assert tensor.values[0, 0] == index
        assert tensor.values[-1, -1] == -index
    started = time.perf_counter()
    for tensor in again.graph.weights:
        tensor.values = tensor.values.astype(np.int8)
    size = again.save(folder / "edit.onnx", external_data=True)
    seconds = time.perf_counter() - started
    print(f"edit: {size / 1e9:.2f} GB in {seconds:.1f} s, {own_megabytes() - before} MB more (the new values)")
    for index, tensor in enumerate(Model.load(folder / "edit.onnx").graph.weights):
        assert tensor.values[-1, -1] == -index


if __name__ == "__main__":
    (compress if "optimize" in sys.argv[2:] else main)(Path(sys.argv[1]))
