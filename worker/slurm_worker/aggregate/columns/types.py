"""Column types: what a declared schema may say, and what inference finds.

A type is written as text, ``string`` or ``list<struct<at: timestamp, n: int64>>``:

    bool                      true and false
    int32 int64 uint64        whole numbers within their range
    double                    numbers; whole ones up to 2^53, which a double holds exactly
    decimal(p, s)             text such as "12.50", or whole numbers
    string                    text, unchanged
    timestamp                 ISO 8601 text with a zone ("2026-11-23T17:00:00Z"), to microseconds
    local_timestamp           the same without a zone
    date                      "2026-11-23"
    binary                    base64 text
    json                      anything: stored as its JSON text
    list<T>  struct<a: T, …>  lists, objects with known fields
    map<string, T>            objects with fields of any name
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pyarrow as pa

from slurm_worker.errors import UserError
from slurm_worker.results.parts import KEY_FIELD


class TypeName(str, Enum):
    """The names of all types."""

    NULL = "null"  #: inference has seen no value yet
    BOOL = "bool"
    INT32 = "int32"
    INT64 = "int64"
    UINT64 = "uint64"
    DOUBLE = "double"
    DECIMAL = "decimal"
    STRING = "string"
    TIMESTAMP = "timestamp"
    LOCAL_TIMESTAMP = "local_timestamp"
    DATE = "date"
    BINARY = "binary"
    JSON = "json"
    LIST = "list"
    STRUCT = "struct"
    MAP = "map"


_ARROW: dict[TypeName, pa.DataType] = {
    TypeName.NULL: pa.null(),
    TypeName.BOOL: pa.bool_(),
    TypeName.INT32: pa.int32(),
    TypeName.INT64: pa.int64(),
    TypeName.UINT64: pa.uint64(),
    TypeName.DOUBLE: pa.float64(),
    TypeName.STRING: pa.string(),
    TypeName.TIMESTAMP: pa.timestamp("us", "UTC"),
    TypeName.LOCAL_TIMESTAMP: pa.timestamp("us"),
    TypeName.DATE: pa.date32(),
    TypeName.BINARY: pa.binary(),
    TypeName.JSON: pa.string(),
}
#: Read as text, then cast: Arrow's parsers of text are strict.
CAST_FROM_TEXT = (TypeName.TIMESTAMP, TypeName.LOCAL_TIMESTAMP, TypeName.DATE, TypeName.DECIMAL)
#: pyarrow reads no column that is nested deeper than 100 groups of Parquet; a list is two or three.
MAX_DEPTH = 30
#: Up to this number a double holds every int exactly.
EXACT = 2**53


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The type of a column, or of the values inside one."""

    type_name: TypeName  #: bool, list and so on
    #: Names and types inside: a struct's fields; ``item`` of a list, ``value`` of a map
    fields: Mapping[str, ColumnType] = field(default_factory=dict)
    digits: tuple[int, int] = (0, 0)  #: precision and scale of a decimal

    def __str__(self) -> str:
        if self.type_name is TypeName.DECIMAL:
            return f"decimal({self.digits[0]}, {self.digits[1]})"
        if self.type_name is TypeName.LIST:
            return f"list<{self.fields['item']}>"
        if self.type_name is TypeName.MAP:
            return f"map<string, {self.fields['value']}>"
        if self.type_name is TypeName.STRUCT:
            inside = ", ".join(f"{name}: {inner}" for name, inner in self.fields.items())
            return f"struct<{inside}>"
        return str(self.type_name.value)

    def to_list(self) -> list[Any]:
        """JSON-able, and exact: the type's text can't hold every field's name."""
        fields = {name: inner.to_list() for name, inner in self.fields.items()}
        return [self.type_name.value, fields, list(self.digits)]

    @classmethod
    def from_list(cls, raw: Sequence[Any]) -> ColumnType:
        """Read what `to_list` made."""
        type_name, fields, digits = raw
        inside = {name: cls.from_list(inner) for name, inner in fields.items()}
        return cls(TypeName(type_name), inside, (digits[0], digits[1]))

    def arrow(self) -> pa.DataType:
        """The Arrow type that holds it."""
        inside = {name: inner.arrow() for name, inner in self.fields.items()}
        if self.type_name is TypeName.DECIMAL:
            return pa.decimal128(*self.digits)
        if self.type_name is TypeName.LIST:
            return pa.list_(inside["item"])
        if self.type_name is TypeName.MAP:
            return pa.map_(pa.string(), inside["value"])
        if self.type_name is TypeName.STRUCT:
            return pa.struct(list(inside.items()))
        return _ARROW[self.type_name]


