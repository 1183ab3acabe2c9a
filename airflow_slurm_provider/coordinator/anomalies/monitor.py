"""Checks a job for anomalies while a task or a command waits for it, and delivers the new alerts.

However many processes watch a job, each episode has one alert: the audit log decides
(`alert.py`). The detector's state is kept on S3, so that a new process continues where the
last one was; a sensor is a new process at each poke.

Requests per check: one read per rate limit; a GET and a query at the first check; a PUT every
half minute, and a query and two writes per alert.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from airflow_slurm_provider.coordinator.anomalies.alert import (
    Alert,
    append_alert,
    append_end,
    read_alerts,
)
from airflow_slurm_provider.coordinator.anomalies.baseline import Observation
from airflow_slurm_provider.coordinator.anomalies.detector import Detector
from airflow_slurm_provider.coordinator.anomalies.notifications import deliver
from airflow_slurm_provider.coordinator.costs.actual import work_cost
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.spec_store import read_spec
from airflow_slurm_provider.coordinator.status.progress import JobStatus
from airflow_slurm_provider.coordinator.status.rate_limits import limit_states
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.slurm.array_state import ArrayState
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.keys import JobId

_VERSION = 1
_KEEP_AFTER_MS = 30_000


def observe(
    services: Services, spec: JobSpec, status: JobStatus, snapshot: Snapshot
) -> Observation:
    """What the detector is given; one read per rate limit."""
    spent, expected = work_cost(snapshot, spec)
    return Observation(
        snapshot,
        finished=status.finished,
        dollars=spent,
        estimate=expected,
        workers=None if status.array is None else status.array.running,
        nodes={} if status.array is None else _nodes(status.array),
        lease=spec.resolve_lease(),
        limits=() if status.finished else tuple(limit_states(services, spec.limits)),
    )


class AnomalyMonitor:
    """Checks one job for anomalies.

    `log` gets a line for each alert, and for each failure; `actor` is the name of this process in
    the audit log; `alert` is called with each alert that this process delivers.
    """

    def __init__(
        self,
        services: Services,
        job_id: JobId,
        log: Callable[[str], None],
        *,
        actor: str = "slurmctl",
        alert: Callable[[Alert], None] | None = None,
    ) -> None:
        self._services = services
        self._job_id = job_id
        self._jobs = services.jobs(job_id)
        self._log = log
        self._actor = actor
        self._alert = alert
        #: The job's spec, by the digest of its configuration.
        self._specs: dict[str, JobSpec] = {}
        self._detector: Detector | None = None
        self._kept_ms = 0
        self._failed = ""

    def check(self, status: JobStatus) -> None:
        """Check a status. A failure here is logged once, and the wait continues."""
        if status.snapshot is None:
            return
        try:
            self._check(status, status.snapshot)
        except (ServiceError, UserError) as error:
            if str(error) != self._failed:
                self._failed = str(error)
                self._log(f"anomalies were not checked: {error}")

    def _check(self, status: JobStatus, snapshot: Snapshot) -> None:
        spec = self._spec_of(snapshot)
        if not spec.anomalies.enabled:
            return
        detector = self._detector
        if detector is None:
            detector = self._detector = self._load(spec, snapshot)
        detector.thresholds = spec.anomalies
        changes = detector.observe(observe(self._services, spec, status, snapshot))
        for alert in changes.raised:
            self._raise(detector, alert)
        for alert in changes.over:
            append_end(self._jobs, self._actor, alert)
        if changes.raised or changes.over or snapshot.at_ms >= self._kept_ms + _KEEP_AFTER_MS:
            self._keep(detector, snapshot)

    def _spec_of(self, snapshot: Snapshot) -> JobSpec:
        config = snapshot.job.config
        if config not in self._specs:
            self._specs = {config: read_spec(self._services, snapshot.job)}
        return self._specs[config]

    def _raise(self, detector: Detector, alert: Alert) -> None:
        """Write the alert to the audit log and deliver it, unless another process does."""
        key, alerts = (alert.kind, alert.subject), read_alerts(self._services, self._job_id)
        same = (other for other in alerts if (other.kind, other.subject) == key)
        last = max(same, key=lambda other: other.episode, default=None)
        if last is not None:
            # An episode that lasts is written again: its writer may have died halfway.
            again = replace(alert, episode=max(alert.episode, last.episode + 1))
            alert = again if last.over_ms else last
        detector.adopt(alert)
        if append_alert(self._jobs, self._actor, alert):
            self._report(alert)

    def _report(self, alert: Alert) -> None:
        self._log(f"anomaly: {alert.line()}")
        deliver(self._services, alert, self._log)
        if self._alert is None:
            return
        try:
            self._alert(alert)
        except Exception as error:  # whatever a user's callback raises, the wait continues
            self._log(f"alert {alert.id}: its callback failed: {type(error).__name__}: {error}")

    def _load(self, spec: JobSpec, snapshot: Snapshot) -> Detector:
        """The stored detector, with the alerts that the audit log has since."""
        thresholds = spec.anomalies
        data = self._services.objects.get(self._services.paths(self._job_id).anomalies)
        raw: dict[str, Any] = {} if data is None else json.loads(data)
        if raw.get("v") == _VERSION and raw["created_ms"] == snapshot.job.created_ms:
            detector = Detector.from_dict(thresholds, raw["detector"])
            self._kept_ms = raw["kept_ms"]
        else:
            detector = Detector(thresholds)
        for alert in read_alerts(self._services, self._job_id):
            detector.adopt(alert)
        return detector

    def _keep(self, detector: Detector, snapshot: Snapshot) -> None:
        document = {
            "v": _VERSION,
            "created_ms": snapshot.job.created_ms,
            "kept_ms": snapshot.at_ms,
            "detector": detector.to_dict(),
        }
        # The last writer wins; what all processes must agree on is in the audit log.
        self._services.objects.put(
            self._services.paths(self._job_id).anomalies,
            json.dumps(document, separators=(",", ":")).encode(),
        )
        self._kept_ms = snapshot.at_ms


def _nodes(array: ArrayState) -> dict[str, str]:
    """Nodes by the start of their workers' names; empty for several arrays, which are merged."""
    if "," in array.slurm_job_id:
        return {}
    return {
        f"{array.slurm_job_id}_{number}-": element.node
        for number, element in array.elements.items()
        if element.node
    }
