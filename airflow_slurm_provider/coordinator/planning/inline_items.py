"""Items that are handed over, instead of a file that holds them.

They become a file of JSON lines on S3, named by its digest, so that the same items are the
same input: a task that is run again goes on with the job that it had begun.

What may be handed over is listed in `listed`. Whatever else Python can iterate over (a text, a
mapping, a set, an open file) is refused, as its elements are no items.
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

DEFAULT_KEY = "id"
#: Where an item that is no object stands in the object that is made of it.
VALUE_FIELD = "value"
#: What numpy's scalars and arrays may hold: booleans, integers, floats, text, objects.
_NUMPY_KINDS = "biufUO"
_SHOWN = 60


def path_or_items(given: object) -> str | list[Any]:
    """The path of a file that holds the items, or the items.

    Args:
        given: a path as text (local, or ``s3://bucket/key``) or as `os.PathLike`; or see `listed`.

    Raises:
        UserError: naming what it is instead, and what to hand over.
    """
    if isinstance(given, str) and given.strip() and given.strip()[0] not in "[{":
        if "\n" in given.strip():
            raise UserError(
                f"items: {_short(given)} is text of several lines, no path; hand over a list"
            )
        return given.strip()
    if isinstance(given, os.PathLike):
        return str(os.fspath(given))
    return listed(given)


def listed(given: object) -> list[Any]:
    """The items that are handed over, in their order.

    Args:
        given: a list or anything else that gives items one by one; a JSON list as text; or a
            table (pandas, polars, Arrow, DuckDB), whose rows become objects by the rules for
            Parquet files: dates as ISO text, NaN as None.

    Raises:
        UserError: naming what it is instead, and what to hand over.
    """
    if isinstance(given, str):
        return _from_json(given)
    if not hasattr(type(given), "columns"):
        _refuse_no_list(given)
        if hasattr(given, "to_pylist"):  # Arrow's arrays
            return list(given.to_pylist())
        assert isinstance(given, Iterable), "what is none was refused"
        return list(given)
    # Only now: no other items need Arrow.
    from airflow_slurm_provider.coordinator.inputs.parquet import read_table

    try:
        return list(read_table(given))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"items: the rows of this {type(given).__name__} can't be read "
            f"({' '.join(str(error).split())}); hand over a list of dicts"
        ) from error


def put_items(
    services: Services, job_id: JobId, items: object, key: str | None = None
) -> dict[str, str]:
    """Put items on S3; return the ``input`` section that names them.

    Args:
        services: the edges.
        job_id: the job.
        items: see `listed`: objects that hold `key`; or strings and integers, each its own key.
        key: the field that names each object.

    Raises:
        UserError: naming the first item that can't be one.
    """
    things = listed(items)
    if not things:
        raise UserError("items: there are none; hand over at least one")
    _check_alike(things)
    data = "".join(_line(number, item, key) for number, item in enumerate(things, 1)).encode()
    name = services.paths(job_id).inline(hashlib.sha256(data).hexdigest())
    services.objects.put_new(name, data)
    return {
        "path": f"s3://{services.site.bucket}/{name}",
        "key": key or DEFAULT_KEY,
        "format": "jsonl",
    }


def config_with_items(
    services: Services,
    source: str | Mapping[str, Any],
    job_id: str | None,
    items: object,
    key: str | None = None,
) -> Config:
    """A job's config whose input are these items.

    Args:
        services: the edges.
        source: the job's YAML file or mapping, without ``input``.
        job_id: stands in for the `job_id` in `source`.
        items: see `put_items`.
        key: see `put_items`.

    Raises:
        UserError: naming what is wrong with the items or the config.
    """
    raw = read_source(source)
    if "input" in raw:
        raise UserError("config.input: stands beside items; leave one of them out")
    name = check_job_id(str(job_id or raw.get("job_id", "")), "job_id")
    given = put_items(services, name, items, key)
    return parse_config({**raw, "job_id": name, "input": given}, source)


def _from_json(text: str) -> list[Any]:
    try:
        found = jsonlines.decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"items: {_short(text)} is text, and no JSON list ({error}); hand over a list; in a "
            "template write {{ … | tojson }}; the path of a file goes into the config's input"
        ) from error
    if not isinstance(found, list):
        raise UserError(
            f"items: {_short(text)} is a JSON {type(found).__name__}, no list; put it in brackets"
        )
    return found


def _refuse_no_list(given: object) -> None:
    """Refuse what can't be iterated over, and what gives other things than its items."""
    what, mend = "", "hand over a list"
    if isinstance(given, Mapping):
        what = "a mapping"
        mend = "hand over a list: [it] for one item, list(it.values()) for its values"
    elif isinstance(given, set | frozenset):
        what, mend = "a set, which has no order", "hand over sorted(it)"
    elif isinstance(given, bytes | bytearray | memoryview):
        what = "bytes"
    elif isinstance(given, os.PathLike):
        what, mend = "a path", "write it into the config's input"
    elif hasattr(given, "read"):
        what, mend = "an open file", "hand over what it holds as a list, or its path as the input"
    elif given is None:
        what, mend = "None", "hand over a list; does the task that should give it return one?"
    elif isinstance(given, tuple) and hasattr(given, "_fields"):
        what, mend = "a named tuple", "hand over a list: [it._asdict()] for one item"
    elif not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        what = f"{type(given).__name__} ({_short(given)})"
    if what:
        raise UserError(f"items: is {what}; {mend}")


def _check_alike(things: list[Any]) -> None:
    first = isinstance(things[0], Mapping)
    for number, item in enumerate(things, 1):
        if isinstance(item, Mapping) is not first:
            raise UserError(
                f"items: number {number} is {type(item).__name__}, and number 1 is "
                f"{type(things[0]).__name__}; give objects alone, or strings and integers alone"
            )


def _line(number: int, item: object, key: str | None) -> str:
    item = _without_numpy(item)
    name = key or DEFAULT_KEY
    if isinstance(item, str | int) and not isinstance(item, bool):
        item = {name: item, VALUE_FIELD: item}
    if not isinstance(item, Mapping):
        raise UserError(
            f"items: number {number} is {type(item).__name__}; give objects, strings or integers"
        )
    if name not in item:
        raise UserError(
            f"items: number {number} has no field {name!r} ({_short(dict(item))}); name the field "
            "that tells items apart with item_key"
        )
    try:
        line = json.dumps(dict(item), ensure_ascii=False, allow_nan=False, default=_plain)
        check_names(dict(item))
        line.encode()  # A lone surrogate is text to Python and to no one else.
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"items: number {number} is not JSON ({error})") from error
    return line + "\n"


def _plain(value: object) -> object:
    """What stands in JSON for a value that JSON does not know."""
    plain = _without_numpy(value)
    if plain is value:
        raise TypeError(f"it holds a {type(value).__name__}")
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
