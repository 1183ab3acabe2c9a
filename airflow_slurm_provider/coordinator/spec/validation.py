"""What a user wrote in YAML: read, and checked. Each mistake is one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from yaml.parser import ParserError
from yaml.scanner import ScannerError

from slurm_worker.errors import UserError

T = TypeVar("T")
_NOT_A_SECTION = {"model_type", "model_attributes_type", "dict_type"}
_NOT_AN_INTEGER = {"int_type", "int_parsing", "int_from_float"}


def read_yaml(path: Path, field: str, hint: str) -> Any:
    """What the file holds, unchecked.

    For messages: `field` is the setting that names the file, `hint` what to do if it can't be read.

    Raises:
        UserError: if it can't be read, or is not YAML.
    """
    try:
        # _Loader is a SafeLoader.
        return yaml.load(path.read_text(), _Loader)  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not text: {error}"
        raise UserError(f"{field}: {path} can't be read ({reason}); {hint}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        # A parser sees a missing bracket or quote only when it reads on.
        late = isinstance(error, (ParserError, ScannerError))
        line = "that line or the one before it" if late else "that line"
        raise UserError(f"{path}: is not YAML: {where}{error.problem}; correct {line}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error


def validate(model: type[T], raw: object, prefix: str) -> T:
    """Check what a user wrote against a model; `prefix` goes before the field in the message.

    Raises:
        UserError: the first fault, with the nearest known name for an unknown one.
    """
    try:
        return TypeAdapter(model).validate_python(raw)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        # pydantic adds "[key]" if the key of a mapping is wrong, not its value.
        field = ".".join(str(step) for step in fault["loc"] if step != "[key]") or "the whole file"
        more = "" if error.error_count() == 1 else f" (and {error.error_count() - 1} more)"
        raise UserError(f"{prefix}{field}: {_fault(fault, model)}{more}") from error


def _fault(fault: Any, model: object) -> str:
    kind, value, location = fault["type"], fault["input"], fault["loc"]
    if kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        # Two, since some names are similar: ``worker`` and ``workers``.
        near = " or ".join(map(repr, difflib.get_close_matches(str(location[-1]), known, 2)))
        hint = f"did you mean {near}?" if near else f"known keys are {', '.join(sorted(known))}"
        return f"is not a known key; {hint}"
    if kind == "missing":
        return "is missing; add it"
    if kind == "value_error":
        return str(fault["ctx"]["error"])
    if kind in _NOT_A_SECTION and location:
        return f"{value!r} is not a section of keys; {_section_hint(model, location)}"
    if kind in _NOT_AN_INTEGER:
        return f"{value!r} is not a whole number; write one, such as 4"
    expected = str(fault["msg"]).replace("Input should be", "must be")
    return f"{value!r} is not valid: {expected[0].lower()}{expected[1:]}"


def _section_hint(model: object, location: Sequence[int | str]) -> str:
    """What to write where the value of a section is not a mapping."""
    name, known = str(location[-1]), _fields_at(model, location[:-1])
    near = difflib.get_close_matches(name, [other for other in known if other != name], 1, 0.8)
    fields = _fields_at(model, location)
    needed = [key for key, info in fields.items() if info.is_required()] or list(fields)[:1]
    write = f"write {{{', '.join(f'{key}: …' for key in needed) or 'NAME: VALUE'}}}"
    return f"did you mean {near[0]!r}? If not, {write}" if near else write


def _fields_at(model: object, location: Sequence[int | str]) -> dict[str, FieldInfo]:
    """The keys that are allowed where `location` points."""
    current = model
    for step in location:
        fields: Mapping[str, FieldInfo] = getattr(current, "model_fields", {})
        # In a mapping or a list of models, the last argument is the model.
        current = fields[str(step)].annotation if fields else get_args(current)[-1]
    known: Mapping[str, FieldInfo] = getattr(current, "model_fields", {})
    return {info.alias or name: info for name, info in known.items()}


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a mapping that names a key twice; YAML's own loader keeps the last."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Name the line of a value that looks like a date, for example, but is not valid."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            mark = node.start_mark
            line = (mark.get_snippet(0) or "").splitlines()[0]
            raise yaml.YAMLError(
                f"line {mark.line + 1}: {line}: {error}; put the value in quotes"
            ) from error
