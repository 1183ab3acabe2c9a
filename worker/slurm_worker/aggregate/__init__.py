"""From committed parts to one published Parquet dataset.

    markers → plan (complete?) → schema (declared, or of all rows) → merge → proof → manifest

Nothing is changed silently: a value that does not fit its column is refused with its
column, item and part. Nothing is published unless every item of the input is there,
once, as ok or as failed. Calling again is safe at any point, and with the same inputs
does nothing. Needs pyarrow, which the nodes don't.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slurm_worker.aggregate import node
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.files import DataFile, Version
from slurm_worker.aggregate.merge import WRITER, Merger
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.aggregate.plan import Plan, Remaining, RoundSummary
from slurm_worker.aggregate.publish import VERSION, Manifest, find_manifest, is_whole, publish
from slurm_worker.aggregate.types import Schema, parse_schema
from slurm_worker.errors import UserError
from slurm_worker.keys import JobPaths
from slurm_worker.parts import KEY_FIELD
from slurm_worker.ports import ObjectStore
from slurm_worker.store import JobStore

__all__ = [
    "AggregateOptions",
    "AggregationError",
    "DataFile",
    "Manifest",
    "RoundSummary",
    "Split",
    "aggregate",
    "split",
]


def aggregate(
    objects: ObjectStore,
    paths: JobPaths,
    expected: Sequence[RoundSummary],
    options: AggregateOptions,
    scratch: Path,
    progress: Callable[[str], None],
    made: Callable[[str], Mapping[str, DataFile]] = lambda _inputs: {},
) -> Manifest:
    """Merge a job's committed parts and publish the dataset.

    Args:
        objects: the bucket.
        paths: the job's keys.
        expected: what was planned, round by round.
        options: schema and layout.
        scratch: a folder on local disk with room for one file of the dataset; where it is
            sorted or partitioned, for the dataset twice.
        progress: told of progress, a line at a time.
        made: files by name that were merged elsewhere, from inputs of a digest.

    Returns:
        The manifest that stands: a new one, or the last where nothing has changed.

    Raises:
        UserError: if a declared type is not a type, or an option names no column.
        AggregationError: if a task, part or item is missing, damaged or does not fit;
            nothing is published then, and what was published before still stands.
    """
    declared = None if options.schema is None else parse_schema(options.schema)
    store = JobStore(objects, paths)
    with Plan(store, expected, scratch) as plan:
        inputs = _digest(plan, options)
        standing = find_manifest(objects, paths)
        if standing and standing.inputs == inputs and is_whole(objects, standing):
            progress("the published dataset is up to date")
            return standing
        progress(f"{plan.tasks:,} tasks are complete, {plan.totals.rows:,} rows")
        merger = Merger(store, plan, options, scratch, progress)
        local = scratch / "file.parquet"
        folder = _folder(paths.dataset, inputs)
        errors_version = Version(objects, _folder(paths.errors, inputs), {}, local, progress)
        errors, remaining = merger.merge_errors(errors_version)
        items = _prove(plan, remaining, expected)
        columns = merger.infer() if declared is None else declared
        before = {**(standing.file_names() if standing else {}), **made(inputs)}
        files = merger.merge_rows(columns, Version(objects, folder, before, local, progress))
        manifest = Manifest(
            job=paths.job,
            rows=sum(each.rows for each in files),
            items=items,
            ok=plan.totals.ok,
            failed=dict(sorted(remaining.failed.items())),
            folder=folder,
            files=tuple(files),
            errors=tuple(errors),
            schema=_names(columns, options),
            inputs=inputs,
            created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        )
        if not plan.unchanged():
            raise AggregationError(
                "aggregate: tasks were finished while this merged; aggregate again when the "
                "job is complete"
            )
        publish(objects, paths, manifest, standing)
    progress(f"published {manifest.rows:,} rows in {len(files):,} files")
    return manifest


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
    with Plan(store, expected, scratch) as plan:
        inputs = _digest(plan, options)
        standing = find_manifest(objects, paths)
        if standing and standing.inputs == inputs and is_whole(objects, standing):
            return None
        merger = Merger(store, plan, options, scratch, progress)
        columns = merger.infer() if declared is None else declared
        options.check(columns)
        params = node.params_of(paths, options, columns, _folder(paths.dataset, inputs))
        items = [node.item_of(group, columns, options) for group in merger.groups()]
    return Split(inputs, params, items)


def _folder(root: str, inputs: str) -> str:
    return f"{root}{inputs[:16]}/"


def _prove(plan: Plan, remaining: Remaining, expected: Sequence[RoundSummary]) -> int:
    """Every item of the input is there once; return how many there are.

    Within each round items = ok + failed, which the plan has checked marker by marker.
    Each item of a later round must stand for exactly one earlier failure.
    """
    items = sum(each.items for each in expected if each.number == 0)
    failed = sum(remaining.failed.values())
    if items != plan.totals.ok + failed or remaining.superseded != plan.totals.retried:
        raise AggregationError(
            f"aggregate: {items:,} items went in, {plan.totals.ok:,} succeeded and {failed:,} "
            f"failed, and {plan.totals.retried:,} retried items stand for "
            f"{remaining.superseded:,} earlier failures: the markers are not of one job; "
            "compare done/ with the job's rounds"
        )
    return items


def _digest(plan: Plan, options: AggregateOptions) -> str:
    what = [VERSION, WRITER, plan.digest, asdict(options)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _names(columns: Schema, options: AggregateOptions) -> dict[str, str]:
    names = options.names
    return {KEY_FIELD: "string", **{names.get(name, name): str(t) for name, t in columns.items()}}
