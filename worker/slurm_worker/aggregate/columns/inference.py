"""Inferring a schema: one pass over every value of every row, and no guessing.

    nothing seen, or None     joins any type; a column with nothing else is a string
    int and float             double, if a double holds each int exactly
    list, object              joined inside
    any other mix             refused, naming the column, the item and the part
    text                      stays text, also where it looks like a date or a number

A sample of the rows is not enough: the value that does not fit may be in the last part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from slurm_worker.aggregate.columns.converter import SCHEMA_AND_SOURCE, misfit_error
from slurm_worker.aggregate.columns.line_reader import LineReader
from slurm_worker.aggregate.columns.types import EXACT, MAX_DEPTH, ColumnType, Rows, TypeName
from slurm_worker.aggregate.errors import AggregationError, Misfit
from slurm_worker.results.parts import KEY_FIELD

MAX_FIELDS = 2_000
_INT64 = (-(2**63), 2**63 - 1)
#: The type of each Python type of JSON, and what messages call it.
_TYPES: dict[type, tuple[TypeName, str]] = {
    bool: (TypeName.BOOL, "a bool"),
    int: (TypeName.INT64, "an int"),
    float: (TypeName.DOUBLE, "a float"),
    str: (TypeName.STRING, "a string"),
    list: (TypeName.LIST, "a list"),
    dict: (TypeName.STRUCT, "an object"),
}
_WORDS = dict(_TYPES.values())


@dataclass(slots=True)
class SeenType:
    """The type of all values of a column that were seen so far; it only grows."""

    type_name: TypeName = TypeName.NULL
    largest_int: int = 0  #: the largest absolute value of an int
    fields: dict[str, SeenType] = field(default_factory=dict)
    depth: int = 0  #: how many columns it is inside of

    def copy(self) -> SeenType:
        """A copy that grows by itself; made for each part, so much faster than `deepcopy`."""
        fields = {name: inner.copy() for name, inner in self.fields.items()}
        return SeenType(self.type_name, self.largest_int, fields, self.depth)

    def add(self, values: Sequence[Any], path: str) -> None:
        """Join the values of one column.

        Raises:
            Misfit: if they fit no single type.
        """
        found = set(map(type, values))
        for python_type, (type_name, _) in _TYPES.items():
            if python_type in found:
                self._join(type_name, path)
        if int in found:
            ints = values if len(found) == 1 else [value for value in values if type(value) is int]
            self._join_ints(min(ints), max(ints), path)
        self._check_exact(self.largest_int, path)
        if self.depth > MAX_DEPTH and self.type_name in (TypeName.LIST, TypeName.STRUCT):
            raise Misfit(path[:60], f"values that are nested more than {MAX_DEPTH} levels deep")
        if self.type_name is TypeName.LIST:
            inside = list(chain.from_iterable(value for value in values if value is not None))
            self.fields.setdefault("item", SeenType(depth=self.depth + 1)).add(inside, f"{path}[]")
        elif self.type_name is TypeName.STRUCT:
            self._join_fields([value for value in values if value is not None], path)

    def add_array(self, array: pa.Array[Any], path: str) -> None:
        """Join an array of this shape, or of a shape that it had before.

        Raises:
            Misfit: if a whole number does not fit among doubles.
        """
        if pa.types.is_int64(array.type):
            low, high = pc.min(array).as_py(), pc.max(array).as_py()
            if low is not None and high is not None:
                self._join_ints(low, high, path)
        elif isinstance(array, pa.ListArray):
            self.fields["item"].add_array(array.flatten(), f"{path}[]")
        elif isinstance(array, pa.StructArray):
            for inner, inside in zip(array.type, array.flatten(), strict=True):
                self.fields[inner.name].add_array(inside, _inside(path, inner.name))

    def column_type(self, path: str) -> ColumnType:
        """The type that holds everything that was seen.

        Raises:
            Misfit: if there is none.
        """
        if self.type_name is TypeName.NULL:
            return ColumnType(TypeName.STRING)
        if self.type_name is TypeName.STRUCT and not self.fields:
            raise Misfit(path, "only empty objects, which Parquet can't store")
        is_list = self.type_name is TypeName.LIST
        fields = {
            name: inner.column_type(f"{path}[]" if is_list else _inside(path, name))
            for name, inner in self.fields.items()
        }
        return ColumnType(self.type_name, fields)

    def shape(self) -> ColumnType:
        """The type so far, with `NULL` for what has had no value."""
        fields = {name: inner.shape() for name, inner in self.fields.items()}
        return ColumnType(self.type_name, fields)

    def _check_exact(self, largest_int: int, path: str) -> None:
        if self.type_name is TypeName.DOUBLE and largest_int > EXACT:
            raise Misfit(
                path,
                f"a number that mixes floats and ints up to {largest_int} in one column, but a "
                f"double holds ints exactly only up to {EXACT}",
            )

    def _join(self, type_name: TypeName, path: str) -> None:
        if self.type_name in (TypeName.NULL, type_name):
            self.type_name = type_name
        elif {self.type_name, type_name} == {TypeName.INT64, TypeName.DOUBLE}:
            self.type_name = TypeName.DOUBLE
        else:
            raise Misfit(path, f"{_WORDS[type_name]} where others have {_WORDS[self.type_name]}")

    def _join_ints(self, low: int, high: int, path: str) -> None:
        if low < _INT64[0] or high > _INT64[1]:
            beyond = high if high > _INT64[1] else low
            raise Misfit(path, f"{beyond}, which does not fit into 64 bits")
        largest = max(self.largest_int, high, -low)
        # Before it is changed: the row that does not fit is searched for afterwards.
        self._check_exact(largest, path)
        self.largest_int = largest

    def _join_fields(self, objects: list[dict[str, Any]], path: str) -> None:
        for name in dict.fromkeys(chain.from_iterable(objects)):
            if name not in self.fields and len(self.fields) >= MAX_FIELDS:
                raise Misfit(path or "(row)", f"more than {MAX_FIELDS:,} different fields")
            inner = self.fields.setdefault(name, SeenType(depth=self.depth + 1))
            inner.add([value.get(name) for value in objects], _inside(path, name))


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


class Inference:
    """Finds the schema of all rows, a part at a time; `keyed` rows have their items' keys."""

    def __init__(self, *, keyed: bool = True) -> None:
        self._keyed = keyed
        self._seen = SeenType(TypeName.STRUCT)
        self._shape = self._seen.shape()
        self._reader: LineReader | None = None

    def read_lines(
        self, lines: bytes, count: int | None, parse: Callable[[bytes], Rows]
    ) -> Callable[[str], None]:
        """Read lines, in any thread; the result adds them, in the caller's thread, in order.

        Of lines that Arrow reads with the shape that was seen before, only the size of their
        whole numbers is checked. `count` is how many rows there must be, None where that is not
        known; `parse` is the slow way, which says what is wrong. The result takes the part's name,
        and raises as `add_rows`.
        """
        table = self._reader.table(lines) if self._reader else None
        if table is not None and count in (None, table.num_rows):
            return lambda part: self._add_table(table, lambda: parse(lines), part)
        rows = parse(lines)
        return lambda part: self.add_rows(rows, part)

    def _add_table(self, table: pa.Table, rows: Callable[[], Rows], part: str) -> None:
        try:
            for batch in table.to_batches():
                self._seen.add_array(batch.to_struct_array(), "")
        except Misfit:
            self.add_rows(rows(), part)

    def add_rows(self, rows: Rows, part: str) -> None:
        """Add the rows of one part.

        Raises:
            AggregationError: naming the column, the item and the part that do not fit.
        """
        before = self._seen.copy()
        try:
            self._seen.add(rows, "")
        except Misfit as error:
            where, source = SCHEMA_AND_SOURCE[self._keyed]
            fix = f"correct {source} so that its values have one type, or declare it in {where}"
            raise misfit_error(rows, partial(before.add, path=""), error, part, fix) from error
        shape = self._seen.shape()
        if shape != self._shape:
            self._shape = shape
            self._reader = LineReader(shape.fields, keyed=self._keyed)

    def schema(self) -> dict[str, ColumnType]:
        """The columns in the order in which they were first seen, without the key.

        Raises:
            AggregationError: naming a column that no type fits.
        """
        try:
            return {
                name: column.column_type(name)
                for name, column in self._seen.fields.items()
                if name != KEY_FIELD or not self._keyed
            }
        except Misfit as error:
            where, source = SCHEMA_AND_SOURCE[self._keyed]
            raise AggregationError(
                f"aggregate: column {error.path!r} holds {error.found}; declare it as json in "
                f"{where}, or correct {source} so that it has no such column"
            ) from error
