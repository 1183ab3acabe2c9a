"""Reading committed objects: several requests at a time, verified, in order."""

from __future__ import annotations

import sqlite3
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.part import read_columns, read_rows
from slurm_worker.errors import UserError
from slurm_worker.keys import TaskId
from slurm_worker.parts import PARQUET, lines_of, parse_lines
from slurm_worker.store import JobStore, Part

READERS = 16
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
_A = TypeVar("_A")
_B = TypeVar("_B")
_Rows = TypeVar("_Rows", list[dict[str, Any]], pa.Table)


def ahead(
    function: Callable[[_A], _B], inputs: Iterable[_A], window: int = 2 * READERS
) -> Generator[tuple[_A, _B], None, None]:
    """(input, function(input)) in order, with at most `window` of them computed ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[tuple[_A, Future[_B]]] = deque()
        try:
            for each in inputs:
                waiting.append((each, pool.submit(function, each)))
                if len(waiting) >= window:
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        finally:
            # After an error, or where the reader stops early, the rest is not worth a wait.
            pool.shutdown(wait=True, cancel_futures=True)


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
