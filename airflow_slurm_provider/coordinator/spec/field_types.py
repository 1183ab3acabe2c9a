"""Kinds of values that the job's YAML is made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|min|m|h|d)")
_BYTES = re.compile(r"(\d+)\s*(KB|MB|GB|TB)")
_SHIFTS = {"KB": 10, "MB": 20, "GB": 30, "TB": 40}


class Strict(BaseModel):
    """A section that knows all of its keys; the text below a key is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _seconds(value: object) -> object:
    """Seconds from 30, 30.5, "30s", "200ms", "5m", "2h"."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is not a duration; write 30s, 200ms, 5m or 2h")
        return float(match.group(1)) * _SECONDS[match.group(2)]
    return value


def _per_second(value: object) -> object:
    """Tokens per second from 40, "40/s", "600/min", "5000/h"."""
    if isinstance(value, str):
        match = _RATE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is not a rate; write 40/s, 600/min or 5000/h")
        return float(match.group(1)) / _SECONDS[match.group(2)]
    return value


def _bytes(value: object) -> object:
    """Bytes from 1000000, "500MB", "2GB"."""
    if isinstance(value, str):
        match = _BYTES.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is not a size; write 500MB or 2GB")
        return int(match.group(1)) << _SHIFTS[match.group(2)]
    return value


def _written(number: dict[str, object], pattern: re.Pattern[str]) -> WithJsonSchema:
    """What an editor is told of a value that may also be written with its unit."""
    return WithJsonSchema(
        {"anyOf": [number, {"type": "string", "pattern": f"^{pattern.pattern}$"}]}
    )


_ABOVE_0: dict[str, object] = {"type": "number", "exclusiveMinimum": 0}
_FROM_0: dict[str, object] = {"type": "number", "minimum": 0}
_FROM_1_MB: dict[str, object] = {"type": "integer", "minimum": 1 << 20}

Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1 << 20), _written(_FROM_1_MB, _BYTES)]
#: No time is longer than ten years: sums of times, in microseconds, stay numbers.
_LONGEST_S = 3650 * 86400.0
_TIME = Field(gt=0, le=_LONGEST_S)
_RATES = Field(ge=1 / _LONGEST_S, le=1e6)

Seconds = Annotated[float, BeforeValidator(_seconds), _TIME, _written(_ABOVE_0, _DURATION)]
Delay = Annotated[
    float, BeforeValidator(_seconds), Field(ge=0, le=_LONGEST_S), _written(_FROM_0, _DURATION)
]
PerSecond = Annotated[float, BeforeValidator(_per_second), _RATES, _written(_ABOVE_0, _RATE)]
