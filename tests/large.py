"""A 3 GB model through copy and edit, by hand: ``python -m tests.large FOLDER``. Needs 10 GB of disk.

Prints the seconds and the peak of the process's own memory, the pages of mapped files not counted, for:
copying the model with external data, and giving every weight int8 values. Not a test: it takes a minute.
"""

from __future__ import annotations

import resource
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
    main(Path(sys.argv[1]))
