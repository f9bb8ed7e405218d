"""ONNX Runtime behind one door: the only module that imports onnxruntime.

In: a model (Model, path, bytes or ModelProto) and numpy arrays by input name. Out: numpy arrays, the
optimized graph, kernel times, ratios. Whatever ONNX Runtime raises leaves here as one line naming the node.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import tempfile
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnxruntime

from onnxc.errors import ModelError, OnnxcError, UsageError
from onnxc.runtime.diagnosis import load_failure, nodes, one_line, run_failure
from onnxc.runtime.dtypes import is_foreign, numpy_dtype, onnx_type, pack, packed_bytes, unpack
from onnxc.runtime.timing import (
    KernelTime,
    Ratio,
    clock_of,
    interleaved_ratio,
    kernel_times,
)

if TYPE_CHECKING:
    from onnxc.model import Model

    Source: TypeAlias = Model | Path | str | bytes | onnx.ModelProto

__all__ = [
    "KernelTime",
    "Options",
    "Ratio",
    "Session",
    "TensorInfo",
    "available_providers",
    "basic_simplified",
    "check_providers",
    "kernels",
    "measure_ratio",
    "runtime_version",
]

# Bytes of weights above which a model goes to ONNX Runtime through a file: weights beside it are mapped,
# of a message two more copies are made (a model of 90 MB: a peak of 210 instead of 420 MB).
_INLINE_LIMIT = 16 << 20
LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: its ONNX Runtime type ("tensor(float)"), its shape and its element type in numpy.

    An unknown axis is its name or None. The shape is () for scalars, and also where ONNX Runtime does not
    know the rank; numpy is None for sequences, maps and optionals.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    numpy: np.dtype[Any] | None


@dataclass(frozen=True)
class Options:
    """How sessions run: providers in order of preference, threads within an operator, libraries of custom
    operators, and how far ONNX Runtime optimizes the graph: "all", "extended", "basic" or "off".

    ``known`` are entries of the price file: what was measured once is not measured again, and decides alike.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 1
    custom_ops: tuple[str, ...] = ()
    level: str = "all"
    known: MutableMapping[str, float] | None = field(default=None, compare=False, repr=False)


def runtime_version() -> str:
    """The version of ONNX Runtime."""
    return str(onnxruntime.__version__)


def available_providers() -> tuple[str, ...]:
    """The execution providers that this installation of ONNX Runtime has."""
    return tuple(onnxruntime.get_available_providers())


def check_providers(names: Sequence[str]) -> None:
    """Raises UsageError naming the providers there are when one of ``names`` is missing."""
    there = available_providers()
    if not names:
        raise UsageError(f"no execution provider given: choose from {', '.join(there)}")
    for name in names:
        if name not in there:
            raise UsageError(f"provider {name} is not available: this onnxruntime has {', '.join(there)}")


