"""Sorted and partitioned datasets: rows that were merged, in another order.

DuckDB sorts the merged files, which hold typed columns by then, within a bound of memory and
with the rest on scratch. Ties keep the input's order, so that the same rows give the same files.

Scratch holds the dataset once, and about as much again while it is sorted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from slurm_worker.aggregate.files import DataFile, Version, write_parquet
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.errors import UserError

_BATCH_ROWS = 65_536
_NULL = "__HIVE_DEFAULT_PARTITION__"


def sort_files(
    merged: list[Path],
    schema: pa.Schema,
    options: AggregateOptions,
    version: Version,
    scratch: Path,
) -> Iterator[DataFile]:
    """Write merged files sorted, a folder per partition, and remove them.

    Raises:
        UserError: if DuckDB is not installed.
    """
    partition = list(options.partition_by)
    inside = pa.schema([each for each in schema if each.name not in partition])
    batches = _sorted(merged, schema, [*partition, *options.sort_by], options.memory, scratch)
    for values, tables in _partitions(batches, partition):
        folder = "".join(
            f"{name}={_folder_name(value)}/" for name, value in zip(partition, values, strict=True)
        )
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
    columns = ", ".join(map(_quoted, schema.names))
    order = ", ".join([*map(_quoted, by), "filename", "file_row_number"])
    with duckdb.connect() as db:
        db.execute(f"SET memory_limit = '{memory // 2}B'")
        db.execute("SET temp_directory = ?", [str(scratch / "spill")])
        db.execute("SET TimeZone = 'UTC'")
        found = db.sql(
            f"SELECT {columns} FROM read_parquet(?, filename = true, file_row_number = true) "  # noqa: S608  names are quoted
            f"ORDER BY {order}",
            params=[[str(each) for each in merged]],
        )
        # Releases before 1.5 have it by its former name.
        read: Any = getattr(found, "to_arrow_reader", None) or found.fetch_record_batch
        for batch in read(_BATCH_ROWS):
            yield pa.Table.from_batches([batch]).cast(schema)


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


def _folder_name(value: Any) -> str:
    if value is None:
        return _NULL
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return quote(text, safe="") or _NULL


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
