"""What each look at a job tells Airflow's metrics: StatsD, DogStatsD or OpenTelemetry.

Airflow's own ``[metrics]`` section says whether and where. All values are gauges but
`anomalies`; all have the tag ``backfill``, the job's id (a tag of the name ``job_id`` Airflow
drops unless told otherwise), so a backend with tags tells jobs apart. Several tasks that
wait for one job set the same gauges to the same values.
"""

from __future__ import annotations

from typing import Any, Protocol

from airflow.providers.common.compat.sdk import Stats

from airflow_slurm_provider.coordinator.status.progress import JobStatus
from slurm_worker.protocol.keys import TaskState

PREFIX = "slurm_backfill"


class StatsSink(Protocol):
    """As much of Airflow's `Stats` as is used here."""

    def gauge(self, stat: str, value: float, *, tags: dict[str, Any]) -> None:
        """Set a gauge."""

    def incr(self, stat: str, *, tags: dict[str, Any]) -> None:
        """Count one more."""


class JobMetrics:
    """Metrics of one job, told by one who watches it.

    Args:
        job_id: the job.
        sink: where they go.
    """

    def __init__(self, job_id: str, sink: StatsSink = Stats) -> None:
        self._job_id = job_id
        self._sink = sink
        #: Error classes that were told: one whose failures are cured is to fall to 0.
        self._classes: set[str] = set()

    def record(self, status: JobStatus) -> None:
        """Tell one look."""
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
        if status.finished or status.array is not None:
            array = None if status.finished else status.array
            self._gauge("workers_running", 0 if array is None else array.running)
            self._gauge("workers_pending", 0 if array is None else array.pending)

    def anomaly(self, kind: str) -> None:
        """Count an alert."""
        self._sink.incr(f"{PREFIX}.anomalies", tags={"backfill": self._job_id, "kind": kind})

    def _gauge(self, name: str, value: float, **tags: str) -> None:
        self._sink.gauge(f"{PREFIX}.{name}", value, tags={"backfill": self._job_id, **tags})
