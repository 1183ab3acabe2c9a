"""One clear line from a failed validation: the field, the value, the mend."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """The first fault of `error` as one line, with the nearest known name for an unknown one."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in fault["loc"]) or "the whole file"
    others = "" if error.error_count() == 1 else f" (and {error.error_count() - 1} more)"
    return f"{source}: {where}: {_mend(fault, model)}{others}"


def _mend(fault: Any, model: type[BaseModel]) -> str:
    kind, value, location = fault["type"], fault["input"], fault["loc"]
    if kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        # Two, since some are near each other: ``worker`` and ``workers``.
        near = " or ".join(map(repr, difflib.get_close_matches(str(location[-1]), known, 2)))
        hint = f"did you mean {near}?" if near else f"known are {', '.join(sorted(known))}"
        return f"is not a known key; {hint}"
    if kind == "missing":
        return "is missing; add it"
    if kind == "value_error":
        return str(fault["ctx"]["error"])
    expected = str(fault["msg"]).replace("Input should be", "must be")
    return f"{value!r} is not right: {expected[0].lower()}{expected[1:]}"


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names that are allowed where `location` points."""
    current: object = model
    for step in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(step))
            current = None if field is None else field.annotation
        else:
            # A mapping or a list of models: its last argument is the model.
            current = (get_args(current) or (None,))[-1]
        if not isinstance(current, type):
            models = [each for each in get_args(current) if isinstance(each, type)]
            found = [each for each in models if issubclass(each, BaseModel)]
            current = found[0] if found else current
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [info.alias or name for name, info in current.model_fields.items()]
    return []
