"""Parts to Parquet: a part at a time, in order of the tasks, verified on the way.

A file's name is the hash of what it is made of: its parts, the schema and this writer.
So a file that is there already, from a run that was cut short, is checked and kept.
Memory holds one row group and the parts that are read ahead.

Requests: one GET per part; one HEAD per file, then its upload, or a GET where it stands.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slurm_worker.aggregate.convert import Converter
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.infer import Inference
from slurm_worker.aggregate.part import count_keys
from slurm_worker.aggregate.plan import ERRORS, ROWS, Plan, PlannedPart, Remaining
from slurm_worker.aggregate.reading import (
    fetch,
    is_columns,
    unpack,
    unpack_columns,
)
from slurm_worker.aggregate.types import Schema
from slurm_worker.ahead import READERS, ahead
from slurm_worker.keys import parse_task_id
from slurm_worker.parts import KEY_FIELD
from slurm_worker.store import JobStore

_WRITER = f"1 pyarrow-{pa.__version__}"
_AHEAD_BYTES = 64 << 20
_GROUP_BYTES = 128 << 20

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

Lines = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class AggregateOptions:
    """How the dataset is laid out.

    Args:
        schema: column types by name, without the key's; inferred from all rows where None.
        rows_per_file: about how many rows a file holds.
        row_group_size: about how many rows a row group holds.
    """

    schema: dict[str, str] | None = None
    rows_per_file: int = 5_000_000
    row_group_size: int = 131_072


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of the dataset."""

    key: str
    rows: int
    size: int
    sha256: str


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
        self._path = scratch / "file.parquet"
        self._progress = progress

    def infer(self) -> Schema:
        """The schema of all rows, from a full pass over them.

        Raises:
            AggregationError: naming a value that fits no one schema with the others.
        """
        inference = Inference()
        with closing(self._lines(_nonempty(self._plan.parts(ROWS)), ROWS)) as read:
            for planned, rows in read:
                inference.look(rows, planned.part.key)
        return inference.schema()

    def merge_rows(self, columns: Schema) -> list[DataFile]:
        """Write the dataset's files.

        Raises:
            AggregationError: naming task, part or item, if a part is not what was
                committed, or a value does not fit the schema.
        """
        converter = Converter(columns, declared=self._options.schema is not None)
        files = []
        rows = 0
        for group in _groups(_nonempty(self._plan.parts(ROWS)), self._options.rows_per_file):
            key = f"{self._store.paths.dataset}part-{self._name(group, converter)}.parquet"
            count = sum(each.part.rows for each in group)
            file = self._standing(key, count, converter.arrow_schema)
            if file is None:
                file = self._write(key, converter.arrow_schema, self._tables(group, converter))
            files.append(file)
            rows += count
            self._progress(f"merged {rows:,} of {self._plan.totals.rows:,} rows")
        return files

    def merge_errors(self) -> tuple[list[DataFile], Remaining]:
        """Write the files of the failures that no later round supersedes.

        Raises:
            AggregationError: if an errors part is not what was committed.
        """
        remaining = Remaining(self._plan)
        files = []
        groups = _groups(_nonempty(self._plan.parts(ERRORS)), self._options.rows_per_file)
        for number, group in enumerate(groups):
            name = _hash16([_WRITER, self._plan.digest, number])
            key = f"{self._store.paths.errors}part-{name}.parquet"
            file = self._write(key, ERRORS_SCHEMA, self._error_tables(group, remaining))
            if file.rows:
                files.append(file)
        return files, remaining

    # --- reading -----------------------------------------------------------------

    def _fetched(
        self, parts: Iterable[PlannedPart], kind: str
    ) -> Generator[tuple[PlannedPart, bytes], None, None]:
        window = _AHEAD_BYTES // max(1, self._plan.largest(kind))
        fetched = ahead(
            lambda each: fetch(self._store, each.task, each.part),
            parts,
            max(1, min(2 * READERS, window)),
        )
        with closing(fetched):
            yield from fetched

    def _lines(
        self, parts: Iterable[PlannedPart], kind: str
    ) -> Generator[tuple[PlannedPart, Lines], None, None]:
        with closing(self._fetched(parts, kind)) as fetched:
            for planned, data in fetched:
                yield planned, unpack(self._store, planned.task, planned.part, data)

    def _tables(self, parts: Sequence[PlannedPart], converter: Converter) -> Iterator[pa.Table]:
        for planned, data in self._fetched(parts, ROWS):
            table, items = self._table(planned, data, converter)
            if items > planned.ok:
                raise AggregationError(
                    f"aggregate: task {planned.task}: {planned.part.key} has rows of {items:,} "
                    f"items, its marker says {planned.ok:,} succeeded; remove its marker "
                    f"{self._store.paths.done(planned.task)} and run the task again"
                )
            yield table

    def _table(
        self, planned: PlannedPart, data: bytes, converter: Converter
    ) -> tuple[pa.Table, int]:
        """A part's columns, and how many items they are of."""
        if is_columns(planned.part):
            table = unpack_columns(self._store, planned.task, planned.part, data)
            if table.schema.equals(converter.arrow_schema):
                return table.replace_schema_metadata(None), count_keys(table)
        # Made into rows, and into columns again where the schema has changed since.
        rows = unpack(self._store, planned.task, planned.part, data)
        return converter.table(rows, planned.part.key), len({row[KEY_FIELD] for row in rows})

    def _error_tables(
        self, parts: Sequence[PlannedPart], remaining: Remaining
    ) -> Iterator[pa.Table]:
        for planned, records in self._lines(parts, ERRORS):
            try:
                if Counter(each["class"] for each in records) != planned.failed:
                    raise ValueError("its error classes are not those of its marker")
                kept = [
                    _error_row(planned, each)
                    for each in records
                    if remaining.keep(planned, each[KEY_FIELD], each["class"])
                ]
                table = pa.Table.from_pylist(kept, schema=ERRORS_SCHEMA)
            except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
                reason = " ".join(str(error).split())[:200]
                raise AggregationError(
                    f"aggregate: task {planned.task}: {planned.part.key} has no good error "
                    f"records ({type(error).__name__}: {reason}); remove its marker "
                    f"{self._store.paths.done(planned.task)} and run the task again"
                ) from error
            yield table

    # --- writing -----------------------------------------------------------------

    def _name(self, group: Sequence[PlannedPart], converter: Converter) -> str:
        schema = [[each.name, str(each.type)] for each in converter.arrow_schema]
        inputs = [each.part.sha256 for each in group]
        return _hash16([_WRITER, schema, self._options.row_group_size, inputs])

    def _standing(self, key: str, rows: int, schema: pa.Schema) -> DataFile | None:
        """The file of an earlier run, if it is there and whole."""
        if self._store.objects.size(key) is None:
            return None
        self._store.objects.download(key, str(self._path))
        try:
            with pq.ParquetFile(self._path) as file:
                if file.metadata.num_rows != rows or not file.schema_arrow.equals(schema):
                    return None
        except (pa.ArrowException, OSError) as error:
            self._progress(f"{key} stands and is damaged ({error}); writing it again")
            return None
        return self._describe(key, rows)

    def _write(self, key: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> DataFile:
        size = self._options.row_group_size
        rows = 0
        with pq.ParquetWriter(self._path, schema, compression="zstd", version="2.6") as writer:
            for group in _row_groups(tables, size):
                # Up to twice the size in one group, rather than a small one behind each.
                writer.write_table(group, row_group_size=2 * size)
                rows += group.num_rows
        if rows:
            self._store.objects.upload(key, str(self._path))
        return self._describe(key, rows)

    def _describe(self, key: str, rows: int) -> DataFile:
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        size = self._path.stat().st_size
        self._path.unlink()
        return DataFile(key, rows, size, digest.hexdigest())


def _row_groups(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Join small tables up to `size` rows, or fewer where rows are large."""
    waiting: list[pa.Table] = []
    rows = volume = 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        volume += table.nbytes
        if rows >= size or volume >= _GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting, rows, volume = [], 0, 0
    if rows:
        yield pa.concat_tables(waiting)


def _nonempty(parts: Iterable[PlannedPart]) -> Iterator[PlannedPart]:
    return (each for each in parts if each.part.rows)


def _groups(parts: Iterable[PlannedPart], rows_per_file: int) -> Iterator[list[PlannedPart]]:
    """Neighbouring parts, file by file."""
    group: list[PlannedPart] = []
    rows = 0
    for each in parts:
        group.append(each)
        rows += each.part.rows
        if rows >= rows_per_file:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _error_row(planned: PlannedPart, record: dict[str, Any]) -> dict[str, Any]:
    return {
        KEY_FIELD: record[KEY_FIELD],
        "class": record["class"],
        "message": _utf8(record["message"]),
        "tries": record["tries"],
        "at": round(record["at"] * 1_000_000),
        "round": parse_task_id(planned.task)[0],
        "task": planned.task,
        "item": _utf8(json.dumps(record["item"], ensure_ascii=False)),
    }


def _utf8(text: str) -> str:
    """A lone surrogate, which an error's message may hold, as its escape."""
    return text.encode(errors="backslashreplace").decode()


def _hash16(what: list[Any]) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
