"""The models of the ONNX backend test suite: ``python -m tests.corpus`` says what becomes of them.

In: the installed onnx package; nothing is downloaded. Out: every model with the inputs its test has, or made-
up ones.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime
from onnx import ModelProto

from onnxc.errors import ModelError
from onnxc.model import Model

_DATA = Path(onnx.backend.test.__file__).parent / "data"
_NEWEST_IR = 13  # that the installed ONNX Runtime reads
_UNSIZED = 2  # extent of axes that a model leaves open


@dataclass(frozen=True)
class Case:
    """A model of the suite: its name, what it is, and how to get its inputs."""

    name: str
    model: ModelProto
    feeds: Callable[[], dict[str, Any]]


def cases() -> Iterator[Case]:
    """All models: the files of the wheel, then those that the package makes (about 2036)."""
    files = sorted(_DATA.rglob("*.onnx"))
    for path in files:
        yield _case_of_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the expected outputs are computed with overflows on purpose
        made = list(importlib.import_module("onnx.backend.test.loader").load_node_model_tests())
        made += importlib.import_module("onnx.backend.test.case.model").collect_testcases()
    known = {path.parent.name for path in files}
    for case in made:
        if case.model is not None and case.name not in known:
            yield Case(case.name, case.model, _named(case.model, case.data_sets[0][0] if case.data_sets else []))


def _case_of_file(path: Path) -> Case:
    model = onnx.load(path)
    name = path.relative_to(_DATA).with_suffix("").as_posix()
    files = sorted(path.parent.glob("test_data_set_0/input_*.pb"), key=lambda file: int(file.stem.split("_")[1]))
    if not files:
        return Case(name, model, lambda: made_up(model))
    return Case(name, model, _named(model, files))


def _named(model: ModelProto, feeds: Sequence[Any]) -> Callable[[], dict[str, Any]]:
    """The feeds by the names of the inputs that need one, in their order."""
    return lambda: {
        info.name: _read(feed, info.type) if isinstance(feed, Path) else feed
        for info, feed in zip(model.graph.input, feeds, strict=False)
    }


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    if kind.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data))


def made_up(model: ModelProto) -> dict[str, Any]:
    """Random inputs of the right type and shape, without a name for those that have a default."""
    generator = np.random.default_rng(0)
    defaults = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name not in defaults:
            shape = [dim.dim_value or _UNSIZED for dim in info.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            feeds[info.name] = generator.standard_normal(shape).astype(dtype)
    return feeds


def run(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    """Outputs under ONNX Runtime, one thread; raises what it raises."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    onnxruntime.set_seed(0)
    if model.ir_version > _NEWEST_IR:
        lowered = ModelProto()
        lowered.CopyFrom(model)
        lowered.ir_version = _NEWEST_IR
        model = lowered
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    feeds = {name: _plain(value) for name, value in feeds.items() if name in wanted}
    outputs: list[Any]
    exotic = any(_is_exotic(value) for value in feeds.values())
    try:
        if not exotic:
            outputs = session.run(None, feeds)
            return outputs
    except RuntimeError as error:
        if "No corresponding Numpy type" not in str(error):
            raise
    values = {name: _ort_value(value) for name, value in feeds.items()}
    return [_bytes_of(value) for value in session.run_with_ort_values(None, values)]