#: Columns by name, in order.
Schema = Mapping[str, ColumnType]
Rows = Sequence[dict[str, Any]]
STRING = ColumnType(TypeName.STRING)


def to_arrow(columns: Schema, *, keyed: bool) -> pa.Schema:
    """The columns as an Arrow schema; only the key, where rows are `keyed`, is never null."""
    fields = [
        pa.field(name, column.arrow(), nullable=not (keyed and name == KEY_FIELD))
        for name, column in columns.items()
    ]
    return pa.schema(fields)


def parse_schema(declared: Mapping[str, str], *, keyed: bool = True) -> dict[str, ColumnType]:
    """The declared types of the columns, without the key's where rows are `keyed`.

    Raises:
        UserError: naming the column and the text that is not a type.
    """
    if keyed and KEY_FIELD in declared:
        raise UserError(
            f"aggregate.schema: {KEY_FIELD!r} is added to every dataset; remove it from the schema"
        )
    return {name: parse_type(text, name) for name, text in declared.items()}


def parse_type(text: str, column: str) -> ColumnType:
    """Read a type; `column` is for the message."""
    tokens = deque(re.findall(r"[^\s<>():,]+|[<>():,]", text))
    try:
        found = _parse(tokens, 0)
        if tokens:
            raise ValueError(f"unexpected {''.join(tokens)!r} at its end")
        return found
    except ValueError as error:
        names = ", ".join(known.value for known in _ARROW if known is not TypeName.NULL)
        raise UserError(
            f"aggregate.schema: {column}: {text[:200]!r} is not a type: {error}; use {names}, "
            "decimal(p, s), list<…>, struct<name: …> or map<string, …>"
        ) from None


def _parse(tokens: deque[str], depth: int) -> ColumnType:
    """Recursive descent: type = name | name "<" inside ">" | "decimal" "(" p "," s ")"."""
    name = _take(tokens)
    if name not in {known.value for known in TypeName if known is not TypeName.NULL}:
        raise ValueError(f"{name!r} is unknown")
    type_name = TypeName(name)
    if type_name is TypeName.DECIMAL:
        return ColumnType(type_name, digits=_digits(tokens))
    if type_name in _ARROW:
        return ColumnType(type_name)
    if depth >= MAX_DEPTH:
        raise ValueError(
            f"it is nested more than {MAX_DEPTH} levels deep; declare the column as json"
        )
    _take(tokens, "<")
    if type_name is TypeName.STRUCT:
        fields = _struct_fields(tokens, depth + 1)
    elif type_name is TypeName.LIST:
        fields = {"item": _parse(tokens, depth + 1)}
    else:
        if _take(tokens) != TypeName.STRING.value:
            raise ValueError("the keys of a map must be strings")
        _take(tokens, ",")
        fields = {"value": _parse(tokens, depth + 1)}
    _take(tokens, ">")
    return ColumnType(type_name, fields)


def _struct_fields(tokens: deque[str], depth: int) -> dict[str, ColumnType]:
    fields: dict[str, ColumnType] = {}
    while True:
        name = _take(tokens)
        if name in fields:
            raise ValueError(f"it names the field {name!r} twice")
        _take(tokens, ":")
        fields[name] = _parse(tokens, depth)
        if not tokens or tokens[0] != ",":
            return fields
        _take(tokens)


def _digits(tokens: deque[str]) -> tuple[int, int]:
    _take(tokens, "(")
    precision = _take(tokens)
    _take(tokens, ",")
    scale = _take(tokens)
    _take(tokens, ")")
    for word in (precision, scale):
        if not word.isdecimal():
            raise ValueError(f"{word!r} is not a number of digits")
    if not 1 <= int(precision) <= 38 or int(scale) > int(precision):
        raise ValueError(
            "a decimal has 1 to 38 digits, and at most that many of them after the point"
        )
    return int(precision), int(scale)


def _take(tokens: deque[str], expected: str = "") -> str:
    """Remove the next token; only `expected` where it is given."""
    if not tokens or (expected and tokens[0] != expected):
        raise ValueError(f"{expected!r} is missing" if expected else "it ends too early")
    return tokens.popleft()
