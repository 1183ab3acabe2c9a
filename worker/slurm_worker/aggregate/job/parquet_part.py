"""Parquet parts: a task's rows as columns, by the job's declared schema.

Each item's rows are checked against the schema when the item ends, so that a result that
does not fit is that item's failure, and not the aggregation's. Merging then copies
columns. The part has the schema by which it was written, so that it can be read as rows again
after the declared one has changed.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.columns.types import ColumnType, TypeName, parse_schema
from slurm_worker.aggregate.dataset.parquet_file import write_parquet
from slurm_worker.aggregate.errors import AggregationError, Misfit
from slurm_worker.errors import ErrorClass, ItemError
from slurm_worker.results.parts import KEY_FIELD, parse_lines, to_lines

_METADATA = b"slurm_worker.schema"
_CHUNK = 256
_GROUP_ROWS = 65_536


class ParquetColumns:
    """Checks rows and writes parts by one declared schema, without the key's column.

    Raises:
        UserError: if a declared type is not a type.
    """

    def __init__(self, declared: Mapping[str, str]) -> None:
        self._converter = Converter(parse_schema(declared), declared=True)
        self._schema = self._converter.arrow_schema.with_metadata(
            {_METADATA: json.dumps(dict(declared)).encode()}
        )

    def to_lines(self, key: str, result: object) -> tuple[int, str]:
        """As `parts.to_lines`, of rows that fit the schema.

        Raises:
            ItemError: class `handler_bug`, if one does not.
        """
        rows, lines = to_lines(key, result)
        try:
            self._converter.build(parse_lines(lines.encode()))
        except Misfit as error:
            raise ItemError(
                ErrorClass.HANDLER_BUG,
                f"column {error.path!r}: the handler returned {error.found}; correct "
                "aggregate.schema, or what the handler returns",
            ) from error
        return rows, lines

    def make(self, bodies: Iterator[str]) -> bytes | None:
        """A part of these JSON lines; None if one does not fit.

        One may not fit where a task continues from a checkpoint of a node without pyarrow.
        """
        out = io.BytesIO()
        try:
            write_parquet(out, self._schema, self._tables(bodies), _GROUP_ROWS)
        except AggregationError:
            return None
        return out.getvalue()

    def _tables(self, bodies: Iterator[str]) -> Iterator[pa.Table]:
        while chunk := "".join(islice(bodies, _CHUNK)):
            table = self._converter.table(parse_lines(chunk.encode()), "")
            yield table.replace_schema_metadata(self._schema.metadata)


def read_columns(data: bytes) -> pa.Table:
    """A Parquet part as it was written.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: if it is not a Parquet part.
    """
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    if KEY_FIELD not in table.column_names or _METADATA not in (table.schema.metadata or {}):
        raise ValueError("it is a Parquet file, but no worker has written it")
    return table


def read_rows(data: bytes) -> list[dict[str, Any]]:
    """The rows of a Parquet part, as the JSON that they were; raises as `read_columns`."""
    table = read_columns(data)
    declared = parse_schema(json.loads(table.schema.metadata[_METADATA]))
    rows: list[dict[str, Any]] = table.to_pylist()
    for name, column in declared.items():
        for row in rows:
            row[name] = _restore(row[name], column)
    return rows


def _restore(value: Any, column: ColumnType) -> Any:
    """A Python value of pyarrow's as the JSON value that it was."""
    if value is None:
        return None
    match column.type_name:
        case TypeName.LIST:
            return [_restore(item, column.fields["item"]) for item in value]
        case TypeName.MAP:
            return {name: _restore(item, column.fields["value"]) for name, item in value}
        case TypeName.STRUCT:
            return {name: _restore(item, column.fields[name]) for name, item in value.items()}
        case TypeName.JSON:
            return json.loads(value)
        case TypeName.DECIMAL:
            return str(value)
        case TypeName.BINARY:
            return base64.b64encode(value).decode()
        case TypeName.TIMESTAMP | TypeName.LOCAL_TIMESTAMP | TypeName.DATE:
            return value.isoformat()
        case _:
            return value
