"""Old faults of datasets: what gc and two aggregations at a time deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

from airflow_slurm_provider.coordinator.maintenance import gc
from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.job import aggregation
from slurm_worker.aggregate.job.publish import Manifest, Published, read_published
from slurm_worker.protocol.job_store import probe_replacing
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectInfo, ObjectStore
from tests.simulator.old_faults.fault import OldFault


def _keys(manifest: Manifest) -> set[str]:
    return {file.key for file in (*manifest.files, *manifest.errors)}


def _files(objects: ObjectStore, paths: JobPaths) -> Iterator[ObjectInfo]:
    for folder in (paths.dataset, paths.errors):
        for entry in objects.entries(folder):
            if entry.key != paths.manifest:
                yield entry


def publishes_and_deletes(
    objects: ObjectStore, paths: JobPaths, manifest: Manifest, base: Published
) -> Manifest:
    """Check that the files exist, put the manifest, delete what it and the last do not name."""
    if not manifest.is_complete(objects):
        raise AggregationError("aggregate: files of this version have gone; aggregate again")
    objects.put(paths.manifest, json.dumps(manifest.to_dict(), indent=1).encode())
    kept = _keys(manifest) | _keys(base.manifest)
    for entry in list(_files(objects, paths)):
        if entry.key not in kept:
            objects.delete(entry.key)
    return manifest


def sweeps_what_is_old(
    objects: ObjectStore, paths: JobPaths, older_than_s: float, *, dry_run: bool = False
) -> list[ObjectInfo]:
    """What the manifest does not name, as it was read once, and is old."""
    named = _keys(read_published(objects, paths).manifest)
    now = probe_replacing(objects, paths)
    old = (now or 0.0) - older_than_s
    return [
        entry
        for entry in _files(objects, paths)
        if entry.key not in named and entry.modified < old and not dry_run
    ]


@contextmanager
def _unconditional() -> Iterator[None]:
    by_inputs = mock.patch.object(aggregation, "version_name", lambda _n, inputs, _u: inputs[:16])
    with by_inputs, mock.patch.object(aggregation, "publish", publishes_and_deletes):
        yield


def _sweeps() -> AbstractContextManager[object]:
    return mock.patch.object(gc, "sweep", sweeps_what_is_old)


DATASET_FAULTS = (
    OldFault(
        "an aggregation deletes what its manifest and the last do not name",
        "files of another aggregation, and of readers",
        "promised to the readers|which does not exist",
        2,
        put_back=_unconditional,
    ),
    OldFault(
        "gc deletes what one reading of the manifest does not name",
        "the files of the version before, which were promised to readers",
        "promised to the readers|which does not exist",
        4,
        put_back=_sweeps,
    ),
)
