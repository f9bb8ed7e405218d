"""Weights in and out of protobuf's wire format without ever parsing them.

Reading: the bytes of a model file become a small message in which every large raw_data is a *token*, and the
token's bytes stay where they are, mapped from the file. Writing is the same walk backwards. A token is a
random number that is drawn anew for every file, so that no file can contain one.

      file     [graph [node ...] [initializer name dims raw_data=90 MB] ...]
      message  [graph [node ...] [initializer name dims raw_data=token] ...]   token -> file[1234:90001234]
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Callable, Iterator

import numpy as np

from onnxc.file.tensors import Array, Bytes, flat_bytes

LARGE = 4096  # bytes; smaller data stays in the message
_DEEPEST = 100  # messages in messages, where protobuf stops too
# Which fields of a message lead to weights: message -> field number -> message of the field.
_PATHS: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 11: "graph"},
    "tensor": {9: "raw_data"},
}
Chunk = memoryview | bytes | Array
_Replace = Callable[[int, int], tuple[Chunk, int] | None]


class Weights:
    """The data that tokens stand for: flat views of bytes, or arrays of any type and layout."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._arrays: list[Array] = []

    def add(self, array: Array) -> bytes:
        """A new token for ``array``."""
        self._arrays.append(array)
        return self._key + (len(self._arrays) - 1).to_bytes(4, "little")

    @property
    def size(self) -> int:
        """Bytes of all data."""
        return sum(array.nbytes for array in self._arrays)

    def find(self, data: bytes) -> Array | None:
        """What a token stands for; None when ``data`` is no token."""
        if len(data) != 20 or not data.startswith(self._key):
            return None
        return self._arrays[int.from_bytes(data[16:], "little")]

    def lift(self, data: Bytes) -> bytes:
        """The message of a model file with its large data replaced by tokens.

        Args:
            data: the file [bytes], uint8; the weights will be views of it.

        Returns:
            A serialized ModelProto. Damaged bytes come back as they are: the parser finds the words for them.
        """
        view = data.data

        def replace(start: int, end: int) -> tuple[Chunk, int] | None:
            return (self.add(data[start:end]), 20) if end - start > LARGE else None

        try:
            chunks, _ = _rewrite(view, 0, len(view), "model", lambda start, end: end - start > LARGE, replace, 0)
        except (IndexError, _DamageError):
            return bytes(view)
        return b"".join(chunks)  # type: ignore[arg-type]  # lifting replaces by bytes only

    def lower(self, message: bytes) -> tuple[Iterator[memoryview | bytes], int]:
        """A message with its tokens replaced by their data: the pieces of the file, and its bytes."""
        places = []
        place = message.find(self._key)
        while place >= 0:
            places.append(place)
            place = message.find(self._key, place + 20)

        def holds_token(start: int, end: int) -> bool:
            index = bisect_left(places, start)
            return index < len(places) and places[index] < end

        def replace(start: int, end: int) -> tuple[Chunk, int] | None:
            array = self.find(message[start:end])
            return None if array is None else (array, array.nbytes)

        chunks, size = _rewrite(memoryview(message), 0, len(message), "model", holds_token, replace, 0)
        return _pieces(chunks), size


class _DamageError(Exception):
    """The bytes are not a protobuf message."""


def _pieces(chunks: list[Chunk]) -> Iterator[memoryview | bytes]:
    for chunk in chunks:
        yield flat_bytes(chunk).data if isinstance(chunk, np.ndarray) else chunk


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """The number at ``place`` and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise _DamageError


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _rewrite(
    data: memoryview,
    start: int,
    end: int,
    kind: str,
    enter: Callable[[int, int], bool],
    replace: _Replace,
    depth: int,
) -> tuple[list[Chunk], int]:
    """Copy the message at ``data[start:end]``, replacing raw data and mending the lengths around it.

    Args:
        data: the bytes all offsets refer to.
        start: first byte of the message.
        end: one after its last byte.
        kind: key of ``_PATHS``.
        enter: whether a field's bytes are worth looking into.
        replace: new data and its length for raw data at these offsets, or None to keep it.
        depth: messages around this one.

    Returns:
        The pieces of the new message and their total length.
    """
    chunks: list[Chunk] = []
    size = 0
    kept = place = start  # data[kept:place] is still to be copied as it is
    paths = _PATHS[kind]
    while place < end:
        tag_start = place
        tag, place = _varint(data, place)
        wire = tag & 7
        if wire == 2:
            length, body = _varint(data, place)
            place = body + length
            if place > end:
                raise _DamageError
            child = paths.get(tag >> 3)
            if child is None or depth >= _DEEPEST or not enter(body, place):
                continue
            new: tuple[Chunk, int] | None
            if child == "raw_data":
                new = replace(body, place)
                if new is None:
                    continue
                inner, inner_size = [new[0]], new[1]
            else:
                inner, inner_size = _rewrite(data, body, place, child, enter, replace, depth + 1)
            head = _to_varint(tag) + _to_varint(inner_size)
            chunks += [data[kept:tag_start], head, *inner]
            size += tag_start - kept + len(head) + inner_size
            kept = place
        elif wire == 0:
            _, place = _varint(data, place)
        elif wire == 1:
            place += 8
        elif wire == 5:
            place += 4
        elif wire > 5:  # 3 and 4 open and close a group, which only unknown fields are: its fields follow
            raise _DamageError
    if place != end:
        raise _DamageError
    chunks.append(data[kept:end])
    return chunks, size + end - kept
