"""What the operators and the sensor share: waiting for a job, and reading its end."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, NoReturn, Protocol

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, TaskDeferred

from airflow_slurm_provider.coordinator.watch import Watcher
from airflow_slurm_provider.failures import as_airflow_failures
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.triggers.slurm_array import SlurmArrayTrigger, event_of
from slurm_worker.keys import check_job_id


class Waits(Protocol):
    """An operator that waits for a job."""

    slurm_conn_id: str
    aws_conn_id: str | None
    poll_interval: float
    cancel_on_kill: bool
    max_resubmissions: int

    @property
    def log(self) -> Any:
        """Airflow's task logger."""


def look(operator: Waits, job_id: str) -> dict[str, Any] | None:
    """One look at the job: the event that ends the wait, or None."""
    return _look(_watcher(operator, job_id))


def wait_until_done(operator: Waits, job_id: str) -> dict[str, Any]:
    """Wait in this process; return the job's progress at its end."""
    watcher = _watcher(operator, job_id)
    while (event := _look(watcher)) is None:
        time.sleep(operator.poll_interval)
    return progress_of(event)


def _watcher(operator: Waits, job_id: str) -> Watcher:
    with as_airflow_failures():
        return Watcher(
            SlurmHook(operator.slurm_conn_id, operator.aws_conn_id).services(),
            check_job_id(job_id),
            operator.log.info,
            max_resubmissions=operator.max_resubmissions,
            actor="airflow",
        )


def _look(watcher: Watcher) -> dict[str, Any] | None:
    with as_airflow_failures():
        event = event_of(watcher.look())
    return None if event is None else {**event, "lost_workers": dict(watcher.lost)}


def defer_until_done(
    operator: Waits,
    job_id: str,
    state: dict[str, Any] | None = None,
    timeout: timedelta | None = None,
) -> NoReturn:
    """Wait in the triggerer; the operator goes on in `execute_complete`."""
    raise TaskDeferred(
        trigger=SlurmArrayTrigger(
            job_id=job_id,
            slurm_conn_id=operator.slurm_conn_id,
            aws_conn_id=operator.aws_conn_id,
            poll_interval=operator.poll_interval,
            cancel_on_kill=operator.cancel_on_kill,
            max_resubmissions=operator.max_resubmissions,
            state=state,
        ),
        timeout=timeout,
        method_name="execute_complete",
    )


def progress_of(event: dict[str, Any] | None) -> dict[str, Any]:
    """The job's progress from a trigger's event.

    :raises AirflowException: if the job stalled or could not be looked at any more.
    """
    if not event or "status" not in event:
        raise AirflowException(f"the trigger ended without a result: {event!r}")
    if event["status"] != "finished":
        raise AirflowException(str(event["message"]))
    progress: dict[str, Any] = event["progress"]
    return progress


def actor_of(context: Context) -> str:
    """Who acts, for the audit trail."""
    ti = context["ti"]
    return f"airflow {ti.dag_id}.{ti.task_id} {ti.run_id} try {ti.try_number}"
