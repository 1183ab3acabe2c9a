"""Parts: a task's outcomes as gzipped JSON lines, or as SQLite.

The rows part has one line per row, ``{"_key": item key, ...row}``. The errors part has one
line per failed item with its class, its message and the item itself, so that a retry can
be planned from it alone. The same outcomes give the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from slurm_worker.errors import ErrorClass, ItemError, split_place
from slurm_worker.printable import encodable
from slurm_worker.results import jsonlines
from slurm_worker.results.journal import Journal, Outcome

try:
    # Takes about half the time. Optional: it is installed with the aggregation extra.
    from isal import igzip_lib
except ImportError:
    igzip_lib = None  # type: ignore[assignment]  # None where it is not installed

KEY_FIELD = "_key"
JSONL = "jsonl.gz"
SQLITE = "sqlite"
#: The one table of an SQLite part.
PART_TABLE = (
    "CREATE TABLE rows (number INTEGER PRIMARY KEY, key TEXT NOT NULL, line TEXT NOT NULL) STRICT"
)
#: Needs a declared schema, and pyarrow on the node; see `aggregate/job/parquet_part.py`.
PARQUET = "parquet"
#: What a job may ask for.
PART_FORMATS = (JSONL, SQLITE, PARQUET)
#: Items whose lines are compressed in one call: a call per line costs more than the line.
_CHUNK = 256
#: Deflate shrinks no data to less than 1/1032.
_MOST_SHRUNK = 11


def _encoder() -> Callable[[object, int], Iterable[str]]:
    """Pieces of JSON without spaces, NaN or escapes of what is not ASCII.

    `JSONEncoder.encode` needs as long to prepare as to encode a small row. So the encoder that it
    prepares is made once, where this Python has it in C.
    """
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return lambda value, _indent: encoder.iterencode(value)
    # No record of the containers it is in (the first argument): it would keep those of a row
    # that failed. So a row that contains itself raises a RecursionError.
    made: Callable[[object, int], Iterable[str]] = make(
        None, encoder.default, json.encoder.encode_basestring, None, ":", ",", *(False,) * 3
    )
    return made


_encode = _encoder()
_encode_text: Callable[[str], str] = json.encoder.encode_basestring
_HEAD = f'{{"{KEY_FIELD}":'
#: Finds a name that may have been a number, a boolean or None; it may be in a text's value.
_NAME_OF_OTHER = re.compile(r'"(?:-?\d[\d.e+-]*|null|true|false)":').search


#: Turns (key, result) into (rows, lines), or raises `ItemError`.
ToLines = Callable[[str, object], tuple[int, str]]


class Columns(Protocol):
    """Turns rows into columns on the node, by the job's schema."""

    def to_lines(self, key: str, result: object) -> tuple[int, str]:
        """As `to_lines`, for rows that fit the schema."""

    def make(self, bodies: Iterator[str]) -> bytes | None:
        """A part of these JSON lines; None if one does not fit."""


def to_lines(key: str, result: object) -> tuple[int, str]:
    """A handler's result as JSON lines: how many, and the lines.

    `result` is a dict (one row), a list of dicts (that many rows), or None (no row).

    Raises:
        ItemError: class `handler_bug`, if it is something else or not JSON.
    """
    try:
        if type(result) is dict and KEY_FIELD not in result:
            # Most handlers return this: the key is written before the row, without a copy of it.
            rest = "".join(_encode(result, 0))[1:]
            line = f"{_HEAD}{_encode_text(key)}{',' if result else ''}{rest}\n"
            if not line.isascii():
                line.encode()  # See `_line`.
            if "{" in rest and _NAME_OF_OTHER(rest):
                check_names(result)
            for name in result:
                if type(name) is not str:
                    check_names(result)
                    break
            return 1, line
        rows = _rows_of(result)
        return len(rows), "".join([_line({KEY_FIELD: key, **row}) for row in rows])
    except (TypeError, ValueError, RecursionError) as error:
        raise ItemError(
            ErrorClass.HANDLER_BUG,
            f"the handler's result is not JSON: {error}; return strings, numbers (no NaN or "
            "infinity), booleans, None, lists and dicts with string keys",
        ) from error


def ok_outcome(position: int, key: str, result: object, lines: ToLines = to_lines) -> Outcome:
    """The outcome of a handler's result; see `to_lines`."""
    return Outcome(position, "", *lines(key, result))


def _line(row: dict[str, Any]) -> str:
    line = "".join(_encode(row, 0)) + "\n"
    if not line.isascii():
        line.encode()  # A lone surrogate is text to Python only.
    if _NAME_OF_OTHER(line):
        check_names(row)
    return line


def check_names(value: object) -> None:
    """Raise a ValueError for a dict, at any depth, two of whose keys become one name in JSON.

    JSON writes 1 as "1", None as "null" and True as "true".
    """
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            _check_keys(part)
            left.extend(part.values())
        elif isinstance(part, list | tuple):
            left.extend(part)


def _check_keys(names: dict[Any, Any]) -> None:
    if all(type(name) is str for name in names):
        return
    found: dict[str, object] = {}
    for name in names:
        ((text, _),) = json.loads("".join(_encode({name: 0}, 0))).items()
        if text in found:
            raise ValueError(
                f"two keys of a dict, {found[text]!r} and {name!r}, become one name, {text!r}"
            )
        found[text] = name


