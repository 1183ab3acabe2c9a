"""Cached queries: requests that want the same answer at the same time share one query.

However many browsers and scrapers poll, a process reads a job's tasks once per `SNAPSHOT_S`,
the cluster once per `CLUSTER_S`, and so on. In lists a complete job is read less often.
Requests to AWS are those of the coordinator's functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_slurm_provider.coordinator.anomalies.alert import Alert, read_alerts
from airflow_slurm_provider.coordinator.costs.actual import JobCost, read_cost
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.arrays import arrays_of
from airflow_slurm_provider.coordinator.status.audit_log import AuditLogReader
from airflow_slurm_provider.coordinator.status.failures import FailureGroup, explain
from airflow_slurm_provider.coordinator.status.progress import progress_of
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState, read_limits
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot, read_snapshot
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.slurm.array_state import ArrayState
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.job_rows import AuditEvent, SubmissionRow
from slurm_worker.protocol.job_table import newest_jobs
from slurm_worker.protocol.keys import JobId

SNAPSHOT_S = 2.0
LISTED_S = 5.0
#: In a list, of a job that has nothing left to run.
COMPLETE_S = 30.0
CLUSTER_S = 10.0
LIMITS_S = 5.0
COST_S = 30.0
FAILURES_S = 600.0
EVENTS_S = 3.0
#: Events of a job that are kept; `slurmctl events` reads older ones.
_MOST_EVENTS = 5_000
#: Submissions whose arrays are queried, the last ones.
_MOST_ARRAYS = 16
_THREADS = 8

T = TypeVar("T")


class NoSuchJobError(UserError):
    """There is no such job."""


@dataclass(frozen=True, slots=True)
class SharedCache:
    """What the requests of one process share."""

    answers: TTLCache[Any] = field(default_factory=TTLCache)
    #: Each reads on from where it was, for as long as requests want it.
    audit_logs: TTLCache[AuditLogReader] = field(default_factory=TTLCache)


@dataclass(frozen=True, slots=True)
class JobCache:
    """The cached queries of one request."""

    conn: str  #: the site's name; empty for the default
    services: Services  #: the site's
    shared: SharedCache  #: what earlier requests have read

    def snapshot(self, job_id: JobId, max_age_s: float = SNAPSHOT_S) -> Snapshot:
        """The job's tasks.

        Raises:
            NoSuchJobError: if there is no such job.
            ServiceError: if the table or the store can't be reached.
        """
        return self._cached("snapshot", job_id, max_age_s, lambda: self._read(job_id))

    def newest(self, offset: int, limit: int) -> tuple[list[Snapshot], bool]:
        """Jobs by age, the newest first, and whether there are older ones."""
        ids = self._cached(
            f"jobs {offset} {limit}",
            "",
            LISTED_S,
            lambda: newest_jobs(self.services.rows, offset + limit + 1)[offset:],
        )
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(self._listed, ids[:limit]))
        return [snapshot for snapshot in found if snapshot is not None], len(ids) > limit

    def submissions(self, job_id: JobId) -> list[SubmissionRow]:
        """Every submission of the job that had workers, oldest first."""

        def query() -> list[SubmissionRow]:
            return [row for row in self.services.jobs(job_id).submissions() if not row.empty]

        return self._cached("submissions", job_id, SNAPSHOT_S, query)

    def arrays(self, job_id: JobId) -> ArrayState | None:
        """The job's last arrays as Slurm shows them; None where none was submitted.

        Raises:
            ServiceError: if the cluster can't be reached.
        """
        submissions = self.submissions(job_id)
        if not submissions:
            return None

        def query() -> ArrayState | None:
            arrays = arrays_of(self.services, job_id, submissions)[-_MOST_ARRAYS:]
            return self.services.arrays(arrays) if arrays else None

        return self._cached("arrays", job_id, CLUSTER_S, query)

    def limits(self, job_id: JobId) -> list[LimitState]:
        """The job's rate limits."""
        return self._cached("limits", job_id, LIMITS_S, lambda: read_limits(self.services, job_id))

    def cost(self, job_id: JobId) -> JobCost:
        """What the job has cost so far; queries Slurm's accounting."""
        return self._cached("cost", job_id, COST_S, lambda: read_cost(self.services, job_id))

    def failures(self, job_id: JobId) -> list[FailureGroup]:
        """The job's failures by class and message; reads the parts of failed items."""
        snapshot = self.snapshot(job_id)
        # Only new failures or a new round change the answer.
        version = (snapshot.done.failed.total(), len(snapshot.ended), len(snapshot.rounds))

        def query() -> tuple[tuple[int, ...], list[FailureGroup]]:
            return version, explain(self.services, job_id)

        found, groups = self._cached("failures", job_id, FAILURES_S, query)
        if found != version:
            self.shared.answers.forget(self._key("failures", job_id))
            _, groups = self._cached("failures", job_id, FAILURES_S, query)
        return groups

    def events(self, job_id: JobId) -> tuple[AuditEvent, ...]:
        """The last events of the job's audit log, oldest first."""

        def query() -> tuple[AuditEvent, ...]:
            reader = self.shared.audit_logs.get(
                self._key("audit log", job_id),
                math.inf,
                lambda: AuditLogReader(self.services, job_id, keep=_MOST_EVENTS),
            )
            reader.read()
            return reader.events

        return self._cached("events", job_id, EVENTS_S, query)

    def alerts(self, job_id: JobId) -> list[Alert]:
        """All alerts of the job, oldest first.

        Not from `events`: a long job has more events than are kept.
        """
        return self._cached("alerts", job_id, EVENTS_S, lambda: read_alerts(self.services, job_id))

    def forget(self, job_id: JobId) -> None:
        """Query again: something was just done to the job."""
        for kind in ("snapshot", "submissions", "arrays", "events", "alerts"):
            self.shared.answers.forget(self._key(kind, job_id))

    def _listed(self, job_id: JobId) -> Snapshot | None:
        try:
            snapshot = self.snapshot(job_id, COMPLETE_S)
            if not progress_of(snapshot).complete:
                snapshot = self.snapshot(job_id, LISTED_S)
        except NoSuchJobError:
            return None
        return snapshot

    def _read(self, job_id: JobId) -> Snapshot:
        try:
            return read_snapshot(self.services, job_id)
        except UserError as error:
            if isinstance(error, ServiceError) or self.services.jobs(job_id).find() is not None:
                raise
            raise NoSuchJobError(str(error)) from error

    def _cached(self, kind: str, job_id: str, max_age_s: float, query: Callable[[], T]) -> T:
        found: T = self.shared.answers.get(self._key(kind, job_id), max_age_s, query)
        return found

    def _key(self, kind: str, job_id: str) -> tuple[str, str, str]:
        return self.conn, job_id, kind
