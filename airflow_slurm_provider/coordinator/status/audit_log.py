"""A job's audit trail, for who reads it: who did what, when.

Requests: one query per 1 MB of events, and one read of the job's row.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timezone
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol.job_rows import AuditEvent
from slurm_worker.protocol.keys import JobId

#: Events bear their writer's time, and may come so much later than others that bear a later one.
_LATE_S = 30.0
_MOST_SEEN = 10_000


def read_events(services: Services, job_id: JobId, after: str = "") -> list[AuditEvent]:
    """The audit trail past a mark, oldest first.

    Raises:
        UserError: if there is no such job.
        ServiceError: if the table can't be reached.
    """
    jobs = services.jobs(job_id)
    jobs.get()
    return list(jobs.events(after))


def event_document(event: AuditEvent) -> dict[str, Any]:
    """JSON-able; the names are stable."""
    return {
        "at": as_utc(event.at_ms),
        "actor": event.actor,
        "action": event.action,
        "detail": dict(event.detail),
        "mark": event.sk,
    }


def as_utc(at_ms: int) -> str:
    """Milliseconds as RFC 3339 has them, in UTC."""
    at = datetime.fromtimestamp(at_ms / 1000, timezone.utc)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03}Z"


class EventReader:
    """Reads on where it was, and misses no event that came late.

    Args:
        services: the edges.
        job_id: the job.
        after: the mark to begin after.
    """

    def __init__(self, services: Services, job_id: JobId, after: str = "") -> None:
        self._services = services
        self._job_id = job_id
        self._after = after
        self._seen: deque[str] = deque(maxlen=_MOST_SEEN)

    def read(self) -> list[AuditEvent]:
        """The events that this reader has not told of yet, oldest first.

        Raises:
            UserError: if there is no such job.
            ServiceError: if the table can't be reached.
        """
        seen = set(self._seen)
        since = max(self._after, self._some_before(max(seen, default="")))
        found = read_events(self._services, self._job_id, since)
        new = [each for each in found if each.sk not in seen]
        self._seen.extend(each.sk for each in new)
        return new

    @staticmethod
    def _some_before(mark: str) -> str:
        """A mark that is some time before another."""
        if not mark:
            return ""
        return f"{max(0, int(mark.partition('#')[0]) - int(_LATE_S * 1000)):013}"
