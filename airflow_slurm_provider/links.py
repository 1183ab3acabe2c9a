"""Links on the task's page: the job on the dashboard, the job's folder in the S3 console."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import XCom
from airflow.sdk import BaseOperatorLink

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.dashboard_urls import Destination
from slurm_worker.protocol.keys import JobId


class BackfillLink(BaseOperatorLink):
    """The job on the dashboard; available as soon as the job is known."""

    name = "Backfill"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002  Airflow's signature
        """The address; empty where the task runs no backfill, or has not submitted it yet."""
        if not operator.backfill:
            return ""
        return Destination(operator.backfill, operator.slurm_conn_id).address()

    @classmethod
    def persist(cls, context: Any, operator: Any) -> None:
        """Store the address now; Airflow itself does so when the task defers or ends."""
        link = cls()
        context["ti"].xcom_push(key=link.xcom_key, value=link.get_link(operator, ti_key=None))


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
