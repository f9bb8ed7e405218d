"""Are two models equal to float rounding, does a rewrite pay? In: both and samples. Out: None, or why not."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from onnxc.errors import DataError, ModelError
from onnxc.model import Constant, Model
from onnxc.price_file import cpu_name, sample_shapes
from onnxc.runtime.diagnosis import nodes
from onnxc.session import Options, Session, measure_ratio, runtime_version

RTOL = 1e-3
ATOL = 1e-5
SLOWEST = 0.98  # smallest accepted ratio of speeds, after / before
LARGE_BYTES = 32 << 20  # weights above this: one session at a time
_STRUCTURE_BYTES = 4096  # Model.proto(weights=False) leaves out what is larger

Sample = Mapping[str, np.ndarray]


class Exactness:
    """What one model gives on some samples, kept to judge any number of rewrites of it.

    Args:
        before: the model as it was.
        samples: inputs that it runs on, or what makes them from its session; without samples only loading, the
            interface and bytes are checked.
        options: how sessions run.

    Raises:
        ModelError, DataError: ``before`` itself does not load or run.
    """

    def __init__(
        self,
        before: Model,
        samples: Sequence[Sample] | Callable[[Session], Sequence[Sample]],
        options: Options = Options(),
    ) -> None:
        self.options, self._before = options, before
        self._large = weight_bytes(before) > LARGE_BYTES
        session = Session(before, options, dump=True)
        self.samples = tuple(samples(session) if callable(samples) else samples)
        self._interface = _interface(session)
        self._outputs = [session.run(sample) for sample in self.samples]
        self._kernels = _kernels(session)
        self._bytes = file_bytes(before)
        self._session = None if self._large else session  # a large one is not kept beside that of a rewrite

    def differs(self, after: Model | Session) -> str | None:
        """None when every output of ``after`` equals the kept one, else what differs in one line.

        Floats to rtol 1e-3 and atol 1e-5; integers, strings, shapes and non-finite entries exactly.
        """
        try:
            session = after if isinstance(after, Session) else Session(after, self.options)
            if _interface(session) != self._interface:
                return "the names or types of its inputs or outputs changed"
            for number, (sample, wanted) in enumerate(zip(self.samples, self._outputs, strict=True)):
                got = session.run(sample)
                for name, value in wanted.items():
                    if (reason := difference(value, got[name])) is not None:
                        return f"output {name} of sample {number}: {reason}"
        except (ModelError, DataError) as error:
            return f"it no longer runs: {error}"
        return None

    def refuses(self, after: Model) -> str | None:
        """None when ``after`` gives equal outputs, is not larger and not slower, else why it is not used.

        Speed is measured where ONNX Runtime runs other kernels than before: the interleaved ratio is at least
        0.98 (slower is believed only when 9 rounds of 10 say so, twice: a busy machine must not decide what a
        model becomes). Over 32 MB of weights, where two sessions need much memory,
        there may not be more kernels.
        """
        grown = file_bytes(after) - self._bytes
        if grown > 0:
            return f"it is {grown} bytes larger"
        try:
            session = Session(after, self.options, dump=True)
        except ModelError as error:
            return f"it no longer loads: {error}"
        if (reason := self.differs(session)) is not None:
            return reason
        kernels = _kernels(session)
        if kernels == self._kernels or not self.samples:
            return None
        if self._session is not None:
            ratio = self._measured("slower", after, partial(self._slowed, session))
            return f"it is {ratio:.2f} times as fast" if ratio < SLOWEST else None
        more = kernels.total() - self._kernels.total()
        return f"ONNX Runtime runs {more} kernels more" if more > 0 else None

    def unpaid(self, after: Model, least: float) -> str | None:
        """None when ``after`` gives equal outputs and is ``least`` times as fast, else why it is not used."""
        try:
            session = Session(after, self.options)
        except ModelError as error:
            return f"it no longer loads: {error}"
        if (reason := self.differs(session)) is not None:
            return reason
        before = self._session or Session(self._before, self.options)
        ratio = self._measured(
            "faster", after, lambda: measure_ratio(before, session, self.samples, seconds=0.6).median
        )
        return f"it is {ratio:.2f} times as fast" if ratio < least else None

    def _slowed(self, after: Session) -> float:
        """How many times as fast ``after`` is where it is surely slower, else SLOWEST."""
        assert self._session is not None
        ratio = None
        for _ in range(2):
            ratio = measure_ratio(self._session, after, self.samples, seconds=0.6, decide=SLOWEST)
            if ratio.median >= SLOWEST or ratio.high >= 1.0:
                return SLOWEST
        return ratio.median if ratio else SLOWEST

    def _measured(self, what: str, after: Model, measure: Callable[[], float]) -> float:
        """A ratio of speeds, from the price file where these two models were measured before."""
        known = self.options.known
        if known is None:
            return measure()
        shapes = [sample_shapes(sample) for sample in self.samples]
        parts = (self._before.digest(), after.digest(), shapes, self.options, runtime_version(), cpu_name())
        key = f"{what} {hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}"
        if key not in known:
            known[key] = measure()
        return known[key]


def file_bytes(model: Model) -> int:
    """About the size of the file, without writing it; exact for the difference between like weights."""
    apart = [each for each in large_constants(model) if each.edited() or each.mapped() is not None]
    return len(model.proto(weights=False, named=False).SerializeToString()) + sum(each.nbytes for each in apart)


def weight_bytes(model: Model) -> int:
    """Bytes of the initializers and Constants over 4 KB, dense."""
    return sum(each.nbytes for each in large_constants(model))


def large_constants(model: Model) -> list[Constant]:
    """The initializers and Constants over 4 KB. The structure holds those that are typed or sparse fields in the file,
    not those that are raw or new.
    """
    held = [tensor for graph in model.graphs() for tensor in graph.weights]
    held += [value for node in model.nodes() for value in node.attrs.values() if isinstance(value, Constant)]
    return [tensor for tensor in held if tensor.dtype != object and tensor.nbytes > _STRUCTURE_BYTES]


def difference(wanted: Any, got: Any) -> str | None:
    """None when two outputs are equal (see Exactness.differs), else how they differ."""
    if isinstance(wanted, np.ndarray) and isinstance(got, np.ndarray):
        if wanted.dtype != got.dtype or wanted.shape != got.shape:
            return f"{wanted.dtype} {list(wanted.shape)} became {got.dtype} {list(got.shape)}"
        if wanted.dtype.kind in "biuOSU":
            changed = int(np.sum(wanted != got))
            return f"{changed} of {wanted.size} values changed" if changed else None
        if wanted.dtype.kind == "c":
            return difference(wanted.view(wanted.real.dtype), got.view(got.real.dtype))
        first, second = (np.asarray(value, dtype=np.float64) for value in (wanted, got))
        with np.errstate(invalid="ignore"):
            if np.allclose(second, first, rtol=RTOL, atol=ATOL, equal_nan=True):
                return None
            return f"differs by up to {np.nanmax(np.abs(first - second)):.3g}"
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        if wanted.keys() != got.keys():
            return "the keys of a map changed"
        return next((why for key in wanted if (why := difference(wanted[key], got[key])) is not None), None)
    if isinstance(wanted, list) and isinstance(got, list):
        if len(wanted) != len(got):
            return f"a sequence of {len(wanted)} became one of {len(got)}"
        return next((why for pair in zip(wanted, got, strict=True) if (why := difference(*pair)) is not None), None)
    if isinstance(wanted, float | np.floating) and isinstance(got, float | np.floating):
        return difference(np.asarray(wanted), np.asarray(got))
    return None if type(wanted) is type(got) and wanted == got else "its kind or value changed"


def _interface(session: Session) -> tuple[Any, ...]:
    return tuple((each.name, each.dtype) for each in session.inputs), tuple(
        (each.name, each.dtype) for each in session.outputs
    )


def _kernels(session: Session) -> Counter[str]:
    return Counter(node.op_type for node in nodes(session.optimized().graph))