def error_outcome(
    position: int,
    key: str,
    error_class: ErrorClass,
    message: str,
    *,
    place: str = "",
    tries: int,
    at: float,
    item: str,
) -> Outcome:
    """The outcome of an item that failed after so many `tries`, or calls of the handler.

    `place` is where in the user's code; see `errors.place_of`. `at` is in seconds since the epoch.
    `item` is the JSON text of the item, as it was planned.
    """
    record = {
        KEY_FIELD: key,
        "class": error_class.value,
        "message": message,
        "place": place,
        "tries": tries,
        "at": round(at, 3),
    }
    line = f'{json.dumps(record)[:-1]}, "item": {item}}}\n'
    return Outcome(position, error_class.value, 1, line)


def message_of(record: Mapping[str, Any]) -> tuple[str, str]:
    """The message of a failed item's record, and the place in the user's code.

    Releases up to 0.1 wrote no field for the place.
    """
    message = encodable(record["message"])
    return (message, record["place"]) if "place" in record else split_place(message)


def make_part(
    journal: Journal, part_format: str, kind: str, scratch: Path, columns: Columns | None = None
) -> tuple[str, bytes]:
    """The suffix of a part's key, and its bytes; the same outcomes give the same bytes.

    `kind` is ``rows`` or ``errors``; errors are always JSON lines. Formats that need a file use
    `scratch`. Without `columns`, Parquet becomes JSON lines.

    Raises:
        OSError, sqlite3.Error: if scratch is full.
    """
    bodies = journal.bodies(failed=kind == "errors")
    if kind == "errors":
        return f"errors.{JSONL}", _jsonl_part(bodies)
    if part_format == SQLITE:
        return SQLITE, _sqlite_part(bodies, scratch / "part.sqlite")
    if part_format == PARQUET and columns is not None:
        data = columns.make(bodies)
        if data is not None:
            return PARQUET, data
        bodies = journal.bodies(failed=False)
    return JSONL, _jsonl_part(bodies)


def _jsonl_part(bodies: Iterator[str]) -> bytes:
    out = io.BytesIO()
    # No time and no name in the header: the same lines give the same bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=3, mtime=0) as part:
        while chunk := list(islice(bodies, _CHUNK)):
            part.write("".join(chunk).encode())
    return out.getvalue()


def lines_of(data: bytes, key: str) -> bytes:
    """The JSON lines of a part of JSON lines or SQLite; `key` ends in the format.

    Raises:
        OSError, EOFError, zlib.error, sqlite3.Error: if it is not of that format.
    """
    if not key.endswith(f".{SQLITE}"):
        return _gunzip(data)
    # In a new folder: SQLite would use a journal that somebody puts beside the file.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"part.{SQLITE}"
        file.write_bytes(data)
        with closing(sqlite3.connect(file)) as db:
            found = db.execute("SELECT line FROM rows ORDER BY number")
            return "".join(f"{line}\n" for (line,) in found).encode()


def _gunzip(data: bytes) -> bytes:
    size = int.from_bytes(data[-4:], "little")
    # Unpacked into one piece of memory of the size in the trailer, where possible.
    if igzip_lib is not None and size <= len(data) << _MOST_SHRUNK:
        with suppress(Exception):
            reader = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
            lines: bytes = reader.decompress(data, size + 1)
            if reader.eof and not reader.unused_data and len(lines) == size:
                return lines
    # If the data is wrong, the standard library raises the error.
    return gzip.decompress(data)


def parse_lines(data: bytes) -> list[dict[str, Any]]:
    """Rows of JSON lines; a ValueError for one without a key, or that is not an object."""
    if data and not data.endswith(b"\n"):
        raise ValueError("the last line is incomplete")
    rows = jsonlines.parse(data)
    for row in rows:
        if type(row.get(KEY_FIELD)) is not str:
            raise ValueError(f"a line is not an object with {KEY_FIELD!r}")
    return rows


def _sqlite_part(bodies: Iterator[str], path: Path) -> bytes:
    """One table ``rows(number, key, line)``: a part that SQLite's own tools can query."""
    path.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode=OFF")
            db.execute(PART_TABLE)
            db.execute("BEGIN")
            lines = (line for body in bodies for line in body.split("\n") if line)
            values = ((json.loads(line)[KEY_FIELD], line) for line in lines)
            db.executemany("INSERT INTO rows (key, line) VALUES (?, ?)", values)
            db.execute("COMMIT")
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _rows_of(result: object) -> list[dict[str, Any]]:
    if result is None:
        return []
    rows: list[Any] = result if isinstance(result, list) else [result]
    for row in rows:
        if not isinstance(row, dict):
            found = type(row).__name__
            message = f"the handler returned {found}; return a dict, a list of dicts or None"
            raise ItemError(ErrorClass.HANDLER_BUG, message)
        if KEY_FIELD in row:
            message = (
                f"the handler's row has a field {KEY_FIELD!r}, which names the item; rename it"
            )
            raise ItemError(ErrorClass.HANDLER_BUG, message)
    return rows
