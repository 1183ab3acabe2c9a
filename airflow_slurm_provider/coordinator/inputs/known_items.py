"""Which items of an input are new, among those that a job has: in bounded memory.

Of each item on either side, digests of its key and content are written to one of 1,024 files. The
first bits of the key's digest say to which. Then each file is compared alone. That takes 32
bytes of disk for each item on either side, and a thousandth of it as memory. Each item of the input
also takes a bit of memory.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

_KEY_BYTES, _ITEM_BYTES, _PLACE_BYTES = 16, 8, 8
_RECORD_BYTES = _KEY_BYTES + _ITEM_BYTES + _PLACE_BYTES
_BUFFER_BYTES = 16 * 1024
_OLD, _NEW = "old", "new"

Items = Iterable[tuple[str, dict[str, Any]]]


class KnownItems(AbstractContextManager["KnownItems"]):
    """Compares the items of an input with those that a job has."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="airflow-slurm-known-")
        self._buffers: defaultdict[str, bytearray] = defaultdict(bytearray)
        self._is_new = bytearray()
        self.new = 0  #: items of the input that the job does not have
        self.changed = 0  #: items that it has under the same key with other content

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def compare(self, known: Items, items: Items) -> None:
        """Read both sides, and count what is new and changed in `items`."""
        self._record(_OLD, known)
        count = self._record(_NEW, items)
        self._is_new = bytearray(count // 8 + 1)
        for bucket in range(1024):
            old = {key: item for key, item, _ in self._records(_OLD, bucket)}
            for key, item, place in self._records(_NEW, bucket):
                if key not in old:
                    self.new += 1
                    self._is_new[place >> 3] |= 1 << (place & 7)
                elif old[key] != item:
                    self.changed += 1

    def new_items(self, items: Items) -> Iterator[tuple[str, dict[str, Any]]]:
        """Those of the same `items`, read again, that are new."""
        for place, pair in enumerate(items):
            if self._is_new[place >> 3] & 1 << (place & 7):
                yield pair

    def _record(self, side: str, items: Items) -> int:
        count = 0
        for key, item in items:
            digest = hashlib.blake2b(key.encode(), digest_size=_KEY_BYTES).digest()
            bucket = self._name(side, (digest[0] << 2) | (digest[1] >> 6))
            buffer = self._buffers[bucket]
            buffer += digest + _digest(item) + count.to_bytes(_PLACE_BYTES, "little")
            if len(buffer) >= _BUFFER_BYTES:
                self._flush(bucket)
            count += 1
        for bucket in self._buffers:
            self._flush(bucket)
        return count

    def _flush(self, bucket: str) -> None:
        with (Path(self._folder.name) / bucket).open("ab") as file:
            file.write(self._buffers[bucket])
        self._buffers[bucket].clear()

    def _records(self, side: str, bucket: int) -> Iterator[tuple[bytes, bytes, int]]:
        path = Path(self._folder.name) / self._name(side, bucket)
        data = path.read_bytes() if path.exists() else b""
        for start in range(0, len(data), _RECORD_BYTES):
            item = start + _KEY_BYTES
            place = item + _ITEM_BYTES
            number = int.from_bytes(data[place : start + _RECORD_BYTES], "little")
            yield data[start:item], data[item:place], number

    @staticmethod
    def _name(side: str, bucket: int) -> str:
        return f"{side}-{bucket:04}"


def _digest(item: dict[str, Any]) -> bytes:
    text = json.dumps(item, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=_ITEM_BYTES).digest()
