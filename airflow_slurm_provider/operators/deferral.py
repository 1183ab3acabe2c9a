"""What the operators and the sensor share: waiting for a job, and what they hear meanwhile.

    execute ──> defer ──> trigger looks ──┬─> finished, stalled, failed ──> execute_complete
                  ^                       └─> anomaly ──> execute_complete
                  └────────── notifiers have run ────────────────┘

A trigger knows nothing of the DAG's notifiers. Where there are some it fires an event for
alerts, the operator runs them and defers again, with the same state and what is left of its
timeout. An alert is told once per episode, whoever watches: the audit trail sees to that.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, Protocol

from airflow.providers.common.compat.sdk import AirflowException, TaskDeferred
from airflow.sdk import Context

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.coordinator.status.logs import read_script
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.watcher import Watcher
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.metrics import JobMetrics
from airflow_slurm_provider.triggers.polling import PollBudget
from airflow_slurm_provider.triggers.slurm_array import ANOMALY, SlurmArrayTrigger, event_of
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.printable import printable_lines
from slurm_worker.protocol.keys import check_job_id

#: An Airflow notifier, or any function of a context.
Notifier = Callable[[Any], Any]
_UNTIL, _SCRIPT = "until", "batch_script"


class Waits(Protocol):
    """An operator that waits for a job."""

    slurm_conn_id: str
    aws_conn_id: str | None
    poll_interval: float
    cancel_on_kill: bool
    max_resubmissions: int
    on_anomaly: Sequence[Notifier]
    awaited: str

    @property
    def log(self) -> Any:
        """Airflow's task logger."""


class ShowsScript(Waits, Protocol):
    """An operator that shows its array's batch script among its rendered templates."""

    batch_script: str | None


class CancelsOnKill:
    """An operator that cancels what it waits for in its own process, if asked to.

    In the triggerer it is the trigger that does so.
    """

    slurm_conn_id: str
    aws_conn_id: str | None
    cancel_on_kill: bool
    #: The job that is waited for; empty before there is one.
    awaited: str = ""

    def on_kill(self) -> None:
        """Cancel the arrays of the job that this task waits for, when asked to."""
        if self.cancel_on_kill and self.awaited:
            services = SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()
            control.cancel(services, check_job_id(self.awaited))


class JobWatch:
    """Looks at a job from a task's own process, and runs the notifiers.

    It tolerates as many failed status queries in a row as a trigger.

    Args:
        operator: who waits.
        job_id: the job.
    """

    def __init__(self, operator: Waits, job_id: str) -> None:
        self._operator = operator
        operator.awaited = job_id
        self._budget = PollBudget(operator.poll_interval, operator.log)
        with as_airflow_failures():
            self._watcher = Watcher(
                SlurmHook(operator.slurm_conn_id, operator.aws_conn_id).services(),
                check_job_id(job_id),
                task_log(operator),
                max_resubmissions=operator.max_resubmissions,
                actor="airflow",
            )
        self._metrics = JobMetrics(job_id)

    @property
    def pause_s(self) -> float:
        """Seconds until the next look."""
        return self._budget.pause_s

    def look(self, context: Context) -> dict[str, Any] | None:
        """One look: the event that ends the wait, or None; also where it failed for now."""
        with as_airflow_failures():
            try:
                seen = self._watcher.look()
            except ServiceError as error:
                if self._budget.allow_error(error):
                    return None
                raise
        self._budget.reset()
        self._metrics.look(seen)
        alerts = [each.to_dict() for each in self._watcher.take_alerts()]
        for alert in alerts:
            self._metrics.anomaly(alert["kind"])
        _notify(self._operator, context, alerts)
        event = event_of(seen)
        return None if event is None else {**event, "lost_workers": dict(self._watcher.lost)}


def look(operator: Waits, context: Context, job_id: str) -> dict[str, Any] | None:
    """One look at the job: the event that ends the wait, or None."""
    return JobWatch(operator, job_id).look(context)


def wait_until_done(operator: Waits, context: Context, job_id: str) -> dict[str, Any]:
    """Wait in this process; return the job's progress at its end."""
    watch = JobWatch(operator, job_id)
    while (event := watch.look(context)) is None:
        time.sleep(watch.pause_s)  # not deferrable: this process is to wait
    return progress_of(event)


def defer_until_done(
    operator: Waits,
    job_id: str,
    state: dict[str, Any] | None = None,
    timeout: timedelta | None = None,
) -> NoReturn:
    """Wait in the triggerer; the operator goes on in `execute_complete`."""
    state = dict(state or {})
    if timeout is not None:
        state[_UNTIL] = time.time() + timeout.total_seconds()
    raise TaskDeferred(
        trigger=SlurmArrayTrigger(
            job_id=job_id,
            slurm_conn_id=operator.slurm_conn_id,
            aws_conn_id=operator.aws_conn_id,
            poll_interval=operator.poll_interval,
            cancel_on_kill=operator.cancel_on_kill,
            max_resubmissions=operator.max_resubmissions,
            tells_anomalies=bool(operator.on_anomaly),
            state=state,
        ),
        timeout=timeout,
        method_name="execute_complete",
    )


def hear_anomalies(operator: Waits, context: Context, event: dict[str, Any]) -> None:
    """Where an event tells of anomalies: run the notifiers and wait on; else do nothing."""
    if event.get("status") != ANOMALY:
        return
    _notify(operator, context, event["alerts"])
    state = dict(event["state"])
    until = state.get(_UNTIL)
    left = None if until is None else timedelta(seconds=max(1.0, until - time.time()))
    defer_until_done(operator, event["job_id"], state, left)


def progress_of(event: dict[str, Any] | None) -> dict[str, Any]:
    """The job's progress from a trigger's event.

    :raises AirflowException: if the job stalled or could not be looked at any more.
    """
    if not event or "status" not in event:
        raise AirflowException(f"the trigger ended without a result: {event!r}")
    if event["status"] != "finished":
        raise AirflowException(printable_lines(str(event["message"])))
    progress: dict[str, Any] = event["progress"]
    return progress


def actor_of(context: Context) -> str:
    """Who acts, for the audit trail."""
    ti = context["ti"]
    return f"airflow {ti.dag_id}.{ti.task_id} {ti.run_id} try {ti.try_number}"


def show_script(operator: ShowsScript, job_id: str) -> dict[str, Any]:
    """Show the latest array's script among the rendered templates; the state that keeps it.

    It is read back from the cluster, so it is what ``sbatch`` got, also where an earlier try
    had submitted it. A cluster that can't be reached now costs the view, not the task.
    """
    try:
        services = SlurmHook(operator.slurm_conn_id, operator.aws_conn_id).services()
        operator.batch_script = read_script(services, check_job_id(job_id)) or None
    except (ServiceError, UserError) as error:
        operator.log.warning("the batch script can't be shown: %s", error)
    return {_SCRIPT: operator.batch_script}


def show_kept_script(operator: ShowsScript, event: dict[str, Any] | None) -> None:
    """Show the script again after a wait; Airflow has rendered the task's fields anew."""
    operator.batch_script = ((event or {}).get("state") or {}).get(_SCRIPT)


def _notify(operator: Waits, context: Context, alerts: Sequence[dict[str, Any]]) -> None:
    """Run the notifiers for each alert; one that fails is logged, and fails nothing else."""
    for alert in alerts:
        for notifier in operator.on_anomaly:
            try:
                # A notifier renders its templates in place, and may be called again.
                copy.copy(notifier)({**context, "alert": alert})
            except Exception:
                operator.log.exception("a notifier of on_anomaly failed for %s", alert["id"])
