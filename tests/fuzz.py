"""Damaged model files, made from a seed, through load, check and optimize.

    python tests/fuzz.py --first 0 --count 1000 --journal FILE           load and check
    python tests/fuzz.py --first 0 --count 60 --journal FILE --optimize  the whole command

In: a range of seeds. Out: a line per seed in the journal before its file is read, one after, which says BAD
where the file caused anything but success or a one-line error of the right kind. No second line: a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxc.cli import main as command_line
from onnxc.errors import InputError
from onnxc.model import Model
from onnxc.session import Session

LIMIT_SECONDS = 240  # of one file; longer is a hang (a damaged shape may be honest work for a minute)
LIMIT_BYTES = 8 << 30  # a damaged shape may ask for more memory than there is
FLOAT = TensorProto.FLOAT
MILD = (1, 2, 8, 9, 10, 11, 15)  # kinds of break_structure()


def bases() -> list[onnx.ModelProto]:
    """Small models in which every part of the format that we read occurs."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    def model(nodes: list[onnx.NodeProto], shape: list[int | str], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
        graph = helper.make_graph(
            nodes,
            "fuzzed",
            [helper.make_tensor_value_info("x", FLOAT, shape)],
            [helper.make_tensor_value_info("y", FLOAT, None)],
            weights,
            doc_string="a graph",
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        made.metadata_props.add(key="author", value="somebody")
        return made

    node = helper.make_node
    convolutions = model(
        [
            node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1], name="stem"),
            node("BatchNormalization", ["c0", "b0", "b0", "b0", "var"], ["n0"], name="norm"),
            node("Relu", ["n0"], ["r0"]),
            node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1], group=1),
            node("Add", ["c1", "r0"], ["s"]),
            node("GlobalAveragePool", ["s"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "w2"], ["y"], transB=1),
        ],
        ["n", 3, 8, 8],
        [
            weight("w0", 16, 3, 3, 3),
            weight("b0", 16),
            weight("w1", 16, 16, 3, 3),
            weight("w2", 10, 16),
            numpy_helper.from_array(np.ones(16, np.float32), "var"),
        ],
    )

    def branch(name: str, factor: str) -> onnx.GraphProto:
        return helper.make_graph(
            [node("MatMul", ["h", factor], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, FLOAT, None)],
        )

    branches = model(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("ReduceSum", ["h"], ["total"], keepdims=0),
            node("Greater", ["total", "zero"], ["positive"]),
            node("If", ["positive"], ["i"], then_branch=branch("t", "v"), else_branch=branch("e", "u")),
            node("Softmax", ["i"], ["y"]),
        ],
        ["n", 32],
        [
            weight("w", 32, 48),
            weight("v", 48, 8),
            weight("u", 48, 8),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    recurrent = model(
        [
            node("LSTM", ["x", "w", "r"], ["o", "", ""], hidden_size=16),
            node("Squeeze", ["o", "one"], ["q"]),
            node("Reshape", ["q", "shape"], ["y"]),
        ],
        [4, "n", 12],
        [weight("w", 1, 64, 12), weight("r", 1, 64, 16)]
        + [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("one", [1]), ("shape", [-1, 16]))],
    )
    return [convolutions, branches, recurrent]


def damaged(seed: int, *, mild: bool = False) -> bytes:
    """One of the bases with its bytes or structure damaged in a few places; mild damage often still loads."""
    rng = np.random.default_rng(seed)
    model = bases()[int(rng.integers(3))]
    if mild:
        break_structure(model, rng, MILD)
        return model.SerializeToString()
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 4))):
            break_structure(model, rng)
        return model.SerializeToString()
    data = bytearray(model.SerializeToString())
    for _ in range(int(rng.integers(1, 4))):
        break_bytes(data, rng)
    return bytes(data)


def break_bytes(data: bytearray, rng: np.random.Generator) -> None:
    """Flip, cut, repeat, insert or blank somewhere, most often near an end, where the structure is."""
    if not data:
        return
    reach = len(data) if rng.random() < 0.34 else min(len(data), 600)
    at = int(rng.integers(reach)) if rng.random() < 0.5 else len(data) - 1 - int(rng.integers(reach))
    size = int(rng.integers(1, 40))
    kind = int(rng.integers(6))
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : at + size]
    elif kind == 3:
        data[at:at] = data[at : at + size]
    elif kind == 4:
        data[at:at] = rng.bytes(size)
    else:
        data[at : at + size] = bytes(len(data[at : at + size]))


