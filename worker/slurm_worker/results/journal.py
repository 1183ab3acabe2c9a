"""The journal: outcomes of one attempt's items in SQLite on node-local scratch.

WAL with ``synchronous=NORMAL`` loses nothing when the process is killed and never
corrupts; a power cut may lose the last commits, whose items are then run again. The file must
not be on NFS or Lustre, where WAL's shared memory does not work.

A worker uses two journals in turn: while the outcomes of one task are committed, those of the
next are journaled. An item is named by its position in the task. This needs no second index:
`store.read_slice` checks that a task's keys are distinct.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (
    position INTEGER PRIMARY KEY,
    class TEXT NOT NULL,
    rows INTEGER NOT NULL,
    body TEXT NOT NULL,
    items INTEGER NOT NULL
) STRICT
"""
#: The runners flush by the clock; this bounds what is kept in memory between two flushes.
_BATCH = 1000


class Outcome(NamedTuple):
    """The outcome of one item, or of neighbours that succeeded: fewer rows cost SQLite less."""

    position: int  #: the place of the first item in its task, from 0
    error_class: str  #: empty where it succeeded
    rows: int  #: lines in `body` (1 for a failed item)
    body: str  #: JSON lines, each with its newline: the rows, or the one error record
    items: int = 1  #: how many, from `position` on


class Journal:
    """One attempt's outcomes; they survive the death of the process.

    One thread at a time writes; another may call `snapshot` at any time. `ok`, `failed` and `rows`
    count what is flushed. The SQLite file at `path` is created if absent.

    Raises:
        sqlite3.Error: from any method, when scratch is full or read-only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(_SCHEMA)
        self._pending: list[Outcome] = []
        self._run: list[str] = []
        self._run_rows = self._following = 0
        self._stale = True
        self.ok = self.failed = self.rows = 0
        #: Attempts so far; see `snapshot`.
        self.begun = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Start an attempt; the first batch deletes the outcomes of the last one."""
        with self._lock:
            self.begun += 1
            self._stale = True
        self._pending, self._run = [], []
        self._run_rows = self._following = 0
        self.ok = self.failed = self.rows = 0

    def add(self, outcome: Outcome) -> None:
        """Record an outcome; it is written and counted with the next batch."""
        self._pending.append(outcome)
        if len(self._pending) >= _BATCH:
            self.flush()

    def add_ok(self, position: int, rows: int, lines: str) -> None:
        """Record a success, as `add` does, at less cost where the item follows the last one."""
        if position != self._following:
            self._end_run()
        self._run.append(lines)
        self._run_rows += rows
        self._following = position + 1
        if len(self._run) >= _BATCH:
            self.flush()

    def _end_run(self) -> None:
        if self._run:
            count = len(self._run)
            first = self._following - count
            self._pending.append(Outcome(first, "", self._run_rows, "".join(self._run), count))
            self._run, self._run_rows = [], 0

    def flush(self) -> None:
        """Write and count what is pending; the file then holds no other attempt's outcomes."""
        self.write()
        if self._stale:
            self._transact([])

    def write(self) -> None:
        """Write and count what is pending, if anything is, in one transaction."""
        self._end_run()
        if self._pending:
            pending, self._pending = self._pending, []
            self._transact(pending)

    def _transact(self, pending: list[Outcome]) -> None:
        runs = _runs(pending)
        self._db.execute("BEGIN")
        if self._stale:
            self._db.execute("DELETE FROM outcomes")
        self._db.executemany("INSERT INTO outcomes VALUES (?, ?, ?, ?, ?)", runs)
        self._db.execute("COMMIT")
        self._stale = False
        for _, error_class, rows, _, count in runs:
            if error_class:
                self.failed += count
            else:
                self.ok += count
                self.rows += rows

    def positions(self) -> set[int]:
        """Positions of the items that have an outcome."""
        self.flush()
        found = self._db.execute("SELECT position, items FROM outcomes")
        return {position for first, count in found for position in range(first, first + count)}

    def bodies(self, *, failed: bool) -> Iterator[str]:
        """The lines of the failed items, or of the others, in order."""
        self.flush()
        which = "<>" if failed else "="
        select = f"SELECT body FROM outcomes WHERE class {which} '' ORDER BY position"  # noqa: S608
        for (body,) in self._db.execute(select):
            yield body

    def failed_by_class(self) -> dict[str, int]:
        """Failed items by error class."""
        self.flush()
        if not self.failed:
            return {}
        select = (
            "SELECT class, count(*) FROM outcomes WHERE class <> '' GROUP BY class ORDER BY class"
        )
        return dict(self._db.execute(select))

    def snapshot(self, begun: int) -> list[Outcome]:
        """Every outcome that the attempt has written so far; uses its own connection.

        `begun` was the attribute of this name when the attempt started. A later attempt's outcomes
        are never returned, because they belong to other items.
        """
        with self._lock, closing(sqlite3.connect(self.path, isolation_level=None)) as reader:
            if self._stale or begun != self.begun:
                return []
            found = reader.execute("SELECT * FROM outcomes ORDER BY position")
            return [Outcome(*row) for row in found]

    def restore(self, outcomes: Iterable[Outcome]) -> None:
        """Start from the outcomes of an earlier attempt."""
        for outcome in outcomes:
            self.add(outcome)
        self.write()

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _runs(outcomes: list[Outcome]) -> list[Outcome]:
    """The outcomes in order, neighbours that succeeded as one; an item with two is an error."""
    if any(later[0] <= earlier[0] for earlier, later in pairwise(outcomes)):
        outcomes = sorted(outcomes)
    found: list[Outcome] = []
    bodies: list[str] = []
    first = rows = 0
    following = -1
    for outcome in outcomes:
        position, error_class, its_rows, body, count = outcome
        if position < following:
            raise sqlite3.IntegrityError(f"item {position} has two outcomes")
        if bodies and (error_class or position != following):
            found.append(Outcome(first, "", rows, "".join(bodies), following - first))
            bodies = []
        if error_class:
            found.append(outcome)
        else:
            if not bodies:
                first, rows = position, 0
            bodies.append(body)
            rows += its_rows
        following = position + count
    if bodies:
        found.append(Outcome(first, "", rows, "".join(bodies), following - first))
    return found
