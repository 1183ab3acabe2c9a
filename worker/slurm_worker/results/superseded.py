"""Which items were retried, and in which round last: that round decides an item's outcome.

Kept in an SQLite file on scratch, so that memory does not grow with their number.
Requests: a list per thousand segments of the retry rounds, and a GET for each.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from slurm_worker.prefetch import prefetch
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.slices import intact, unpack_segment


class RetriedItems:
    """The items of the rounds after the first, in a scratch file; close it at the end."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        # One connection for all threads, one at a time; nothing here must survive a crash.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE retried (digest BLOB PRIMARY KEY, round INTEGER, "
            "failing INTEGER DEFAULT 0) WITHOUT ROWID;"
        )
        self._empty = True

    def close(self) -> None:
        """Close the scratch file."""
        self._db.close()

    def read(self, store: JobStore, drafts: Mapping[int, int]) -> dict[int, int]:
        """Record the items of rounds, in order, by their drafts; return how many each has."""
        return {number: self._read_round(store, number, drafts[number]) for number in drafts}

    def superseded(self, key: str, round_no: int) -> bool:
        """Whether the item occurs in a later round than this one."""
        last = None if self._empty else self._select("round", key)
        return last is not None and last > round_no

    def note_failing(self, key: str) -> None:
        """Record that the item's last outcome is a failure."""
        self._db.execute("UPDATE retried SET failing = 1 WHERE digest = ?", (_digest(key),))

    def failing(self, key: str) -> bool:
        """Whether that was recorded for the item."""
        return bool(self._select("failing", key))

    def _select(self, column: str, key: str) -> int | None:
        query = f"SELECT {column} FROM retried WHERE digest = ?"  # noqa: S608  our own names
        found: tuple[int] | None = self._db.execute(query, (_digest(key),)).fetchone()
        return found[0] if found else None

    def _read_round(self, store: JobStore, number: int, draft: int) -> int:
        keys = store.segments(number, draft)
        with closing(prefetch(store.objects.get, keys, window=2)) as segments:
            self._db.execute("BEGIN")
            found = 0
            for key, data in segments:
                with intact(key):
                    found += self._record(number, data or b"")
            self._db.execute("COMMIT")
        self._empty = self._empty and not found
        return found

    def _record(self, number: int, segment: bytes) -> int:
        """Record a segment's items; return how many were new to their round."""
        return sum(
            self._db.execute(
                "INSERT INTO retried (digest, round) VALUES (?1, ?2) ON CONFLICT (digest) "
                "DO UPDATE SET round = ?2 WHERE round < ?2",
                (_digest(key), number),
            ).rowcount
            for key, _ in unpack_segment(segment)
        )


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
