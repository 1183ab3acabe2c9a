"""Rows of a Parquet or Arrow file, or of a table in memory, as dicts for JSON, in batches.

Types that JSON does not have follow one rule each, so that nothing is rounded, and a handler can
read the value with the standard library:

    date, time, timestamp   ISO 8601 text, with the zone's offset where there is a zone
    decimal                 text with all its digits: "12.50"
    binary                  base64 text
    uuid                    text
    map                     a list of [key, value] pairs
    NaN                     None: tables from pandas mean a missing value by it
    infinity, nanoseconds that microseconds can't hold, durations, periods    refused
"""

from __future__ import annotations

import base64
import datetime as dt
import math
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_BATCH_ROWS = 8192
_BUFFER_BYTES = 1 << 20
#: pandas' name of an index without a name.
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")


class ArrowFile:
    """A Parquet or Arrow file on this machine, open; close it by `closing`."""

    def __init__(self, path: Path, *, is_ipc: bool = False) -> None:
        """Open it; a ValueError if it has another format."""
        self._path = path
        try:
            self._file: Any = _open_ipc(path) if is_ipc else _open(path)
            self._schema: Any = self._file.schema if is_ipc else self._file.schema_arrow
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
        self._is_ipc = is_ipc

    @property
    def names(self) -> list[str]:
        """The names of its columns."""
        return list(self._schema.names)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Stream columns, by default all, as batches of at most `_BATCH_ROWS` rows.

        Raises:
            ValueError: naming the column that can't be read exactly, or what is damaged.
        """
        chosen = None if columns is None else list(columns)
        _check_names(self._schema)
        try:
            found = _ipc_batches(self._file) if self._is_ipc else self._parquet(chosen)
            for batch in found:
                # For Parquet, "a.b" selects the field b of a, too.
                yield batch if chosen is None else batch.select(chosen)
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error

    def _parquet(self, chosen: list[str] | None) -> Iterator[pa.RecordBatch]:
        file: pq.ParquetFile = self._file
        old = [name for name in _old_times(file) if chosen is None or name in chosen]
        if not old:
            yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=chosen)
            return
        # Arrow reads INT96 as nanoseconds, which end in 2262, and silently wraps later times.
        with _open(self._path, coerce_int96_timestamp_unit="us") as coarse:
            exact = file.iter_batches(batch_size=_BATCH_ROWS, columns=old)
            batches = coarse.iter_batches(batch_size=_BATCH_ROWS, columns=chosen)
            for batch, nanos in zip(batches, exact, strict=True):
                for name in old:
                    _check_whole(name, batch.column(name), nanos.column(name))
                yield batch

    def close(self) -> None:
        """Close the file, if that is not left to its last reader."""
        if not self._is_ipc:
            self._file.close()


def read_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a batch; a ValueError names the column that can't be written as JSON."""
    try:
        yield from _rows(batch)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _ipc_batches(file: Any) -> Iterator[pa.RecordBatch]:
    if not isinstance(file, pa.ipc.RecordBatchFileReader):
        batches = iter(file)
    else:
        batches = (file.get_batch(at) for at in range(file.num_record_batches))
    for batch in batches:
        for start in range(0, len(batch), _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)


def _open_ipc(path: Path) -> Any:
    def content() -> Any:
        return pa.memory_map(str(path)) if path.stat().st_size else pa.py_buffer(b"")

    try:
        return pa.ipc.open_file(content())
    except pa.ArrowInvalid:  # it is a stream
        return pa.ipc.open_stream(content())


def _open(path: Path, **options: Any) -> pq.ParquetFile:
    # Buffered streams, not pre_buffer: a row group may be larger than the memory.
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES, **options)


def _old_times(file: pq.ParquetFile) -> list[str]:
    """Columns of INT96, the time of old writers (Impala, Hive, Spark before 3)."""
    columns = [file.schema.column(at) for at in range(len(file.schema))]
    old = [column for column in columns if column.physical_type == "INT96"]
    for column in old:
        if column.path != column.name:  # `_check_whole` does not check nested times
            raise ValueError(
                f"column {column.path!r} holds INT96 times in lists or structs; cast the column"
            )
    return [column.path for column in old]


