"""The kinds of values in the YAML of a job and of a site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema

from airflow_slurm_provider import units

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Resolved = TypeVar("_Resolved", bound=DataclassInstance)


class Strict(BaseModel):
    """A section that knows all of its keys; the text below a key is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def resolve(section: BaseModel, target: type[_Resolved], **values: object) -> _Resolved:
    """A section as a dataclass whose fields have the same names; times end in ``_s``.

    `values` are those of fields that the section does not have, or has in another form.
    """
    given = dict(section) | values
    names = {field.name: field.name.removesuffix("_s") for field in fields(target)}
    found = {
        name: given[name] if name in given else given[key]
        for name, key in names.items()
        if name in given or key in given
    }
    resolved: _Resolved = _adapter(target).validate_python(found)
    return resolved


@cache
def _adapter(target: type[Any]) -> TypeAdapter[Any]:
    """Building one takes milliseconds, and a status query needs several."""
    return TypeAdapter(target)


def _from_text(parse: Callable[[str], float]) -> BeforeValidator:
    """Parse text; leave a number as it is."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def _schema(number: dict[str, object], pattern: str) -> WithJsonSchema:
    """The JSON schema of a number that may also be written as text with its unit."""
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": f"^{pattern}$"}]})


_ABOVE_0: dict[str, object] = {"type": "number", "exclusiveMinimum": 0}
_FROM_0: dict[str, object] = {"type": "number", "minimum": 0}
_FROM_1_MB: dict[str, object] = {"type": "integer", "minimum": 1 << 20}
_DURATION = _from_text(units.parse_duration)
#: At most ten years: sums of times, in microseconds, stay exact numbers.
_LONGEST_S = 3650 * 86400.0

#: Bytes: a number, or text such as ``500MB``, where 1 MB is 2^20 bytes.
Bytes = Annotated[
    int, _from_text(units.parse_size), Field(ge=1 << 20), _schema(_FROM_1_MB, units.SIZE)
]
#: A time above 0, in seconds: a number, or text such as ``30s``.
Seconds = Annotated[float, _DURATION, Field(gt=0, le=_LONGEST_S), _schema(_ABOVE_0, units.DURATION)]
#: The same, from 0.
Delay = Annotated[float, _DURATION, Field(ge=0, le=_LONGEST_S), _schema(_FROM_0, units.DURATION)]
#: Tokens per second: a number, or text such as ``600/min``.
PerSecond = Annotated[
    float,
    _from_text(units.parse_rate),
    Field(ge=1 / _LONGEST_S, le=1e6),
    _schema(_ABOVE_0, units.RATE),
]
