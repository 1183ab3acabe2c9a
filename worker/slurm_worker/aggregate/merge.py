"""Parts to Parquet: a part at a time, in order of the tasks, verified on the way.

A file's name is the hash of what it is made of: its parts, the schema and this writer.
So a file that is there already, from a run that was cut short, is checked and kept.
Memory holds one row group and the parts that are read ahead.

Requests: one GET per part; one HEAD per file, then its upload, or a GET where it stands.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slurm_worker.aggregate.convert import Converter
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.fast import leaves
from slurm_worker.aggregate.infer import Inference
from slurm_worker.aggregate.part import count_keys
from slurm_worker.aggregate.plan import ERRORS, ROWS, Plan, PlannedPart, Remaining
from slurm_worker.aggregate.reading import Fetched, is_columns
from slurm_worker.aggregate.types import Schema
from slurm_worker.ahead import READERS, ahead
from slurm_worker.keys import parse_task_id
from slurm_worker.parts import KEY_FIELD
from slurm_worker.store import JobStore

_WRITER = f"2 pyarrow-{pa.__version__}"
_AHEAD_BYTES = 64 << 20
#: How much more a part's lines and columns take than its compressed bytes, about.
_UNPACKED = 8
_GROUP_BYTES = 128 << 20
#: A dictionary pays where each value occurs about so often.
_REPEATED = 4
_LOOKED_AT = 16_384

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

_T = TypeVar("_T")


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
        parts = _nonempty(self._plan.parts(ROWS))
        with closing(self._ahead(parts, ROWS, lambda _, each: inference.read(each))) as read:
            for planned, look in read:
                look(planned.part.key)
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

    def _ahead(
        self, parts: Iterable[PlannedPart], kind: str, read: Callable[[PlannedPart, Fetched], _T]
    ) -> Generator[tuple[PlannedPart, _T], None, None]:
        """What `read` makes of each part, in order: many are fetched ahead, a few are unpacked."""
        largest = max(1, self._plan.largest(kind))
        cpus = len(os.sched_getaffinity(0))
        window = max(1, min(2 * READERS, _AHEAD_BYTES // largest))
        unpacked = max(1, min(2 * cpus, window // _UNPACKED))

        def fetch(planned: PlannedPart) -> Fetched:
            return Fetched(self._store, planned.task, planned.part)

        with (
            closing(ahead(fetch, parts, window)) as fetched,
            closing(ahead(lambda each: read(*each), fetched, unpacked, cpus)) as found,
        ):
            for (planned, _), made in found:
                yield planned, made

    def _tables(self, parts: Sequence[PlannedPart], converter: Converter) -> Iterator[pa.Table]:
        def read(planned: PlannedPart, fetched: Fetched) -> pa.Table:
            table = _table(fetched, converter)
            if table.num_rows > planned.ok and (items := count_keys(table)) > planned.ok:
                raise AggregationError(
                    f"aggregate: task {planned.task}: {planned.part.key} has rows of {items:,} "
                    f"items, its marker says {planned.ok:,} succeeded; remove its marker "
                    f"{self._store.paths.done(planned.task)} and run the task again"
                )
            return table

        for _, table in self._ahead(parts, ROWS, read):
            yield table

    def _error_tables(
        self, parts: Sequence[PlannedPart], remaining: Remaining
    ) -> Iterator[pa.Table]:
        for planned, records in self._ahead(parts, ERRORS, lambda _, each: each.rows()):
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
        with _Writer(self._path, schema) as writer:
            for group in _row_groups(tables, size):
                # Up to twice the size in one group, rather than a small one behind each.
                writer.write(group, 2 * size)
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


class _Writer:
    """Writes row groups; the first decides how, so that the same rows give the same bytes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open(self._schema.empty_table()).close()

    def write(self, group: pa.Table, size: int) -> None:
        """Append a table in row groups of at most `size` rows."""
        self._open(group).write_table(group, row_group_size=size)

    def _open(self, first: pa.Table) -> pq.ParquetWriter:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path,
                self._schema,
                version="2.6",
                compression="zstd",
                use_dictionary=_repetitive(first),  # type: ignore[arg-type]  # a list will do
                write_page_index=True,
            )
        return self._writer


def _repetitive(table: pa.Table) -> list[str]:
    """The columns for which a dictionary pays; building one in vain takes longer than writing."""
    found = []
    first = table.slice(0, _LOOKED_AT)
    for name, column in zip(first.column_names, first.columns, strict=True):
        for path, leaf in leaves(column.combine_chunks(), name):
            if len(leaf) and pc.count_distinct(leaf).as_py() * _REPEATED <= len(leaf):
                found.append(path)
    return found


def _table(fetched: Fetched, converter: Converter) -> pa.Table:
    """A part's columns."""
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
