"""The formats of calibration data, read one sample at a time.

In: a folder or file, or Python code that yields samples. Out: a Reader of raw samples, each with the name by
which an error message can point to it. What the samples hold is checked elsewhere (data.py).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxc.errors import DataError
from onnxc.samples.hooks import Hook

if TYPE_CHECKING:
    from onnxc.session import TensorInfo

Raw = tuple[str, Mapping[str, Any]]  # what to call the sample in an error, and its arrays by name

_ENDLESS = 100_000  # samples after which a function is taken to never end
_FORMATS = "*.npz (one sample each) or test_data_set_*/input_*.pb"


@dataclass(frozen=True)
class Reader:
    """Samples that can be read again and again.

    Attributes:
        kind: what they are, for the report: "64 .npz files".
        read: reads one by its number; None when they only come in a row.
        stream: reads them all in order.
        count: how many there are; None when only reading them all tells.
    """

    kind: str
    stream: Callable[[], Iterator[Raw]]
    read: Callable[[int], Raw] | None = None
    count: int | None = None

    @classmethod
    def indexed(cls, kind: str, count: int, read: Callable[[int], Raw]) -> Reader:
        return cls(kind, lambda: (read(index) for index in range(count)), read, count)


def open_reader(spec: Any, inputs: Sequence[TensorInfo]) -> Reader:
    """The reader for whatever --calib or ``calib=`` may be; DataError when there is nothing to read."""
    if isinstance(spec, str | Path):
        path = Path(spec)
        if path.is_dir():
            return _folder(path, inputs)
        if path.is_file():
            if path.suffix == ".npz":
                return _stacked(path, _load(path), inputs)
            if path.suffix == ".npy":
                if len(inputs) != 1:
                    raise DataError(f"{path} holds one array, but the model has {len(inputs)} inputs: give an .npz")
                return _stacked(path, {inputs[0].name: _load(path)}, inputs)
            if path.suffix == ".py":
                raise DataError(f"{path}: name the function too, as {path.name}:FUNCTION")
            raise DataError(f"{path} is none of .npz, .npy, FILE.py:FUNCTION, or a folder of {_FORMATS}")
        if re.search(r"\.py:\w*$", str(spec)):
            return _function(Hook.load(spec, DataError), inputs)
        raise DataError(f"{path} does not exist: give .npz, .npy, FILE.py:FUNCTION, or a folder of {_FORMATS}")
    if isinstance(spec, Mapping):
        raise DataError("calibration data is one dict: give a list of dicts, one for each sample")
    if callable(spec):
        return _function(Hook.load(spec, DataError), inputs)
    if not isinstance(spec, Iterable):
        raise DataError(f"calibration data of type {type(spec).__name__}: give a path or an iterable of dicts")
    held = spec if isinstance(spec, Sequence) else list(spec)  # an iterator could not be read twice
    return Reader.indexed("given samples", len(held), lambda i: (f"sample {i}", _named(held[i], inputs, f"sample {i}")))


def _folder(path: Path, inputs: Sequence[TensorInfo]) -> Reader:
    files = sorted(path.glob("*.npz"))
    if files:

        def read(index: int) -> Raw:
            file = files[index]
            return str(file), _positional(_load(file), inputs)

        return Reader.indexed(f".npz files of {path}", len(files), read)
    sets = sorted((each for each in path.glob("test_data_set_*") if each.is_dir()), key=_by_number)
    if not sets and any(path.glob("input_*.pb")):
        sets = [path]
    if sets:
        return Reader.indexed(
            f"test data sets of {path}", len(sets), lambda i: (str(sets[i]), _protobufs(sets[i], inputs))
        )
    raise DataError(f"{path} holds no {_FORMATS}")


def _load(path: Path) -> Any:
    """An array, or name -> array; DataError naming the file when numpy cannot read it."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        KeyError,
        MemoryError,
        RuntimeError,
        SyntaxError,
    ) as error:
        reason = " ".join(str(error).split())
        if "pickle" in reason.lower():
            reason = "it holds Python objects or is not a numpy file; save plain arrays with numpy.savez"
        raise DataError(f"{path} cannot be read: {reason[:200] or type(error).__name__}") from error
    except Exception as error:  # zlib and the header parser raise classes of their own
        raise DataError(
            f"{path} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def _positional(arrays: Mapping[str, Any], inputs: Sequence[TensorInfo]) -> Mapping[str, Any]:
    """numpy.savez(file, a, b) names arrays arr_0, arr_1: taken as the inputs in order."""
    generic = [f"arr_{index}" for index in range(len(inputs))]
    if sorted(arrays) != sorted(generic) or any(each.name in arrays for each in inputs):
        return arrays
    return {each.name: arrays[name] for each, name in zip(inputs, generic, strict=True)}


def _stacked(path: Path, loaded: Any, inputs: Sequence[TensorInfo]) -> Reader:
    """Samples along axis 0: an array of the input's rank is cut into slices of the fixed batch (or 1), axis
    kept; of one rank more, axis 0 counts samples; scalars are shared. What can only be one sample is one.
    """
    if not isinstance(loaded, Mapping):
        raise DataError(f"{path} is no .npz archive: rename it to .npy or save it with numpy.savez")
    arrays = _positional(loaded, inputs)
    known = {each.name: each for each in inputs}
    counts: dict[str, int] = {}
    cuts: dict[str, int] = {}  # rows per sample; 0 when axis 0 counts samples
    for name, array in arrays.items():
        if array.ndim == 0 or name not in known:
            continue
        shape = known[name].shape
        if array.ndim == len(shape) + 1:
            counts[name], cuts[name] = len(array), 0
        elif array.ndim == len(shape):
            batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 1
            if len(array) % batch:
                raise DataError(
                    f"{path}: {name!r} has {len(array)} rows, no multiple of the model's fixed batch {batch}"
                )
            counts[name], cuts[name] = len(array) // batch, batch
        else:
            raise DataError(
                f"{path}: {name!r} has rank {array.ndim}, but the model's input has rank {len(shape)} "
                f"({_axes(shape)}); stacked samples have rank {len(shape)} or {len(shape) + 1}"
            )
    if len(set(counts.values())) > 1:
        if all(cuts.values()) and _one_sample(arrays, known):
            return Reader.indexed(str(path), 1, lambda _: (str(path), arrays))
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"{path}: the inputs do not hold the same number of samples: {listed}")

    def read(index: int) -> Raw:
        sample = {}
        for name, array in arrays.items():
            rows = cuts.get(name)
            if rows is None:
                sample[name] = array
            else:
                sample[name] = array[index * rows : (index + 1) * rows] if rows else array[index, ...]
        return f"{path} sample {index}", sample

    return Reader.indexed(str(path), next(iter(counts.values()), 1), read)


