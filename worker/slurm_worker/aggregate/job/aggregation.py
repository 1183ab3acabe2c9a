"""From committed parts to one published Parquet dataset.

    manifest before → markers → plan (complete?) → schema (declared, or of all rows) → merge
    → proof → manifest

Nothing is changed silently: a value that does not fit its column is refused with its
column, item and part. Nothing is published unless every item of the input is there
once, as ok or as failed. It is safe to call it again at any point; with the same inputs it
then does nothing.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from slurm_worker.aggregate.columns.types import parse_schema
from slurm_worker.aggregate.dataset.folder import DataFile, DatasetFolder, json_sha256
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.job.failures import FailureMerger
from slurm_worker.aggregate.job.merge import WRITER, PartMerger, groups_of, schema_of
from slurm_worker.aggregate.job.parts import PartReader
from slurm_worker.aggregate.job.plan import ROWS, Plan, RoundSummary
from slurm_worker.aggregate.job.publish import VERSION, Manifest, publish, read_published
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.paths import JobPaths, parse_version, version_name
from slurm_worker.protocol.ports import ObjectStore
from slurm_worker.results.parts import KEY_FIELD

#: How often an aggregation begins again because its files can't be published any more.
_TRIES = 5

FilesByName = Mapping[str, DataFile]


def aggregate(
    objects: ObjectStore,
    paths: JobPaths,
    expected: Sequence[RoundSummary],
    options: AggregateOptions,
    scratch: Path,
    progress: Callable[[str], None],
    made: Callable[[str], FilesByName] = lambda _inputs: {},
) -> Manifest:
    """Merge a job's committed parts and publish the dataset.

    `scratch` is a folder on local disk with room for one file of the dataset; where it is sorted
    or partitioned, for the dataset twice. `expected` is what was planned, round by round; `made`
    gives the files by name that were merged elsewhere, from inputs of a digest.

    Returns:
        The current manifest: a new one, or the last where nothing has changed.

    Raises:
        UserError: if a declared type is not a type, or an option names no column.
        AggregationError: if a task, part or item is missing, damaged or does not fit;
            nothing is published then, and what was published before stays.
    """
    store, before = JobStore(objects, paths), dict[str, DataFile]()
    for _ in range(_TRIES):
        # Read before the markers: the publication with the later results wins.
        base = read_published(objects, paths)
        if base.later:
            raise AggregationError(
                f"aggregate: {paths.manifest} was written by a later release; upgrade "
                "airflow-slurm-provider"
            )
        known = {**before, **base.manifest.file_names()}
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            run = _Run(store, expected, options, Path(folder), progress, base.manifest)
            manifest = run.merge(known, made)
        if manifest is base.manifest:
            progress("the published dataset is up to date")
            return manifest
        published = publish(objects, paths, manifest, base)
        if published is not None:
            progress(f"published {manifest.rows:,} rows in {len(manifest.files):,} files")
            return published
        progress("another aggregation has published, or gc has ended this one: starting again")
        before = manifest.file_names()
    raise AggregationError(
        f"aggregate: tried {_TRIES} times, but each time another aggregation of this job has "
        "published first, or gc has run; aggregate again when they have ended"
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """One try at a version; `base` is the manifest that it replaces."""

    store: JobStore
    expected: Sequence[RoundSummary]
    options: AggregateOptions
    scratch: Path
    progress: Callable[[str], None]
    base: Manifest

    def merge(self, known: FilesByName, made: Callable[[str], FilesByName]) -> Manifest:
        """The manifest to publish; the current one where nothing has changed.

        `known` are files of earlier versions and of the try before; see `aggregate` for `made`.
        """
        objects, paths = self.store.objects, self.store.paths
        # A wrong type is found before anything is written.
        parse_schema(self.options.schema or {})
        reader = PartReader(self.store, self.options.memory)
        with Plan(self.store, self.expected, self.scratch) as plan:
            inputs = inputs_sha256(plan, self.options)
            if self.base.is_of(inputs, objects):
                return self.base
            self.progress(f"{plan.tasks:,} tasks are complete, {plan.rows:,} rows")
            name = version_name(self.base.number + 1, inputs, uuid.uuid4().hex[:12])
            failures = FailureMerger(reader, plan, self.options)
            path = self.scratch / "file.parquet"
            folder = DatasetFolder(objects, paths.errors_of(name), path, self.progress)
            errors = failures.merge(folder)
            items = _prove(plan, failures, self.expected)
            columns = schema_of(reader, plan, self.options)
            folder = replace(
                folder,
                folder=paths.dataset_of(name),
                known={**known, **made(inputs)},
                leftover=_leftovers(self.store, inputs).get,
            )
            merger = PartMerger(reader, columns, self.options)
            groups = map(merger.group, groups_of(plan, ROWS, self.options))

            def report(done: str, rows: int) -> None:
                self.progress(f"{done} {rows:,} of {plan.rows:,} rows")

            files = merger.write(groups, folder, self.scratch, report)
            if not plan.unchanged():
                raise AggregationError(
                    "aggregate: tasks were finished while this merged; aggregate again when the "
                    "job is complete"
                )
        return Manifest(
            job=paths.job,
            rows=sum(file.rows for file in files),
            items=items,
            ok=plan.ok,
            failed=dict(sorted(failures.failed.items())),
            folder=folder.folder,
            files=tuple(files),
            errors=tuple(errors),
            schema={KEY_FIELD: "string", **self.options.named(columns)},
            inputs=inputs,
            created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        )


def inputs_sha256(plan: Plan, options: AggregateOptions) -> str:
    """The digest of everything that goes into a dataset."""
    return json_sha256([VERSION, WRITER, plan.digest, asdict(options)])


def _leftovers(store: JobStore, inputs: str) -> dict[str, str]:
    """The keys, by file name, of files of other aggregations of the same inputs."""
    found: dict[str, str] = {}
    for key in store.objects.list(store.paths.dataset):
        version, _, name = key.removeprefix(store.paths.dataset).partition("/")
        # Older manifests name a version by its inputs alone.
        if name and (parse_version(version) or (0, version))[1] == inputs[:16]:
            found[name] = key
    return found


def _prove(plan: Plan, failures: FailureMerger, expected: Sequence[RoundSummary]) -> int:
    """Every item of the input is there once; return how many there are.

    Within each round items = ok + failed, which the plan has checked marker by marker.
    Each item of a later round must replace exactly one earlier failure.
    """
    items = sum(summary.new_items for summary in expected)
    failed = sum(failures.failed.values())
    if items != plan.ok + failed or failures.superseded != plan.retries:
        raise AggregationError(
            f"aggregate: the markers are not of one job: the input has {items:,} items, "
            f"{plan.ok:,} succeeded and {failed:,} failed, and {plan.retries:,} "
            f"retried items replace {failures.superseded:,} earlier failures; compare done/ with "
            "the job's rounds"
        )
    return items
