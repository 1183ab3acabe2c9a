"""Items that are handed over, instead of a file that holds them.

They become a file of JSON lines on S3, named by its digest, so that the same items are the
same input: a task that is run again goes on with the job that it had begun.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_slurm_provider.coordinator.config import Config, parse_config, read_source
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.errors import UserError
from slurm_worker.keys import JobId, check_job_id

DEFAULT_KEY = "id"
#: Where an item that is no object stands in the object that is made of it.
VALUE_FIELD = "value"


def put_items(
    services: Services, job_id: JobId, items: Iterable[Any], key: str | None = None
) -> dict[str, str]:
    """Put items on S3; return the ``input`` section that names them.

    Args:
        services: the edges.
        job_id: the job.
        items: objects that hold `key`; or strings and integers, each its own key.
        key: the field that names each object.

    Raises:
        UserError: naming the first item that can't be one.
    """
    lines = "".join(_line(number, item, key) for number, item in enumerate(items, 1))
    if not lines:
        raise UserError("items: there are none; hand over at least one")
    data = lines.encode()
    name = services.paths(job_id).given(hashlib.sha256(data).hexdigest())
    services.objects.put_new(name, data)
    return {
        "path": f"s3://{services.site.bucket}/{name}",
        "key": key or DEFAULT_KEY,
        "format": "jsonl",
    }


def config_of(
    services: Services,
    source: str | Mapping[str, Any],
    job_id: str | None,
    items: Iterable[Any],
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


def _line(number: int, item: object, key: str | None) -> str:
    if isinstance(item, str | int) and not isinstance(item, bool):
        item = {key or DEFAULT_KEY: item, VALUE_FIELD: item}
    if not isinstance(item, Mapping):
        raise UserError(
            f"items: number {number} is {type(item).__name__}; give objects, strings or integers"
        )
    try:
        return json.dumps(dict(item), ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"items: number {number} is not JSON ({error})") from error
