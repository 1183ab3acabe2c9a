"""Dataclasses as rows of the table: one list of fields serves reading and writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from slurm_worker.protocol.ports import Row, Value


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=_Dataclass)
_NOTHING: Mapping[str, Any] = {}


class RowFields(Generic[T]):
    """How a frozen dataclass is held in a row; an attribute has the name of its field.

    Args:
        kind: the dataclass. A field without a default must be in the row or given to `read`.
        names: attributes that are named otherwise, by field.
        read: converters of what the row holds, by field.
        always: fields that are written even where they have their default.
        beside: fields that the row does not hold, such as those of its key.
    """

    def __init__(
        self,
        kind: type[T],
        *,
        names: Mapping[str, str] = _NOTHING,
        read: Mapping[str, Callable[[Any], object]] = _NOTHING,
        always: tuple[str, ...] = (),
        beside: tuple[str, ...] = (),
    ) -> None:
        self._kind = kind
        held = [field.name for field in fields(kind) if field.name not in beside]
        self._names = {name: names.get(name, name) for name in held}
        self._plain = [(n, a) for n, a in self._names.items() if n not in read]
        self._read = [(n, self._names[n], convert) for n, convert in read.items()]
        #: Values that are not written, by field.
        self._omitted = {
            f.name: f.default if f.default_factory is MISSING else f.default_factory()
            for f in fields(kind)
            if f.name not in always
        }

    def read(self, row: Row, **beside: object) -> T:
        """The dataclass that a row holds; what the row lacks has its default."""
        values: dict[str, Any] = {name: row[held] for name, held in self._plain if held in row}
        for name, held, convert in self._read:
            if held in row:
                values[name] = convert(row[held])
        return self._kind(**values, **beside)

    def write(self, value: T) -> Row:
        """The attributes of a new row."""
        row: Row = {}
        for name, held in self._names.items():
            found = getattr(value, name)
            if name not in self._omitted or found != self._omitted[name]:
                row[held] = _stored(found)
        return row


def _stored(value: Any) -> Value:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (tuple, Mapping)):
        return dict(value) if isinstance(value, Mapping) else list(value)
    stored: Value = value
    return stored
