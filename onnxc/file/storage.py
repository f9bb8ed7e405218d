"""Files: mapped for reading, replaced atomically, and weights that lie in files beside the model.

In: a path. Out: its bytes as a read-only map; or a new file that appears whole or not at all. References to
external data are followed only inside the model's own folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import re
import secrets
import stat
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto

from onnxc.errors import ModelError
from onnxc.file.tensors import DATA_FIELDS, Array, Bytes, decode, flat_bytes, payload_bytes
from onnxc.file.wire import LARGE, Weights

_process = ctypes.CDLL(None) if sys.platform == "linux" else None
_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
PROTOBUF_LIMIT = (1 << 31) - 1  # bytes of a message; larger models need external data


def map_file(path: Path, role: str = "") -> Bytes:
    """The bytes of a file, mapped.

    Args:
        path: any regular file.
        role: said of the file in errors, such as "external data of model.onnx: ".

    Raises:
        ModelError: it is missing, empty, not a regular file or not readable.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{role}{path} is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{role}{path} is not a regular file")
        if status.st_size == 0:
            raise ModelError(f"{role}{path} is empty")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _maps.add(mapped)
        return np.frombuffer(mapped, np.uint8)
    except FileNotFoundError:
        raise ModelError(f"{role}{path} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise ModelError(f"{role}{path} cannot be read: {_reason(error)}") from None


def drop_pages() -> None:
    """Give memory back to the system: pages of mapped files, which only cache the disk, and what sessions that are
    gone have left in the allocator's pockets (glibc keeps it otherwise).
    """
    for mapped in list(_maps):
        if hasattr(mapped, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
    trim = getattr(_process, "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class ExternalData:
    """The files beside a model that hold its weights; each is mapped once.

    Attributes:
        size: bytes of the files used so far.
    """

    def __init__(self, model: Path | None) -> None:
        self._model = model
        self._files: dict[Path, Bytes] = {}

    @property
    def size(self) -> int:
        return sum(data.size for data in self._files.values())

    def read(self, tensor: TensorProto, where: str) -> Bytes:
        """The bytes a tensor refers to, mapped.

        Raises:
            ModelError: the reference leaves the model's folder, the file is missing, or its data is not what
                the tensor needs.
        """
        if self._model is None:
            raise ModelError(f"{where} lies in an external file: hand over the model's path instead of the message")
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        path = self._inside(location, where)
        if tensor.data_type == TensorProto.STRING or any(dim < 0 for dim in tensor.dims):
            raise ModelError(f"{where} has a type or shape that external data cannot have")
        if path not in self._files:
            self._files[path] = map_file(path, f"{where}: external data ")
        data = self._files[path]
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", data.size - offset))
        except ValueError:
            raise ModelError(f"{where} has an offset or length of its external data that is no number") from None
        if offset < 0 or length < 0 or offset + length > data.size:
            raise ModelError(
                f"{where} needs bytes {offset} to {offset + length} of {location!r}, which has {data.size}"
            )
        return data[offset : offset + length]

    def _inside(self, location: str, where: str) -> Path:
        """The file of a location, which must lie in the folder of the model, symbolic links followed."""
        assert self._model is not None
        parts = re.split(r"[/\\]", location)
        if not location.strip() or "\0" in location or Path(location).is_absolute() or ":" in parts[0]:
            raise ModelError(f"{where} refers to external data at {location!r}, which is not a relative path")
        folder = self._model.parent
        path = folder / location
        real = Path(os.path.realpath(path))
        if ".." in parts or not real.is_relative_to(os.path.realpath(folder)):
            raise ModelError(f"{where} refers to external data at {location!r}, outside the model's folder")
        return path


def embed(message: ModelProto, external: ExternalData, label: str) -> None:
    """Take external data of local functions and training graphs, which stay messages, into the message."""
    parts: list[Message] = [*message.functions, *message.training_info]
    while parts:
        part = parts.pop()
        if isinstance(part, TensorProto) and part.data_location == TensorProto.EXTERNAL:
            part.raw_data = external.read(part, f"{label}: tensor {part.name!r}").tobytes()
            part.ClearField("data_location")
            part.ClearField("external_data")
        for field, value in part.ListFields():
            if field.message_type is not None:
                parts += [value] if isinstance(value, Message) else value


def replace_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file in one step: into a temporary file beside it, to the disk, then over the old one.

    Whatever happens in between, an exception of any kind included, the old file stays and the temporary one
    goes.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(os.path.realpath(path))  # a symbolic link stays one, its target is replaced
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    except BaseException:  # Ctrl-C too must not leave the temporary file behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # folders cannot be opened everywhere; the file itself is safe by now
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(message: ModelProto, weights: Weights, path: Path, *, external_data: bool) -> int:
    """Write a model whose large data are tokens.

    Args:
        message: the model; its tensors are changed to refer to the external file where there is one.
        weights: what the tokens stand for.
        path: the model's file.
        external_data: put the large initializers into ``PATH.<8 hex of its content>.data``, written before
            the model.

    Returns:
        Bytes written, both files together.

    Raises:
        ModelError: a target that is no file, or that cannot be written; nothing has changed then.
    """
    extra: tuple[Path, int, bool] | None = None
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is not a regular file and cannot be replaced by a model")
        if not path.parent.is_dir():
            raise ModelError(f"{path} cannot be written: there is no folder {path.parent}")
        if external_data:
            extra = _save_external(message, weights, path)
        chunks, size = weights.lower(message.SerializeToString(deterministic=True))
        if size > PROTOBUF_LIMIT:
            raise ModelError(f"{path} cannot be written: {size} bytes are more than one file can hold (2 GB)")
        replace_file(path, lambda file: file.writelines(chunks))
    except BaseException as error:
        if extra and extra[2]:
            with contextlib.suppress(OSError):
                extra[0].unlink()
        if isinstance(error, OSError):
            raise ModelError(f"{path} cannot be written: {_reason(error)}") from error
        raise
    return size + (extra[1] if extra else 0)


def _save_external(message: ModelProto, weights: Weights, path: Path) -> tuple[Path, int, bool] | None:
    """Move large initializers to a file of their own: its path, its bytes, whether it is new."""
    moved: list[tuple[TensorProto, Array, int]] = []
    end = 0
    for tensor in _initializers(message.graph):
        array = weights.find(tensor.raw_data)
        if array is None:
            if tensor.data_type == TensorProto.STRING or tensor.HasField("raw_data"):
                continue
            if payload_bytes(tensor.dims, tensor.data_type) <= LARGE:
                continue
            array = decode(tensor)  # typed fields
            if array.nbytes != payload_bytes(tensor.dims, tensor.data_type):
                continue  # 2, 4 and 6 bit types in typed fields: rare, and small where they are
        alignment = 4096 if array.nbytes >= 1 << 16 else 64  # pages can be mapped; 64 suits every kernel
        offset = -(-end // alignment) * alignment
        moved.append((tensor, array, offset))
        end = offset + array.nbytes
    if not moved:
        return None
    digest = hashlib.sha256()

    def pieces() -> Iterator[memoryview | bytes]:
        place = 0
        for _, array, offset in moved:
            yield bytes(offset - place)
            yield flat_bytes(array).data
            place = offset + array.nbytes

    for piece in pieces():  # the name holds the hash of the content, so this pass comes before the writing one
        digest.update(piece)
    folder = Path(os.path.realpath(path)).parent
    target = folder / f"{path.name}.{digest.hexdigest()[:8]}.data"
    new = not target.exists()
    replace_file(target, lambda file: file.writelines(pieces()))
    for tensor, array, offset in moved:
        for field in DATA_FIELDS:
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", target.name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
    return target, end, new


def _initializers(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            bodies: Iterable[GraphProto] = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for body in bodies:
                yield from _initializers(body)
