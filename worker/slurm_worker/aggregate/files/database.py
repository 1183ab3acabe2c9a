"""SQLite files as JSON lines: the committed rows, as SQLite itself finds them.

An interrupted writer leaves its journal, or the log of its commits, beside the file. Without them
the file holds rows that were never committed, or lacks committed ones. So all of them are copied,
and SQLite recovers the copy; the user's folder is never written to.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.results.parts import PART_TABLE

#: What SQLite needs beside a database; it makes a new `-shm` file.
SIDE_FILES = ("-journal", "-wal")
_CHUNK_ROWS = 10_000
#: The end of a journal that names another one: of a transaction over several databases.
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


def copy_database(path: Path, folder: Path) -> Path:
    """Copy a database, with what SQLite needs beside it; return the copy.

    Raises:
        OSError: if one of them can't be read.
    """
    # SQLite looks beside the file itself, not beside a link to it.
    path = path.resolve()
    copy = folder / "source"
    for file in database_files(path):
        shutil.copyfile(file, f"{copy}{file.name.removeprefix(path.name)}")
    return copy


def database_files(path: Path) -> list[Path]:
    """A database's file, and those beside it that SQLite needs."""
    beside = [path.with_name(path.name + end) for end in SIDE_FILES]
    return [path, *(side for side in beside if side.exists())]


def database_lines(name: str, copy: Path) -> Iterator[bytes]:
    """The rows of the one table as JSON lines, in order of their ids, thousands at a time.

    `name` is the database's, for messages; `copy` a private copy of it, which SQLite may change.

    Raises:
        AggregationError: if it does not have one table, or has a row that JSON can't hold.
        sqlite3.Error: if it is not SQLite, or damaged.
    """
    _refuse_shared_journal(name, copy)
    with closing(sqlite3.connect(copy)) as db:
        table, sql = _only_table(name, db)
        quoted = table.replace('"', '""')
        # From the table itself: an index that has all columns has another order.
        rows = db.execute(f'SELECT * FROM "{quoted}" NOT INDEXED')  # noqa: S608  the name is quoted
        names = [column[0] for column in rows.description]
        while found := rows.fetchmany(_CHUNK_ROWS):
            if sql == PART_TABLE:
                yield "".join(f"{line}\n" for _, _, line in found).encode()
            else:
                yield b"".join(_line(name, dict(zip(names, row, strict=True))) for row in found)


def _only_table(name: str, db: sqlite3.Connection) -> tuple[str, str]:
    """The name and the statement of the user's one table."""
    found = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'")
    # SQLite's own names are reserved; it keeps its counters and statistics in them.
    made = [(str(name), str(sql)) for name, sql in found if not name.lower().startswith("sqlite_")]
    virtual = [table for table, sql in made if sql.lower().startswith("create virtual table")]
    # A virtual table keeps its content in tables that have its name and more.
    shadows = _shadows(db) if virtual else set()
    tables = [entry for entry in made if entry[0] not in {*virtual, *shadows}]
    if len(tables) == 1:
        return tables[0]
    views = [view for (view,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'view'")]
    others = f" (and {', '.join(virtual + views)}, which can't be read)" if virtual or views else ""
    raise AggregationError(
        f"aggregate: {name} has the tables {', '.join(table for table, _ in tables) or '(none)'}"
        f"{others}; a database must have exactly one table: write the rows of that table into a "
        "database of its own"
    )


def _shadows(db: sqlite3.Connection) -> set[str]:
    if sqlite3.sqlite_version_info < (3, 37):
        raise sqlite3.NotSupportedError(
            f"it has virtual tables; SQLite is {sqlite3.sqlite_version} here, and they need 3.37"
        )
    listed = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'shadow'"
    return {name for (name,) in db.execute(listed)}


def _refuse_shared_journal(name: str, copy: Path) -> None:
    """Only SQLite, with all files of such a transaction, can find whether it was committed."""
    journal = copy.with_name(f"{copy.name}-journal")
    if journal.exists():
        with journal.open("rb") as file:
            file.seek(max(0, journal.stat().st_size - len(_JOURNAL_MAGIC)))
            if file.read() == _JOURNAL_MAGIC:
                raise AggregationError(
                    f"aggregate: {name} has a journal of a transaction over several databases; run "
                    "a query on it once with sqlite3 where all of these are, then merge again"
                )


def _line(name: str, row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise AggregationError(
            f"aggregate: {name} has a row that JSON can't hold ({error}); store BLOBs as base64"
        ) from error