class Session:
    """A model loaded into ONNX Runtime.

    Args:
        source: the model; a large Model goes through a temporary file.
        profile: record kernel times, read with end_profile().
        dump: keep the optimized graph, read with optimized().

    Raises:
        ModelError: ONNX Runtime cannot load it; names the operator and node.
        UsageError: a provider or a library of custom operators is not there.
    """

    def __init__(
        self, source: Source, options: Options = Options(), *, profile: bool = False, dump: bool = False
    ) -> None:
        check_providers(options.providers)
        folder = Path(tempfile.gettempdir(), f"onnxc-{uuid.uuid4().hex}")
        if profile or dump or _is_large(source):
            folder.mkdir(mode=0o700)
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._dump = folder / "optimized.onnx" if dump else None
        self._profile = profile
        settings = _settings(options)
        self.clock = clock_of(options.providers, options.threads)
        if profile:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(folder / "profile")
        if self._dump is not None:
            settings.optimized_model_filepath = str(self._dump)
            # weights beside the graph: a dump of more than 2 GB would not fit one protobuf message
            _entry(settings, "optimized_model_external_initializers_file_name", "optimized.data")
            _entry(settings, "optimized_model_external_initializers_min_size_in_bytes", "1024")
        loadable = _loadable(source, folder)
        try:
            self.raw = onnxruntime.InferenceSession(
                loadable, settings, providers=list(options.providers), enable_fallback=0
            )
        except Exception as error:  # pybind raises its own classes beside RuntimeError and ValueError
            raise ModelError(load_failure(error, _where(source), lambda: _proto(source))) from error
        finally:
            # what is mapped stays readable (on Windows it cannot be removed before the session is gone)
            if folder.exists():
                shutil.rmtree(folder / "copy", ignore_errors=True)
        self.raw.disable_fallback()
        # the binding keeps the bytes for a fallback that is off: a second copy of the weights
        self.raw._model_bytes = None  # noqa: SLF001 - there is no public way to let go of them
        active = self.raw.get_providers()
        for name in options.providers:
            if name not in active:
                raise UsageError(
                    f"provider {name} cannot be started (a driver or library is missing?); running: {', '.join(active)}"
                )
        self.inputs = tuple(_info(each) for each in self.raw.get_inputs())
        self.outputs = tuple(_info(each) for each in self.raw.get_outputs())
        self.optional = tuple(_info(each) for each in self.raw.get_overridable_initializers())
        self._types = {each.name: each.dtype for each in (*self.inputs, *self.optional)}
        self._foreign = any(is_foreign(each.dtype) for each in (*self.inputs, *self.optional, *self.outputs))

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Output name -> array; a list for a sequence, a list of dicts for maps, None for an empty optional.

        Raises:
            DataError: the feeds do not fit the model's inputs.
            ModelError: a node failed; names it.
        """
        names = list(outputs) if outputs is not None else [each.name for each in self.outputs]
        if not names:
            return {}
        try:
            if self._foreign:
                return dict(zip(names, self._run_values(feeds, names), strict=True))
            # a numpy scalar is no array to ONNX Runtime
            plain = {name: np.asarray(v) if isinstance(v, np.generic) else v for name, v in feeds.items()}
            return dict(zip(names, self.raw.run(names, plain), strict=True))
        except OnnxcError:
            raise
        except Exception as error:
            raise run_failure(error) from error

    def call(self, feeds: Mapping[str, Any]) -> Callable[[], Any]:
        """A run with these feeds and nothing around it that would take time, for timing."""
        ready = dict(feeds)
        if self._foreign:
            return lambda: self.run(ready)
        return lambda: self.raw.run(None, ready)

    def optimized(self) -> onnx.ModelProto:
        """The graph that ONNX Runtime really runs (needs dump=True); weights above 1 KB are absent."""
        if self._dump is None:
            raise OnnxcError("internal: Session.optimized() needs dump=True")
        return onnx.load(str(self._dump), load_external_data=False)

    def end_profile(self, warmup: int = 1) -> list[KernelTime]:
        """Kernel times by node without the first ``warmup`` runs (needs profile=True; may be called once)."""
        if not self._profile:
            raise OnnxcError("internal: Session.end_profile() needs profile=True")
        self._profile = False
        path = Path(self.raw.end_profiling())
        try:
            events = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        finally:
            path.unlink(missing_ok=True)
        return kernel_times(events, warmup)

    def _run_values(self, feeds: Mapping[str, np.ndarray], names: Sequence[str]) -> list[Any]:
        """As run(), for types that ONNX Runtime does not exchange with numpy: bfloat16, float8, 4 bits."""
        values = {}
        borrowed = []  # ONNX Runtime reads this memory in place
        for name, array in feeds.items():
            dtype = self._types.get(name, "")
            if is_foreign(dtype):
                borrowed.append(pack(np.asarray(array), dtype))
                values[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(borrowed[-1], onnx_type(dtype))
            else:
                values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array))
        return [_array(value) for value in self.raw.run_with_ort_values(names, values)]


def kernels(source: Source, options: Options = Options()) -> Counter[str]:
    """Operator types of the optimized graph with their number, bodies included."""
    return Counter(node.op_type for node in nodes(Session(source, options, dump=True).optimized().graph))


def measure_ratio(
    a: Session,
    b: Session,
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    rounds: int = 7,
    seconds: float = 2.0,
    decide: float | None = None,
) -> Ratio:
    """How much faster ``b`` is than ``a`` on the same samples, interleaved (see interleaved_ratio).

    Raises DataError or ModelError when one of them does not run.
    """
    for session in (a, b):
        session.run(samples[0])
    pairs = [(a.call(each), b.call(each)) for each in samples]
    clock = a.clock if a.clock is b.clock else None
    return interleaved_ratio(pairs, rounds=rounds, seconds=seconds, decide=decide, clock=clock)


def basic_simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` after ONNX Runtime's hardware-independent (BASIC) rewrites, weights inline.

    Below opset 17 the result may hold ONNX Runtime's own LayerNormalization: the caller checks operators.
    Raises ModelError when it does not load.
    """
    with tempfile.TemporaryDirectory(prefix="onnxc-", ignore_cleanup_errors=True) as folder:
        target = Path(folder, "basic.onnx")
        settings = _settings(Options(level="basic"))
        settings.optimized_model_filepath = str(target)
        try:
            onnxruntime.InferenceSession(
                _loadable(proto, Path(folder)),
                settings,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,
            )
        except Exception as error:
            raise ModelError(load_failure(error, "", lambda: proto)) from error
        simplified = onnx.load(str(target))
    known = {each.domain for each in proto.opset_import} | {node.domain for node in nodes(simplified.graph)}
    imports = [each for each in simplified.opset_import if each.domain in known]
    del simplified.opset_import[:]
    simplified.opset_import.extend(imports)
    return simplified


