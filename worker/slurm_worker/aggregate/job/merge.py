"""Parts to Parquet: a part at a time, in order of the tasks, verified on the way.

A file's name is the hash of what it is made of: its parts, the schema and this writer.
Memory holds one row group and the parts that are read ahead.

Requests: one GET per part (two where the schema is inferred), and those of `files`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.columns.inference import Inference
from slurm_worker.aggregate.columns.types import Schema
from slurm_worker.aggregate.dataset.naming import file_name, hash16, renamed
from slurm_worker.aggregate.dataset.sorting import sort_files, write_merged
from slurm_worker.aggregate.dataset.version import DataFile, Version
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.job.parquet_part import count_keys
from slurm_worker.aggregate.job.parts import Fetched, is_columns
from slurm_worker.aggregate.job.plan import ERRORS, ROWS, Plan, PlannedPart, Remaining
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.printable import encodable
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.keys import parse_task_id
from slurm_worker.protocol.prefetch import READERS, ahead
from slurm_worker.results.parts import KEY_FIELD

#: A number that is raised with every change of what is written for the same parts.
WRITER = f"4 pyarrow-{pa.__version__}"
#: How much more a part's lines and columns take than its compressed bytes, about.
_UNPACKED = 8
#: Small parts are read together, about so many compressed bytes: each read has its own cost.
_TOGETHER = 128 << 10
#: Rows of a table of failures, of which a part has few.
_ERRORS_AT_ONCE = 1_000
#: Memory that is kept for the next parts.
_KEPT = 16 << 20

_ERROR_FIELDS: list[pa.Field[Any]] = [
    pa.field(KEY_FIELD, pa.string(), nullable=False),
    pa.field("class", pa.string(), nullable=False),
    pa.field("message", pa.string()),
    pa.field("tries", pa.int64()),
    pa.field("at", pa.timestamp("us", "UTC")),
    pa.field("round", pa.int64(), nullable=False),
    pa.field("task", pa.string(), nullable=False),
    pa.field("item", pa.string()),  # its JSON text
]
ERRORS_SCHEMA = pa.schema(_ERROR_FIELDS)
_NO_RECORDS = (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException)

_T = TypeVar("_T")


class PartReader:
    """Reads parts: many are fetched ahead, a few are unpacked, a processor each.

    Args:
        store: the job's objects.
        options: bounds and names.
    """

    def __init__(self, store: JobStore, options: AggregateOptions) -> None:
        self.options = options
        self._store = store
        # glibc gives the memory of large objects back at once, and clearing it anew for each part
        # takes longer than unpacking the part, until it has seen one so large come and go.
        bytes(_KEPT)

    def ahead(
        self,
        batches: Iterable[Sequence[PlannedPart]],
        largest: int,
        read: Callable[[Sequence[Fetched]], _T],
    ) -> Generator[tuple[Sequence[PlannedPart], _T], None, None]:
        """What `read` makes of each batch, in order; no part is larger than `largest`."""
        cpus = len(os.sched_getaffinity(0))
        fit = self.options.memory // 16 // max(_TOGETHER, largest)
        window = max(1, min(2 * READERS, fit))
        unpacked = max(1, min(16 * cpus, fit // _UNPACKED))

        def fetch(batch: Sequence[PlannedPart]) -> list[Fetched]:
            return [Fetched(self._store, each.task, each.part) for each in batch]

        with (
            closing(ahead(fetch, batches, window)) as fetched,
            closing(ahead(lambda each: read(each[1]), fetched, unpacked, cpus)) as found,
        ):
            for (batch, _), made in found:
                yield batch, made

    def tables(self, parts: Sequence[PlannedPart], converter: Converter) -> Iterator[pa.Table]:
        """The columns of neighbouring parts, by the dataset's names."""
        names = self.options.names
        largest = max(each.part.size for each in parts)
        read = self.ahead(_batches(parts), largest, lambda each: _table(each, converter))
        with closing(read):
            for batch, table in read:
                self._check_items(batch, table)
                yield table.rename_columns([names.get(each, each) for each in table.column_names])

    def _check_items(self, batch: Sequence[PlannedPart], table: pa.Table) -> None:
        """Refuse parts with rows of more items than succeeded."""
        at = 0
        for each in batch:
            rows = each.part.rows
            if rows > each.ok and (items := count_keys(table.slice(at, rows))) > each.ok:
                raise AggregationError(
                    f"aggregate: task {each.task}: {each.part.key} has rows of {items:,} "
                    f"items, its marker says {each.ok:,} succeeded; remove its marker "
                    f"{self._store.paths.done(each.task)} and run the task again"
                )
            at += rows


