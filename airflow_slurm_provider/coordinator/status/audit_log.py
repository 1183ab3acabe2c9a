"""A job's audit log, for people: who did what, when.

Requests: one query per 1 MB of events, and one read of the job's row at a reader's first read.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol.job_rows import AuditEvent
from slurm_worker.protocol.keys import JobId

#: An event has its writer's time. With a slow clock or a delayed request it appears up to so
#: many seconds after events with a later time; so each read repeats the last seconds.
_LATE_S = 30.0


class AuditLogReader:
    """Reads a job's events once each, also those that appear late.

    It begins after the mark `after`; `events` holds the last `keep` of those that it has read.
    """

    def __init__(
        self, services: Services, job_id: JobId, after: str = "", *, keep: int = 0
    ) -> None:
        self._jobs = services.jobs(job_id)
        self._after = after
        self._keep = keep
        self._newest_ms: int | None = None
        #: Marks of the events that the next read will meet again.
        self._repeated: set[str] = set()
        #: Oldest first.
        self.events: tuple[AuditEvent, ...] = ()

    def read(self) -> list[AuditEvent]:
        """The events that no earlier call has returned, oldest first.

        Raises a UserError if there is no such job.
        """
        if self._newest_ms is None:
            self._jobs.get()
        found = list(self._jobs.events(self._since()))
        new = [event for event in found if event.sk not in self._repeated]
        self._newest_ms = max([self._newest_ms or 0, *(event.at_ms for event in new)])
        since = self._since()
        self._repeated = {event.sk for event in found if event.sk > since}
        if new and self._keep:
            in_order = sorted([*self.events, *new], key=lambda event: event.sk)
            self.events = tuple(in_order[-self._keep :])
        return new

    def _since(self) -> str:
        """The mark to read after."""
        since_ms = max(0, (self._newest_ms or 0) - int(_LATE_S * 1000))
        return max(self._after, f"{since_ms:013}" if since_ms else "")


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
    """Milliseconds since the epoch as RFC 3339 has them, in UTC."""
    at = datetime.fromtimestamp(at_ms / 1000, timezone.utc)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03}Z"
