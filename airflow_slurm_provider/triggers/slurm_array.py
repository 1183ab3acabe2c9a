"""Waits in the triggerer until a job's tasks have all ended, or none can end any more.

It keeps nothing, so it survives restarts of the triggerer: each query reads the table. All
waiting tasks share one SSH connection per cluster and triggerer, and one query to Slurm per
interval.
"""

from __future__ import annotations

from typing import Any

from airflow_slurm_provider.airflow_errors import task_log
from airflow_slurm_provider.coordinator.status.progress import JobStatus
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.watcher import Watcher
from airflow_slurm_provider.metrics import JobMetrics
from airflow_slurm_provider.triggers.polling import PollingTrigger
from slurm_worker.protocol.keys import check_job_id

#: The status of an event that reports anomalies; the operator is to wait again.
ANOMALY = "anomaly"


class SlurmArrayTrigger(PollingTrigger):
    """Fires once: ``finished``, ``stalled`` (no worker is left), ``failed`` or ``anomaly``.

    :param job_id: the backfill.
    :param max_resubmissions: how many arrays of new workers a round may get when its workers are
        gone and tasks are left.
    :param tells_anomalies: also fire for alerts, for an operator that has notifiers. The log
        has them in any case.
    :param state: returned with the event, for operators that wait several times.

    The other parameters are those of `PollingTrigger`.
    """

    own_arguments = ("job_id", "max_resubmissions", "tells_anomalies", "state")

    def __init__(
        self,
        job_id: str,
        *,
        max_resubmissions: int = 0,
        tells_anomalies: bool = False,
        state: dict[str, Any] | None = None,
        **polling: Any,
    ) -> None:
        super().__init__(**polling)
        self.job_id = job_id
        self.max_resubmissions = max_resubmissions
        self.tells_anomalies = tells_anomalies
        self.state = state or {}
        self._watcher: Watcher | None = None
        self._metrics = JobMetrics(job_id)

    def poll(self) -> dict[str, Any] | None:
        """Query the job's status once."""
        if self._watcher is None:
            self._watcher = Watcher(
                self.hook.services(poll_s=self.poll_interval),
                check_job_id(self.job_id),
                task_log(self),
                max_resubmissions=self.max_resubmissions,
                actor="airflow triggerer",
            )
        alerts, event = query(self._watcher, self._metrics)
        if alerts and self.tells_anomalies:
            event = {"status": ANOMALY, "message": alerts[0]["message"], "alerts": alerts}
        return None if event is None else {**event, **self._identity()}

    def failed(self, message: str) -> dict[str, Any]:
        """The event for queries that failed."""
        empty = {"progress": None, "lost_workers": dict[str, int]()}
        return {"status": "failed", "message": message, **empty, **self._identity()}

    def cancel(self) -> None:
        """Cancel the job's arrays."""
        control.cancel(self.hook.services(), check_job_id(self.job_id))

    def _identity(self) -> dict[str, Any]:
        """The fields that every event returns to the operator."""
        return {"job_id": self.job_id, "state": self.state}


def query(
    watcher: Watcher, metrics: JobMetrics
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Query a job's status once: new alerts, and the event that ends the wait, if it ends."""
    status = watcher.poll()
    metrics.record(status)
    alerts = [alert.to_dict() for alert in watcher.take_alerts()]
    for alert in alerts:
        metrics.anomaly(alert["kind"])
    event = event_of(status)
    return alerts, None if event is None else {**event, "lost_workers": dict(watcher.lost)}


def event_of(status: JobStatus) -> dict[str, Any] | None:
    """The event that ends a wait at this status; None where the wait continues."""
    progress = status.progress.to_dict()
    if status.finished:
        return {"status": "finished", "message": status.progress.line(), "progress": progress}
    if status.problem:
        return {"status": "stalled", "message": status.problem, "progress": progress}
    return None
