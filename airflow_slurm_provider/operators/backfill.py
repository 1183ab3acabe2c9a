"""`SlurmSubmitOperator` with a config: plan a backfill and submit its workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Context

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.planning.inline_items import config_with_items
from airflow_slurm_provider.coordinator.spec.job_spec import Config, load_config
from airflow_slurm_provider.links import BackfillLink, JobObjectsLink
from airflow_slurm_provider.operators.deferral import JobWaiter, actor_of, progress_of


class BackfillOperator(JobWaiter):
    """Submit the job of a config. The parameters are those of `SlurmSubmitOperator`."""

    def __init__(
        self,
        *,
        config: str | Mapping[str, Any] | None = None,
        job_id: str | None = None,
        items: object = None,
        item_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.job_id = job_id
        self.items = items
        self.item_key = item_key

    def build_config(self) -> Config:
        """The job's configuration, checked."""
        assert self.config is not None, "the arguments were checked"
        if self.items is None:
            return load_config(self.config, job_id=self.job_id)
        return config_with_items(
            self.services(), self.config, self.job_id, self.items, self.item_key
        )

    def submit_backfill(self, context: Context) -> tuple[str, dict[str, Any]]:
        """Plan and submit; the job id, and the state to keep while deferred."""
        with as_airflow_failures():
            config = self.build_config()
            services = self.services()
            result = api.submit(services, config, log=task_log(self), actor=actor_of(context))
            self.awaited = result.job_id
            context["ti"].xcom_push(key="submission", value=result.to_dict())
            JobObjectsLink.persist(context, services, config.spec.id)
            BackfillLink.persist(context, self)
        return result.job_id, self.show_script(result.job_id)

    def backfill_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The job's progress from the trigger's event, or another wait after an anomaly."""
        self.awaited = event.get("job_id", "")
        self.show_kept_script(event)
        self.handle_anomalies(context, event)
        return progress_of(event)
