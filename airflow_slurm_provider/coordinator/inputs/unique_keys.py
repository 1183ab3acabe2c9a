"""Find duplicate keys among any number of items, in bounded memory.

The 128-bit digest of each key is written to one of 1,024 files, by its first bits. At the end, each
file is checked alone. That takes 16 bytes of disk per item, 16 MB of memory, and a thousandth of
the disk space as memory: a billion items need 16 GB of disk and about 100 MB of memory. Only if a
digest occurs twice is the input read again, to name the key and its rows.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from slurm_worker.errors import UserError

_DIGEST_BYTES = 16
_BUFFER_BYTES = 16 * 1024


class KeyCheck(AbstractContextManager["KeyCheck"]):
    """Records the keys of a stream of items, in files, then finds keys that occur twice."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="airflow-slurm-keys-")
        self._buffers: defaultdict[int, bytearray] = defaultdict(bytearray)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def watch(self, items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Pass (key, item) pairs through, and record their keys."""
        for key, item in items:
            digest = _digest(key)
            bucket = (digest[0] << 2) | (digest[1] >> 6)
            buffer = self._buffers[bucket]
            buffer += digest
            if len(buffer) >= _BUFFER_BYTES:
                with self._path(bucket).open("ab") as file:
                    file.write(buffer)
                buffer.clear()
            yield key, item

    def check(self, places: Callable[[], Iterable[tuple[str, str]]], field: str = "key") -> None:
        """Refuse the recorded keys if one occurs twice.

        `places` reads the same items again, in the same order, to name a duplicate key: it gives
        each key with the place of its row. `field` is the setting that makes the keys.

        Raises:
            UserError: naming the first such key and its rows.
        """
        suspects: set[bytes] = set()
        repeats = 0
        for bucket in sorted(self._buffers):
            found, extra = self._duplicates(bucket)
            repeats += extra
            # Those of one bucket are enough for an example; all might not fit into memory.
            suspects = suspects or found
        if repeats:
            raise UserError(_explain(suspects, repeats, places(), f"input.{field}"))

    def _duplicates(self, bucket: int) -> tuple[set[bytes], int]:
        """Digests that occur more than once in a bucket, and the number of extra ones."""
        path = self._path(bucket)
        data = (path.read_bytes() if path.exists() else b"") + self._buffers[bucket]
        count = len(data) // _DIGEST_BYTES
        digests = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(_DIGEST_BYTES), count, [None, pa.py_buffer(data)]
        )
        extra = count - pc.count_distinct(digests).as_py()
        if not extra:
            return set(), 0
        counted = pc.value_counts(digests)
        repeated = counted.filter(pc.greater(counted.field("counts"), pa.scalar(1)))
        return {digest.as_py() for digest in repeated.field("values")}, extra

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket:04}"


def _explain(
    suspects: set[bytes], repeats: int, places: Iterable[tuple[str, str]], field: str
) -> str:
    first: dict[bytes, str] = {}
    for key, place in places:
        digest = _digest(key)
        if digest in first:
            more = f" ({repeats:,} rows repeat a key)" if repeats > 1 else ""
            return (
                f"{field}: {key!r} is the key of {first[digest]} and of {place}{more}; "
                "make the keys unique, or name another column"
            )
        if digest in suspects:
            first[digest] = place
    return (
        "input.path: the file changed while it was read: a duplicate key has disappeared; submit "
        "again when the file is complete"
    )


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=_DIGEST_BYTES).digest()
