"""The journal: outcomes of one attempt's items in SQLite on node-local scratch.

WAL with ``synchronous=NORMAL`` loses nothing when the process is killed and never
corrupts; a power cut may lose the last commits, which are then simply done again. Must
not lie on NFS or Lustre, where WAL's shared memory does not work. Used by one thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (
    position INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    class TEXT NOT NULL,
    rows INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT
"""
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item.

    Args:
        position: the item's place in its task, from 0.
        key: the item's key.
        error_class: empty where it succeeded.
        rows: lines in `body` (1 for a failed item).
        body: JSON lines, each ended by a newline: the rows, or the one error record.
    """

    position: int
    key: str
    error_class: str
    rows: int
    body: str


class Journal:
    """One attempt's outcomes, durable against the death of the process.

    Args:
        path: the SQLite file; made if absent.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(_SCHEMA)
        self._pending: list[Outcome] = []
        self.ok = self._count("class = ''")
        self.failed = self._count("class <> ''")

    def add(self, outcome: Outcome) -> None:
        """Note an outcome; written with the next batch."""
        self._pending.append(outcome)
        if outcome.error_class:
            self.failed += 1
        else:
            self.ok += 1
        if len(self._pending) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what is pending, in one transaction."""
        if not self._pending:
            return
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, ?, ?)",
            [(o.position, o.key, o.error_class, o.rows, o.body) for o in self._pending],
        )
        self._db.execute("COMMIT")
        self._pending.clear()

    def positions(self) -> set[int]:
        """Places of the items that have an outcome."""
        return {row[0] for row in self._db.execute("SELECT position FROM outcomes")}

    def bodies(self, *, failed: bool) -> Iterator[tuple[str, int]]:
        """(body, rows) of the items that failed, or of those that did not, in order."""
        condition = "class <> ''" if failed else "class = ''"
        self.flush()
        yield from self._db.execute(
            f"SELECT body, rows FROM outcomes WHERE {condition} AND rows > 0 "  # noqa: S608
            "ORDER BY position"
        )

    def failed_by_class(self) -> dict[str, int]:
        """Failed items by error class."""
        self.flush()
        return dict(
            self._db.execute(
                "SELECT class, count(*) FROM outcomes WHERE class <> '' "
                "GROUP BY class ORDER BY class"
            )
        )

    def close(self) -> None:
        """Close the file."""
        self.flush()
        self._db.close()

    def _count(self, condition: str) -> int:
        query = f"SELECT count(*) FROM outcomes WHERE {condition}"  # noqa: S608  a constant
        return int(self._db.execute(query).fetchone()[0])
