"""Slices: the planned items of a task, as a range of a segment that is compressed by itself."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slurm_worker.errors import UserError
from slurm_worker.protocol.row_fields import RowFields

_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a task's items are: a range of a segment, compressed by itself."""

    segment: int  #: the segment's number within its round
    offset: int  #: first byte of the slice
    length: int  #: its bytes
    count: int  #: items of the task
    sha256: str  #: of the compressed bytes, in hex
    first: int = 0  #: the task's first item within the slice; above 0 only in a bisected task


SLICE_FIELDS = RowFields(Slice, names={"count": "items"})


def pack_slice(items: list[tuple[str, dict[str, Any]]]) -> bytes:
    """Compress (key, item) pairs into a slice; the same items give the same bytes."""
    lines = "".join(
        json.dumps([key, item], ensure_ascii=False, separators=(",", ":")) + "\n"
        for key, item in items
    )
    return zlib.compress(lines.encode(), 3)


def unpack_slice(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Read what `pack_slice` wrote."""
    return _items_of(zlib.decompress(data))


def _items_of(lines: bytes) -> list[tuple[str, dict[str, Any]]]:
    # Only \n ends a line (JSON escapes it inside values); one document is read faster than lines.
    items: list[list[Any]] = json.loads(b"[" + lines.rstrip(b"\n").replace(b"\n", b",") + b"]")
    return [(key, item) for key, item in items]


class TaskItems:
    """The items of a task, as they were planned.

    A handler may change the item that it gets. So each call gets its own copy, and the record
    of a failed item has the text that was planned. All first copies come from one decoding of
    the slice; a further copy is decoded from its line when it is needed.

    The task has `count` items of a compressed slice, from its item `first` on. `keys` are theirs.
    """

    __slots__ = ("_data", "_first", "_lines", "_ready", "keys")

    def __init__(self, data: bytes, first: int, count: int) -> None:
        self._data = data
        self._first = first
        self._lines: list[str] = []
        pairs = unpack_slice(data)[first : first + count]
        self.keys = [key for key, _ in pairs]
        self._ready: list[dict[str, Any] | None] = [item for _, item in pairs]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, position: int) -> dict[str, Any]:
        """A copy of the item at this position in the task, for this caller alone."""
        item = self._ready[position]
        if item is None:
            again: dict[str, Any] = json.loads(self.text(position))
            return again
        self._ready[position] = None
        return item

    def text(self, position: int) -> str:
        """The item's JSON text, as it was planned."""
        if not self._lines:
            self._lines = zlib.decompress(self._data).decode().split("\n")
        line = self._lines[self._first + position]
        _, end = _DECODER.raw_decode(line, 1)
        return line[end:].partition(",")[2].rstrip()[:-1]


def unpack_segment(data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every (key, item) of a segment: its slices follow one another.

    Line by line: a slice may be large, and callers want the keys alone.
    """
    for _, lines in _split(data):
        for line in lines.splitlines():
            key, item = json.loads(line)
            yield key, item


@contextmanager
def intact(key: str) -> Iterator[None]:
    """Explain bytes of the segment `key` that can't be read.

    Raises:
        UserError: naming the segment.
    """
    try:
        yield
    except (zlib.error, ValueError) as error:
        raise UserError(
            f"{key} is damaged ({error})",
            "restore that object, or plan the input again under another job_id",
        ) from error


def slices_of(number: int, data: bytes) -> Iterator[Slice]:
    """The slices of a segment, as they were planned."""
    offset = 0
    for packed, lines in _split(data):
        digest = hashlib.sha256(packed).hexdigest()
        yield Slice(number, offset, len(packed), lines.count(b"\n"), digest)
        offset += len(packed)


def _split(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The slices of a segment, compressed and not."""
    while data:
        reader = zlib.decompressobj()
        lines = reader.decompress(data)
        yield data[: len(data) - len(reader.unused_data)], lines
        data = reader.unused_data
