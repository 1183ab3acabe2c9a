"""Waits in the triggerer until a job's tasks have all ended, or waiting is vain.

Survives restarts of the triggerer, because it keeps nothing: each look reads the table.
One SSH connection per cluster and triggerer, and one look at the cluster per interval, is
shared by all waiting tasks.
"""

from __future__ import annotations

from typing import Any

from airflow_slurm_provider.airflow_errors import task_log
from airflow_slurm_provider.coordinator.status.progress import JobStatus
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.watcher import Watcher
from airflow_slurm_provider.metrics import JobMetrics
from airflow_slurm_provider.triggers.polling import FAILURES_ALLOWED, PollingTrigger
from slurm_worker.protocol.keys import check_job_id

#: The status of an event that tells of anomalies; who waits is to wait on.
ANOMALY = "anomaly"


class SlurmArrayTrigger(PollingTrigger):
    """Fires once: ``finished``, ``stalled`` (no worker is left), ``failed`` or ``anomaly``.

    :param job_id: the backfill.
    :param max_resubmissions: arrays of new workers that a round may get when its workers are
        gone and tasks are left.
    :param tells_anomalies: fire for alerts too, for an operator that has notifiers; they are
        in the log in any case.
    :param state: handed back with the event, for operators that wait several times.

    The other parameters are those of `PollingTrigger`.
    """

    def __init__(
        self,
        job_id: str,
        slurm_conn_id: str,
        aws_conn_id: str | None,
        poll_interval: float = 10.0,
        cancel_on_kill: bool = False,
        failures_allowed: int = FAILURES_ALLOWED,
        max_resubmissions: int = 0,
        tells_anomalies: bool = False,
        state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            slurm_conn_id, aws_conn_id, poll_interval, cancel_on_kill, failures_allowed
        )
        self.job_id = job_id
        self.max_resubmissions = max_resubmissions
        self.tells_anomalies = tells_anomalies
        self.state = state or {}
        self._watcher: Watcher | None = None
        self._metrics = JobMetrics(job_id)

    @property
    def arguments(self) -> dict[str, Any]:
        """See `PollingTrigger`."""
        return {
            "job_id": self.job_id,
            "max_resubmissions": self.max_resubmissions,
            "tells_anomalies": self.tells_anomalies,
            "state": self.state,
        }

    def look(self) -> dict[str, Any] | None:
        """One look at the job."""
        if self._watcher is None:
            self._watcher = self._open_watcher()
        seen = self._watcher.poll()
        self._metrics.record(seen)
        alerts = [each.to_dict() for each in self._watcher.take_alerts()]
        for alert in alerts:
            self._metrics.anomaly(alert["kind"])
        if alerts and self.tells_anomalies:
            told = {"status": ANOMALY, "message": alerts[0]["message"], "alerts": alerts}
            return {**told, **self._known()}
        event = event_of(seen)
        if event is None:
            return None
        return {**event, "lost_workers": dict(self._watcher.lost), **self._known()}

    def failed(self, message: str) -> dict[str, Any]:
        """The event for looks that failed."""
        return {
            "status": "failed",
            "message": message,
            "progress": None,
            "lost_workers": {},
            **self._known(),
        }

    def cancel(self) -> None:
        """Cancel the job's arrays."""
        control.cancel(self.hook.services(), check_job_id(self.job_id))

    def _known(self) -> dict[str, Any]:
        """What each event hands back."""
        return {"job_id": self.job_id, "state": self.state}

    def _open_watcher(self) -> Watcher:
        return Watcher(
            self.hook.services(poll_s=self.poll_interval),
            check_job_id(self.job_id),
            task_log(self),
            max_resubmissions=self.max_resubmissions,
            actor="airflow triggerer",
        )


def event_of(seen: JobStatus) -> dict[str, Any] | None:
    """What a look means to someone who waits; None where it is too early to say."""
    progress = seen.progress.to_dict()
    if seen.finished:
        return {"status": "finished", "message": seen.progress.line(), "progress": progress}
    if seen.problem:
        return {"status": "stalled", "message": seen.problem, "progress": progress}
    return None