def _one_sample(arrays: Mapping[str, np.ndarray], known: Mapping[str, TensorInfo]) -> bool:
    """Whether axes of one name have one size and fixed axes theirs, all arrays taken whole."""
    sizes: dict[str | int, int] = {}
    for name, info in known.items():
        if name not in arrays or arrays[name].ndim != len(info.shape):
            continue
        for axis, size in zip(info.shape, arrays[name].shape, strict=True):
            if axis is not None and sizes.setdefault(axis, axis if isinstance(axis, int) else size) != size:
                return False
    return True


def _protobufs(folder: Path, inputs: Sequence[TensorInfo]) -> dict[str, Any]:
    """input_0.pb, input_1.pb, ...: by the names inside if they are the model's, else in order."""
    files = sorted(folder.glob("input_*.pb"), key=_by_number)
    if not files:
        raise DataError(f"{folder} holds no input_*.pb")
    if len(files) > len(inputs):
        raise DataError(f"{folder} holds {len(files)} input_*.pb, but the model has {len(inputs)} inputs")
    known = {each.name: each for each in inputs}
    found: dict[str, Any] = {}
    for position, file in enumerate(files):
        expected = inputs[position]
        name, value = _protobuf(file, expected.dtype)
        name = name if name in known and name not in found else expected.name
        if name in found:
            raise DataError(f"{file}: input {name!r} is in {folder} twice")
        found[name] = value
    return found


def _protobuf(file: Path, dtype: str) -> tuple[str, Any]:
    try:
        data = file.read_bytes()
        if dtype.startswith("seq("):
            sequence = onnx.SequenceProto.FromString(data)
            return sequence.name, numpy_helper.to_list(sequence)
        if dtype.startswith("optional("):
            optional = onnx.OptionalProto.FromString(data)
            return optional.name, numpy_helper.to_optional(optional)
        tensor = onnx.TensorProto.FromString(data)
        if tensor.data_type == onnx.TensorProto.UNDEFINED:
            raise ValueError("it holds no tensor")
        return tensor.name, numpy_helper.to_array(tensor, base_dir=str(file.parent))
    except Exception as error:  # protobuf's and numpy's classes differ between versions
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _function(hook: Hook, inputs: Sequence[TensorInfo]) -> Reader:
    def stream() -> Iterator[Raw]:
        with hook.guarded():
            samples = iter(hook.function())
        for index in range(_ENDLESS):
            with hook.guarded():
                sample = next(samples, hook)  # the hook itself marks the end: no sample is it
            if sample is hook:
                return
            name = f"{hook.name} sample {index}"
            yield name, _named(sample, inputs, name)
        raise DataError(f"{hook.name} yields more than {_ENDLESS} samples: make it end")

    return Reader(f"samples of {hook.name}", stream)


def _named(sample: Any, inputs: Sequence[TensorInfo], name: str) -> Mapping[str, Any]:
    if isinstance(sample, Mapping):
        return sample
    if len(inputs) == 1 and hasattr(sample, "__array__"):
        return {inputs[0].name: sample}
    raise DataError(f"{name} is a {type(sample).__name__}: samples are dicts from input name to array")


def _axes(shape: Sequence[int | str | None]) -> str:
    return "x".join("?" if axis is None else str(axis) for axis in shape) or "a scalar"


def _by_number(path: Path) -> tuple[int, str]:
    found = re.search(r"(\d+)(?=\D*$)", path.name)
    return (int(found.group(1)) if found else -1, path.name)
