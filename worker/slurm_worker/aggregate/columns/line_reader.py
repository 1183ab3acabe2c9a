"""JSON lines to columns by Arrow's own reader, wherever its result is certain to be exact.

Arrow reads lines several times as fast as Python can, and with an explicit schema refuses most
of what does not fit. Where it refuses, and where it could have changed a value, None is
returned. Then the caller uses the slow way, which decides and says what is wrong:

    a whole number beyond 2^53 in a column of doubles     Arrow would round it
    NaN, or a number too large for a double               they would be kept, or infinite
    lines that are not one object each                    Arrow ignores line ends between values,
                                                          and crashes on a `null`
    a number with more digits than a double keeps         it would be rounded
    half of a surrogate pair in a string, invalid UTF-8   it would be kept as bytes
    binary, json and map columns                          they are not read as they are stored

Timestamps, dates and decimals are read as text and then cast, as in `converter`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from slurm_worker.aggregate.columns.types import (
    CAST_FROM_TEXT,
    EXACT,
    ColumnType,
    Schema,
    TypeName,
    to_arrow,
)
from slurm_worker.results import jsonlines
from slurm_worker.results.parts import KEY_FIELD

#: Arrow does not read these as they are stored.
_UNREADABLE = {TypeName.BINARY, TypeName.JSON, TypeName.MAP}
_LONG_INT = re.compile(rb"[:\[,]\s*-?\d{16,}\s*[,}\]]")
_BLOCK_MARGIN = 64
#: Arrow crashes on a bare `null` between two rows. Only a line that is not JSON has one.
_BARE_NULL = re.compile(rb"\}\s*null")
#: A number of many digits, or with an exponent of three.
_LONG_NUMBER = rb"\s*(-?\d(?:[\d.]{15,}(?:[eE][-+]?\d+)?|[\d.]*[eE][-+]?\d{3,}))"
#: Up to this many columns, a search after each column's name is faster than after all names.
_FEW_NAMES = 2


class LineReader:
    """Reads lines of one schema, which has the key's column where rows are `keyed`.

    If `exact`, numbers that a double does not hold exactly are searched for. The lines of a worker
    have none: it writes its doubles with as many digits as they need.
    """

    def __init__(self, columns: Schema, *, keyed: bool = True, exact: bool = False) -> None:
        self._keyed = keyed
        self._numbers = _Numbers(columns) if exact else None
        self._target = to_arrow(columns, keyed=keyed)
        inside = {name for column in columns.values() for name in _type_names(column)}
        self._doubles = TypeName.DOUBLE in inside
        self._options: pj.ParseOptions | None = None
        if not inside & _UNREADABLE:
            wire = pa.schema([(name, _wire(column)) for name, column in columns.items()])
            self._options = pj.ParseOptions(explicit_schema=wire, unexpected_field_behavior="error")

    def table(self, lines: bytes) -> pa.Table | None:
        """The columns; None where they may differ from what the lines say."""
        # A search for one byte is by far the fastest, and most lines have no escapes at all.
        has_surrogates = b"\\" in lines and (b"\\ud" in lines or b"\\uD" in lines)
        if self._options is None or has_surrogates or not (count := _count_objects(lines)):
            return None
        # One block holds all, so that no line is longer than a block.
        read_options = pj.ReadOptions(use_threads=False, block_size=len(lines) + _BLOCK_MARGIN)
        source: Any = pa.BufferReader(lines)  # the stubs want a file of Python's
        try:
            read = pj.read_json(source, read_options, self._options)
            if not lines.isascii():
                read.validate(full=True)  # Arrow also reads bytes that are not UTF-8.
            table = read.select(self._target.names).cast(self._target)
        except (pa.ArrowException, ValueError):
            return None
        keys_missing = self._keyed and table.column(KEY_FIELD).null_count
        if table.num_rows != count or keys_missing or not self._is_exact(table, lines):
            return None
        return table

    def _is_exact(self, table: pa.Table, lines: bytes) -> bool:
        if not self._doubles:
            return True
        if self._numbers is not None and not self._numbers.are_kept(lines):
            return False
        largest = 0.0
        chunks = (chunk for column in table.columns for chunk in column.chunks)
        for _, leaf in (found for chunk in chunks for found in leaves(chunk)):
            if pa.types.is_float64(leaf.type):
                if not is_finite(leaf):
                    return False
                largest = max(largest, pc.max(pc.abs(leaf)).as_py() or 0.0)
        return largest < EXACT or _LONG_INT.search(lines) is None


def is_finite(numbers: pa.Array[Any]) -> bool:
    """Whether there is no NaN and no infinity among these doubles."""
    return pc.all(pc.is_finite(numbers)).as_py() is not False


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


def _count_objects(lines: bytes) -> int:
    """How many lines there are, if each begins and ends like an object; otherwise 0.

    Inside a JSON value there is no line end between `}` and `{`. So if Arrow then finds as many
    rows as there are lines, each line was one row.
    """
    if not (lines.startswith(b"{") and lines.endswith(b"}\n")):
        return 0
    count = lines.count(b"\n")
    bare_null = b"null" in lines and _BARE_NULL.search(lines)
    return 0 if bare_null or lines.count(b"}\n{") + 1 != count else count


class _Numbers:
    """Finds numbers that a double may not hold exactly, in columns of doubles."""

    def __init__(self, columns: Schema) -> None:
        doubles = {before for name, column in columns.items() for before in _doubles(name, column)}
        lists = [_long_number(b"\\["), _long_number(b",")] if None in doubles else []
        self._anywhere = [_long_number(b":"), *lists]
        self._after_names = self._anywhere
        named = sorted(name for name in doubles if name is not None)
        if len(named) <= _FEW_NAMES:
            quoted = (re.escape(json.dumps(name, ensure_ascii=False).encode()) for name in named)
            self._after_names = [*(_long_number(name + rb"\s*:") for name in quoted), *lists]

    def are_kept(self, lines: bytes) -> bool:
        """Whether a double holds all of them exactly; false where that is not certain."""
        # Only without escapes is there one way to write a name.
        patterns = self._anywhere if b"\\" in lines else self._after_names
        found = (word for pattern in patterns for word in pattern.findall(lines))
        try:
            for word in _unlike_shortest([word for word in found if not word.isdigit()]):
                jsonlines.exact_float(word.decode())
        except ValueError:
            return False
        return True


def _long_number(before: bytes) -> re.Pattern[bytes]:
    # A search that begins with fixed characters is several times as fast.
    return re.compile(before + _LONG_NUMBER)


def _doubles(name: str, column: ColumnType, *, listed: bool = False) -> Iterator[str | None]:
    """The names before doubles in JSON text; None for doubles in lists."""
    if column.type_name is TypeName.DOUBLE:
        yield None if listed else name
    elif column.type_name is TypeName.LIST:
        yield from _doubles(name, column.fields["item"], listed=True)
    else:
        for field, inner in column.fields.items():
            yield from _doubles(field, inner)


def _unlike_shortest(words: list[bytes]) -> list[bytes]:
    """Those that are not the shortest text of a double, which a double holds by definition."""
    try:
        texts = pa.array(words, pa.string())
        shortest = texts.cast(pa.float64()).cast(pa.string())
    except (pa.ArrowException, ValueError):  # pieces of text, as well as numbers
        return words
    alike: list[Any] = pc.equal(texts, shortest).to_pylist()
    return [word for word, same in zip(words, alike, strict=True) if not same]


def _type_names(column: ColumnType) -> Iterator[TypeName]:
    yield column.type_name
    for inner in column.fields.values():
        yield from _type_names(inner)


def _wire(column: ColumnType) -> pa.DataType:
    """The type as which Arrow reads the values."""
    if column.type_name in CAST_FROM_TEXT:
        return pa.string()
    if column.type_name is TypeName.LIST:
        return pa.list_(_wire(column.fields["item"]))
    if column.type_name is TypeName.STRUCT:
        return pa.struct([(name, _wire(inner)) for name, inner in column.fields.items()])
    return column.arrow()
