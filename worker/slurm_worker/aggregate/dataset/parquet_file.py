"""Writing one Parquet file; the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slurm_worker.aggregate.columns.line_reader import leaves

#: A dictionary pays where each value occurs about this often.
_REPEATED = 4
#: Rows of the first row group from which it is decided which columns get a dictionary.
_SAMPLE_ROWS = 16_384
#: Tables that wait for a row group as they are. A table of ten rows takes kilobytes, and a row
#: group has thousands of them: this many are copied into one.
_MOST_SMALL = 128


def write_parquet(
    path: Path | BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table], size: int
) -> int:
    """Write tables in row groups of about `size` rows; return how many rows there were."""
    rows = 0
    writer: pq.ParquetWriter | None = None
    try:
        for group in row_groups(tables, size):
            writer = writer or _open(path, schema, _repetitive(group))
            # Up to twice the size in one group, instead of a small one after each.
            writer.write_table(group, row_group_size=2 * size)
            rows += group.num_rows
            pa.default_memory_pool().release_unused()
    finally:
        (writer or _open(path, schema, [])).close()
    return rows


def row_groups(
    tables: Iterable[pa.Table], size: int, most_bytes: int = 128 << 20
) -> Iterator[pa.Table]:
    """Join small tables up to `size` rows, or fewer where rows are large."""
    waiting: list[pa.Table] = []
    small: list[pa.Table] = []
    rows = volume = 0
    for table in tables:
        small.append(table)
        rows += table.num_rows
        volume += table.get_total_buffer_size()
        if rows >= size or volume >= most_bytes:
            yield pa.concat_tables([*waiting, *small])
            waiting, small, rows, volume = [], [], 0, 0
        elif len(small) == _MOST_SMALL:
            waiting.append(pa.concat_tables(small).combine_chunks())
            small = []
    if rows:
        yield pa.concat_tables([*waiting, *small])


def _open(path: Path | BinaryIO, schema: pa.Schema, dictionaries: list[str]) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        schema,
        version="2.6",
        compression="zstd",
        use_dictionary=dictionaries,  # type: ignore[arg-type]  # a list will do
        write_page_index=True,
    )


def _repetitive(table: pa.Table) -> list[str]:
    """The columns for which a dictionary pays; a useless one takes longer than writing."""
    found = []
    first = table.slice(0, _SAMPLE_ROWS)
    for name, column in zip(first.column_names, first.columns, strict=True):
        for path, leaf in leaves(column.combine_chunks(), name):
            if len(leaf) and pc.count_distinct(leaf).as_py() * _REPEATED <= len(leaf):
                found.append(path)
    return found
