"""From committed parts to one published Parquet dataset.

    manifest before → markers → plan (complete?) → schema (declared, or of all rows) → merge
    → proof → manifest

Nothing is changed silently: a value that does not fit its column is refused with its
column, item and part. Nothing is published unless every item of the input is there,
once, as ok or as failed. Calling again is safe at any point, and with the same inputs
does nothing. Needs pyarrow, which the nodes don't.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from slurm_worker.aggregate.columns.types import Schema, parse_schema
from slurm_worker.aggregate.dataset.version import DataFile, Version
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.job.merge import WRITER, Merger
from slurm_worker.aggregate.job.plan import Plan, Remaining, RoundSummary
from slurm_worker.aggregate.job.publish import (
    VERSION,
    Manifest,
    Standing,
    is_whole,
    publish,
    read_standing,
)
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.keys import JobPaths, parse_version, version_name
from slurm_worker.protocol.ports import ObjectStore
from slurm_worker.results.parts import KEY_FIELD

#: So often an aggregation begins, each time because its files can't be published any more.
_TRIES = 5


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
    before: Mapping[str, DataFile] = {}
    for _ in range(_TRIES):
        # Read before the markers: who publishes results of a later time wins.
        begun = read_standing(objects, paths)
        if begun.later:
            raise AggregationError(
                f"aggregate: {paths.manifest} was written by a later release; upgrade "
                "airflow-slurm-provider"
            )
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            run = _Run(objects, paths, expected, options, Path(folder), progress, begun)
            manifest = run.merge(before, made)
        if manifest is begun.manifest:
            progress("the published dataset is up to date")
            return manifest
        published = publish(objects, paths, manifest, begun)
        if published is not None:
            progress(f"published {manifest.rows:,} rows in {len(manifest.files):,} files")
            return published
        progress("another aggregation has published, or gc took this one for dead: beginning again")
        before = manifest.file_names()
    raise AggregationError(
        f"aggregate: {_TRIES} times another aggregation of this job has published, or gc has run, "
        "before this one could; aggregate again when they have ended"
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """One try at a version; arguments as those of `aggregate`.

    Args:
        begun: the manifest that it replaces.
    """

    objects: ObjectStore
    paths: JobPaths
    expected: Sequence[RoundSummary]
    options: AggregateOptions
    scratch: Path
    progress: Callable[[str], None]
    begun: Standing

    def merge(
        self, before: Mapping[str, DataFile], made: Callable[[str], Mapping[str, DataFile]]
    ) -> Manifest:
        """The manifest to publish; the one that stands where nothing has changed.

        Args:
            before: files by name of the try before.
            made: see `aggregate`.
        """
        declared = None if self.options.schema is None else parse_schema(self.options.schema)
        store = JobStore(self.objects, self.paths)
        with Plan(store, self.expected, self.scratch) as plan:
            inputs = inputs_digest(plan, self.options)
            standing = self.begun.manifest
            if standing and standing.inputs == inputs and is_whole(self.objects, standing):
                return standing
            self.progress(f"{plan.tasks:,} tasks are complete, {plan.totals.rows:,} rows")
            merger = Merger(store, plan, self.options, self.scratch, self.progress)
            name = version_name(self.begun.number + 1, inputs, uuid.uuid4().hex[:12])
            errors_version = self._version(self.paths.errors_of(name))
            errors, remaining = merger.merge_errors(errors_version)
            items = _prove(plan, remaining, self.expected)
            columns = merger.infer() if declared is None else declared
            known = {**before, **(standing.file_names() if standing else {}), **made(inputs)}
            folder = self.paths.dataset_of(name)
            version = self._version(folder, known, _left(self.objects, self.paths, inputs).get)
            files = merger.merge_rows(columns, version)
            if not plan.unchanged():
                raise AggregationError(
                    "aggregate: tasks were finished while this merged; aggregate again when the "
                    "job is complete"
                )
        return Manifest(
            job=self.paths.job,
            rows=sum(each.rows for each in files),
            items=items,
            ok=plan.totals.ok,
            failed=dict(sorted(remaining.failed.items())),
            folder=folder,
            files=tuple(files),
            errors=tuple(errors),
            schema=_names(columns, self.options),
            inputs=inputs,
            created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        )

    def _version(
        self,
        folder: str,
        before: Mapping[str, DataFile] | None = None,
        left: Callable[[str], str | None] = lambda _name: None,
    ) -> Version:
        local = self.scratch / "file.parquet"
        return Version(self.objects, folder, local, self.progress, before, left)


def _left(objects: ObjectStore, paths: JobPaths, inputs: str) -> dict[str, str]:
    """Files by name of other aggregations of the same inputs, cut short or not."""
    found: dict[str, str] = {}
    for key in objects.list(paths.dataset):
        version, _, name = key.removeprefix(paths.dataset).partition("/")
        # Older manifests name a version by its inputs alone.
        if name and (parse_version(version) or (0, version))[1] == inputs[:16]:
            found[name] = key
    return found


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


def inputs_digest(plan: Plan, options: AggregateOptions) -> str:
    """The digest of all that goes into a dataset."""
    what = [VERSION, WRITER, plan.digest, asdict(options)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _names(columns: Schema, options: AggregateOptions) -> dict[str, str]:
    names = options.names
    return {KEY_FIELD: "string", **{names.get(name, name): str(t) for name, t in columns.items()}}
