"""What operators and the sensor share: the parameters of a wait, and the wait itself.

    execute ──> defer ──> trigger polls ──┬─> finished, stalled, failed ──> execute_complete
                  ^                       └─> anomaly ──> execute_complete
                  └────────── notifiers have run ────────────────┘

A trigger does not know the DAG's notifiers. Where there are some, it fires an event for alerts:
the operator runs the notifiers and defers again, with the same state and the rest of its
timeout. The audit log ensures that an alert is reported once per episode, by one watcher.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowException, TaskDeferred
from airflow.sdk import BaseOperator, Context

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.logs import read_script
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.watcher import Watcher
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.metrics import JobMetrics
from airflow_slurm_provider.triggers.polling import PollBudget
from airflow_slurm_provider.triggers.slurm_array import ANOMALY, SlurmArrayTrigger, query
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.printable import printable_lines
from slurm_worker.protocol.keys import check_job_id

#: An Airflow notifier, or any function of a context.
Notifier = Callable[[Any], Any]
_UNTIL, _SCRIPT = "until", "batch_script"


class JobWaiter(BaseOperator):
    """The parameters of every operator and sensor that waits for a job on the cluster.

    :param slurm_conn_id: connection of type ``slurm``.
    :param aws_conn_id: connection of type ``aws``.
    :param deferrable: wait in the triggerer; otherwise the task's own process waits.
    :param poll_interval: seconds between two status queries while waiting.
    :param cancel_on_kill: cancel the arrays when this task is killed while it waits.
    :param max_resubmissions: how many arrays of new workers a round may get when its workers are
        gone and tasks are left. After that the task fails with the reason.
    :param on_anomaly: notifiers to run when something is wrong with the job while this task
        waits for it. Their context has the ``alert``.
    """

    def __init__(
        self,
        *,
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
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.max_resubmissions = max_resubmissions
        self.on_anomaly = on_anomaly
        #: The job that this process waits for; empty before there is one.
        self.awaited = ""
        #: Shown among the rendered templates, once it is known; not a parameter.
        self.batch_script: str | None = None

    @property
    def backfill(self) -> str:
        """The job that `BackfillLink` opens; empty before it is submitted."""
        return self.awaited

    def services(self) -> Services:
        """The table, the bucket and the cluster of the connections."""
        return SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()

    def on_kill(self) -> None:
        """Cancel the arrays of the job that this process waits for, if asked to.

        In the triggerer, the trigger does so.
        """
        if self.cancel_on_kill and self.awaited:
            control.cancel(self.services(), check_job_id(self.awaited))

    def wait_until_done(self, context: Context, job_id: str) -> dict[str, Any]:
        """Wait in this process; return the job's progress at its end."""
        poller = JobPoller(self, job_id)
        while (event := poller.poll(context)) is None:
            time.sleep(poller.budget.pause_s)  # not deferrable: this process is to wait
        return progress_of(event)

    def defer_until_done(
        self, job_id: str, state: dict[str, Any] | None = None, timeout: timedelta | None = None
    ) -> NoReturn:
        """Wait in the triggerer; the operator continues in `execute_complete`."""
        state = dict(state or {})
        if timeout is not None:
            state[_UNTIL] = time.time() + timeout.total_seconds()
        raise TaskDeferred(
            trigger=SlurmArrayTrigger(
                job_id=job_id,
                slurm_conn_id=self.slurm_conn_id,
                aws_conn_id=self.aws_conn_id,
                poll_interval=self.poll_interval,
                cancel_on_kill=self.cancel_on_kill,
                max_resubmissions=self.max_resubmissions,
                tells_anomalies=bool(self.on_anomaly),
                state=state,
            ),
            timeout=timeout,
            method_name="execute_complete",
        )

    def handle_anomalies(self, context: Context, event: dict[str, Any]) -> None:
        """If the event reports anomalies, run the notifiers and wait again."""
        if event.get("status") != ANOMALY:
            return
        self.notify(context, event["alerts"])
        state = dict(event["state"])
        until = state.get(_UNTIL)
        left = None if until is None else timedelta(seconds=max(1.0, until - time.time()))
        self.defer_until_done(event["job_id"], state, left)

    def notify(self, context: Context, alerts: Sequence[dict[str, Any]]) -> None:
        """Run the notifiers for each alert; one that fails is logged and fails nothing else."""
        for alert in alerts:
            for notifier in self.on_anomaly:
                try:
                    # A notifier renders its templates in place, and may be called again.
                    copy.copy(notifier)({**context, "alert": alert})
                except Exception:
                    self.log.exception("a notifier of on_anomaly failed for %s", alert["id"])

    def show_script(self, job_id: str) -> dict[str, Any]:
        """Show the latest array's script among the rendered templates; the state that keeps it.

        It is read from the cluster, so it is the script that ``sbatch`` got, also where an
        earlier try submitted it. A cluster that can't be reached hides the script, and does not
        fail the task.
        """
        try:
            self.batch_script = read_script(self.services(), check_job_id(job_id)) or None
        except (ServiceError, UserError) as error:
            self.log.warning("the batch script can't be shown: %s", error)
        return {_SCRIPT: self.batch_script}

    def show_kept_script(self, event: dict[str, Any] | None) -> None:
        """Show the script after a wait, because Airflow has rendered the task's fields again."""
        self.batch_script = ((event or {}).get("state") or {}).get(_SCRIPT)


class JobPoller:
    """Polls a job from a task's own process, and runs the notifiers.

    It tolerates as many failed status queries in a row as a trigger.
    """

    def __init__(self, operator: JobWaiter, job_id: str) -> None:
        self._operator = operator
        operator.awaited = job_id
        self.budget = PollBudget(operator.poll_interval, operator.log)
        with as_airflow_failures():
            self._watcher = Watcher(
                operator.services(),
                check_job_id(job_id),
                task_log(operator),
                max_resubmissions=operator.max_resubmissions,
                actor="airflow",
            )
        self._metrics = JobMetrics(job_id)

    def poll(self, context: Context) -> dict[str, Any] | None:
        """Query once: the event that ends the wait; None while it lasts or the query failed."""
        with as_airflow_failures():
            try:
                alerts, event = query(self._watcher, self._metrics)
            except ServiceError as error:
                if self.budget.allow_error(error):
                    return None
                raise
        self.budget.reset()
        self._operator.notify(context, alerts)
        return event


def progress_of(event: dict[str, Any] | None) -> dict[str, Any]:
    """The job's progress from a trigger's event.

    :raises AirflowException: if the job stalled, or its status could not be read any more.
    """
    if not event or "status" not in event:
        raise AirflowException(f"the trigger ended without a result: {event!r}")
    if event["status"] != "finished":
        raise AirflowException(printable_lines(str(event["message"])))
    progress: dict[str, Any] = event["progress"]
    return progress


def actor_of(context: Context) -> str:
    """The actor for the audit log: this try of the task."""
    ti = context["ti"]
    return f"airflow {ti.dag_id}.{ti.task_id} {ti.run_id} try {ti.try_number}"
