"""Reading committed parts, verified."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.job.parquet_part import read_columns, read_rows
from slurm_worker.errors import UserError
from slurm_worker.protocol.job_store import JobStore, Part
from slurm_worker.protocol.keys import TaskId
from slurm_worker.results.parts import PARQUET, lines_of, parse_lines

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
_T = TypeVar("_T")
_Rows = TypeVar("_Rows", list[dict[str, Any]], pa.Table)


def is_columns(part: Part) -> bool:
    """Whether a part is Parquet."""
    return part.key.endswith(f".{PARQUET}")


class Fetched:
    """A committed part's bytes, in the form that is asked for.

    Each raises an AggregationError, naming task and part, if they are not what the marker says.
    """

    def __init__(self, store: JobStore, task: TaskId, part: Part) -> None:
        self.part = part
        self._mend = f"remove its marker {store.paths.done(task)} and run the task again"
        self._where = f"aggregate: task {task}: {part.key}"
        try:
            self._data = store.read_part(part)
        except UserError as error:
            raise AggregationError(f"aggregate: task {task}: {error}") from error

    def lines(self) -> bytes:
        """The JSON lines of a part that is not Parquet."""
        return self._guarded(lambda: lines_of(self._data, self.part.key))

    def rows(self) -> list[dict[str, Any]]:
        """The rows, as the JSON that they were."""
        if is_columns(self.part):
            return self._counted(self._guarded(lambda: read_rows(self._data)))
        return self.parse(self.lines())

    def parse(self, lines: bytes) -> list[dict[str, Any]]:
        """The rows in these lines of the part."""
        return self._counted(self._guarded(lambda: parse_lines(lines)))

    def columns(self) -> pa.Table:
        """The columns of a Parquet part."""
        return self._counted(self._guarded(lambda: read_columns(self._data)))

    def _guarded(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except _BROKEN as error:
            reason = " ".join(str(error).split())[:200]
            raise AggregationError(
                f"{self._where} can't be read: {reason}; {self._mend}"
            ) from error

    def _counted(self, rows: _Rows) -> _Rows:
        if len(rows) != self.part.rows:
            raise AggregationError(
                f"{self._where} has {len(rows):,} rows where its marker says "
                f"{self.part.rows:,}; {self._mend}"
            )
        return rows
