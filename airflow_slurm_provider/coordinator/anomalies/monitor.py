"""Looks for anomalies beside someone who waits: reads what a look lacks, tells what is news.

However many processes watch a job, each episode has one alert: the audit trail decides
(`audit_log.py`). What the detector remembers is kept on S3, so that a process that is started
anew, or a sensor that is another process at each poke, goes on where the last one was.

Requests per look: one read per rate limit; a GET and a query at the first look; a PUT each
half minute, and a query and two writes per alert.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from airflow_slurm_provider.coordinator.anomalies.alert import Alert
from airflow_slurm_provider.coordinator.anomalies.audit_log import (
    append_alert,
    append_end,
    read_alerts,
)
from airflow_slurm_provider.coordinator.anomalies.detector import Detector
from airflow_slurm_provider.coordinator.anomalies.notifications import deliver
from airflow_slurm_provider.coordinator.anomalies.observation import Observation
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


def observe(services: Services, spec: JobSpec, poll: JobStatus, snapshot: Snapshot) -> Observation:
    """What the detector is given; one read per rate limit.

    Raises:
        ServiceError: if the table can't be reached.
    """
    work = work_cost(snapshot, spec)
    return Observation(
        snapshot,
        finished=poll.finished,
        dollars=work.spent,
        estimate=work.expected,
        workers=None if poll.array is None else poll.array.running,
        nodes={} if poll.array is None else _nodes(poll.array),
        lease=spec.resolve_lease(),
        limits=() if poll.finished else tuple(limit_states(services, spec.limits)),
    )


class AnomalyMonitor:
    """Looks for anomalies of one job.

    Args:
        services: the edges.
        job_id: the job.
        say: told of each alert, and of what fails.
        actor: who watches, for the audit trail.
        alert: told of each alert that this process is the one to deliver.
    """

    def __init__(
        self,
        services: Services,
        job_id: JobId,
        say: Callable[[str], None],
        *,
        actor: str = "slurmctl",
        alert: Callable[[Alert], None] | None = None,
    ) -> None:
        self._services = services
        self._job_id = job_id
        self._jobs = services.jobs(job_id)
        self._say = say
        self._actor = actor
        self._alert = alert
        self._config = ""
        self._spec: JobSpec | None = None
        self._detector: Detector | None = None
        self._kept_ms = 0
        self._failed = ""

    def check(self, poll: JobStatus) -> None:
        """Judge a look. What fails here is said once, and fails nothing else."""
        if poll.snapshot is None:
            return
        try:
            self._look(poll, poll.snapshot)
        except (ServiceError, UserError) as error:
            if str(error) != self._failed:
                self._failed = str(error)
                self._say(f"anomalies are not looked for: {error}")

    def _look(self, poll: JobStatus, snapshot: Snapshot) -> None:
        spec = self._spec_of(snapshot)
        if not spec.anomalies.enabled:
            return
        detector = self._detector
        if detector is None:
            detector = self._detector = self._load(spec, snapshot)
        detector.thresholds = spec.anomalies.resolve()
        news = detector.see(observe(self._services, spec, poll, snapshot))
        for each in news.raised:
            self._raise(detector, each)
        for each in news.over:
            append_end(self._jobs, self._actor, each)
        if news.raised or news.over or snapshot.at_ms >= self._kept_ms + _KEEP_AFTER_MS:
            self._keep(detector, snapshot)

    def _spec_of(self, snapshot: Snapshot) -> JobSpec:
        if self._spec is None or self._config != snapshot.job.config:
            self._spec = read_spec(self._services, snapshot.job)
            self._config = snapshot.job.config
        return self._spec

    def _raise(self, detector: Detector, alert: Alert) -> None:
        """Append the alert to the trail and deliver it, unless somebody else has or does."""
        same = [
            each
            for each in read_alerts(self._services, self._job_id)
            if (each.kind, each.subject) == (alert.kind, alert.subject)
        ]
        last = max(same, key=lambda each: each.episode, default=None)
        if last is not None:
            if not last.over_ms:
                detector.adopt(last)
                return
            alert = replace(alert, episode=max(alert.episode, last.episode + 1))
        detector.adopt(alert)
        if append_alert(self._jobs, self._actor, alert):
            self._tell(alert)

    def _tell(self, alert: Alert) -> None:
        self._say(f"anomaly: {alert.line()}")
        deliver(self._services, alert, self._say)
        if self._alert is None:
            return
        try:
            self._alert(alert)
        except Exception as error:  # whatever a user's callback raises, the wait goes on
            self._say(f"alert {alert.id}: its callback failed: {type(error).__name__}: {error}")

    def _load(self, spec: JobSpec, snapshot: Snapshot) -> Detector:
        """The detector as it was left; the trail knows what was told since."""
        thresholds = spec.anomalies.resolve()
        data = self._services.objects.get(self._services.paths(self._job_id).anomalies)
        raw: dict[str, Any] = {} if data is None else json.loads(data)
        if raw.get("v") == _VERSION and raw["created_ms"] == snapshot.job.created_ms:
            detector = Detector.from_dict(thresholds, raw["detector"])
            self._kept_ms = raw["kept_ms"]
        else:
            detector = Detector(thresholds)
        for each in read_alerts(self._services, self._job_id):
            detector.adopt(each)
        return detector

    def _keep(self, detector: Detector, snapshot: Snapshot) -> None:
        document = {
            "v": _VERSION,
            "created_ms": snapshot.job.created_ms,
            "kept_ms": snapshot.at_ms,
            "detector": detector.to_dict(),
        }
        # Whoever writes last wins; what must be the same for all is in the trail.
        self._services.objects.put(
            self._services.paths(self._job_id).anomalies,
            json.dumps(document, separators=(",", ":")).encode(),
        )
        self._kept_ms = snapshot.at_ms


def _nodes(array: ArrayState) -> dict[str, str]:
    """Nodes by the beginning of their workers' names; several arrays don't tell them apart."""
    if "," in array.slurm_job_id:
        return {}
    return {
        f"{array.slurm_job_id}_{number}-": element.node
        for number, element in array.elements.items()
        if element.node
    }
