"""Inferring a schema: one pass over every value of every row, and no guessing.

    nothing seen, or None     joins any type; a column with nothing else is a string
    int and float             double, if each int is one that a double holds exactly
    list, object              joined inside
    any other mix             refused, naming the column, the item and the part
    text                      stays text, also where it looks like a date or a number

Sampling is no option: the value that does not fit is in the last part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from slurm_worker.aggregate.columns.converter import named
from slurm_worker.aggregate.columns.line_reader import LineReader
from slurm_worker.aggregate.columns.types import EXACT, MAX_DEPTH, ColumnType, Kind, Rows
from slurm_worker.aggregate.errors import AggregationError, Misfit
from slurm_worker.results.parts import KEY_FIELD

MAX_FIELDS = 2_000
_INT64 = (-(2**63), 2**63 - 1)
_KINDS = {
    bool: Kind.BOOL,
    int: Kind.INT64,
    float: Kind.DOUBLE,
    str: Kind.STRING,
    list: Kind.LIST,
    dict: Kind.STRUCT,
}


@dataclass(slots=True)
class Seen:
    """What was seen of a column so far; it only grows.

    Args:
        kind: of all its values.
        largest_int: the largest absolute value of an int among them.
        fields: the same of what is inside it.
        depth: in how many others it is.
    """

    kind: Kind = Kind.NULL
    largest_int: int = 0
    fields: dict[str, Seen] = field(default_factory=dict)
    depth: int = 0

    def add(self, values: Sequence[Any], path: str) -> None:
        """Join the values of one column.

        Raises:
            Misfit: if they fit no single type.
        """
        found = set(map(type, values))
        for python_type in sorted(found - {type(None)}, key=_KIND_ORDER.index):
            self._join(_KINDS[python_type], path)
        if int in found:
            ints = values if len(found) == 1 else [each for each in values if type(each) is int]
            self._join_ints(min(ints), max(ints), path)
        self._check_exact(path)
        if self.depth > MAX_DEPTH and self.kind in (Kind.LIST, Kind.STRUCT):
            raise Misfit(path[:60], f"values that are nested more than {MAX_DEPTH} deep")
        if self.kind is Kind.LIST:
            inside = list(chain.from_iterable(each for each in values if each is not None))
            self.fields.setdefault("item", Seen(depth=self.depth + 1)).add(inside, f"{path}[]")
        elif self.kind is Kind.STRUCT:
            self._join_fields([each for each in values if each is not None], path)

    def column_type(self, path: str) -> ColumnType:
        """The type that holds everything that was seen.

        Raises:
            Misfit: if there is none.
        """
        if self.kind is Kind.NULL:
            return ColumnType(Kind.STRING)
        if self.kind is Kind.STRUCT and not self.fields:
            raise Misfit(path, "only empty objects, which Parquet can't store")
        inside = f"{path}[]" if self.kind is Kind.LIST else path
        return ColumnType(
            self.kind,
            {
                name: each.column_type(inside if self.kind is Kind.LIST else f"{path}.{name}")
                for name, each in self.fields.items()
            },
        )

    def shape(self) -> ColumnType:
        """What was seen so far, with `NULL` for what has had no value."""
        return ColumnType(self.kind, {name: each.shape() for name, each in self.fields.items()})

    def note(self, array: pa.Array[Any], path: str) -> None:
        """Join an array of this shape, or of a shape that it had before.

        Raises:
            Misfit: if a whole number does not fit among doubles.
        """
        if pa.types.is_int64(array.type):
            low, high = pc.min(array).as_py(), pc.max(array).as_py()
            if low is not None and high is not None:
                self._join_ints(low, high, path)
            self._check_exact(path)
        elif isinstance(array, pa.ListArray):
            self.fields["item"].note(array.flatten(), f"{path}[]")
        elif isinstance(array, pa.StructArray):
            for inner, inside in zip(array.type, array.flatten(), strict=True):
                self.fields[inner.name].note(inside, f"{path}.{inner.name}" if path else inner.name)

    def copy(self) -> Seen:
        """The same, to go on from."""
        fields = {name: each.copy() for name, each in self.fields.items()}
        return Seen(self.kind, self.largest_int, fields, self.depth)

    def _check_exact(self, path: str) -> None:
        if self.kind is Kind.DOUBLE and self.largest_int > EXACT:
            raise Misfit(
                path,
                "a number that puts floats and ints up to "
                f"{self.largest_int} into one column, and a double holds those only to {EXACT}",
            )

    def _join(self, kind: Kind, path: str) -> None:
        if self.kind in (Kind.NULL, kind):
            self.kind = kind
        elif {self.kind, kind} == {Kind.INT64, Kind.DOUBLE}:
            self.kind = Kind.DOUBLE
        else:
            raise Misfit(path, f"{_word(kind)} where others hold {_word(self.kind)}")

    def _join_ints(self, low: int, high: int, path: str) -> None:
        if low < _INT64[0] or high > _INT64[1]:
            beyond = high if high > _INT64[1] else low
            raise Misfit(path, f"{beyond}, which is beyond 64 bits")
        self.largest_int = max(self.largest_int, high, -low)

    def _join_fields(self, objects: list[dict[str, Any]], path: str) -> None:
        for name in dict.fromkeys(chain.from_iterable(objects)):
            if name not in self.fields and len(self.fields) >= MAX_FIELDS:
                raise Misfit(path or "(row)", f"more than {MAX_FIELDS:,} different fields")
            inside = self.fields.setdefault(name, Seen(depth=self.depth + 1))
            inside.add([each.get(name) for each in objects], f"{path}.{name}" if path else name)


_KIND_ORDER = list(_KINDS)


class Inference:
    """Looks at all rows, a part at a time, and tells their schema.

    Args:
        keyed: whether each row has its item's key.
    """

    def __init__(self, *, keyed: bool = True) -> None:
        self._keyed = keyed
        self._seen = Seen(Kind.STRUCT)
        self._shape = self._seen.shape()
        self._reader: LineReader | None = None

    def read_lines(
        self, lines: bytes, count: int | None, parse: Callable[[bytes], Rows]
    ) -> Callable[[str], None]:
        """Read lines, in any thread; what is returned looks at them, in the caller's, in order.

        Lines that Arrow reads as what was seen before need no closer look: only how large
        their whole numbers are. They hold `count` rows; None where that is not known.
        """
        table = self._reader.table(lines) if self._reader else None
        if table is not None and count in (None, table.num_rows):
            return lambda part: self._note(table, lambda: parse(lines), part)
        rows = parse(lines)
        return lambda part: self.look(rows, part)

    def _note(self, table: pa.Table, rows: Callable[[], Rows], part: str) -> None:
        try:
            for batch in table.to_batches():
                self._seen.note(batch.to_struct_array(), "")
        except Misfit:
            self.look(rows(), part)

    def look(self, rows: Rows, part: str) -> None:
        """Look at the rows of one part.

        Raises:
            AggregationError: naming the column, the item and the part that do not fit.
        """
        before = self._seen.copy()
        try:
            self._seen.add(rows, "")
        except Misfit as error:
            raise _blame(before, rows, part, error) from error
        if self._seen.shape() != self._shape:
            self._shape = self._seen.shape()
            self._reader = LineReader(self._shape.fields, keyed=self._keyed)

    def schema(self) -> dict[str, ColumnType]:
        """The columns in the order in which they were first seen, without the key.

        Raises:
            AggregationError: naming a column that no type fits.
        """
        columns = dict(self._seen.fields)
        if self._keyed:
            columns.pop(KEY_FIELD, None)
        try:
            return {name: each.column_type(name) for name, each in columns.items()}
        except Misfit as error:
            raise AggregationError(
                f"aggregate: column {error.path!r} holds {error.found}; declare it as json under "
                "aggregate.schema, or let the handler leave it out"
            ) from error


def _blame(seen: Seen, rows: Rows, part: str, error: Misfit) -> AggregationError:
    """The error that names the first item that does not fit with those before it."""
    item = "one of its items"
    for row in rows:
        misfit = _misfit(seen, row)
        if misfit is not None:
            item, error = named(row), misfit
            break
    return AggregationError(
        f"aggregate: column {error.path!r}: {item} has {error.found} ({part}); let the handler "
        "return one type, or declare the column under aggregate.schema"
    )


def _misfit(seen: Seen, row: dict[str, Any]) -> Misfit | None:
    try:
        seen.add([row], "")
    except Misfit as error:
        return error
    return None


def _word(kind: Kind) -> str:
    words = {
        Kind.BOOL: "a bool",
        Kind.INT64: "an int",
        Kind.DOUBLE: "a float",
        Kind.STRING: "a string",
        Kind.LIST: "a list",
        Kind.STRUCT: "an object",
    }
    return words[kind]
