"""Rows to Arrow, strictly: a value arrives as it was returned, or it is refused.

A column is first checked by the set of its values' Python types, which costs little,
and then built by Arrow, whose casts from text are exact or fail. A field that the schema
does not name is refused; a field that is missing from a row is null.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa

from slurm_worker.aggregate.columns.line_reader import LineReader, is_finite
from slurm_worker.aggregate.columns.types import (
    CAST_FROM_TEXT,
    EXACT,
    STRING,
    ColumnType,
    Rows,
    Schema,
    TypeName,
    to_arrow,
)
from slurm_worker.aggregate.errors import AggregationError, Misfit, one_line
from slurm_worker.results.parts import KEY_FIELD

#: The Python types of the JSON values that each type takes; text for the others.
_ACCEPTED: dict[TypeName, set[type]] = {
    TypeName.BOOL: {bool},
    TypeName.INT32: {int},
    TypeName.INT64: {int},
    TypeName.UINT64: {int},
    TypeName.DOUBLE: {int, float},
    TypeName.DECIMAL: {int, str},
    TypeName.JSON: {bool, int, float, str, list, dict},
    TypeName.LIST: {list},
    TypeName.STRUCT: {dict},
    TypeName.MAP: {dict},
}
_HINTS = {
    TypeName.TIMESTAMP: 'write ISO 8601 with a zone, "2026-11-23T17:00:00Z"',
    TypeName.LOCAL_TIMESTAMP: 'write ISO 8601 without a zone, "2026-11-23T17:00:00"',
    TypeName.DATE: 'write "2026-11-23"',
    TypeName.BINARY: "write base64",
}
#: Where a user declares columns, and what the rows come from: of files, and of a job (keyed).
SCHEMA_AND_SOURCE = {
    False: ("the --schema file", "the file that is merged"),
    True: ("aggregate.schema", "what the handler returns"),
}
_json_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Values = Sequence[Any]


class Converter:
    """Turns the rows of a part into a table of one schema; `keyed` rows have their items' keys.

    `columns` are without the key; where they are `declared`, messages say how to correct them.
    """

    def __init__(self, columns: Schema, *, declared: bool, keyed: bool = True) -> None:
        #: With the key's.
        self.columns: Schema = {KEY_FIELD: STRING, **columns} if keyed else columns
        self.arrow_schema = to_arrow(self.columns, keyed=keyed)
        #: Converts JSON lines the fast way; None where `table` has to decide.
        self.read = LineReader(self.columns, keyed=keyed, exact=not keyed).table
        where, source = SCHEMA_AND_SOURCE[keyed]
        self._fix = f"correct {where}, or {source}"
        if not declared:
            self._fix = f"declare the column in {where}"

    def table(self, rows: Rows, part: str) -> pa.Table:
        """Convert the rows of one part.

        Raises:
            AggregationError: naming the column, the item and the part that do not fit.
        """
        try:
            return self.build(rows)
        except Misfit as error:
            raise misfit_error(rows, self.build, error, part, self._fix) from error

    def build(self, rows: Rows) -> pa.Table:
        """Convert rows.

        Raises:
            Misfit: naming the column that does not fit.
        """
        extra = dict.fromkeys(chain.from_iterable(rows)).keys() - self.columns.keys()
        if extra:
            raise Misfit(sorted(extra)[0], "a value, but the schema has no such column")
        arrays = [
            _build([row.get(name) for row in rows], column, name)
            for name, column in self.columns.items()
        ]
        return pa.Table.from_arrays(arrays, schema=self.arrow_schema)


def misfit_error(
    rows: Rows, check: Callable[[Rows], object], error: Misfit, part: str, fix: str
) -> AggregationError:
    """The error that names the first row of `part` that `check` refuses, and how to `fix` it.

    `check` raises `Misfit`; `error` is what to say where no row is refused by itself.
    """
    item = "one of the rows"
    for row in rows:
        try:
            check([row])
        except Misfit as misfit:
            error = misfit
            item = f"item {row[KEY_FIELD]!r}" if KEY_FIELD in row else f"the row {_show(row)}"
            break
    return AggregationError(
        f"aggregate: column {error.path!r}: {item} has {error.found} ({part}); {fix}"
    )


def _build(values: Values, column: ColumnType, path: str) -> pa.Array[Any]:
    """An Arrow array of exactly these values; raises `Misfit`."""
    found = set(map(type, values))
    found.discard(type(None))
    wrong = found - _ACCEPTED.get(column.type_name, {str})
    if wrong:
        example = next(value for value in values if type(value) in wrong)
        raise Misfit(path, f"{_show(example)}, which is not of type {column}")
    if nested := _NESTED.get(column.type_name):
        return nested(values, column, path)
    if column.type_name is TypeName.DOUBLE and int in found:
        for value in values:
            if type(value) is int and abs(value) > EXACT:
                raise Misfit(path, f"{value}, but a double holds ints exactly only up to {EXACT}")
    try:
        array = _scalars(values, column)
    except (pa.ArrowException, ValueError, OverflowError, RecursionError) as error:
        shown = next((value for value in values if value is not None), None)
        hint = _HINTS.get(column.type_name, one_line(error))
        raise Misfit(path, f"{_show(shown)}, which is not of type {column} ({hint})") from error
    if column.type_name is TypeName.DOUBLE and not is_finite(array):
        raise Misfit(path, "a number that is too large for a double")
    return array


def _scalars(values: Values, column: ColumnType) -> pa.Array[Any]:
    if column.type_name in CAST_FROM_TEXT:
        return pa.array(_map(str, values), pa.string()).cast(column.arrow())
    if column.type_name is TypeName.BINARY:
        values = _map(partial(base64.b64decode, validate=True), values)
    elif column.type_name is TypeName.JSON:
        values = _map(_json_text, values)
    return pa.array(values, column.arrow())


def _map(function: Callable[[Any], Any], values: Values) -> list[Any]:
    return [None if value is None else function(value) for value in values]


def _lists(values: Values, column: ColumnType, path: str) -> pa.Array[Any]:
    inside = list(chain.from_iterable(value for value in values if value is not None))
    items = _build(inside, column.fields["item"], f"{path}[]")
    return pa.ListArray.from_arrays(_offsets(values), items)


def _maps(values: Values, column: ColumnType, path: str) -> pa.Array[Any]:
    pairs = [pair for value in values if value is not None for pair in value.items()]
    names = pa.array([name for name, _ in pairs], pa.string())
    inside = _build([value for _, value in pairs], column.fields["value"], f"{path}{{}}")
    maps: pa.Array[Any] = pa.MapArray.from_arrays(  # type: ignore[call-overload]  # the stubs want 64-bit offsets, pyarrow 32
        _offsets(values), names, inside
    )
    return maps


def _structs(values: Values, column: ColumnType, path: str) -> pa.Array[Any]:
    objects: list[Mapping[str, Any]] = [{} if value is None else value for value in values]
    extra = dict.fromkeys(chain.from_iterable(objects)).keys() - column.fields.keys()
    if extra:
        raise Misfit(f"{path}.{sorted(extra)[0]}", "a value, but the schema has no such field")
    arrays = [
        _build([value.get(name) for value in objects], inner, f"{path}.{name}")
        for name, inner in column.fields.items()
    ]
    mask = pa.array([value is None for value in values], pa.bool_())
    fields = list(to_arrow(column.fields, keyed=False))
    return pa.StructArray.from_arrays(arrays, fields=fields, mask=mask)


_NESTED = {TypeName.LIST: _lists, TypeName.MAP: _maps, TypeName.STRUCT: _structs}


def _offsets(values: Values) -> pa.Int32Array:
    """Where each list begins; null where there is none."""
    ends = list(accumulate((len(value or ()) for value in values), initial=0))
    starts = (None if value is None else end for value, end in zip(values, ends, strict=False))
    return pa.array([*starts, ends[-1]], pa.int32())


def _show(value: object) -> str:
    try:
        text = _json_text(value)
    except RecursionError:
        return "a value that is nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