def merge_group(
    reader: PartReader, group: Sequence[PlannedPart], converter: Converter, version: Version
) -> DataFile:
    """The file of these parts: found, or written."""
    schema = renamed(converter.arrow_schema, reader.options)
    name = part_name(group, converter, reader.options)
    rows = sum(each.part.rows for each in group)
    return version.find(name, rows, schema) or version.write(
        name, schema, reader.tables(group, converter), reader.options.row_group_size
    )


def part_name(group: Sequence[PlannedPart], converter: Converter, options: AggregateOptions) -> str:
    """The name of the file of these parts."""
    return file_name(WRITER, converter.columns, options, [each.part.sha256 for each in group])


class Merger:
    """Reads the parts of a plan and writes Parquet files.

    Args:
        store: the job's objects.
        plan: what to merge.
        options: how to lay it out.
        scratch: a folder on local disk; holds one file at a time.
        progress: told of progress, a line at a time.
    """

    def __init__(
        self,
        store: JobStore,
        plan: Plan,
        options: AggregateOptions,
        scratch: Path,
        progress: Callable[[str], None],
    ) -> None:
        self._store = store
        self._plan = plan
        self._options = options
        self._scratch = scratch
        self._reader = PartReader(store, options)
        self._progress = progress

    def infer(self) -> Schema:
        """The schema of all rows, from a full pass over them.

        Raises:
            AggregationError: naming a value that fits no one schema with the others.
        """
        inference = Inference()
        parts = _singly(_nonempty(self._plan.parts(ROWS)))
        read = self._reader.ahead(
            parts, self._plan.largest(ROWS), lambda batch: _look(inference, batch[0])
        )
        with closing(read):
            for (planned,), look in read:
                look(planned.part.key)
        return inference.schema()

    def merge_rows(self, columns: Schema, version: Version) -> list[DataFile]:
        """Write the dataset's files.

        Raises:
            AggregationError: naming task, part or item, if a part is not what was
                committed, or a value does not fit the schema.
        """
        self._options.check(columns)
        converter = Converter(columns, declared=self._options.schema is not None)
        if self._options.sorted:
            return self._sort(converter, version)
        files = []
        rows = 0
        for group in self.groups():
            files.append(merge_group(self._reader, group, converter, version))
            rows += files[-1].rows
            self._progress(f"merged {rows:,} of {self._plan.totals.rows:,} rows")
        return files

    def groups(self) -> Iterator[list[PlannedPart]]:
        """The parts of each file, where rows stay in the input's order."""
        return self._groups(ROWS)

    def merge_errors(self, version: Version) -> tuple[list[DataFile], Remaining]:
        """Write the files of the failures that no later round supersedes.

        Raises:
            AggregationError: if an errors part is not what was committed.
        """
        remaining = Remaining(self._plan)
        files = []
        for number, group in enumerate(self._groups(ERRORS)):
            name = (
                f"part-{hash16([WRITER, self._plan.digest, asdict(self._options), number])}.parquet"
            )
            tables = self._error_tables(group, remaining)
            file = version.write(name, ERRORS_SCHEMA, tables, self._options.row_group_size)
            if file.rows:
                files.append(file)
        return files, remaining

    def _sort(self, converter: Converter, version: Version) -> list[DataFile]:
        schema = renamed(converter.arrow_schema, self._options)
        merged: list[Path] = []
        rows = 0
        for number, group in enumerate(self._groups(ROWS)):
            path = self._scratch / f"merged-{number:05}.parquet"
            tables = self._reader.tables(group, converter)
            rows += write_merged(path, schema, tables, self._options.row_group_size)
            merged.append(path)
            self._progress(f"merged {rows:,} of {self._plan.totals.rows:,} rows")
        files = []
        done = 0
        for file in sort_files(merged, schema, self._options, version, self._scratch):
            files.append(file)
            done += file.rows
            self._progress(f"sorted {done:,} of {rows:,} rows")
        return files

    def _groups(self, kind: str) -> Iterator[list[PlannedPart]]:
        """Neighbouring parts, file by file."""
        group: list[PlannedPart] = []
        rows = size = 0
        for each in _nonempty(self._plan.parts(kind)):
            group.append(each)
            rows += each.part.rows
            size += each.part.size
            if rows >= self._options.rows_per_file or size >= self._options.file_size:
                yield group
                group, rows, size = [], 0, 0
        if group:
            yield group

    def _error_tables(
        self, parts: Sequence[PlannedPart], remaining: Remaining
    ) -> Iterator[pa.Table]:
        largest = self._plan.largest(ERRORS)
        read = self._reader.ahead(_singly(parts), largest, lambda batch: batch[0].rows())
        # A table takes longer to set up than a part's few failures to write into it.
        waiting: list[tuple[PlannedPart, list[dict[str, Any]]]] = []
        rows = 0
        for (planned,), records in read:
            with self._named(planned):
                if Counter(each["class"] for each in records) != planned.failed:
                    raise ValueError("its error classes are not those of its marker")
                kept = [
                    _error_row(planned, each)
                    for each in records
                    if remaining.keep(planned, each[KEY_FIELD], each["class"])
                ]
            waiting.append((planned, kept))
            rows += len(kept)
            if rows >= _ERRORS_AT_ONCE:
                yield self._error_table(waiting)
                waiting, rows = [], 0
        yield self._error_table(waiting)

    def _error_table(self, parts: Sequence[tuple[PlannedPart, list[dict[str, Any]]]]) -> pa.Table:
        try:
            together = [row for _, kept in parts for row in kept]
            return pa.Table.from_pylist(together, schema=ERRORS_SCHEMA)
        except _NO_RECORDS:
            for planned, kept in parts:  # whose it was
                with self._named(planned):
                    pa.Table.from_pylist(kept, schema=ERRORS_SCHEMA)
            raise

    @contextmanager
    def _named(self, planned: PlannedPart) -> Iterator[None]:
        """Name the part that holds what are no error records."""
        try:
            yield
        except _NO_RECORDS as error:
            reason = " ".join(str(error).split())[:200]
            raise AggregationError(
                f"aggregate: task {planned.task}: {planned.part.key} has no good error "
                f"records ({type(error).__name__}: {reason}); remove its marker "
                f"{self._store.paths.done(planned.task)} and run the task again"
            ) from error


