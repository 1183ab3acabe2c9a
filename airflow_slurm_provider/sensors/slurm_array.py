"""Wait until a backfill's tasks have all ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)
from airflow.sdk import BaseSensorOperator, Context, PokeReturnValue

from airflow_slurm_provider.airflow_errors import task_log
from airflow_slurm_provider.links import BackfillLink
from airflow_slurm_provider.operators.deferral import JobPoller, JobWaiter, progress_of


class SlurmArraySensor(JobWaiter, BaseSensorOperator):
    """Wait for a job; its progress at the end is the return value.

    Failed items do not fail the sensor unless there are more than a limit given here, so that a
    `RetryByErrorClassOperator` downstream can retry them. The aggregation is strict.

    The connections and the wait have the parameters of `JobWaiter`.

    :param job_id: the backfill, as `SlurmSubmitOperator` returns it. (templated)
    :param max_failed_items: more failed items than this fail the sensor.
    :param max_failed_percent: a larger share of failed items fails the sensor.
    """

    template_fields: Sequence[str] = ("job_id",)
    operator_extra_links = (BackfillLink(),)

    def __init__(
        self,
        *,
        job_id: str,
        max_failed_items: int | None = None,
        max_failed_percent: float = 100.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.max_failed_items = max_failed_items
        self.max_failed_percent = max_failed_percent
        self._poller: JobPoller | None = None

    @property
    def backfill(self) -> str:
        """The job that `BackfillLink` opens."""
        return self.job_id

    def execute(self, context: Context) -> Any:
        """Query once, and wait if the job has not ended."""
        if not self.deferrable:
            BackfillLink.persist(context, self)
            return super().execute(context)
        event = self._poll(context)
        if event is None:
            self.defer_until_done(self.job_id, timeout=timedelta(seconds=self.timeout))
        try:
            return self._result(event)
        except AirflowException as error:
            # Airflow's sensor handles this only where it pokes or resumes.
            if self.soft_fail:
                raise AirflowSkipException(str(error)) from error
            raise

    def poke(self, context: Context) -> PokeReturnValue:
        """One status query."""
        event = self._poll(context)
        if event is None:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._result(event))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Continue when the trigger has fired."""
        self.handle_anomalies(context, event)
        return self._result(event)

    def _poll(self, context: Context) -> dict[str, Any] | None:
        # One poller for all pokes: its baseline of this job needs several queries.
        self._poller = self._poller or JobPoller(self, self.job_id)
        return self._poller.poll(context)

    def _result(self, event: dict[str, Any]) -> dict[str, Any]:
        progress = {**progress_of(event), "lost_workers": event["lost_workers"]}
        task_log(self)(event["message"])
        failed, items = sum(progress["failed"].values()), progress["items"]
        percent = 100.0 * failed / items if items else 0.0
        over_count = self.max_failed_items is not None and failed > self.max_failed_items
        if over_count or percent > self.max_failed_percent:
            raise AirflowFailException(
                f"{failed} of {items} items failed ({percent:.1f} %): {progress['failed']}; the "
                "sensor tolerates fewer (max_failed_items, max_failed_percent)"
            )
        return progress
