"""JSON lines to columns by Arrow's own reader, wherever its result is certain to be exact.

Arrow reads lines several times as fast as Python can, and with an explicit schema refuses most
of what does not fit. Where it refuses, and where it could have changed a value, None is
returned, and the caller goes the slow way, which decides and says what is wrong:

    a whole number beyond 2^53 in a column of doubles     Arrow would round it
    NaN, or a number too large for a double               they would be kept, or infinite
    half of a surrogate pair in a string, invalid UTF-8   it would be kept as bytes
    binary, json and map columns                          they are not read as they are stored

Timestamps, dates and decimals are read as text and then cast, as in `convert`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from slurm_worker.aggregate.types import EXACT, ColumnType, Kind, Schema
from slurm_worker.parts import KEY_FIELD

_AS_TEXT = (Kind.TIMESTAMP, Kind.LOCAL_TIMESTAMP, Kind.DATE, Kind.DECIMAL)
_NOT_HERE = (Kind.BINARY, Kind.JSON, Kind.MAP)
_LONG_INT = re.compile(rb"[:\[,]\s*-?\d{16,}\s*[,}\]]")
_BLOCK_MARGIN = 64


class LineReader:
    """Reads lines of one schema.

    Args:
        columns: the schema, with the key's column where there is one.
        keyed: whether each row has its item's key.
    """

    def __init__(self, columns: Schema, *, keyed: bool = True) -> None:
        self._keyed = keyed
        self._target = to_arrow(columns, keyed=keyed)
        self._doubles = any(Kind.DOUBLE in set(_kinds(each)) for each in columns.values())
        self._options: pj.ParseOptions | None = None
        if not any(kind in _NOT_HERE for each in columns.values() for kind in _kinds(each)):
            wire = pa.schema([pa.field(name, _wire(each)) for name, each in columns.items()])
            self._options = pj.ParseOptions(explicit_schema=wire, unexpected_field_behavior="error")

    def table(self, lines: bytes) -> pa.Table | None:
        """The columns; None where that is not certain to be exactly what the lines say."""
        if self._options is None or not lines.endswith(b"\n") or _has_surrogates(lines):
            return None
        # One block holds all, so that no line is longer than a block.
        read_options = pj.ReadOptions(use_threads=False, block_size=len(lines) + _BLOCK_MARGIN)
        source: Any = pa.BufferReader(lines)  # the stubs want a file of Python's
        try:
            read = pj.read_json(source, read_options, self._options)
            if not lines.isascii():
                read.validate(full=True)  # Arrow reads bytes that are no UTF-8.
            table = read.select(self._target.names).cast(self._target)
        except (pa.ArrowException, ValueError):
            return None
        if self._keyed and table.column(KEY_FIELD).null_count:
            return None
        if not self._exact(table, lines):
            return None
        return table

    def _exact(self, table: pa.Table, lines: bytes) -> bool:
        if not self._doubles:
            return True
        largest = 0.0
        for column in table.columns:
            for chunk in column.chunks:
                for _, leaf in leaves(chunk):
                    if pa.types.is_float64(leaf.type):
                        if not is_finite(leaf):
                            return False
                        largest = max(largest, pc.max(pc.abs(leaf)).as_py() or 0.0)
        return largest < EXACT or _LONG_INT.search(lines) is None


def to_arrow(columns: Schema, *, keyed: bool = True) -> pa.Schema:
    """The columns as Arrow has them; only the key is never null."""
    return pa.schema(
        [
            pa.field(name, each.arrow(), nullable=not (keyed and name == KEY_FIELD))
            for name, each in columns.items()
        ]
    )


def is_finite(numbers: pa.Array[Any]) -> bool:
    """Whether there is no NaN and no infinity among these doubles."""
    found: bool | None = pc.all(pc.is_finite(numbers)).as_py()
    return found is not False


def leaves(array: pa.Array[Any], path: str = "") -> Iterator[tuple[str, pa.Array[Any]]]:
    """The arrays of plain values inside an array, with their paths as Parquet names them."""
    if isinstance(array, pa.MapArray):
        yield from leaves(array.keys, f"{path}.key_value.key")
        yield from leaves(array.items, f"{path}.key_value.value")
    elif isinstance(array, pa.ListArray):
        yield from leaves(array.flatten(), f"{path}.list.element")
    elif isinstance(array, pa.StructArray):
        for field, inside in zip(array.type, array.flatten(), strict=True):
            yield from leaves(inside, f"{path}.{field.name}")
    else:
        yield path, array


def _has_surrogates(lines: bytes) -> bool:
    # A search for one byte is far the fastest, and most lines have no escapes at all.
    return b"\\" in lines and (b"\\ud" in lines or b"\\uD" in lines)


def _kinds(column: ColumnType) -> Iterator[Kind]:
    yield column.kind
    for inside in column.fields.values():
        yield from _kinds(inside)


def _wire(column: ColumnType) -> pa.DataType:
    """The type as which Arrow's reader shall take the values."""
    if column.kind in _AS_TEXT:
        return pa.string()
    if column.kind is Kind.LIST:
        return pa.list_(_wire(column.fields["item"]))
    if column.kind is Kind.STRUCT:
        return pa.struct([pa.field(name, _wire(each)) for name, each in column.fields.items()])
    return column.arrow()
