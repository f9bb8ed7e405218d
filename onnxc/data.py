"""Calibration data: samples that fit the model, checked before anything runs. Few bytes of them stay in memory, of
more one sample at a time.

In: any format of --calib, or nothing (inputs are made up). Out: dicts from input name to array of its type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxc.errors import DataError
from onnxc.samples.generate import generated_samples
from onnxc.samples.hooks import Evaluation, did_you_mean
from onnxc.samples.inputs import index_limits
from onnxc.samples.readers import Raw, Reader, open_reader

if TYPE_CHECKING:
    from onnxc.model import Model
    from onnxc.session import Session, TensorInfo

__all__ = ["Calibration", "Evaluation", "Sample", "generate", "index_limits"]

APART = 4  # one sample in so many is kept apart from what is fitted
HELD = 64 << 20  # bytes of samples that stay in memory: a run goes through them some hundred times

Sample = Mapping[str, np.ndarray]
Limits = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Calibration:
    """Samples that were checked against a model; iterate over it as often as you like.

    Attributes:
        generated: whether they were made up, so that what the model answers to them means nothing.
        description: what they are, for the report.
        digest: SHA-256 (hex) of names, types, shapes and bytes of all samples in order.
    """

    generated: bool
    description: str
    digest: str
    _count: int
    _reader: Reader = field(repr=False)
    _check: Check = field(repr=False)
    _held: tuple[Sample, ...] | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        spec: Any,
        inputs: Sequence[TensorInfo],
        *,
        limits: Limits | None = None,
        optional: Sequence[TensorInfo] = (),
    ) -> Calibration:
        """Opens ``spec`` and reads it once to check every sample.

        Args:
            spec: a path, "FILE.py:FUNCTION", a callable that returns an iterable, or an iterable of dicts.
            inputs: what the model needs, as Session.inputs.
            limits: for integer inputs, the lowest and highest legal value (index_limits).
            optional: inputs that have a default, as Session.optional.

        Raises:
            DataError: the first sample that does not fit, with what is wrong with it.
        """
        return cls.checked(open_reader(spec, inputs), Check(tuple(inputs), tuple(optional), dict(limits or {})))

    @classmethod
    def checked(cls, reader: Reader, check: Check, generated: bool = False) -> Calibration:
        """Reads every sample once; DataError at the first that does not fit."""
        digest = hashlib.sha256()
        count, held, size = 0, list[Sample](), 0.0
        for raw in reader.stream():
            sample = check(raw)
            for name, array in sorted(sample.items()):
                _update(digest, name, array)
            digest.update(b"\n")
            count += 1
            size += sum(_bytes(array) for array in sample.values())
            if size <= HELD:
                held.append({name: np.array(array) for name, array in sample.items()})
            else:
                held.clear()
        if not count:
            raise DataError(f"no sample among {reader.kind}: at least one is needed")
        samples = "1 sample" if count == 1 else f"{count} samples"
        kept = tuple(held) if size <= HELD else None
        return cls(generated, f"{samples}, {reader.kind}", digest.hexdigest(), count, reader, check, kept)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._held) if self._held is not None else map(self._check, self._reader.stream())

    @property
    def apart(self) -> frozenset[int]:
        """Positions of the samples that nothing is fitted to: every fourth one, so that what a result does on them is
        what it does on others. None of generated samples, and none where there is one sample only.
        """
        if self.generated or self._count < 2:
            return frozenset()
        return frozenset(range(min(APART, self._count) - 1, self._count, APART))

    def fitted(self) -> Calibration:
        """All samples but those that are kept apart."""
        rest = [index for index in range(self._count) if index not in self.apart]
        if len(rest) == self._count:
            return self
        reader, read, kept = self._reader, self._reader.read, frozenset(rest)
        if read is not None:
            part = Reader.indexed(reader.kind, len(rest), lambda index: read(rest[index]))
        else:
            part = Reader(reader.kind, lambda: (raw for at, raw in enumerate(reader.stream()) if at in kept))
        digest = hashlib.sha256(f"{self.digest} fitted".encode()).hexdigest()
        held = tuple(self._held[index] for index in rest) if self._held is not None else None
        return replace(self, digest=digest, _count=len(rest), _reader=part, _held=held)

    def take(self, count: int) -> list[Sample]:
        """At most ``count`` samples, evenly spread over all of them."""
        count = min(max(count, 0), self._count)
        wanted = [(2 * index + 1) * self._count // (2 * count) for index in range(count)]
        if self._held is not None:
            return [self._held[index] for index in wanted]
        if self._reader.read is not None:
            return [self._check(self._reader.read(index)) for index in wanted]
        chosen = set(wanted)
        return [self._check(raw) for index, raw in enumerate(self._reader.stream()) if index in chosen]


def generate(
    model: Model,
    session: Session,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    count: int = 4,
    seed: int = 0,
) -> Calibration:
    """Made-up samples that run in ``session``: types, shapes and index ranges of the model are respected.

    Args:
        model: the graph, which says what integers index and what they are compared with.
        session: the same model, loaded.
        shapes: for some inputs, the shape to use.
        batch: the size of batch axes, 1 if not given.
        count: how many samples; more when an input has more values to go through.
        seed: the same seed gives the same samples.

    Raises:
        UsageError: a shape does not fit the model.
        DataError: nothing that was tried runs; says what ONNX Runtime said last.
    """
    samples = generated_samples(model, session, shapes=shapes or {}, batch=batch, count=count, seed=seed)
    reader = Reader.indexed("generated", len(samples), lambda index: (f"generated sample {index}", samples[index]))
    return Calibration.checked(reader, Check(session.inputs, session.optional, {}), generated=True)


@dataclass(frozen=True)
class Check:
    """Makes a raw sample one that fits the model, or says why it does not."""

    inputs: tuple[TensorInfo, ...]
    optional: tuple[TensorInfo, ...]
    limits: Limits

    def __call__(self, raw: Raw) -> Sample:
        where, arrays = raw
        known = {each.name: each for each in (*self.inputs, *self.optional)}
        for name in arrays:
            if name not in known:
                hint = did_you_mean(str(name), list(known), "its inputs are")
                raise DataError(f"{where}: the model has no input {name!r}{hint}")
        for each in self.inputs:
            if each.name not in arrays:
                there = ", ".join(map(repr, arrays)) or "nothing"
                raise DataError(f"{where}: input {each.name!r} is missing; it holds {there}")
        fitted = {name: self._fitted(where, known[name], array) for name, array in arrays.items()}
        sizes = [array.size for array in fitted.values() if isinstance(array, np.ndarray)]
        if sizes and not any(sizes) and not any(0 in info.shape for info in self.inputs):
            name = next(iter(fitted))
            raise DataError(f"{where}: input {name!r} has shape {_axes(fitted[name].shape)}, which holds nothing")
        return fitted

    def _fitted(self, where: str, info: TensorInfo, value: Any) -> Any:
        what = f"{where}: input {info.name!r}"
        if info.numpy is None:  # a sequence, map or optional: ONNX Runtime judges
            return value
        try:
            array = np.asarray(value)
        except Exception as error:  # objects of other frameworks raise what they like
            raise DataError(f"{what} is a {type(value).__name__}, not an array") from error
        if info.shape and array.ndim != len(info.shape):
            raise DataError(
                f"{what} has rank {array.ndim} ({_axes(array.shape)}), but the model takes rank "
                f"{len(info.shape)} ({_axes(info.shape)})"
            )
        for axis, (size, fixed) in enumerate(zip(array.shape, info.shape, strict=False)):
            if isinstance(fixed, int) and fixed >= 0 and size != fixed:
                raise DataError(
                    f"{what} has shape {_axes(array.shape)}, but the model takes {_axes(info.shape)}: "
                    f"axis {axis} must be {fixed}"
                )
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise DataError(f"{what} holds NaN or infinity")
        cast = _cast(what, array, info.numpy)
        low, high = self.limits.get(info.name, (None, None))
        if low is not None and high is not None and cast.size and cast.dtype.kind in "iu":
            smallest, largest = int(cast.min()), int(cast.max())
            if smallest < low or largest > high:
                wrong = largest if largest > high else smallest
                raise DataError(f"{what} holds {wrong}, but it is an index from {low} to {high}")
        return cast


def _cast(what: str, array: np.ndarray, wanted: np.dtype[Any]) -> np.ndarray:
    """``array`` as ``wanted`` where nothing but float precision is lost; DataError otherwise."""
    have = array.dtype
    if have == wanted and wanted.kind != "O":
        return array
    if wanted.kind == "O":
        if have.kind in "US" or (have.kind == "O" and all(isinstance(each, str | bytes) for each in array.flat)):
            decoded = (each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in array.flat)
            return np.asarray([str(each) for each in decoded], dtype=object).reshape(array.shape)
        raise DataError(f"{what} is {have}, but the model takes strings")
    refused = DataError(f"{what} is {have}, but the model takes {wanted}: convert it where you make the data")
    if _is_float(have) and _is_float(wanted):
        with np.errstate(over="ignore"):
            cast = array.astype(wanted)
        if not np.isfinite(cast.astype(np.float64)).all():
            raise DataError(f"{what} is {have} and holds values too large for the model's {wanted}")
        return cast
    if have.kind not in "iub" or wanted.kind == "c":
        raise refused
    if wanted.kind in "iu":
        low, high = np.iinfo(wanted).min, np.iinfo(wanted).max
        fits = not array.size or (low <= int(array.min()) and int(array.max()) <= high)
        cast = array.astype(wanted)
    else:
        cast = array.astype(wanted)
        fits = np.array_equal(cast.astype(have), array)
    if not fits:
        wrong = "values that do not fit" if not _is_float(wanted) else "values that it cannot hold exactly"
        raise DataError(f"{what} is {have}, but the model takes {wanted} and there are {wrong}")
    return cast


def _bytes(value: Any) -> float:
    """Of an array of numbers; endless for what is none: strings and sequences are read anew."""
    return value.nbytes if isinstance(value, np.ndarray) and value.dtype.kind != "O" else np.inf


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or "float" in dtype.name


def _axes(shape: Sequence[int | str | None]) -> str:
    return "x".join("?" if axis is None else str(axis) for axis in shape) or "a scalar"


def _update(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, list | tuple):
        digest.update(f"{name}[{len(value)}]".encode())
        for each in value:
            _update(digest, "", each)
        return
    array = np.asarray(value)
    digest.update(f"{name} {array.dtype.name} {array.shape} ".encode())
    if array.dtype.kind == "O":
        for each in array.flat:
            text = str(each).encode("utf-8", "surrogatepass")
            digest.update(f"{len(text)}:".encode() + text)
    else:
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size and array.ndim else array.tobytes())