def _settings(options: Options) -> Any:
    if options.level not in LEVELS:
        raise UsageError(f"unknown optimization level {options.level!r}: choose from {', '.join(LEVELS)}")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[options.level])
    for library in options.custom_ops:
        try:
            settings.register_custom_ops_library(str(library))
        except Exception as error:
            raise UsageError(f"custom operator library {library} cannot be loaded: {one_line(error)}") from error
    return settings


def _entry(settings: Any, key: str, value: str) -> None:
    settings.add_session_config_entry(f"session.{key}", value)


def _is_large(source: Source) -> bool:
    """Whether a model goes through a file."""
    if isinstance(source, bytes | str | Path | onnx.ModelProto):
        return False
    return sum(weight.nbytes for graph in source.graphs() for weight in graph.weights) > _INLINE_LIMIT


def _loadable(source: Source, folder: Path) -> str | bytes:
    """What InferenceSession accepts: a path or bytes."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            raise ModelError(f"{path} is a folder: give the path of an .onnx file")
        if not path.exists():
            raise ModelError(f"{path} does not exist")
        return str(path)
    if isinstance(source, onnx.ModelProto):
        try:
            message: bytes = source.SerializeToString()
            return message
        except Exception as error:  # protobuf's own errors differ between versions
            raise ModelError(f"the model does not fit one protobuf message (2 GB): {one_line(error)}") from error
    if not _is_large(source):
        serialized: bytes = source.serialized()
        return serialized
    path = folder / "copy" / "model.onnx"
    path.parent.mkdir()
    source.save(path, external_data=True, named=True)  # profiles speak of nodes by name
    return str(path)


def _where(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else ""


def _proto(source: Source) -> onnx.ModelProto:
    if isinstance(source, onnx.ModelProto):
        return source
    if isinstance(source, bytes):
        return onnx.load_model_from_string(source)
    if isinstance(source, str | Path):
        return onnx.load(str(source), load_external_data=False)
    return source.proto(weights=False)


def _info(argument: Any) -> TensorInfo:
    shape = tuple(
        axis if isinstance(axis, int) or (isinstance(axis, str) and axis) else None for axis in argument.shape
    )
    return TensorInfo(argument.name, argument.type, shape, numpy_dtype(argument.type))


def _array(value: Any) -> Any:
    """What an OrtValue holds: an array, or the Python object of a sequence or map."""
    if not value.is_tensor():
        return value._ortvalue.to_pyobject()  # noqa: SLF001 - OrtValue.numpy() is for tensors only
    dtype = f"tensor({onnx.TensorProto.DataType.Name(value.element_type()).lower()})"
    if not is_foreign(dtype):
        return value.numpy()
    shape = tuple(value.shape())
    size = packed_bytes(int(np.prod(shape, dtype=np.int64)), dtype)
    return unpack(ctypes.string_at(value.data_ptr(), size), shape, dtype)
