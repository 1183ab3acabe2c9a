"""Plan a backfill and submit its workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from airflow.sdk import BaseOperator, Context

from airflow_slurm_provider.coordinator import job
from airflow_slurm_provider.coordinator.config import Config, load_config
from airflow_slurm_provider.coordinator.given import config_of
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.failures import as_airflow_failures
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.links import JobObjectsLink
from airflow_slurm_provider.waiting import actor_of, defer_until_done, progress_of, wait_until_done
from slurm_worker.keys import check_job_id


class SlurmSubmitOperator(BaseOperator):
    """Plan the items of a config and submit one array of workers; return the job id.

    Running it again at any point (a retry, a cleared task, after a crash) goes on where the
    last run was cut short: the plan is conditional writes, and the array is found again by
    the token that was written before ``sbatch``. That closes the window between submit and
    store that Airflow's `ResumableJobMixin` leaves open, so the mixin is not needed here.

    :param config: path of the job's YAML, or the mapping that it would hold. (templated)
    :param job_id: stands in for the config's ``job_id``. (templated)
    :param items: what to run instead of the config's ``input``: objects, strings or integers,
        such as the result of another task. (templated)
    :param item_key: the field that names each object in `items`; ``id`` where None.
    :param slurm_conn_id: connection of type ``slurm``.
    :param aws_conn_id: connection of type ``aws``.
    :param wait_for_completion: end only when every task has ended.
    :param deferrable: wait in the triggerer.
    :param poll_interval: seconds between two looks while waiting.
    :param cancel_on_kill: cancel the array when this task is killed while it waits.
    :param max_resubmissions: arrays of new workers that a round may get when its workers are
        gone and tasks are left; then the task fails with the reason.
    """

    template_fields: Sequence[str] = ("config", "job_id", "items")
    template_fields_renderers: ClassVar[dict[str, str]] = {"config": "yaml"}
    operator_extra_links = (JobObjectsLink(),)

    def __init__(
        self,
        *,
        config: str | Mapping[str, Any],
        job_id: str | None = None,
        items: Iterable[Any] | None = None,
        item_key: str | None = None,
        slurm_conn_id: str = "slurm_default",
        aws_conn_id: str | None = "aws_default",
        wait_for_completion: bool = False,
        deferrable: bool = True,
        poll_interval: float = 10.0,
        cancel_on_kill: bool = False,
        max_resubmissions: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.job_id = job_id
        self.items = items
        self.item_key = item_key
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.max_resubmissions = max_resubmissions
        self._submitted = ""

    def execute(self, context: Context) -> Any:
        """Plan, submit, and wait if asked to; the job id."""
        result = self._submit(context)
        if self.wait_for_completion:
            if self.deferrable:
                defer_until_done(self, result.job_id)
            wait_until_done(self, result.job_id)
        return result.job_id

    def _submit(self, context: Context) -> job.Submitted:
        with as_airflow_failures():
            config = self._config()
            services = self._services()
            result = job.submit(services, config, log=self.log.info, actor=actor_of(context))
            self._submitted = result.job_id
            context["ti"].xcom_push(key="submission", value=result.to_dict())
            JobObjectsLink.persist(context, services, config.spec.id)
        return result

    def _services(self) -> Services:
        return SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()

    def _config(self) -> Config:
        if self.items is None:
            return load_config(self.config, job_id=self.job_id)
        return config_of(self._services(), self.config, self.job_id, self.items, self.item_key)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:  # noqa: ARG002
        """Go on when the trigger has fired; the job id."""
        return str(progress_of(event)["job_id"])

    def on_kill(self) -> None:
        """Cancel the array, when asked to and when this task submitted it."""
        if self.cancel_on_kill and self._submitted:
            services = SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()
            job.cancel(services, check_job_id(self._submitted))
