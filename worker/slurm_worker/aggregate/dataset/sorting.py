"""Sorted and partitioned datasets: rows that were merged, in another order.

DuckDB sorts the merged files, which have typed columns, with bounded memory and the rest on
scratch. Ties keep the input's order, so that the same rows give the same files.

DuckDB can't tell `a` from `A`, reads a path as a pattern, and makes columns of folder names. So
it gets column names that are made for it, and paths without the user's folders.

Scratch holds the dataset once, and about as much again while it is sorted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slurm_worker.aggregate.dataset import partitions
from slurm_worker.aggregate.dataset.folder import DataFile, DatasetFolder
from slurm_worker.aggregate.dataset.parquet_file import write_parquet
from slurm_worker.aggregate.errors import AggregationError, one_line
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.errors import UserError

_BATCH_ROWS = 65_536


def write_merged(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], size: int) -> int:
    """Write a file for `sort_files`; return how many rows there were."""
    plain = _plain(schema)
    return write_parquet(path, plain, (_viewed(table, plain) for table in tables), size)


def sort_files(
    merged: list[Path],
    schema: pa.Schema,
    options: AggregateOptions,
    folder: DatasetFolder,
    scratch: Path,
) -> Iterator[DataFile]:
    """Write the files of `write_merged`, all in `scratch`, sorted; a folder per partition.

    The merged files are removed.

    Raises:
        UserError: if DuckDB is not installed.
        AggregationError: if a value can't be a folder's name, or rows can't be sorted.
    """
    if not merged:
        return
    partition = list(options.partition_by)
    partitions.check(merged, partition, [schema.get_field_index(name) for name in partition])
    inside = pa.schema([field for field in schema if field.name not in partition])
    batches = _sorted(merged, schema, [*partition, *options.sort_by], options.memory, scratch)
    pieces = _pieces(batches, partition, options.rows_per_file)
    for (_, values), group in groupby(pieces, itemgetter(0)):
        tables = (table.select(inside.names) for _, table in group)
        rows = write_parquet(folder.path, inside, tables, options.row_group_size)
        yield folder.keep(rows, partitions.folder(partition, values))
    for path in merged:
        path.unlink()


def _sorted(
    merged: list[Path], schema: pa.Schema, by: list[str], memory: int, scratch: Path
) -> Iterator[pa.Table]:
    try:
        import duckdb
    except ImportError as error:
        raise UserError(
            "aggregate.sort_by and partition_by need DuckDB; run: pip install 'slurm-worker[sort]'"
        ) from error
    plain = _plain(schema)
    columns = ", ".join(plain.names)
    order = [*(plain.names[schema.get_field_index(name)] for name in by), "file", "file_row_number"]
    rows = sum(pq.read_metadata(path).num_rows for path in merged)
    try:
        with _by_descriptor(scratch) as folder, duckdb.connect() as db:
            db.execute(f"SET memory_limit = '{memory // 2}B'")
            db.execute("SET temp_directory = ?", [f"{folder}/spill"])
            db.execute("SET TimeZone = 'UTC'")
            found = db.sql(
                f"SELECT {columns} FROM read_parquet(?, filename = 'file', "  # noqa: S608  our names
                f"file_row_number = true, hive_partitioning = false) ORDER BY {', '.join(order)}",
                params=[[f"{folder}/{path.name}" for path in merged]],
            )
            # Releases before 1.5 have only its former name.
            read: Any = getattr(found, "to_arrow_reader", None) or found.fetch_record_batch
            for batch in read(_BATCH_ROWS):
                rows -= batch.num_rows
                yield _viewed(pa.Table.from_batches([batch]).cast(plain), schema)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _unsorted(one_line(error)) from error
    if rows:
        raise _unsorted(f"{abs(rows):,} rows are {'missing' if rows > 0 else 'too many'}")


def _unsorted(reason: str) -> AggregationError:
    return AggregationError(
        f"aggregate: DuckDB could not sort the rows ({reason}); set TMPDIR to a folder with more "
        "free space, or remove sort_by and partition_by"
    )


@contextmanager
def _by_descriptor(folder: Path) -> Iterator[str]:
    """A path of the folder without characters that DuckDB reads as a pattern."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _plain(schema: pa.Schema) -> pa.Schema:
    """The schema with names that DuckDB can tell apart."""
    return pa.schema(_plain_fields(schema))


def _plain_fields(fields: Iterable[pa.Field[Any]]) -> list[pa.Field[Any]]:
    return [
        pa.field(f"c{number}", _plain_type(field.type), field.nullable)
        for number, field in enumerate(fields)
    ]


def _plain_type(data_type: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(data_type):
        return pa.struct(_plain_fields(data_type))
    if pa.types.is_map(data_type):
        return pa.map_(data_type.key_type, _plain_type(data_type.item_type))
    if pa.types.is_list(data_type):
        return pa.list_(_plain_type(data_type.value_type))
    return data_type


def _viewed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same columns with other names, at all depths."""
    columns = [
        pa.chunked_array([chunk.view(field.type) for chunk in column.chunks], field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _pieces(
    tables: Iterable[pa.Table], by: list[str], rows_per_file: int
) -> Iterator[tuple[tuple[int, tuple[Any, ...]], pa.Table]]:
    """The rows with the number of their file and the values of its partition."""
    number, room = 0, rows_per_file
    current: tuple[Any, ...] | None = None
    for table in tables:
        for values, rows in _runs(table, by):
            if values != current or not room:
                current, number, room = values, number + 1, rows_per_file
            while rows.num_rows > room:
                yield (number, values), rows.slice(0, room)
                rows, number, room = rows.slice(room), number + 1, rows_per_file
            yield (number, values), rows
            room -= rows.num_rows


def _runs(table: pa.Table, by: list[str]) -> Iterator[tuple[tuple[Any, ...], pa.Table]]:
    """Neighbouring rows of one partition."""
    if not by and table.num_rows:
        yield (), table
    at = 0
    for values, same in groupby(zip(*(table.column(n).to_pylist() for n in by), strict=True)):
        count = sum(1 for _ in same)
        yield values, table.slice(at, count)
        at += count
