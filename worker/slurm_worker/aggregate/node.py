"""Merging on the nodes: a file of the dataset is an item of a job like any other.

The coordinator plans the files, copies them into the version's folder, and publishes the
manifest; here one file is written, as it would be there: the same parts give the same bytes.
Needs pyarrow on the node, in the coordinator's version.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.columns.types import ColumnType, Schema, parse_schema
from slurm_worker.aggregate.dataset.version import Version
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.job.aggregation import inputs_digest
from slurm_worker.aggregate.job.merge import Merger, PartReader, merge_group, part_name
from slurm_worker.aggregate.job.plan import Plan, PlannedPart, RoundSummary
from slurm_worker.aggregate.job.publish import is_whole, read_standing
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.errors import ErrorClass, ItemError, UserError
from slurm_worker.execution.handler import Context
from slurm_worker.protocol.job_store import JobStore, Part
from slurm_worker.protocol.keys import JobId, JobPaths, TaskId, version_name
from slurm_worker.protocol.ports import ObjectStore

#: Ends the name of the folder in which nodes write.
_NODES = "nodes"


@dataclass(frozen=True, slots=True)
class Split:
    """A merge as work for several nodes; see `aggregate.node`.

    Args:
        inputs: digest of all that goes into the dataset.
        params: what is the same for all files.
        items: a file each.
    """

    inputs: str
    params: dict[str, Any]
    items: list[dict[str, Any]]


def split(
    objects: ObjectStore,
    paths: JobPaths,
    expected: Sequence[RoundSummary],
    options: AggregateOptions,
    scratch: Path,
    progress: Callable[[str], None],
) -> Split | None:
    """What nodes would merge, file by file; None where the published dataset is up to date.

    Arguments and errors are those of `aggregate`.
    """
    if options.sorted:
        raise UserError(
            "aggregate.sort_by, .partition_by: need all rows in one place; merge where='local'"
        )
    declared = None if options.schema is None else parse_schema(options.schema)
    store = JobStore(objects, paths)
    begun = read_standing(objects, paths)
    with Plan(store, expected, scratch) as plan:
        inputs = inputs_digest(plan, options)
        name = version_name(begun.number + 1, inputs, _NODES)
        standing = begun.manifest
        if standing and standing.inputs == inputs and is_whole(objects, standing):
            return None
        merger = Merger(store, plan, options, scratch, progress)
        columns = merger.infer() if declared is None else declared
        options.check(columns)
        params = _params(paths, options, columns, paths.dataset_of(name))
        items = [_item(group, columns, options) for group in merger.groups()]
    return Split(inputs, params, items)


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


def _params(
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


def _item(
    group: Sequence[PlannedPart], columns: Schema, options: AggregateOptions
) -> dict[str, Any]:
    """One file, as JSON; its name is its key."""
    converter = _converter(columns, options)
    parts = [[each.task, each.ok, *asdict(each.part).values()] for each in group]
    return {"id": part_name(group, converter, options), "parts": parts}