def _plain(value: Any) -> Any:
    """A feed as an array, or a list of arrays."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _is_exotic(value: Any) -> bool:
    """Whether numpy has the type from ml_dtypes only."""
    return isinstance(value, np.ndarray) and value.dtype.isbuiltin == 2


def _ort_value(value: np.ndarray) -> onnxruntime.OrtValue:
    if not _is_exotic(value):
        return onnxruntime.OrtValue.ortvalue_from_numpy(value)
    tensor = onnx.numpy_helper.from_array(value)
    carrier = np.uint16 if value.dtype.itemsize == 2 else np.uint8
    data = np.frombuffer(tensor.raw_data, carrier)
    if data.size != value.size:
        raise ValueError("packed types cannot be fed from Python")
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(data.reshape(value.shape), tensor.data_type)


def _bytes_of(value: onnxruntime.OrtValue) -> Any:
    """Type, shape and bytes of an output, whatever its type."""
    if not value.is_tensor():
        return value.numpy()
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if value.data_ptr() else b""
    return value.data_type(), value.shape(), data


def same_bits(a: Any, b: Any) -> bool:
    """Whether two outputs are equal to the last bit; sequences and maps entry by entry."""
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray) and a.dtype != object:
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and a.tolist() == b.tolist()
    return type(a) is type(b) and (a == b or (a != a and b != b))  # noqa: PLR0124 - not a number is itself


def touched(model: Model) -> Model:
    """A copy in which every constant has new, equal values: nothing of it can be written back as it was."""
    copy = model.copy()
    tensors = [tensor for graph in copy.graphs() for tensor in graph.weights]
    tensors += [value for node in copy.nodes() for value in node.attrs.values() if hasattr(value, "is_constant")]
    for tensor in tensors:
        tensor.values = tensor.values.copy()
    return copy


def judge(case: Case) -> dict[str, str]:
    """What load and save make of one model.

    Returns:
        Findings by kind, empty text where all is well: "load", "structure" (saved message differs), "copy" (a
        tidied copy differs), "values" (weights differ after being touched), "outputs" (bits differ in ONNX
        Runtime), "touched outputs" (the same after touching all values), "runtime" (ONNX Runtime cannot run
        the original).
    """
    found: dict[str, str] = {}
    try:
        model = Model.load(case.model)
        saved = onnx.load_from_string(model.serialized())
        copy = model.copy()
        copy.tidy()
        edited = touched(model)
    except ModelError as error:
        return {"load": str(error)}
    if saved != case.model:
        found["structure"] = "the saved message differs"
    if copy.proto() != case.model:
        found["copy"] = "a tidied copy differs"
    before = {tensor.name: tensor.values for graph in model.graphs() for tensor in graph.weights}
    after = Model.load(edited.proto())
    weights = [tensor for graph in after.graphs() for tensor in graph.weights]
    if not all(same_bits(before[tensor.name], tensor.values) for tensor in weights):
        found["values"] = "weights differ after their values were set anew"
    try:
        expected = run(case.model, case.feeds())
    except Exception as error:  # noqa: BLE001 - any reason of the runtime's is a row of the table
        found["runtime"] = _reason(error)
        return found
    for kind, message in (("outputs", saved), ("touched outputs", edited.proto())):
        try:
            if not same_bits(expected, run(message, case.feeds())):
                found[kind] = "outputs differ"
        except Exception as error:  # noqa: BLE001 - see above
            found[kind] = f"no longer runs: {_reason(error)}"
    return found


def _reason(error: Exception) -> str:
    """The kind of a runtime's refusal, in a few words."""
    text = " ".join(str(error).split())
    for part, words in (
        ("is under development and support for this is limited", "its opset is newer than the runtime"),
        ("Opset", "its opset is newer than the runtime"),
        ("NOT_IMPLEMENTED", "no kernel for an operator or type"),
        ("is not a registered function/op", "unknown operator"),
        ("No Op registered", "unknown operator"),
        ("not a valid type", "a type the runtime does not read"),
        ("cannot be fed from Python", "packed inputs cannot be fed from Python"),
        ("MLDataType", "inputs of a type that cannot be fed from Python"),
        ("Exception during initialization", "fails while it is loaded"),
        ("Non-zero status code", "stops while running"),
        ("INVALID_GRAPH", "refused as an invalid graph"),
        ("INVALID_ARGUMENT", "refused input or argument"),
        ("RUNTIME_EXCEPTION", "stops while running"),
    ):
        if part in text:
            return words
    return f"{type(error).__name__}: {text[:90]}"


def roundtrip(pattern: str = "") -> int:
    """Run all models, print the figures and every exception; the number of exceptions."""
    total = ran = 0
    reasons: Counter[str] = Counter()
    findings: list[tuple[str, str, str]] = []
    started = time.perf_counter()
    for case in cases():
        if pattern not in case.name:
            continue
        total += 1
        found = judge(case)
        if "runtime" in found:
            reasons[found.pop("runtime")] += 1
        elif "load" not in found:
            ran += 1
        findings += [(case.name, kind, text) for kind, text in found.items()]
    count = Counter(kind for _, kind, _ in findings)
    print(f"| models | {total} |\n|---|---|")
    print(f"| load | {total - count['load']} |")
    print(f"| saved structurally identical | {total - count['load'] - count['structure']} |")
    print(f"| tidied copy structurally identical | {total - count['load'] - count['copy']} |")
    print(f"| weights equal after touching all values | {total - count['load'] - count['values']} |")
    print(f"| run in ONNX Runtime {onnxruntime.__version__} | {ran} |")
    print(f"| outputs bit-equal | {ran - count['outputs']} |")
    print(f"| outputs bit-equal after touching all values | {ran - count['touched outputs']} |")
    print(f"| seconds | {time.perf_counter() - started:.0f} |")
    print("\n| not run in ONNX Runtime because | models |\n|---|---|")
    for reason, number in reasons.most_common():
        print(f"| {reason} | {number} |")
    if findings:
        print("\n| exception | in | what |\n|---|---|---|")
        for name, kind, text in findings:
            print(f"| {name} | {kind} | {text} |")
    return len(findings)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("--only", default="", help="part of the names")
    options = parser.parse_args(arguments)
    return 1 if roundtrip(options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
