"""A table and a bucket in files, so that a new process finds the data of earlier ones.

Rows are in SQLite and not in the memory of the reader, as with the real table. Each page of a query
and each thousand keys of a listing count as one request, as on AWS.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks.billion.aws import item_bytes
from benchmarks.billion.rows import Condition, Update, compile_statement
from slurm_worker.backends.local import FolderObjects
from slurm_worker.protocol.ports import Applied, ObjectInfo, Refused, Row, Statement

_PAGE_BYTES = 1 << 20
_KEYS = 1_000


class SqliteRows:
    """`ports.Rows` in an SQLite file; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self.requests = 0
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE IF NOT EXISTS item "
            "(pk TEXT, sk TEXT, row TEXT, PRIMARY KEY (pk, sk)) WITHOUT ROWID;"
        )
        self._compiled: dict[str, tuple[Condition, Update]] = {}

    def close(self) -> None:
        self._db.close()

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        with self._lock:
            self.requests += 1
            return self._find(pk, sk)

    def put_new(self, row: Row) -> Applied | Refused:
        pk, sk = str(row["pk"]), str(row["sk"])
        with self._lock:
            self.requests += 1
            standing = self._find(pk, sk)
            if standing is not None:
                return Refused(standing)
            self._put(pk, sk, row)
            return Applied(row)

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        with self._lock:
            self.requests += 1
            if statement.name not in self._compiled:
                self._compiled[statement.name] = compile_statement(statement)
            condition, change = self._compiled[statement.name]
            standing = self._find(pk, sk)
            if not condition(standing or {}, statement.values):
                return Refused(standing)
            after = {**change(standing or {}, statement.values), "pk": pk, "sk": sk}
            self._put(pk, sk, after)
            return Applied(after)

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,
        backwards: bool = False,
    ) -> Iterator[Row]:
        left = 0
        order = "DESC" if backwards else "ASC"
        text = f"SELECT row FROM item WHERE pk = ? AND sk > ? ORDER BY sk {order} LIMIT ?"
        with self._lock:
            self.requests += 1
            found = self._db.execute(text, (pk, after, -1 if limit is None else limit))
        while True:
            with self._lock:
                rows = [json.loads(each[0]) for each in found.fetchmany(500)]
            if not rows:
                return
            for row in rows:
                left += item_bytes(row)
                if left > _PAGE_BYTES:
                    self.requests += 1
                    left = 0
                yield row

    def delete(self, pk: str, sk: str) -> None:
        with self._lock:
            self.requests += 1
            self._db.execute("DELETE FROM item WHERE pk = ? AND sk = ?", (pk, sk))

    def _find(self, pk: str, sk: str) -> Row | None:
        text = "SELECT row FROM item WHERE pk = ? AND sk = ?"
        found = self._db.execute(text, (pk, sk)).fetchone()
        return None if found is None else json.loads(found[0])

    def _put(self, pk: str, sk: str, row: Row) -> None:
        self._db.execute("REPLACE INTO item VALUES (?, ?, ?)", (pk, sk, json.dumps(row)))


class CountedObjects(FolderObjects):
    """A folder as a bucket, with its requests counted."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        root.mkdir(exist_ok=True)
        self.requests = 0

    def verify(self) -> None:
        self.requests += 1
        super().verify()

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        self.requests += 1
        return super().get(key, start=start, length=length)

    def put(self, key: str, body: bytes) -> None:
        self.requests += 1
        super().put(key, body)

    def put_new(self, key: str, body: bytes) -> bool:
        self.requests += 1
        return super().put_new(key, body)

    def list(self, prefix: str) -> Iterator[str]:
        for number, key in enumerate(super().list(prefix)):
            self.requests += number % _KEYS == 0
            yield key

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        # `FolderObjects.entries` lists by `list`, which counts.
        yield from super().entries(prefix)

    def delete(self, key: str) -> None:
        self.requests += 1
        super().delete(key)

    def size(self, key: str) -> int | None:
        self.requests += 1
        return super().size(key)

    def upload(self, key: str, path: str) -> None:
        self.requests += 1
        super().upload(key, path)

    def download(self, key: str, path: str) -> None:
        self.requests += 1
        super().download(key, path)
