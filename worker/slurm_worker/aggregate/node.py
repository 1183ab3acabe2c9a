"""Merging on the nodes: a file of the dataset is an item of a job like any other.

The coordinator plans the files, copies them into the version's folder, and publishes the
manifest; here one file is written, as it would be there: the same parts give the same bytes.
Needs pyarrow on the node, in the coordinator's version.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from slurm_worker.aggregate.convert import Converter
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.files import Version
from slurm_worker.aggregate.merge import PartReader, merge_group, part_name
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.aggregate.plan import PlannedPart
from slurm_worker.aggregate.types import ColumnType, Schema
from slurm_worker.errors import ErrorClass, ItemError
from slurm_worker.execution.context import Context
from slurm_worker.protocol.job_store import JobStore, Part
from slurm_worker.protocol.keys import JobId, TaskId
from slurm_worker.protocol.paths import JobPaths


def params_of(
    paths: JobPaths, options: AggregateOptions, columns: Schema, folder: str
) -> dict[str, Any]:
    """What is the same for all files, as JSON."""
    return {
        "job": paths.job,
        "prefix": paths.prefix,
        "folder": folder,
        "options": asdict(options),
        "columns": {name: each.to_list() for name, each in columns.items()},
        "pyarrow": pa.__version__,
    }


def item_of(
    group: Sequence[PlannedPart], columns: Schema, options: AggregateOptions
) -> dict[str, Any]:
    """One file, as JSON; its name is its key."""
    converter = _converter(columns, options)
    parts = [[each.task, each.ok, *asdict(each.part).values()] for each in group]
    return {"id": part_name(group, converter, options), "parts": parts}


def merge_file(item: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Handler: write one file and say what it is.

    Raises:
        ItemError: if a part is not what was committed, or pyarrow is another version here.
    """
    params = context.params
    if params["pyarrow"] != pa.__version__:
        raise ItemError(
            ErrorClass.HANDLER_BUG,
            f"pyarrow is {pa.__version__} here and {params['pyarrow']} at the coordinator: their "
            "files would differ; install that version, or name it in aggregate.requirements",
        )
    # Tuples are lists in JSON.
    raw: dict[str, Any] = params["options"]
    lists = {name: tuple(each) for name, each in raw.items() if isinstance(each, list)}
    options = AggregateOptions(**{**raw, **lists})
    paths = JobPaths(params["prefix"], JobId(params["job"]))
    objects = context.objects(params["bucket"])
    converter = _converter(
        {n: ColumnType.from_list(c) for n, c in params["columns"].items()}, options
    )
    group = [PlannedPart(TaskId(task), ok, {}, Part(*part)) for task, ok, *part in item["parts"]]
    path = context.scratch / f"{context.key}.{context.attempt}"
    # A folder for each attempt: one that froze can't replace what another has committed.
    folder = f"{params['folder']}a{context.attempt}-{uuid.uuid4().hex[:12]}/"
    version = Version(objects, folder, path, context.logger.info)
    try:
        file = merge_group(PartReader(JobStore(objects, paths), options), group, converter, version)
    except AggregationError as error:
        raise ItemError(ErrorClass.BAD_INPUT, str(error)) from error
    return asdict(file)


def _converter(columns: Schema, options: AggregateOptions) -> Converter:
    return Converter(columns, declared=options.schema is not None)
