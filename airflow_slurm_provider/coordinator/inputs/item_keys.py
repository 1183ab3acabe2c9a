"""The key of each item: from its columns, from its content, or from its place.

key: id           the column's text or whole number
key: meta.id      the field `id` of the column `meta`, unless there is a column `meta.id`
key: [a, b]       both, joined by ``/``; a ``/`` or ``%`` in them is written as ``%2F``, ``%25``
generate_key      `digest`: the first 32 digits of the SHA-256 of the item's JSON, with sorted
                  names; `row`: the file's path below the input's folder, ``:``, the row
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from slurm_worker.errors import UserError

Item: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows come from: a file, or a query."""

    name: str  #: for messages
    label: str  #: what keys by row begin with

    def row(self, number: int) -> str:
        """One of its rows, in words."""
        return f"{self.name}: row {number:,}"


#: From a whole row, the item that is made of it, where it is from, and its number there.
KeyOf: TypeAlias = Callable[[Item, Item, Origin, int], str]

_MAX_KEY_BYTES = 1024
_LISTED = 20
_DIGEST_CHARACTERS = 32


def key_rule(spec: InputSection) -> KeyOf:
    """How an input's items get their keys."""
    if spec.generate_key == "row":
        return lambda _row, _item, origin, number: _checked(
            f"{origin.label}:{number}", "row", origin, number
        )
    if spec.generate_key == "digest":
        return lambda _row, item, _origin, _number: _digest(item)
    names = spec.keys
    if len(names) == 1:
        (name,) = names
        return lambda row, _item, origin, number: _value(row, name, origin, number)

    def joined(row: Item, _item: Item, origin: Origin, number: int) -> str:
        parts = (_value(row, name, origin, number) for name in names)
        escaped = (part.replace("%", "%25").replace("/", "%2F") for part in parts)
        return _checked("/".join(escaped), "/".join(names), origin, number)

    return joined


def key_columns(spec: InputSection, names: list[str]) -> list[str]:
    """The columns of a file that its keys need; names that it lacks are left out."""
    wanted = {each for key in spec.keys for each in (key, key.partition(".")[0])}
    return [name for name in names if name in wanted]


def no_column(field: str, wanted: str, where: str, names: list[str]) -> UserError:
    """The error for a column that a row or a file does not have."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    near = difflib.get_close_matches(wanted, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else "name one of them"
    return UserError(
        f"{field}: {where} has no column {wanted!r}; "
        f"it has {', '.join(names[:_LISTED]) or 'none'}{more}; {hint}"
    )


def _digest(item: Item) -> str:
    text = json.dumps(item, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]


def _value(row: Item, name: str, origin: Origin, number: int) -> str:
    value = row[name] if name in row else _nested(row, name, origin, number)
    if isinstance(value, str) and value:
        return _checked(value, name, origin, number)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    said = f"input.key: {origin.row(number)}: {name!r}"
    if value is None or value == "":
        raise UserError(f"{said} is empty; each row needs a key of its own")
    raise UserError(
        f"{said} is {str(value)[:60]} ({type(value).__name__}); keys must be strings or "
        "integers: convert the column, or choose another"
    )


def _nested(row: Item, name: str, origin: Origin, number: int) -> object:
    value: object = row
    for step in name.split("."):
        if not isinstance(value, dict) or step not in value:
            raise no_column("input.key", name, origin.row(number), list(row))
        value = value[step]
    return value


def _checked(key: str, name: str, origin: Origin, number: int) -> str:
    if (size := len(key.encode())) > _MAX_KEY_BYTES:
        raise UserError(
            f"input.key: {origin.row(number)}: {name!r} is {size:,} bytes long, from "
            f"{key[:40]!r}; use keys of at most {_MAX_KEY_BYTES:,} bytes"
        )
    return key