def break_structure(model: onnx.ModelProto, rng: np.random.Generator, kinds: Sequence[int] = range(16)) -> None:
    """Still protobuf but no sound model: dangling, cyclic, mistyped, misshapen, unknown, not finite."""
    graph = model.graph

    def any_of(items: object) -> object:
        found = list(items)  # type: ignore[call-overload]  # repeated protobuf fields have no common type
        return found[int(rng.integers(len(found)))] if found else None

    node, tensor = any_of(graph.node), any_of(graph.initializer)
    number = int(rng.choice([-1, 0, 1, 2, 3, 7, 17, 1 << 20, (1 << 31) - 1, 1 << 40, -(1 << 62)]))
    kind = int(rng.choice(kinds))
    if kind == 0 and node is not None and node.input:
        node.input[int(rng.integers(len(node.input)))] = "nowhere"
    elif kind == 1 and node is not None and node.input:
        other = any_of(graph.node)
        node.input[0] = other.output[0] if other.output else ""
    elif kind == 2 and node is not None:
        node.op_type = str(
            rng.choice(["Conv", "Gemm", "Loop", "Reshape", "NoSuchOp", "", "Constant", "Cast", "Gather"])
        )
    elif kind == 3 and tensor is not None and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = number
    elif kind == 4 and tensor is not None:
        tensor.data_type = int(rng.integers(0, 30))
    elif kind == 5 and tensor is not None:
        tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
    elif kind == 6 and tensor is not None:
        graph.initializer.remove(tensor)
    elif kind == 7 and node is not None and node.attribute:
        attribute = any_of(node.attribute)
        attribute.type = int(rng.integers(0, 15))
    elif kind == 8 and node is not None and node.attribute:
        attribute = any_of(node.attribute)
        attribute.i, attribute.f = number, float("nan")
        attribute.ints[:] = [number] * int(rng.integers(0, 6))
    elif kind == 9 and model.opset_import:
        model.opset_import[0].version = int(rng.choice([-1, 0, 1, 5, 6, 9, 11, 12, 13, 21, 99, 1 << 40]))
    elif kind == 10 and tensor is not None:
        size = len(tensor.raw_data)
        tensor.raw_data = np.full(size // 4, rng.choice([np.nan, np.inf, 1e-42, 1e38]), np.float32).tobytes()
    elif kind == 11:
        shape = graph.input[0].type.tensor_type.shape
        shape.dim[int(rng.integers(len(shape.dim)))].dim_value = number
    elif kind == 12 and node is not None:
        graph.node.append(node)
    elif kind == 13 and tensor is not None:
        tensor.data_location = TensorProto.EXTERNAL
        place = str(rng.choice(["missing.bin", "../../../etc/hostname", "/etc/hostname", ""]))
        tensor.external_data.add(key="location", value=place)
        tensor.external_data.add(key="offset", value=str(number))
    elif kind == 14:
        graph.output[0].name = str(rng.choice(["", "x", "nowhere", "h"]))
    elif node is not None and node.output:
        node.output[0] = str(rng.choice(["", "x", "y"]))


def check(path: Path) -> None:
    """Load, and where that works let ONNX Runtime load what would be saved."""
    model = Model.load(path)
    target = path.with_suffix(".saved")
    model.save(target)
    Session(target)


def optimize(path: Path) -> None:
    """The command, quietly; anything but an honest exit code is a failure."""
    out = path.with_suffix(".out")
    out.unlink(missing_ok=True)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        prices = str(path.with_name("prices.json"))
        code = command_line(["optimize", str(path), str(out), "--quiet", "--debug", "--prices", prices])
    if code not in (0, 3):
        raise AssertionError(f"exit code {code}: {said.getvalue()[-1500:]}")
    if out.exists() != (code == 0):
        raise AssertionError(f"exit code {code}, but OUT {'exists' if out.exists() else 'does not exist'}")
    if code == 0:
        Session(out)


def main() -> None:
    """Run the seeds of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop earlier")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--optimize", action="store_true")
    parsed = parser.parse_args()
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    end = time.monotonic() + parsed.seconds
    with tempfile.TemporaryDirectory() as folder, parsed.journal.open("a", encoding="utf-8") as journal:
        path = Path(folder, "damaged.onnx")
        for seed in range(parsed.first, parsed.first + parsed.count):
            if time.monotonic() > end:
                break
            path.write_bytes(damaged(seed, mild=parsed.optimize and seed % 4 > 0))
            print(f"{seed} begins", file=journal, flush=True)
            faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
            try:
                (optimize if parsed.optimize else check)(path)
                print(f"{seed} sound", file=journal, flush=True)
            except InputError as error:
                verdict = "refused" if "\n" not in str(error) else "BAD: more than one line"
                print(f"{seed} {verdict}", file=journal, flush=True)
            except BaseException:  # noqa: BLE001  # whatever it is goes into the journal
                print(f"{seed} BAD: {traceback.format_exc()}", file=journal, flush=True)
            faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
