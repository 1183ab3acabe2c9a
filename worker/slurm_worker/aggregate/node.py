"""Merging on the nodes: a file of the dataset is an item of a job like any other.

The coordinator plans the files, copies them into the version's folder, and publishes the
manifest; a node writes one file as the coordinator would: the same parts give the same bytes.
Needs pyarrow on the node, in the coordinator's version.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from slurm_worker.aggregate.columns.types import ColumnType
from slurm_worker.aggregate.dataset.folder import DatasetFolder
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.job.aggregation import inputs_sha256
from slurm_worker.aggregate.job.merge import PartMerger, groups_of, schema_of
from slurm_worker.aggregate.job.parts import PartReader
from slurm_worker.aggregate.job.plan import PART_FIELDS, ROWS, Plan, PlannedPart, RoundSummary
from slurm_worker.aggregate.job.publish import read_published
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.errors import ErrorClass, ItemError, UserError
from slurm_worker.execution.context import Context
from slurm_worker.protocol.job_store import JobStore, Part
from slurm_worker.protocol.keys import JobId, TaskId
from slurm_worker.protocol.paths import JobPaths, version_name
from slurm_worker.protocol.ports import ObjectStore


@dataclass(frozen=True, slots=True)
class Split:
    """A merge as work for several nodes."""

    inputs: str  #: digest of everything that goes into the dataset
    params: dict[str, Any]  #: for all files
    items: list[dict[str, Any]]  #: one for each file


def split(
    objects: ObjectStore,
    paths: JobPaths,
    expected: Sequence[RoundSummary],
    options: AggregateOptions,
    scratch: Path,
) -> Split | None:
    """What nodes would merge, file by file; None where the published dataset is up to date.

    Arguments and errors are as in `aggregate`.
    """
    if options.sorted:
        raise UserError(
            "aggregate.sort_by, .partition_by: sorting needs all rows in one place; set "
            "aggregate.where to local"
        )
    store = JobStore(objects, paths)
    base = read_published(objects, paths).manifest
    reader = PartReader(store, options.memory)
    with Plan(store, expected, scratch) as plan:
        inputs = inputs_sha256(plan, options)
        if base.is_of(inputs, objects):
            return None
        columns = schema_of(reader, plan, options)
        merger = PartMerger(reader, columns, options)
        # One file each, whose name is its key.
        items = [
            {
                "id": merger.file_name(merger.group(parts)),
                "parts": [[of.task, of.ok, *PART_FIELDS(of.part)] for of in parts],
            }
            for parts in groups_of(plan, ROWS, options)
        ]
    params = {
        "job": paths.job,
        "prefix": paths.prefix,
        "folder": paths.dataset_of(version_name(base.number + 1, inputs, "nodes")),
        "options": asdict(options),
        "columns": {name: column.to_list() for name, column in columns.items()},
        "pyarrow": pa.__version__,
    }
    return Split(inputs, params, items)


def merge_file(item: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Handler: write one file and describe it.

    Raises:
        ItemError: if a part is not what was committed, or pyarrow is another version here.
    """
    params = context.params
    if params["pyarrow"] != pa.__version__:
        raise ItemError(
            ErrorClass.HANDLER_BUG,
            f"pyarrow is {pa.__version__} on this node and {params['pyarrow']} at the coordinator, "
            "so the files would differ; install the coordinator's version, or name it in "
            "aggregate.requirements",
        )
    # Tuples are lists in JSON.
    lists = {n: tuple(value) for n, value in params["options"].items() if isinstance(value, list)}
    options = AggregateOptions(**{**params["options"], **lists})
    columns = {name: ColumnType.from_list(raw) for name, raw in params["columns"].items()}
    objects = context.objects(params["bucket"])
    store = JobStore(objects, JobPaths(params["prefix"], JobId(params["job"])))
    parts = [PlannedPart(TaskId(task), ok, {}, Part(*part)) for task, ok, *part in item["parts"]]
    # A folder for each attempt: an attempt that froze can't replace what another has committed.
    folder = f"{params['folder']}a{context.attempt}-{uuid.uuid4().hex[:12]}/"
    path = context.scratch / f"{context.key}.{context.attempt}"
    target = DatasetFolder(objects, folder, path, context.logger.info)
    try:
        merger = PartMerger(PartReader(store, options.memory), columns, options)
        return asdict(merger.write_file(merger.group(parts), target))
    except AggregationError as error:
        raise ItemError(ErrorClass.BAD_INPUT, str(error)) from error
