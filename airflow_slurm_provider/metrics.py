"""A job's status as Airflow metrics: StatsD, DogStatsD or OpenTelemetry.

Airflow's own ``[metrics]`` section decides whether and where. All values except `anomalies` are
gauges. All have the tag ``backfill`` with the job's id, because Airflow drops a tag of the name
``job_id`` by default. Several tasks that wait for one job set the same gauges to the same values.
"""

from __future__ import annotations

from typing import Any, Protocol

from airflow.providers.common.compat.sdk import Stats

from airflow_slurm_provider.coordinator.status.progress import JobStatus
from slurm_worker.protocol.keys import TaskState

PREFIX = "slurm_backfill"


class StatsSink(Protocol):
    """The part of Airflow's `Stats` that is used here."""

    def gauge(self, stat: str, value: float, *, tags: dict[str, Any]) -> None:
        """Set a gauge."""

    def incr(self, stat: str, *, tags: dict[str, Any]) -> None:
        """Count one more."""


class JobMetrics:
    """Metrics of one job, which go to `sink`."""

    def __init__(self, job_id: str, sink: StatsSink = Stats) -> None:
        self._job_id = job_id
        self._sink = sink
        #: Reported error classes: one whose failures were retried successfully falls to 0.
        self._classes: set[str] = set()

    def record(self, status: JobStatus) -> None:
        """Set the gauges to a job's status."""
        progress = status.progress
        self._gauge("items", progress.items)
        self._gauge("items_ok", progress.ok)
        self._gauge("items_pending", progress.pending)
        self._classes |= progress.failed.keys()
        for name in sorted(self._classes):
            self._gauge("items_failed", progress.failed.get(name, 0), error_class=name)
        for state in TaskState:
            self._gauge("tasks", progress.tasks.get(state.value, 0), state=state.value)
        if status.snapshot is not None:
            self._gauge("leases_lost", status.snapshot.lost)
        array = None if status.finished else status.array
        if status.finished or array is not None:
            self._gauge("workers_running", array.running if array else 0)
            self._gauge("workers_pending", array.pending if array else 0)

    def anomaly(self, kind: str) -> None:
        """Count an alert."""
        self._sink.incr(f"{PREFIX}.anomalies", tags={"backfill": self._job_id, "kind": kind})

    def _gauge(self, name: str, value: float, **tags: str) -> None:
        self._sink.gauge(f"{PREFIX}.{name}", value, tags={"backfill": self._job_id, **tags})
