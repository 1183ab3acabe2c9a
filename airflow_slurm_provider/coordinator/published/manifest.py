"""The manifest of a job's dataset, for those who read the dataset."""

from __future__ import annotations

from pathlib import PurePosixPath

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.aggregate.dataset.folder import DataFile
from slurm_worker.aggregate.job.publish import NO_MANIFEST, Manifest, read_published
from slurm_worker.errors import UserError
from slurm_worker.printable import printable
from slurm_worker.protocol.keys import JobId


def manifest_of(services: Services, job_id: JobId) -> Manifest:
    """The manifest of the current version; a read of the job's row and one GET.

    Raises:
        UserError: if there is no such job, or it has no dataset yet.
    """
    services.jobs(job_id).get()
    published = read_published(services.objects, services.paths(job_id))
    if published.later:
        raise UserError(
            f"job_id: the dataset of {job_id!r} was published by a later release; update this one"
        )
    if published.manifest is NO_MANIFEST:
        raise UserError(
            f"job_id: {job_id!r} has no dataset yet; run slurmctl aggregate {job_id} first"
        )
    return published.manifest


def names_of(manifest: Manifest) -> dict[str, DataFile]:
    """The dataset's files by their paths below its folder.

    Raises:
        UserError: if a path leads out of the folder: nobody who aggregates writes such a manifest.
    """
    names = manifest.file_names()
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/") or printable(name) != name:
            raise UserError(f"manifest: {name!r} is not the name of a file; aggregate again")
    return names
