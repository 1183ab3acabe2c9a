"""Duplicate keys among any number of items, in bounded memory.

Each key's 128-bit digest is spooled to one of 1,024 files by its first bits; at the end
each file is looked at alone. That takes 16 bytes of disk per item and 16 MB of memory,
plus a thousandth of the disk's share: a billion items need 16 GB of disk and about
100 MB. Only where digests are found twice is the input read again, to name the key and
its rows.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from slurm_worker.errors import UserError

_BUCKETS = 1024
_DIGEST_BYTES = 16
_BUFFER_BYTES = 16 * 1024


class KeyCheck:
    """Watches a stream of items, then says whether a key stood there twice.

    Use it as a context manager: its files live as long as the `with` block.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="airflow-slurm-keys-")
        self._buffers = [bytearray() for _ in range(_BUCKETS)]

    def __enter__(self) -> KeyCheck:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def watch(self, items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Pass (key, item) pairs through and note their keys."""
        for key, item in items:
            digest = _digest(key)
            bucket = (digest[0] << 2) | (digest[1] >> 6)
            buffer = self._buffers[bucket]
            buffer += digest
            if len(buffer) >= _BUFFER_BYTES:
                self._spool(bucket)
            yield key, item

    def check(self, reopen: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        """Refuse the keys that were watched if one stands there twice.

        Args:
            reopen: reads the same items again, in the same order; called only to name a
                key that was found twice.

        Raises:
            UserError: naming the first such key and its rows, counted from 1.
        """
        suspects: set[bytes] = set()
        repeats = 0
        for bucket in range(_BUCKETS):
            found, more = self._twice(bucket)
            repeats += more
            # The first bucket's will do for an example; all of them might not fit.
            suspects = suspects or found
        if repeats:
            raise UserError(_explain(suspects, repeats, reopen()))

    def _twice(self, bucket: int) -> tuple[set[bytes], int]:
        """Digests that a bucket holds more than once, and how many are too many."""
        path = self._path(bucket)
        data = (path.read_bytes() if path.exists() else b"") + self._buffers[bucket]
        count = len(data) // _DIGEST_BYTES
        digests = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(_DIGEST_BYTES), count, [None, pa.py_buffer(data)]
        )
        more = count - pc.count_distinct(digests).as_py()
        if not more:
            return set(), 0
        counted = pc.value_counts(digests)
        repeated = counted.filter(pc.greater(counted.field("counts"), pa.scalar(1)))
        return {each.as_py() for each in repeated.field("values")}, more

    def _spool(self, bucket: int) -> None:
        with self._path(bucket).open("ab") as file:
            file.write(self._buffers[bucket])
        self._buffers[bucket].clear()

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket:04}"


def _explain(suspects: set[bytes], repeats: int, items: Iterable[tuple[str, Any]]) -> str:
    rows: dict[bytes, int] = {}
    for number, (key, _) in enumerate(items, 1):
        digest = _digest(key)
        if digest not in suspects:
            continue
        if digest in rows:
            others = f" ({repeats:,} rows repeat a key)" if repeats > 1 else ""
            return (
                f"input.key: {key!r} is the key of rows {rows[digest]:,} and {number:,}{others}; "
                "make keys unique, or name a column that is"
            )
        rows[digest] = number
    return (
        "input.path: the file changed while it was read: a key that stood there twice is gone; "
        "submit again when it is complete"
    )


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=_DIGEST_BYTES).digest()
