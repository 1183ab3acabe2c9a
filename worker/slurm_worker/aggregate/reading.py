"""Reading committed objects: several requests at a time, verified, in order."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.errors import UserError
from slurm_worker.keys import TaskId
from slurm_worker.parts import KEY_FIELD, lines_of
from slurm_worker.store import JobStore, Part

READERS = 16
#: What reading a part that is not what its name says may raise.
_BROKEN = (OSError, EOFError, ValueError, RecursionError, zlib.error, sqlite3.Error)
_A = TypeVar("_A")
_B = TypeVar("_B")


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


def unpack(store: JobStore, task: TaskId, part: Part, data: bytes) -> list[dict[str, Any]]:
    """The lines of a part.

    Raises:
        AggregationError: naming task and part, if they are not what its marker says.
    """
    mend = f"remove its marker {store.paths.done(task)} and run the task again"
    try:
        rows = parse_lines(lines_of(data, part.key))
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200]
        raise AggregationError(
            f"aggregate: task {task}: {part.key} can't be read: {reason}; {mend}"
        ) from error
    if len(rows) != part.rows:
        raise AggregationError(
            f"aggregate: task {task}: {part.key} has {len(rows):,} lines where its marker says "
            f"{part.rows:,}; {mend}"
        )
    return rows


def parse_lines(data: bytes) -> list[dict[str, Any]]:
    """Rows of JSON lines, each with its item's key.

    Raises:
        ValueError: if a line is not a JSON object, or has no key.
    """
    text = data.decode()
    if not text:
        return []
    if not text.endswith("\n"):
        raise ValueError("the last line is cut short")
    # One call for the whole part takes a third less time than one for each line. A line
    # end can't stand inside a JSON value, so nothing but line ends becomes a comma.
    rows = json.loads(f"[{text[:-1].replace(chr(10), ',')}]", parse_constant=_refuse)
    for row in rows:
        if type(row) is not dict or type(row.get(KEY_FIELD)) is not str:
            raise ValueError(f"a line is not an object with {KEY_FIELD!r}")
    lines: list[dict[str, Any]] = rows
    return lines


def _refuse(name: str) -> float:
    raise ValueError(f"it holds {name}, which is not JSON")
