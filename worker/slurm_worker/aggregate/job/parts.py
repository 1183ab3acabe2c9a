"""Reading committed parts, verified: as lines, as rows, or as the columns of a schema.

Requests: one GET per part.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from operator import attrgetter
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.dataset.writer import grouped
from slurm_worker.aggregate.errors import AggregationError, one_line
from slurm_worker.aggregate.job.parquet_part import read_columns, read_rows
from slurm_worker.aggregate.job.plan import PlannedPart
from slurm_worker.errors import UserError
from slurm_worker.prefetch import READERS, prefetch
from slurm_worker.protocol.job_store import JobStore, Part
from slurm_worker.protocol.keys import TaskId
from slurm_worker.results.parts import KEY_FIELD, PARQUET, lines_of, parse_lines

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
#: A part's lines and columns take about this many times its compressed bytes.
_UNPACKED = 8
#: Small parts are read together, about this many compressed bytes: each read has its own cost.
_TOGETHER = 128 << 10
#: Memory that is kept for the next parts.
_KEPT = 16 << 20

_T = TypeVar("_T")
_Rows = TypeVar("_Rows", list[dict[str, Any]], pa.Table)


def is_columns(part: Part) -> bool:
    """Whether a part is Parquet."""
    return part.key.endswith(f".{PARQUET}")


def part_error(store: JobStore, task: TaskId, part: Part, problem: str) -> AggregationError:
    """What is wrong with a part, and what to do."""
    return AggregationError(
        f"aggregate: task {task}: {part.key} {problem}; remove its marker "
        f"{store.paths.done(task)} and run the task again"
    )


class Fetched:
    """A committed part's bytes, in the form that the caller needs.

    Each method raises an AggregationError, naming task and part, if they are not what the
    marker says.
    """

    def __init__(self, store: JobStore, task: TaskId, part: Part) -> None:
        self.part = part
        self._store = store
        self._task = task
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
            raise self._error(f"can't be read: {one_line(error)}") from error

    def _counted(self, rows: _Rows) -> _Rows:
        if len(rows) != self.part.rows:
            raise self._error(f"has {len(rows):,} rows, but its marker says {self.part.rows:,}")
        return rows

    def _error(self, problem: str) -> AggregationError:
        return part_error(self._store, self._task, self.part, problem)


class PartReader:
    """Reads parts: many are fetched ahead, and a few are unpacked, one per processor.

    `memory` is about the most bytes of memory in use.
    """

    def __init__(self, store: JobStore, memory: int) -> None:
        self.store = store
        self._memory = memory
        # glibc gives the memory of large objects back at once, and clearing it again for each
        # part takes longer than unpacking the part. It keeps the memory after it has seen one
        # object of this size come and go.
        bytes(_KEPT)

    def ahead(
        self,
        batches: Iterable[Sequence[PlannedPart]],
        largest: int,
        read: Callable[[Sequence[Fetched]], _T],
    ) -> Generator[tuple[Sequence[PlannedPart], _T], None, None]:
        """What `read` makes of each batch, in order; no part is larger than `largest`."""
        cpus = len(os.sched_getaffinity(0))
        fit = self._memory // 16 // max(_TOGETHER, largest)
        window = max(1, min(2 * READERS, fit))
        unpacked = max(1, min(16 * cpus, fit // _UNPACKED))

        def fetch(batch: Sequence[PlannedPart]) -> list[Fetched]:
            return [Fetched(self.store, planned.task, planned.part) for planned in batch]

        with (
            closing(prefetch(fetch, batches, window)) as fetched,
            closing(prefetch(lambda pair: read(pair[1]), fetched, unpacked, cpus)) as found,
        ):
            for (batch, _), made in found:
                yield batch, made

    def tables(self, parts: Sequence[PlannedPart], converter: Converter) -> Iterator[pa.Table]:
        """The columns of neighbouring parts; the same parts always give the same tables."""
        size = attrgetter("part.size")
        batches = grouped(parts, (size, _TOGETHER))
        largest = max(map(size, parts))
        with closing(self.ahead(batches, largest, lambda batch: _table(batch, converter))) as read:
            for batch, table in read:
                self._check_items(batch, table)
                yield table

    def _check_items(self, batch: Sequence[PlannedPart], table: pa.Table) -> None:
        """Refuse parts with rows of more items than succeeded."""
        at = 0
        for planned in batch:
            part, ok = planned.part, planned.ok
            if part.rows > ok:
                keys = table.column(KEY_FIELD).slice(at, part.rows)
                if (items := pc.count_distinct(keys).as_py()) > ok:
                    problem = f"has rows of {items:,} items, but its marker says that {ok:,} "
                    raise part_error(self.store, planned.task, part, f"{problem}succeeded")
            at += part.rows


def _table(batch: Sequence[Fetched], converter: Converter) -> pa.Table:
    """The columns of neighbouring parts: of all at once where each is whole lines of its rows."""
    if len(batch) > 1 and not any(is_columns(fetched.part) for fetched in batch):
        texts = [fetched.lines() for fetched in batch]
        # No row can begin in one part and end in the next, and no part can have another's rows.
        if all(
            text.startswith(b"{")
            and text.endswith(b"}\n")
            and text.count(b"\n") == fetched.part.rows
            for text, fetched in zip(texts, batch, strict=True)
        ):
            exact = converter.read(b"".join(texts))
            if exact is not None and exact.num_rows == sum(fetched.part.rows for fetched in batch):
                return exact
    return pa.concat_tables([_table_of_part(fetched, converter) for fetched in batch])


def _table_of_part(fetched: Fetched, converter: Converter) -> pa.Table:
    if is_columns(fetched.part):
        table = fetched.columns()
        if table.schema.equals(converter.arrow_schema):
            return table.replace_schema_metadata(None)
        # The schema has changed since: made into rows, and into columns again.
        rows = fetched.rows()
    else:
        lines = fetched.lines()
        exact = converter.read(lines)
        if exact is not None and exact.num_rows == fetched.part.rows:
            return exact
        rows = fetched.parse(lines)
    return converter.table(rows, fetched.part.key)
