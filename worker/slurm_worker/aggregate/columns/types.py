"""Column types: what a declared schema may say, and what inference finds.

A type is written as text, ``string`` or ``list<struct<at: timestamp, n: int64>>``:

    bool                      true and false
    int32 int64 uint64        whole numbers within their range
    double                    numbers; whole ones up to 2^53, which a double holds exactly
    decimal(p, s)             text such as "12.50", or whole numbers
    string                    text, as it stands
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pyarrow as pa

from slurm_worker.errors import UserError
from slurm_worker.results.parts import KEY_FIELD


class Kind(str, Enum):
    """The closed list of kinds of values."""

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


_ARROW: dict[Kind, pa.DataType] = {
    Kind.NULL: pa.null(),
    Kind.BOOL: pa.bool_(),
    Kind.INT32: pa.int32(),
    Kind.INT64: pa.int64(),
    Kind.UINT64: pa.uint64(),
    Kind.DOUBLE: pa.float64(),
    Kind.STRING: pa.string(),
    Kind.TIMESTAMP: pa.timestamp("us", "UTC"),
    Kind.LOCAL_TIMESTAMP: pa.timestamp("us"),
    Kind.DATE: pa.date32(),
    Kind.BINARY: pa.binary(),
    Kind.JSON: pa.string(),
}
#: pyarrow reads no column that is nested deeper than 100 groups of Parquet; a list is two or three.
MAX_DEPTH = 30
_NESTED = (Kind.LIST, Kind.STRUCT, Kind.MAP)


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The type of a column, or of what is inside one.

    Args:
        kind: what kind of values.
        fields: names and types inside: a struct's fields; ``item`` of a list, ``value``
            of a map.
        digits: precision and scale of a decimal.
    """

    kind: Kind
    fields: Mapping[str, ColumnType] = field(default_factory=dict)
    digits: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        if self.kind is Kind.DECIMAL:
            return f"decimal({self.digits[0]}, {self.digits[1]})"
        if self.kind is Kind.LIST:
            return f"list<{self.fields['item']}>"
        if self.kind is Kind.MAP:
            return f"map<string, {self.fields['value']}>"
        if self.kind is Kind.STRUCT:
            inside = ", ".join(f"{name}: {each}" for name, each in self.fields.items())
            return f"struct<{inside}>"
        name: str = self.kind.value
        return name

    def to_list(self) -> list[Any]:
        """JSON-able, and exact: the type's text can't hold every field's name."""
        fields = {name: each.to_list() for name, each in self.fields.items()}
        return [self.kind.value, fields, list(self.digits)]

    @classmethod
    def from_list(cls, raw: Sequence[Any]) -> ColumnType:
        """Read what `to_list` made."""
        kind, fields, digits = raw
        inside = {name: cls.from_list(each) for name, each in fields.items()}
        return cls(Kind(kind), inside, (digits[0], digits[1]))

    def arrow(self) -> pa.DataType:
        """The Arrow type that holds it."""
        if self.kind is Kind.DECIMAL:
            return pa.decimal128(*self.digits)
        if self.kind is Kind.LIST:
            return pa.list_(self.fields["item"].arrow())
        if self.kind is Kind.MAP:
            return pa.map_(pa.string(), self.fields["value"].arrow())
        if self.kind is Kind.STRUCT:
            return pa.struct([pa.field(name, each.arrow()) for name, each in self.fields.items()])
        return _ARROW[self.kind]


Schema = Mapping[str, ColumnType]
Rows = Sequence[dict[str, Any]]
#: Up to here every int is a double's exact value.
EXACT = 2**53
STRING = ColumnType(Kind.STRING)


def parse_schema(declared: Mapping[str, str], *, keyed: bool = True) -> dict[str, ColumnType]:
    """The declared types of the columns, without the key's where rows are `keyed`.

    Raises:
        UserError: naming the column and the text that is no type.
    """
    if keyed and KEY_FIELD in declared:
        raise UserError(f"aggregate.schema: {KEY_FIELD!r} is added to every dataset; leave it out")
    return {name: parse_type(text, name) for name, text in declared.items()}


def parse_type(text: str, column: str) -> ColumnType:
    """Read a type; `column` is for the message."""
    try:
        return _Parser(text).whole()
    except ValueError as error:
        names = ", ".join(each.value for each in _ARROW if each is not Kind.NULL)
        raise UserError(
            f"aggregate.schema: {column}: {text[:200]!r} is not a type: {error}; use {names}, "
            "decimal(p, s), list<…>, struct<name: …> or map<string, …>"
        ) from None


_TOKEN = re.compile(r"\s*([^\s<>():,]+|[<>():,])")


class _Parser:
    """Recursive descent: type = name | name "<" inside ">" | "decimal" "(" p "," s ")"."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def whole(self) -> ColumnType:
        found = self._type()
        if self._text[self._at :].strip():
            raise ValueError(f"{self._text[self._at :].strip()!r} stands behind it")
        return found

    def _type(self) -> ColumnType:
        name = self._next()
        if name == Kind.DECIMAL.value:
            return self._decimal()
        try:
            kind = Kind(name)
        except ValueError:
            raise ValueError(f"{name!r} is unknown") from None
        if kind is Kind.NULL:
            raise ValueError(f"{name!r} is unknown")
        if kind not in _NESTED:
            return ColumnType(kind)
        self._expect("<")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep; declare it as json")
        inside = self._inside(kind)
        self._depth -= 1
        self._expect(">")
        return ColumnType(kind, inside)

    def _inside(self, kind: Kind) -> dict[str, ColumnType]:
        if kind is Kind.LIST:
            return {"item": self._type()}
        if kind is Kind.MAP:
            if self._next() != Kind.STRING.value:
                raise ValueError("a map's keys are strings")
            self._expect(",")
            return {"value": self._type()}
        fields: dict[str, ColumnType] = {}
        while True:
            name = self._next()
            if name in fields:
                raise ValueError(f"it names {name!r} twice")
            self._expect(":")
            fields[name] = self._type()
            if not self._take(","):
                return fields

    def _decimal(self) -> ColumnType:
        self._expect("(")
        precision = self._number()
        self._expect(",")
        scale = self._number()
        self._expect(")")
        if not 1 <= precision <= 38 or scale > precision:
            raise ValueError("a decimal has 1 to 38 digits, and no more of them behind the point")
        return ColumnType(Kind.DECIMAL, digits=(precision, scale))

    def _number(self) -> int:
        word = self._next()
        if not word.isdecimal():
            raise ValueError(f"{word!r} is not a number of digits")
        return int(word)

    def _take(self, token: str) -> bool:
        match = _TOKEN.match(self._text, self._at)
        if match is None or match.group(1) != token:
            return False
        self._at = match.end()
        return True

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise ValueError(f"{token!r} is missing")

    def _next(self) -> str:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            raise ValueError("it ends too early")
        self._at = match.end()
        return match.group(1)
