"""Parts: a task's outcomes as gzipped JSON lines.

The rows part has one line per row, ``{"_key": item key, ...row}``; the errors part one
line per failed item with its class, message and the item itself, so that a retry can
be planned from it alone. The same outcomes give the same bytes.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from slurm_worker.errors import ErrorClass, ItemError
from slurm_worker.journal import Journal, Outcome

KEY_FIELD = "_key"
ROWS_SUFFIX = "jsonl.gz"
ERRORS_SUFFIX = "errors.jsonl.gz"
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def ok_outcome(position: int, key: str, result: object) -> Outcome:
    """The outcome of a handler's result.

    Args:
        position: the item's place in its task.
        key: the item's key.
        result: a dict (one row), a list of dicts (that many rows), or None (no row).

    Raises:
        ItemError: class `handler_bug`, if the result is something else or not JSON.
    """
    rows = _rows_of(result)
    try:
        body = "".join([_encode({KEY_FIELD: key, **row}) + "\n" for row in rows])
        body.encode()  # A lone surrogate is text to Python and to no one else.
    except (TypeError, ValueError) as error:
        raise ItemError(
            ErrorClass.HANDLER_BUG,
            f"the handler's result is not JSON: {error}; return strings, numbers (no NaN or "
            "infinity), booleans, None, lists and dicts with string keys",
        ) from error
    return Outcome(position, key, "", len(rows), body)


def error_outcome(
    position: int,
    key: str,
    error_class: ErrorClass,
    message: str,
    *,
    tries: int,
    at: float,
    item: dict[str, Any],
) -> Outcome:
    """The outcome of an item that failed."""
    record = {
        KEY_FIELD: key,
        "class": error_class.value,
        "message": message,
        "tries": tries,
        "at": round(at, 3),
        "item": item,
    }
    return Outcome(position, key, error_class.value, 1, json.dumps(record) + "\n")


def write_part(journal: Journal, path: Path, *, failed: bool) -> int:
    """Write one part from the journal; return the number of its lines."""
    lines = 0
    with (
        path.open("wb") as raw,
        # No time and no name in the header: the same lines give the same bytes.
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=3, mtime=0) as part,
    ):
        for body, rows in journal.bodies(failed=failed):
            part.write(body.encode())
            lines += rows
    return lines


def _rows_of(result: object) -> list[dict[str, Any]]:
    if result is None:
        return []
    rows: list[Any] = result if isinstance(result, list) else [result]
    for row in rows:
        if not isinstance(row, dict):
            raise ItemError(
                ErrorClass.HANDLER_BUG,
                f"the handler returned {type(row).__name__}; return a dict, a list of dicts "
                "or None",
            )
        if KEY_FIELD in row:
            raise ItemError(
                ErrorClass.HANDLER_BUG,
                f"the handler's row has a field {KEY_FIELD!r}, which names the item; rename it",
            )
    return rows