def _look(inference: Inference, fetched: Fetched) -> Callable[[str], None]:
    """See `Inference.read_lines`."""
    if is_columns(fetched.part):
        rows = fetched.rows()
        return lambda part: inference.look(rows, part)
    return inference.read_lines(fetched.lines(), fetched.part.rows, fetched.parse)


def _table(batch: Sequence[Fetched], converter: Converter) -> pa.Table:
    """The columns of neighbouring parts: of all at once where each is whole lines of its rows."""
    if len(batch) > 1 and not any(is_columns(each.part) for each in batch):
        texts = [each.lines() for each in batch]
        # No row can begin in one part and end in the next, nor a part make up for another's rows.
        if all(
            text.startswith(b"{") and text.endswith(b"}\n") and text.count(b"\n") == each.part.rows
            for text, each in zip(texts, batch, strict=True)
        ):
            exact = converter.read(b"".join(texts))
            if exact is not None and exact.num_rows == sum(each.part.rows for each in batch):
                return exact
    return pa.concat_tables([_table_of_part(each, converter) for each in batch])


def _table_of_part(fetched: Fetched, converter: Converter) -> pa.Table:
    if is_columns(fetched.part):
        table = fetched.columns()
        if table.schema.equals(converter.arrow_schema):
            return table.replace_schema_metadata(None)
        # Made into rows, and into columns again where the schema has changed since.
        rows = fetched.rows()
    else:
        lines = fetched.lines()
        exact = converter.read(lines)
        if exact is not None and exact.num_rows == fetched.part.rows:
            return exact
        rows = fetched.parse(lines)
    return converter.table(rows, fetched.part.key)


def _batches(parts: Iterable[PlannedPart]) -> Iterator[list[PlannedPart]]:
    """Neighbouring small parts together; the same parts always make the same batches."""
    batch: list[PlannedPart] = []
    size = 0
    for each in parts:
        batch.append(each)
        size += each.part.size
        if size >= _TOGETHER:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _singly(parts: Iterable[PlannedPart]) -> Iterator[list[PlannedPart]]:
    return ([each] for each in parts)


def _nonempty(parts: Iterable[PlannedPart]) -> Iterator[PlannedPart]:
    return (each for each in parts if each.part.rows)


def _error_row(planned: PlannedPart, record: dict[str, Any]) -> dict[str, Any]:
    return {
        KEY_FIELD: record[KEY_FIELD],
        "class": record["class"],
        "message": encodable(record["message"]),
        "tries": record["tries"],
        "at": round(record["at"] * 1_000_000),
        "round": parse_task_id(planned.task)[0],
        "task": planned.task,
        "item": encodable(json.dumps(record["item"], ensure_ascii=False)),
    }
