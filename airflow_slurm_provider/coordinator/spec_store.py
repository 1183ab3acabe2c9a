"""A job's resolved configuration on S3: what workers read, and the YAML that it was made from.

Each document is named by its digest. Storing it again changes nothing for running workers.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec, spec_of
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_config import JobConfig
from slurm_worker.protocol.job_rows import JobRow


def store_spec(services: Services, spec: JobSpec, shards: int, code_sha256: str) -> str:
    """Put the resolved configuration of a spec on S3; return the digest of its document."""
    conditional = services.conditional_put()
    resolved = spec.resolve(services.site, shards, code_sha256, conditional_put=conditional)
    return _put_document(services, spec, resolved)


def store_more_workers(services: Services, job: JobRow, workers: int) -> str:
    """Put the job's configuration on S3, for at least this many workers; return its digest."""
    document = _read_document(services, job)
    spec = spec_of(document)
    if spec.workers >= workers:
        return job.config
    raised = spec.model_copy(update={"workers": workers})
    resolved = replace(JobConfig.from_json(document), max_workers=raised.max_workers)
    return _put_document(services, raised, resolved)


def read_spec(services: Services, job: JobRow) -> JobSpec:
    """The YAML with which the job was last submitted.

    Raises:
        ServiceError: if its document is missing.
    """
    return spec_of(_read_document(services, job))


def config_document(spec: JobSpec, resolved: JobConfig) -> tuple[str, bytes]:
    """The digest, and the document: what workers read, and what the user wrote."""
    data = resolved.to_json(spec.model_dump(mode="json", by_alias=True))
    return hashlib.sha256(data).hexdigest(), data


def _read_document(services: Services, job: JobRow) -> bytes:
    key = services.paths(job.job).config(job.config)
    if (document := services.objects.get(key)) is None:
        raise ServiceError(f"{key} is missing", "submit the job again")
    return document


def _put_document(services: Services, spec: JobSpec, resolved: JobConfig) -> str:
    digest, data = config_document(spec, resolved)
    services.objects.put_new(services.paths(spec.id).config(digest), data)
    return digest