def _check_whole(name: str, micros: pa.Array[Any], nanos: pa.Array[Any]) -> None:
    """Refuse times that have digits below a microsecond."""
    # Both wrap in the same way where nanoseconds do, so the difference is exact.
    whole = pc.multiply(micros.cast(pa.int64()), 1000)
    if pc.any(pc.not_equal(whole, nanos.cast(pa.int64()))).as_py():
        raise ValueError(
            f"column {name!r} (or up to {_BATCH_ROWS:,} rows further): a time has nanoseconds; "
            "cast the column to string or microseconds"
        )


def read_table(value: Any) -> Iterator[dict[str, Any]]:
    """Stream the rows of a table of pandas, polars, DuckDB or Arrow.

    A pandas index with a name is a column; one without a name is left out.

    Raises:
        ValueError: naming the column that can't be written as JSON, or if the value can't be
            read as an Arrow table.
    """
    try:
        table = _as_arrow(value)
        _check_names(table.schema)
        for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
            yield from _rows(batch)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _as_arrow(value: Any) -> pa.Table:
    if any(base.__module__.partition(".")[0] == "pandas" for base in type(value).__mro__):
        table = pa.Table.from_pandas(value)
        for field in table.schema:
            if _holds_struct(field.type):
                # Arrow would give each dict the keys of all dicts.
                raise ValueError(f"column {field.name!r} holds dicts")
        unnamed = [name for name in table.column_names if _UNNAMED_INDEX.fullmatch(name)]
        return table.drop_columns(unnamed)
    if not hasattr(value, "__arrow_c_stream__"):
        raise ValueError("it does not support Arrow's stream interface")
    for name, kind in zip(value.columns, getattr(value, "dtypes", ()), strict=False):
        if str(kind) == "Object":  # polars would give the addresses of the objects
            raise ValueError(f"column {name!r} holds Python objects")
    return pa.table(value)


def _holds_struct(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_struct(kind.value_type)
    return pa.types.is_struct(kind)


def _check_names(schema: pa.Schema) -> None:
    if duplicates := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise ValueError(f"there are two columns named {duplicates[0]!r}")
    for field in schema:
        # For example pandas' periods: stored as numbers, which mean nothing without their type.
        if (kind := _extension(field)).startswith("pandas."):
            raise ValueError(f"column {field.name!r} is of the type {kind}; cast it to string")


def _extension(field: pa.Field[Any]) -> str:
    """The name of an extension type, even if it is unknown here; empty for other types."""
    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    return (field.metadata or {}).get(b"ARROW:extension:name", b"").decode()


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    named = list(zip(names, batch.columns, strict=True))
    special = [name for name, column in named if not _is_plain(column)]
    columns = [_python_values(name, column) for name, column in named]
    for values in zip(*columns, strict=True):
        row = dict(zip(names, values, strict=True))
        for name in special:
            row[name] = as_json(row[name], name)
        yield row


def _python_values(name: str, column: pa.Array[Any]) -> list[Any]:
    try:
        target = _microseconds(column.type)
        if target != column.type:
            column = column.cast(target)
        return column.to_pylist()
    except KeyError as error:
        raise ValueError(
            f"column {name!r}: the time zone {error} is unknown here; cast the column to UTC"
        ) from error
    except (pa.ArrowException, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"column {name!r} (or up to {_BATCH_ROWS:,} rows further): {reason}; "
            "cast the column to string or microseconds"
        ) from error


def _microseconds(kind: pa.DataType) -> pa.DataType:
    """`kind` with nanosecond times as microseconds, the precision of Python's times."""
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if pa.types.is_dictionary(kind):
        plain = _microseconds(kind.value_type)
        return kind if plain == kind.value_type else plain  # Arrow can't cast the values alone
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        of = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return of(kind.value_field.with_type(_microseconds(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_microseconds(field.type)) for field in kind])
    return kind


def _is_plain(column: pa.Array[Any]) -> bool:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_floating(kind):
        return pc.all(pc.is_finite(column)).as_py() in (True, None)
    is_plain = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    return is_plain or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def as_json(value: Any, name: str) -> Any:
    """A value of the column `name` as JSON has it, by the rules above; otherwise a ValueError."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(
                f"column {name!r} holds {value}, which JSON does not have; write null or a string"
            )
        return None if math.isnan(value) else value
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, (list, tuple)) and not isinstance(value, pa.MonthDayNano):
        return [as_json(element, name) for element in value]
    if isinstance(value, dict):
        return {field: as_json(element, name) for field, element in value.items()}
    raise ValueError(
        f"column {name!r} holds a {type(value).__name__}, which has no JSON form; cast the column"
    )
