"""Reading committed parts, verified."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.part import read_columns, read_rows
from slurm_worker.errors import UserError
from slurm_worker.keys import TaskId
from slurm_worker.parts import PARQUET, lines_of, parse_lines
from slurm_worker.store import JobStore, Part

#: What reading a part that is not what its name says may raise.
_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RecursionError,
    zlib.error,
    sqlite3.Error,
    pa.ArrowException,
)
_Rows = TypeVar("_Rows", list[dict[str, Any]], pa.Table)


def fetch(store: JobStore, task: TaskId, part: Part) -> bytes:
    """A committed part's bytes, checked against its marker.

    Raises:
        AggregationError: naming task and part, if they are not what was committed.
    """
    try:
        return store.read_part(part)
    except UserError as error:
        raise AggregationError(f"aggregate: task {task}: {error}") from error


def is_columns(part: Part) -> bool:
    """Whether a part is Parquet."""
    return part.key.endswith(f".{PARQUET}")


def unpack(store: JobStore, task: TaskId, part: Part, data: bytes) -> list[dict[str, Any]]:
    """The rows of a part.

    Raises:
        AggregationError: naming task and part, if they are not what its marker says.
    """
    if is_columns(part):
        return _checked(store, task, part, lambda: read_rows(data))
    return _checked(store, task, part, lambda: parse_lines(lines_of(data, part.key)))


def unpack_columns(store: JobStore, task: TaskId, part: Part, data: bytes) -> pa.Table:
    """The columns of a Parquet part.

    Raises:
        AggregationError: naming task and part, if they are not what its marker says.
    """
    return _checked(store, task, part, lambda: read_columns(data))


def _checked(store: JobStore, task: TaskId, part: Part, read: Callable[[], _Rows]) -> _Rows:
    mend = f"remove its marker {store.paths.done(task)} and run the task again"
    try:
        rows = read()
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200]
        raise AggregationError(
            f"aggregate: task {task}: {part.key} can't be read: {reason}; {mend}"
        ) from error
    if len(rows) != part.rows:
        raise AggregationError(
            f"aggregate: task {task}: {part.key} has {len(rows):,} rows where its marker says "
            f"{part.rows:,}; {mend}"
        )
    return rows
