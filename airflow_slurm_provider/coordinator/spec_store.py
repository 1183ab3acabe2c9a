"""A job's resolved configuration on S3: what workers read, and the YAML that it was made from.

Each document is named by its digest, so storing it again changes nothing that runs.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec, spec_of
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_config import JobConfig
from slurm_worker.protocol.job_rows import JobRow
from slurm_worker.protocol.job_store import probe_conditional_put


def ship_config(services: Services, spec: JobSpec, shards: int, code_sha256: str) -> str:
    """Put the resolved configuration on S3; return its digest."""
    conditional = probe_conditional_put(services.objects, services.paths(spec.id))
    resolved = spec.resolve(services.site, shards, code_sha256, conditional_put=conditional)
    return _put_config(services, spec, resolved)


def ship_more_workers(services: Services, job: JobRow, workers: int) -> str:
    """Put the job's configuration on S3 as one of at least so many workers; return its digest."""
    paths = services.paths(job.job)
    document = services.objects.get(paths.config(job.config))
    spec = read_spec(services, job)
    if document is None or spec.workers >= workers:
        return job.config
    raised = spec.model_copy(update={"workers": workers})
    resolved = replace(JobConfig.from_json(document), max_workers=raised.max_workers)
    return _put_config(services, raised, resolved)


def read_spec(services: Services, job: JobRow) -> JobSpec:
    """The YAML with which the job was last submitted."""
    key = services.paths(job.job).config(job.config)
    document = services.objects.get(key)
    if document is None:
        raise ServiceError(f"{key} is missing; submit the job again")
    return spec_of(document)


def config_document(spec: JobSpec, resolved: JobConfig) -> tuple[str, bytes]:
    """What workers read and what the user wrote, as one document, and its digest."""
    data = resolved.to_json(spec.model_dump(mode="json", by_alias=True))
    return hashlib.sha256(data).hexdigest(), data


def _put_config(services: Services, spec: JobSpec, resolved: JobConfig) -> str:
    digest, data = config_document(spec, resolved)
    services.objects.put_new(services.paths(spec.id).config(digest), data)
    return digest
