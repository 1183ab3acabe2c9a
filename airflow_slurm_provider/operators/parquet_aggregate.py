"""Publish a backfill's results as one Parquet dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import Asset, AssetAlias, BaseOperator, Context

from airflow_slurm_provider.coordinator import job
from airflow_slurm_provider.failures import as_airflow_failures
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.links import JobObjectsLink
from airflow_slurm_provider.waiting import actor_of
from slurm_worker.keys import check_job_id


def emit_assets(
    operator: BaseOperator, context: Context, address: str, extra: dict[str, Any]
) -> None:
    """Tell Airflow that a dataset was published: an event for each of the task's outlets."""
    for outlet in operator.outlets:
        events = context["outlet_events"][outlet]
        if isinstance(outlet, AssetAlias):
            events.add(Asset(address), extra=extra)
        elif isinstance(outlet, Asset):
            events.extra.update(extra)


#: What is told of a published dataset.
PUBLISHED = ("dataset", "manifest", "items", "ok", "failed", "rows")


class ParquetAggregateOperator(BaseOperator):
    """Merge the committed parts into Parquet files and publish their manifest last.

    Strict: it refuses to publish unless every item is accounted for. Running it again with
    nothing new does nothing. Returns counts and the dataset's address. Each asset among its
    `outlets` gets an event with them; an `AssetAlias` there becomes the asset of the dataset.

    :param job_id: the backfill. (templated)
    :param slurm_conn_id: connection of type ``slurm``.
    :param aws_conn_id: connection of type ``aws``.
    """

    template_fields: Sequence[str] = ("job_id",)
    operator_extra_links = (JobObjectsLink(),)

    def __init__(
        self,
        *,
        job_id: str,
        slurm_conn_id: str = "slurm_default",
        aws_conn_id: str | None = "aws_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Aggregate and publish."""
        with as_airflow_failures():
            services = SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()
            job_id = check_job_id(self.job_id)
            manifest = job.aggregate(services, job_id, log=self.log.info, actor=actor_of(context))
            address = f"s3://{services.site.bucket}/{services.paths(job_id).dataset}"
            JobObjectsLink.persist(context, services, job_id)
        result = {name: manifest[name] for name in PUBLISHED} | {"files": len(manifest["files"])}
        emit_assets(self, context, address, {"job_id": job_id, **result})
        return result
