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
from airflow_slurm_provider.operators.deferral import (
    CancelsOnKill,
    JobWatch,
    Notifier,
    defer_until_done,
    hear_anomalies,
    progress_of,
)


class SlurmArraySensor(CancelsOnKill, BaseSensorOperator):
    """Wait for a job; its progress at the end is the return value.

    Failed items do not fail the sensor unless they pass a bound given here, so that a
    `RetryByErrorClassOperator` downstream gets its chance; the aggregation is strict.

    :param job_id: the backfill, as `SlurmSubmitOperator` returns it. (templated)
    :param slurm_conn_id: connection of type ``slurm``.
    :param aws_conn_id: connection of type ``aws``.
    :param max_failed_items: more failed items than this fail the sensor.
    :param max_failed_percent: a larger share of failed items fails the sensor.
    :param deferrable: wait in the triggerer; else this process pokes.
    :param poll_interval: seconds between two looks in the triggerer.
    :param cancel_on_kill: cancel the arrays when this task is killed while it waits.
    :param max_resubmissions: arrays of new workers that a round may get when its workers are
        gone and tasks are left; then the task fails with the reason.
    :param on_anomaly: notifiers that are run when something is wrong with the job while this
        task waits; their context has the ``alert``.
    """

    template_fields: Sequence[str] = ("job_id",)
    operator_extra_links = (BackfillLink(),)

    def __init__(
        self,
        *,
        job_id: str,
        slurm_conn_id: str = "slurm_default",
        aws_conn_id: str | None = "aws_default",
        max_failed_items: int | None = None,
        max_failed_percent: float = 100.0,
        deferrable: bool = True,
        poll_interval: float = 10.0,
        cancel_on_kill: bool = False,
        max_resubmissions: int = 3,
        on_anomaly: Sequence[Notifier] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id
        self.max_failed_items = max_failed_items
        self.max_failed_percent = max_failed_percent
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.max_resubmissions = max_resubmissions
        self.on_anomaly = on_anomaly
        self._watch: JobWatch | None = None

    @property
    def backfill(self) -> str:
        """The job that `BackfillLink` leads to."""
        return self.job_id

    def execute(self, context: Context) -> Any:
        """Look once, and wait where it is too early."""
        if not self.deferrable:
            BackfillLink.persist(context, self)
            return super().execute(context)
        event = self._look(context)
        if event is None:
            defer_until_done(self, self.job_id, timeout=timedelta(seconds=self.timeout))
        try:
            return self._result(event)
        except AirflowException as error:
            # Airflow's sensor sees to this only where it pokes or resumes.
            if self.soft_fail:
                raise AirflowSkipException(str(error)) from error
            raise

    def poke(self, context: Context) -> PokeReturnValue:
        """One look."""
        event = self._look(context)
        if event is None:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._result(event))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on when the trigger has fired."""
        hear_anomalies(self, context, event)
        return self._result(event)

    def _look(self, context: Context) -> dict[str, Any] | None:
        # One watcher for all pokes: what is usual for this job shows over several looks.
        self._watch = self._watch or JobWatch(self, self.job_id)
        return self._watch.look(context)

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
