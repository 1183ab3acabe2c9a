"""Publish a backfill's results as one Parquet dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Asset, AssetAlias, Context

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.links import BackfillLink, JobObjectsLink
from airflow_slurm_provider.operators.deferral import JobPoller, JobWaiter, actor_of, progress_of
from slurm_worker.protocol.keys import check_job_id

#: What is reported of a published dataset.
_PUBLISHED = ("dataset", "manifest", "items", "ok", "failed", "rows")


def publish_dataset(operator: JobWaiter, context: Context, job_id: str) -> dict[str, Any]:
    """Publish a job's dataset; its counts and address.

    Each of the task's outlets gets an event with them; an alias becomes the dataset's asset.
    """
    with as_airflow_failures():
        services, job = operator.services(), check_job_id(job_id)
        manifest = api.aggregate(services, job, log=task_log(operator), actor=actor_of(context))
        JobObjectsLink.persist(context, services, job)
    result = {name: manifest[name] for name in _PUBLISHED} | {"files": len(manifest["files"])}
    address = f"s3://{services.site.bucket}/{services.paths(job).dataset}"
    extra = {"job_id": job_id, **result}
    for outlet in operator.outlets:
        events = context["outlet_events"][outlet]
        if isinstance(outlet, AssetAlias):
            events.add(Asset(address), extra=extra)
        elif isinstance(outlet, Asset):
            events.extra.update(extra)
    return result


def check_merged(progress: dict[str, Any]) -> None:
    """Fail where the nodes could not merge a file."""
    failed = sum(progress["failed"].values()) + sum(progress["task_errors"].values())
    if failed:
        name = progress["job_id"]
        raise AirflowFailException(
            f"{failed} files could not be merged on the nodes; see slurmctl errors {name}"
        )


class ParquetAggregateOperator(JobWaiter):
    """Merge the committed parts into Parquet files and publish their manifest last.

    Strict: it does not publish unless every item is accounted for. Running it again with
    nothing new does nothing. Returns counts and the dataset's address. Each asset among its
    `outlets` gets an event with them; an `AssetAlias` there becomes the asset of the dataset.

    The connections and the wait for the nodes have the parameters of `JobWaiter`.

    :param job_id: the backfill. (templated)
    :param where: ``local`` merges in this process. ``slurm`` merges on the cluster's nodes, one
        file of the dataset per task, and publishes here. Where None, ``aggregate.where`` of the
        job's config decides.
    """

    template_fields: Sequence[str] = ("job_id",)
    operator_extra_links = (BackfillLink(), JobObjectsLink())

    def __init__(
        self, *, job_id: str, where: Literal["local", "slurm"] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.where = where

    @property
    def backfill(self) -> str:
        """The job that `BackfillLink` opens."""
        return self.job_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Merge here or on the nodes, and publish."""
        BackfillLink.persist(context, self)
        merging = self.start_merge(context)
        if merging is not None:
            if self.deferrable and JobPoller(self, merging).poll(context) is None:
                self.defer_until_done(merging)
            check_merged(self.wait_until_done(context, merging))
        return publish_dataset(self, context, self.job_id)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The nodes have merged: publish."""
        self.handle_anomalies(context, event)
        check_merged(progress_of(event))
        return publish_dataset(self, context, self.job_id)

    def start_merge(self, context: Context) -> str | None:
        """Start the job that merges on the nodes; None where this process is to merge."""
        with as_airflow_failures():
            services = self.services()
            job_id = check_job_id(self.job_id)
            if (self.where or api.merges_where(services, job_id)) == "local":
                return None
            submitted = api.merge_on_nodes(
                services, job_id, log=task_log(self), actor=actor_of(context)
            )
        return None if submitted is None else submitted.job_id
