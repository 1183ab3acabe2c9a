"""Items that are passed inline, instead of in a file.

They become a file of JSON lines on S3, named by its digest. So the same items are the same input,
and an Airflow task that runs again continues its job. `as_list` documents which values are
accepted. Other iterables (a mapping, a set, a file) are refused: their elements are not items.

A wrong value is a UserError, which names the value or the first wrong item, and what to pass.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, parse_config, read_source
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId, check_job_id
from slurm_worker.results import jsonlines
from slurm_worker.results.parts import check_names

_DEFAULT_KEY = "id"
#: The field that holds an item that is not an object.
VALUE_FIELD = "value"
#: What numpy's scalars and arrays may hold: booleans, integers, floats, text, objects.
_NUMPY_KINDS = "biufUO"
_SHOWN = 60


def path_or_items(value: object) -> str | list[Any]:
    """The path of a file that holds the items, or the items.

    A path is text (local, or ``s3://bucket/key``) or an `os.PathLike`; for items see `as_list`.
    """
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    path = value.strip() if isinstance(value, str) else ""
    if not path or path[0] in "[{":
        return as_list(value)
    if "\n" in path:
        raise UserError(f"items: {_short(value)} is text of several lines, not a path; pass a list")
    return path


def as_list(value: object) -> list[Any]:
    """The items, in their order.

    The value is a list or another iterable of items; a JSON list as text; or a table (pandas,
    polars, Arrow, DuckDB), whose rows become objects by the rules for Parquet files: dates as ISO
    text, NaN as None.
    """
    if isinstance(value, str):
        return _from_json(value)
    if not hasattr(type(value), "columns"):
        found = _checked_iterable(value)
        return list(found.to_pylist() if hasattr(found, "to_pylist") else found)  # Arrow's arrays
    # Only now: no other items need Arrow.
    from airflow_slurm_provider.coordinator.inputs.parquet import read_table

    try:
        return list(read_table(value))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"items: the rows of this {type(value).__name__} can't be read "
            f"({' '.join(str(error).split())}); pass a list of dicts"
        ) from error


def put_items(
    services: Services, job_id: JobId, items: object, key: str | None = None
) -> dict[str, str]:
    """Put items on S3; return the ``input`` section that names them.

    `as_list` accepts them: objects with the field `key`, or strings and integers as their own keys.
    """
    found = as_list(items)
    if not found:
        raise UserError("items: the list is empty; pass at least one item")
    objects = isinstance(found[0], Mapping)
    for number, item in enumerate(found, 1):
        if isinstance(item, Mapping) is not objects:
            raise UserError(
                f"items: number {number} is {type(item).__name__}, but number 1 is "
                f"{type(found[0]).__name__}; pass only objects, or only strings and integers"
            )
    data = "".join(_line(number, item, key) for number, item in enumerate(found, 1)).encode()
    name = services.paths(job_id).inline(hashlib.sha256(data).hexdigest())
    services.objects.put_new(name, data)
    path = f"s3://{services.site.bucket}/{name}"
    return {"path": path, "key": key or _DEFAULT_KEY, "format": "jsonl"}


def config_with_items(
    services: Services,
    source: str | Mapping[str, Any],
    job_id: str | None,
    items: object,
    key: str | None = None,
) -> Config:
    """A job's config with these items as its input; for `items` and `key` see `put_items`.

    `source` is the job's YAML file or mapping, without ``input``. `job_id` replaces the one in it.
    """
    raw = read_source(source)
    if "input" in raw:
        raise UserError("config.input: can't be combined with items; remove one of them")
    name = check_job_id(str(job_id or raw.get("job_id", "")), "job_id")
    inline = put_items(services, name, items, key)
    return parse_config({**raw, "job_id": name, "input": inline}, source)


def _from_json(text: str) -> list[Any]:
    try:
        found = jsonlines.decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"items: {_short(text)} is text, but not a JSON list ({error}); pass a list; in a "
            "template write {{ … | tojson }}; to name a file, use the config's input"
        ) from error
    if not isinstance(found, list):
        kind = type(found).__name__
        raise UserError(f"items: {_short(text)} is a JSON {kind}, not a list; put it in brackets")
    return found


def _checked_iterable(value: object) -> Iterable[Any]:
    """Refuse a value that can't be iterated over, or whose elements are not items."""
    kind, hint = "", "pass a list"
    if isinstance(value, Mapping):
        kind = "a mapping"
        hint = "pass a list: [it] for one item, list(it.values()) for its values"
    elif isinstance(value, set | frozenset):
        kind, hint = "a set, which has no order", "pass sorted(it)"
    elif isinstance(value, bytes | bytearray | memoryview):
        kind = "bytes"
    elif isinstance(value, os.PathLike):
        kind, hint = "a path", "write it into the config's input"
    elif hasattr(value, "read"):
        kind, hint = "an open file", "pass its content as a list, or its path as the config's input"
    elif value is None:
        kind, hint = "None", "pass a list; does the task before this one return a list?"
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        kind, hint = "a named tuple", "pass a list: [it._asdict()] for one item"
    elif not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        kind = f"{type(value).__name__} ({_short(value)})"
    if kind or not isinstance(value, Iterable):
        raise UserError(f"items: is {kind}; {hint}")
    return value


def _line(number: int, item: object, key: str | None) -> str:
    item = _without_numpy(item)
    name = key or _DEFAULT_KEY
    if isinstance(item, str | int) and not isinstance(item, bool):
        item = {name: item, VALUE_FIELD: item}
    if not isinstance(item, Mapping):
        raise UserError(
            f"items: number {number} is {type(item).__name__}; pass objects, strings or integers"
        )
    if name not in item:
        raise UserError(
            f"items: number {number} has no field {name!r} ({_short(dict(item))}); set item_key to "
            "the field that holds each item's key"
        )
    try:
        line = json.dumps(dict(item), ensure_ascii=False, allow_nan=False, default=_plain)
        check_names(dict(item))
        line.encode()  # Python's text may hold half of a surrogate pair; UTF-8 can't.
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"items: number {number} is not JSON ({error})") from error
    return line + "\n"


def _plain(value: object) -> object:
    """A JSON value for a value that JSON does not have."""
    plain = _without_numpy(value)
    if plain is value:
        raise TypeError(f"it contains a {type(value).__name__}")
    return plain


def _without_numpy(value: object) -> object:
    """A numpy scalar or array as Python's own; anything else as it is."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if type(value).__module__ == "numpy" and kind and kind in _NUMPY_KINDS:
        return value.tolist()  # type: ignore[attr-defined]  # all of numpy's have it
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
