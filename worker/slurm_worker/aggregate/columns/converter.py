"""Rows to Arrow, strictly: a value arrives as it was returned, or it is refused.

A column is first checked by the set of its values' Python types, which costs little,
and then built by Arrow, whose casts from text are exact or fail. A field that the schema
does not name is refused; one that is not there is null.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from slurm_worker.aggregate.columns.line_reader import LineReader, is_finite, to_arrow
from slurm_worker.aggregate.columns.types import EXACT, STRING, ColumnType, Kind, Rows, Schema
from slurm_worker.aggregate.errors import AggregationError, Misfit
from slurm_worker.results.parts import KEY_FIELD

_ACCEPTED: dict[Kind, frozenset[type]] = {
    Kind.BOOL: frozenset({bool}),
    Kind.INT32: frozenset({int}),
    Kind.INT64: frozenset({int}),
    Kind.UINT64: frozenset({int}),
    Kind.DOUBLE: frozenset({int, float}),
    Kind.DECIMAL: frozenset({int, str}),
    Kind.STRING: frozenset({str}),
    Kind.TIMESTAMP: frozenset({str}),
    Kind.LOCAL_TIMESTAMP: frozenset({str}),
    Kind.DATE: frozenset({str}),
    Kind.BINARY: frozenset({str}),
    Kind.JSON: frozenset({bool, int, float, str, list, dict}),
    Kind.LIST: frozenset({list}),
    Kind.STRUCT: frozenset({dict}),
    Kind.MAP: frozenset({dict}),
}
#: Written as text, then cast: Arrow's readers of text are strict.
_CAST = frozenset({Kind.TIMESTAMP, Kind.LOCAL_TIMESTAMP, Kind.DATE, Kind.DECIMAL})
_HINTS = {
    Kind.TIMESTAMP: 'write ISO 8601 with a zone, "2026-11-23T17:00:00Z"',
    Kind.LOCAL_TIMESTAMP: 'write ISO 8601 without a zone, "2026-11-23T17:00:00"',
    Kind.DATE: 'write "2026-11-23"',
    Kind.BINARY: "write base64",
}
_json_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Values = Sequence[Any]


class Converter:
    """Turns the rows of a part into a table of one schema.

    Args:
        columns: the schema, without the key.
        declared: whether the user wrote it, for the mend in messages.
        keyed: whether each row has its item's key.
    """

    def __init__(self, columns: Schema, *, declared: bool, keyed: bool = True) -> None:
        #: With the key's.
        self.columns: Schema = {KEY_FIELD: STRING, **columns} if keyed else columns
        self._declared = declared
        self._reader = LineReader(self.columns, keyed=keyed, exact=not keyed)
        self.arrow_schema = to_arrow(self.columns, keyed=keyed)

    def table(self, rows: Rows, part: str) -> pa.Table:
        """Convert the rows of one part.

        Raises:
            AggregationError: naming the column, the item and the part that do not fit.
        """
        try:
            return self._build(rows)
        except Misfit as error:
            raise self._blame(rows, part, error) from error

    def read(self, lines: bytes) -> pa.Table | None:
        """Convert JSON lines the fast way; None where `table` has to decide."""
        return self._reader.table(lines)

    def check(self, rows: Rows) -> None:
        """Refuse rows that do not fit.

        Raises:
            Misfit: naming the column.
        """
        self._build(rows)

    def _build(self, rows: Rows) -> pa.Table:
        extra = dict.fromkeys(chain.from_iterable(rows)).keys() - self.columns.keys()
        if extra:
            raise Misfit(sorted(extra)[0], "a value, and the schema has no such column")
        arrays = [
            build([row.get(name) for row in rows], kind, name)
            for name, kind in self.columns.items()
        ]
        return pa.Table.from_arrays(arrays, schema=self.arrow_schema)

    def _blame(self, rows: Rows, part: str, error: Misfit) -> AggregationError:
        """The error that names the first item that does not fit."""
        item = "one of its items"
        for row in rows:
            misfit = self._misfit(row)
            if misfit is not None:
                item, error = named(row), misfit
                break
        mend = (
            "correct aggregate.schema, or what the handler returns"
            if self._declared
            else "declare the column under aggregate.schema"
        )
        return AggregationError(
            f"aggregate: column {error.path!r}: {item} has {error.found} ({part}); {mend}"
        )

    def _misfit(self, row: dict[str, Any]) -> Misfit | None:
        try:
            self._build([row])
        except Misfit as error:
            return error
        return None


def named(row: Mapping[str, Any]) -> str:
    """The row, in a message."""
    return f"item {row[KEY_FIELD]!r}" if KEY_FIELD in row else f"the row {_show(row)}"


def build(values: Values, kind: ColumnType, path: str) -> pa.Array[Any]:
    """An Arrow array of exactly these values.

    Raises:
        Misfit: if one of them is not of this type.
    """
    found = set(map(type, values))
    found.discard(type(None))
    wrong = found - _ACCEPTED[kind.kind]
    if wrong:
        example = next(each for each in values if type(each) in wrong)
        raise Misfit(path, f"{_show(example)}, which is no {kind}")
    nested = _BUILDERS.get(kind.kind)
    if nested is not None:
        return nested(values, kind, path)
    return _scalars(values, kind, path, found)


def _scalars(values: Values, kind: ColumnType, path: str, found: set[type]) -> pa.Array[Any]:
    if kind.kind is Kind.DOUBLE and int in found:
        for each in values:
            if type(each) is int and abs(each) > EXACT:
                raise Misfit(path, f"{each}, which a double holds only to {EXACT}")
    try:
        if kind.kind in _CAST:
            text = [each if each is None else str(each) for each in values]
            return pa.array(text, pa.string()).cast(kind.arrow())
        if kind.kind is Kind.BINARY:
            values = [each if each is None else _unbase64(each) for each in values]
        elif kind.kind is Kind.JSON:
            values = [each if each is None else _json_text(each) for each in values]
        array = pa.array(values, kind.arrow())
        if kind.kind is Kind.DOUBLE and not is_finite(array):
            raise Misfit(path, "a number that is beyond a double")
        return array
    except (pa.ArrowException, ValueError, OverflowError, RecursionError) as error:
        shown = next((each for each in values if each is not None), None)
        hint = _HINTS.get(kind.kind, " ".join(str(error).split()))
        raise Misfit(path, f"{_show(shown)}, which is no {kind} ({hint})") from error


def _lists(values: Values, kind: ColumnType, path: str) -> pa.Array[Any]:
    inside = list(chain.from_iterable(each for each in values if each is not None))
    items = build(inside, kind.fields["item"], f"{path}[]")
    return pa.ListArray.from_arrays(_offsets(values), items)


def _maps(values: Values, kind: ColumnType, path: str) -> pa.Array[Any]:
    pairs = [pair for each in values if each is not None for pair in each.items()]
    names = pa.array([name for name, _ in pairs], pa.string())
    inside = build([value for _, value in pairs], kind.fields["value"], f"{path}{{}}")
    maps: pa.Array[Any] = pa.MapArray.from_arrays(  # type: ignore[call-overload]  # the stubs want 64-bit offsets, pyarrow 32
        _offsets(values), names, inside
    )
    return maps


def _structs(values: Values, kind: ColumnType, path: str) -> pa.Array[Any]:
    objects = [{} if each is None else each for each in values]
    extra = dict.fromkeys(chain.from_iterable(objects)).keys() - kind.fields.keys()
    if extra:
        raise Misfit(f"{path}.{sorted(extra)[0]}", "a value, and the schema has no such field")
    arrays = [
        build([each.get(name) for each in objects], inside, f"{path}.{name}")
        for name, inside in kind.fields.items()
    ]
    fields = [pa.field(name, inside.arrow()) for name, inside in kind.fields.items()]
    mask = pa.array([each is None for each in values], pa.bool_())
    return pa.StructArray.from_arrays(arrays, fields=fields, mask=mask)


_BUILDERS: dict[Kind, Callable[[Values, ColumnType, str], pa.Array[Any]]] = {
    Kind.LIST: _lists,
    Kind.MAP: _maps,
    Kind.STRUCT: _structs,
}


def _offsets(values: Values) -> pa.Int32Array:
    """Where each list begins; null where there is none."""
    offsets: list[int | None] = []
    at = 0
    for each in values:
        offsets.append(None if each is None else at)
        at += 0 if each is None else len(each)
    offsets.append(at)
    return pa.array(offsets, pa.int32())


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _show(value: object) -> str:
    try:
        text = _json_text(value)
    except RecursionError:
        return "a value that is nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
