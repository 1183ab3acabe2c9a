"""Alerts in the audit log, where all processes that watch a job agree on its episodes.

An episode begins with an event under a name made of kind, subject and number, and ends with a
second one. Both are written by conditional puts: of several processes that detect the same
thing, one writes it, and only that one delivers the alert.

Requests: one query to read; two writes to raise an alert or to end its episode.
"""

from __future__ import annotations

from airflow_slurm_provider.coordinator.anomalies.alert import OVER, RAISED, Alert
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId

_PREFIX = f"{RAISED}/"
_OVER = "/over"


def read_alerts(services: Services, job_id: JobId) -> list[Alert]:
    """All alerts that were raised for a job, oldest first.

    Raises:
        ServiceError: if the table can't be reached.
    """
    return sorted(_alerts(services.jobs(job_id)), key=lambda alert: alert.at_ms)


def append_alert(jobs: JobTable, actor: str, alert: Alert) -> bool:
    """Write the alert; False if another process has."""
    return jobs.audit(actor, RAISED, alert.detail(), once=f"{_PREFIX}{alert.id}")


def append_end(jobs: JobTable, actor: str, alert: Alert) -> bool:
    """Write that the alert's episode is over; False if another process has."""
    detail = alert.detail()
    kept = {name: detail[name] for name in ("kind", "subject", "episode")}
    return jobs.audit(actor, OVER, kept, once=f"{_PREFIX}{alert.id}{_OVER}")


def _alerts(jobs: JobTable) -> list[Alert]:
    raised: dict[str, Alert] = {}
    ended: dict[str, int] = {}
    for name, event in jobs.events_once(_PREFIX):
        if event.action == OVER:
            ended[name.removesuffix(_OVER)] = event.at_ms
        else:
            raised[name] = Alert.of_event(jobs.job, event)
    return [alert.ended(ended[name]) if name in ended else alert for name, alert in raised.items()]
