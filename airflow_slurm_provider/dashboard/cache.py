"""What requests look at, each look shared by all who want it at the same time.

However many browsers and scrapers poll, a process looks at a job's tasks once per
`SNAPSHOT_S`, at the cluster once per `CLUSTER_S`, and so on. A look at a job that is
complete is kept for longer in lists. Requests to AWS are those of the coordinator's functions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_slurm_provider.coordinator.anomalies.alert import OVER, RAISED
from airflow_slurm_provider.coordinator.costs.actual import JobCost, read_cost
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.arrays import arrays_of
from airflow_slurm_provider.coordinator.status.failures import Group, explain
from airflow_slurm_provider.coordinator.status.progress import progress_of
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState, read_limits
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot, read_snapshot
from airflow_slurm_provider.coordinator.ttl_cache import Recent
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
#: Events of a job that are kept; older ones are read with ``slurmctl events``.
_MOST_EVENTS = 5_000
#: Writers' clocks differ: so much of the trail is read again.
_EVENT_OVERLAP_MS = 5_000
#: Submissions whose arrays are looked at, the last ones.
_MOST_ARRAYS = 16
_THREADS = 8

T = TypeVar("T")


class NoSuchJobError(UserError):
    """There is no such job."""


@dataclass(slots=True)
class Trail:
    """A job's audit trail as far as it was read."""

    events: deque[AuditEvent] = field(default_factory=lambda: deque(maxlen=_MOST_EVENTS))
    #: Those of alerts, which many other events must not push out.
    anomalies: deque[AuditEvent] = field(default_factory=lambda: deque(maxlen=_MOST_EVENTS))
    marks: set[str] = field(default_factory=set)

    def read(self, services: Services, job_id: JobId) -> None:
        """Read on."""
        after = ""
        if self.events:
            after = f"{max(0, self.events[-1].at_ms - _EVENT_OVERLAP_MS):013}"
        for event in services.jobs(job_id).events(after):
            if event.sk in self.marks:
                continue
            self.marks.add(event.sk)
            self.events.append(event)
            if event.action in (RAISED, OVER):
                self.anomalies.append(event)
        self.marks = {each.sk for each in self.events}


@dataclass(frozen=True, slots=True)
class SharedCache:
    """What requests of one process share."""

    recent: Recent[Any] = field(default_factory=Recent)
    #: Audit trails as far as they were read, each for as long as somebody looks at it.
    trails: Recent[Trail] = field(default_factory=Recent)


@dataclass(frozen=True, slots=True)
class JobCache:
    """What one request looks through: a site's services, and what others have just seen.

    Args:
        conn: the site's name; empty for the default.
    """

    conn: str
    services: Services
    shares: SharedCache

    def snapshot(self, job_id: JobId, max_age_s: float = SNAPSHOT_S) -> Snapshot:
        """The job's tasks.

        Raises:
            NoSuchJobError: if there is no such job.
            ServiceError: if the table or the store can't be reached.
        """
        return self._recent("snapshot", job_id, max_age_s, lambda: self._read(job_id))

    def newest(self, offset: int, limit: int) -> tuple[list[Snapshot], bool]:
        """Jobs by age, the newest first, and whether there are older ones."""
        ids = self._recent(
            f"jobs {offset} {limit}",
            "",
            LISTED_S,
            lambda: newest_jobs(self.services.rows, offset + limit + 1)[offset:],
        )
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(self._listed, ids[:limit]))
        return [each for each in found if each is not None], len(ids) > limit

    def submissions(self, job_id: JobId) -> list[SubmissionRow]:
        """Every submission of the job that had workers, oldest first."""

        def read() -> list[SubmissionRow]:
            return [each for each in self.services.jobs(job_id).submissions() if not each.empty]

        return self._recent("submissions", job_id, SNAPSHOT_S, read)

    def arrays(self, job_id: JobId) -> ArrayState | None:
        """The job's last arrays as Slurm shows them; None where none was submitted.

        Raises:
            ServiceError: if the cluster can't be reached.
        """
        submissions = self.submissions(job_id)
        if not submissions:
            return None

        def read() -> ArrayState | None:
            arrays = arrays_of(self.services, job_id, submissions)[-_MOST_ARRAYS:]
            return self.services.arrays(arrays) if arrays else None

        return self._recent("arrays", job_id, CLUSTER_S, read)

    def limits(self, job_id: JobId) -> list[LimitState]:
        """The job's rate limits."""
        return self._recent("limits", job_id, LIMITS_S, lambda: read_limits(self.services, job_id))

    def cost(self, job_id: JobId) -> JobCost:
        """What the job has cost so far; asks Slurm's accounting."""
        return self._recent("cost", job_id, COST_S, lambda: read_cost(self.services, job_id))

    def failures(self, job_id: JobId) -> list[Group]:
        """The job's failures by class and message; reads parts, so only where asked for."""
        seen = self.snapshot(job_id)
        # New failures or a new round ask for a new look; anything else doesn't change them.
        standing = (seen.done.failed.total(), len(seen.ended), len(seen.rounds))

        def read() -> tuple[tuple[int, ...], list[Group]]:
            return standing, explain(self.services, job_id)

        of, groups = self._recent("failures", job_id, FAILURES_S, read)
        if of != standing:
            self.shares.recent.forget(self._key("failures", job_id))
            _, groups = self._recent("failures", job_id, FAILURES_S, read)
        return groups

    def trail(self, job_id: JobId) -> Trail:
        """The job's audit trail."""

        def read() -> Trail:
            trail = self.shares.trails.get(f"{self.conn} {job_id}", math.inf, Trail)
            trail.read(self.services, job_id)
            return trail

        return self._recent("trail", job_id, EVENTS_S, read)

    def forget(self, job_id: JobId) -> None:
        """Look anew: something was just done to the job."""
        for kind in ("snapshot", "submissions", "arrays", "trail"):
            self.shares.recent.forget(self._key(kind, job_id))

    def _listed(self, job_id: JobId) -> Snapshot | None:
        try:
            seen = self.snapshot(job_id, COMPLETE_S)
            if not progress_of(seen).complete:
                seen = self.snapshot(job_id, LISTED_S)
        except NoSuchJobError:
            return None
        return seen

    def _read(self, job_id: JobId) -> Snapshot:
        try:
            return read_snapshot(self.services, job_id)
        except UserError as error:
            if isinstance(error, ServiceError) or self.services.jobs(job_id).find() is not None:
                raise
            raise NoSuchJobError(str(error)) from error

    def _recent(self, kind: str, job_id: str, max_age_s: float, ask: Callable[[], T]) -> T:
        found: T = self.shares.recent.get(self._key(kind, job_id), max_age_s, ask)
        return found

    def _key(self, kind: str, job_id: str) -> str:
        return f"{self.conn}|{job_id}|{kind}"
