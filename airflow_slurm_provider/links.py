"""Links on the task's page."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import XCom
from airflow.sdk import BaseOperatorLink

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.keys import JobId


class JobObjectsLink(BaseOperatorLink):
    """The job's folder in the S3 console."""

    name = "Job on S3"
    key = "job_on_s3"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002  Airflow's signature
        """The address that the operator stored; empty before it ran."""
        return str(XCom.get_value(ti_key=ti_key, key=self.key) or "")

    @classmethod
    def persist(cls, context: Any, services: Services, job_id: JobId) -> None:
        """Store the address of a job's folder."""
        prefix = quote(services.paths(job_id).root, safe="/")
        bucket = quote(services.site.bucket)
        address = f"https://console.aws.amazon.com/s3/buckets/{bucket}?prefix={prefix}"
        context["ti"].xcom_push(key=cls.key, value=address)
