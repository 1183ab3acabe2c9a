"""Sorted and partitioned datasets: rows that were merged, in another order.

DuckDB sorts the merged files, which hold typed columns by then, within a bound of memory and
with the rest on scratch. Ties keep the input's order, so that the same rows give the same files.

DuckDB does not tell `a` from `A`, takes a path for a pattern, and columns from folders' names.
So it is given names that were made for it, and paths without the user's folders.

Scratch holds the dataset once, and about as much again while it is sorted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slurm_worker.aggregate.dataset import partitions
from slurm_worker.aggregate.dataset.version import DataFile, Version, write_parquet
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.errors import UserError

_BATCH_ROWS = 65_536


def write_merged(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], size: int) -> int:
    """Write a file for `sort_files`; return how many rows there were."""
    plain = _plain(schema)
    return write_parquet(path, plain, (_viewed(each, plain) for each in tables), size)


def sort_files(
    merged: list[Path],
    schema: pa.Schema,
    options: AggregateOptions,
    version: Version,
    scratch: Path,
) -> Iterator[DataFile]:
    """Write merged files sorted, a folder per partition, and remove them.

    Args:
        merged: what `write_merged` wrote, all in `scratch`.
        schema: of the rows.
        options: by what to sort and partition.
        version: where the files go.
        scratch: a folder on local disk.

    Raises:
        UserError: if DuckDB is not installed.
        AggregationError: if a value can't be a folder's name, or rows can't be sorted.
    """
    partition = list(options.partition_by)
    if partition:
        indices = [schema.get_field_index(name) for name in partition]
        partitions.check(merged, partition, indices)
    inside = pa.schema([each for each in schema if each.name not in partition])
    batches = _sorted(merged, schema, [*partition, *options.sort_by], options.memory, scratch)
    for values, tables in _partitions(batches, partition):
        folder = partitions.folder(partition, values)
        for file in _files((each.select(inside.names) for each in tables), options.rows_per_file):
            path = scratch / "sorted.parquet"
            rows = write_parquet(path, inside, file, options.row_group_size)
            yield version.keep(path, rows, folder)
    for path in merged:
        path.unlink()


def _sorted(
    merged: list[Path], schema: pa.Schema, by: list[str], memory: int, scratch: Path
) -> Iterator[pa.Table]:
    try:
        import duckdb
    except ImportError as error:
        raise UserError(
            "aggregate.sort_by and partition_by need duckdb; pip install 'slurm-worker[sort]'"
        ) from error
    plain = _plain(schema)
    columns = ", ".join(plain.names)
    order = [*(plain.names[schema.get_field_index(name)] for name in by), "file", "file_row_number"]
    rows = sum(pq.read_metadata(each).num_rows for each in merged)
    try:
        with _by_descriptor(scratch) as folder, duckdb.connect() as db:
            db.execute(f"SET memory_limit = '{memory // 2}B'")
            db.execute("SET temp_directory = ?", [f"{folder}/spill"])
            db.execute("SET TimeZone = 'UTC'")
            found = db.sql(
                f"SELECT {columns} FROM read_parquet(?, filename = 'file', "  # noqa: S608  our names
                f"file_row_number = true, hive_partitioning = false) ORDER BY {', '.join(order)}",
                params=[[f"{folder}/{each.name}" for each in merged]],
            )
            # Releases before 1.5 have it by its former name.
            read: Any = getattr(found, "to_arrow_reader", None) or found.fetch_record_batch
            for batch in read(_BATCH_ROWS):
                rows -= batch.num_rows
                yield _viewed(pa.Table.from_batches([batch]).cast(plain), schema)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _unsorted(" ".join(str(error).split())[:200]) from error
    if rows:
        raise _unsorted(f"{abs(rows):,} rows are {'missing' if rows > 0 else 'too many'}")


def _unsorted(reason: str) -> AggregationError:
    return AggregationError(
        f"aggregate: DuckDB could not sort the rows ({reason}); name a TMPDIR with more room, or "
        "leave out sort_by and partition_by"
    )


@contextmanager
def _by_descriptor(folder: Path) -> Iterator[str]:
    """A path of the folder that has no character in it that DuckDB takes for a pattern."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        path = f"/proc/self/fd/{descriptor}"
        if not Path(path).is_dir():  # only Linux has it
            path = str(folder)
            if set(path) & set("*?[\\"):
                raise UserError(f"TMPDIR: {path} has one of * ? [ \\, which DuckDB can't open")
        yield path
    finally:
        os.close(descriptor)


def _plain(schema: pa.Schema) -> pa.Schema:
    """The schema by names that DuckDB tells from each other."""
    return pa.schema(
        [
            pa.field(f"c{number}", _plain_type(each.type), each.nullable)
            for number, each in enumerate(schema)
        ]
    )


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        inside = [kind.field(number).type for number in range(kind.num_fields)]
        return pa.struct([(f"c{n}", _plain_type(each)) for n, each in enumerate(inside)])
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _plain_type(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind


def _viewed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same columns by other names, at all depths."""
    columns = [
        pa.chunked_array([chunk.view(field.type) for chunk in column.chunks], field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _partitions(
    tables: Iterable[pa.Table], by: list[str]
) -> Iterator[tuple[tuple[Any, ...], Iterator[pa.Table]]]:
    """The rows of each partition; they come together."""

    def pieces() -> Iterator[tuple[tuple[Any, ...], pa.Table]]:
        for table in tables:
            values = list(zip(*(table.column(name).to_pylist() for name in by), strict=True))
            if not by:
                yield (), table
            at = 0
            for value, same in groupby(values):
                count = sum(1 for _ in same)
                yield value, table.slice(at, count)
                at += count

    for value, group in groupby(pieces(), lambda each: each[0]):
        yield value, (table for _, table in group)


def _files(tables: Iterable[pa.Table], rows_per_file: int) -> Iterator[Iterator[pa.Table]]:
    """Tables for one file after the other; a file is read before the next is asked for."""
    numbered = _numbered(tables, rows_per_file)
    for _, group in groupby(numbered, lambda each: each[0]):
        yield (table for _, table in group)


def _numbered(tables: Iterable[pa.Table], rows_per_file: int) -> Iterator[tuple[int, pa.Table]]:
    number, room = 0, rows_per_file
    for table in tables:
        while table.num_rows:
            yield number, table.slice(0, room)
            taken = min(room, table.num_rows)
            table, room = table.slice(taken), room - taken
            if not room:
                number, room = number + 1, rows_per_file
