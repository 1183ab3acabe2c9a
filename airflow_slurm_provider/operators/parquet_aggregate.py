"""Publish a backfill's results as one Parquet dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Asset, AssetAlias, BaseOperator, Context

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.links import BackfillLink, JobObjectsLink
from airflow_slurm_provider.operators.deferral import (
    CancelsOnKill,
    Notifier,
    actor_of,
    defer_until_done,
    hear_anomalies,
    look,
    progress_of,
    wait_until_done,
)
from slurm_worker.protocol.keys import check_job_id


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


def check_merged(progress: dict[str, Any]) -> None:
    """Fail where the nodes could not merge a file."""
    failed = sum(progress["failed"].values()) + sum(progress["task_errors"].values())
    if failed:
        name = progress["job_id"]
        raise AirflowFailException(
            f"{failed} files could not be merged on the nodes; see slurmctl errors {name}"
        )


#: What is told of a published dataset.
PUBLISHED = ("dataset", "manifest", "items", "ok", "failed", "rows")


class ParquetAggregateOperator(CancelsOnKill, BaseOperator):
    """Merge the committed parts into Parquet files and publish their manifest last.

    Strict: it refuses to publish unless every item is accounted for. Running it again with
    nothing new does nothing. Returns counts and the dataset's address. Each asset among its
    `outlets` gets an event with them; an `AssetAlias` there becomes the asset of the dataset.

    :param job_id: the backfill. (templated)
    :param where: ``local``: merge in this process; ``slurm``: on the cluster's nodes, a file of the
        dataset each, and publish here; ``aggregate.where`` of the job's config where None.
    :param slurm_conn_id: connection of type ``slurm``.
    :param aws_conn_id: connection of type ``aws``.
    :param deferrable: wait for the nodes in the triggerer.
    :param poll_interval: seconds between two looks at them.
    :param cancel_on_kill: cancel their array when this task is killed while it waits.
    :param max_resubmissions: arrays of new workers that they may get.
    :param on_anomaly: notifiers that are run when something is wrong with them; their context
        has the ``alert``.
    """

    template_fields: Sequence[str] = ("job_id",)
    operator_extra_links = (BackfillLink(), JobObjectsLink())

    def __init__(
        self,
        *,
        job_id: str,
        where: Literal["local", "slurm"] | None = None,
        slurm_conn_id: str = "slurm_default",
        aws_conn_id: str | None = "aws_default",
        deferrable: bool = True,
        poll_interval: float = 10.0,
        cancel_on_kill: bool = False,
        max_resubmissions: int = 3,
        on_anomaly: Sequence[Notifier] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.where = where
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.max_resubmissions = max_resubmissions
        self.on_anomaly = on_anomaly

    @property
    def backfill(self) -> str:
        """The job that `BackfillLink` leads to."""
        return self.job_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Aggregate and publish, or have the nodes merge first."""
        BackfillLink.persist(context, self)
        merging = self._on_nodes(context)
        if merging is not None:
            if self.deferrable and look(self, context, merging) is None:
                defer_until_done(self, merging)
            check_merged(wait_until_done(self, context, merging))
        return self._publish(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The nodes have merged: publish."""
        hear_anomalies(self, context, event)
        check_merged(progress_of(event))
        return self._publish(context)

    def _on_nodes(self, context: Context) -> str | None:
        """The job that merges on the nodes, started; None where this process shall."""
        with as_airflow_failures():
            services = SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()
            job_id = check_job_id(self.job_id)
            if (self.where or api.merges_where(services, job_id)) == "local":
                return None
            submitted = api.merge_on_nodes(
                services, job_id, log=task_log(self), actor=actor_of(context)
            )
        return None if submitted is None else submitted.job_id

    def _publish(self, context: Context) -> dict[str, Any]:
        with as_airflow_failures():
            services = SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()
            job_id = check_job_id(self.job_id)
            manifest = api.aggregate(services, job_id, log=task_log(self), actor=actor_of(context))
            address = f"s3://{services.site.bucket}/{services.paths(job_id).dataset}"
            JobObjectsLink.persist(context, services, job_id)
        result = {name: manifest[name] for name in PUBLISHED} | {"files": len(manifest["files"])}
        emit_assets(self, context, address, {"job_id": job_id, **result})
        return result
