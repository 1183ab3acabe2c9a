"""Alerts, and the audit log, where all processes that watch a job agree on its episodes.

An episode begins with an event under a name made of kind, subject and number, and ends with a
second one. Both are written by conditional puts: of several processes that detect the same
thing, one writes it, and only that one delivers the alert.

Requests: one query to read; two writes to raise an alert or to end its episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol.job_rows import AuditEvent
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import Value

#: The alert's action in the audit log, and that of its episode's end.
RAISED, OVER = "anomaly", "anomaly over"
_PREFIX = f"{RAISED}/"


class AnomalyKind(str, Enum):
    """What can be wrong with a running job."""

    STALL = "stall"  #: nothing ends, although tasks are held
    ERROR_RATE = "error_rate"  #: one class of failures is far more frequent than before
    THROUGHPUT = "throughput"  #: far fewer items a second than before
    STRAGGLER = "straggler"  #: a task is held far longer than the others took
    BAD_NODE = "bad_node"  #: items fail, or leases are lost, on one node and not on others
    LEASE_LOSS = "lease_loss"  #: many leases run out: workers die or freeze
    NO_PROGRESS = "no_progress"  #: tasks are leased and given back, and none of their items ends
    LIMIT_STARVED = "limit_starved"  #: workers wait for a rate that was cut, or a quota
    LIMIT_IDLE = "limit_idle"  #: a rate limit is hardly used while tasks wait
    COST = "cost"  #: the job costs more than expected


@dataclass(frozen=True, slots=True)
class Alert:
    """One anomaly, reported once per episode."""

    job_id: str  #: the job
    kind: AnomalyKind
    subject: str  #: the error class, task, node or limit; ``job`` for the whole job
    episode: int  #: number of the times that this subject had this anomaly, from 1
    message: str  #: what is wrong, with its numbers
    advice: str  #: what to do
    #: Those of the message, by name; times in seconds, shares from 0 to 1
    numbers: Mapping[str, float] = field(default_factory=dict)
    at_ms: int = 0  #: when it was detected, by AWS's clock
    over_ms: int = 0  #: when the episode was over; 0 while it lasts

    @property
    def id(self) -> str:
        """Unique in the job, and the same for every process that detects the same episode."""
        return f"{self.kind.value}/{self.subject}/{self.episode}"

    def line(self) -> str:
        """One line for a log."""
        return f"{self.job_id}: {self.kind.value}: {self.message}; {self.advice}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {**asdict(self), "id": self.id, "kind": self.kind.value}

    def detail(self) -> dict[str, Value]:
        """How the audit log stores it; fractions as text, since rows hold none."""
        return {
            **_episode(self),
            "message": self.message,
            "advice": self.advice,
            "numbers": {n: x if isinstance(x, int) else repr(x) for n, x in self.numbers.items()},
        }


def read_alerts(services: Services, job_id: JobId) -> list[Alert]:
    """All alerts that were raised for a job, oldest first.

    One query: the alerts' rows, and up to a page of those behind them, such as cursors.
    """
    raised: list[Alert] = []
    ended: dict[str, int] = {}
    for _, event in services.jobs(job_id).events_once(_PREFIX):
        if event.action == RAISED:
            raised.append(_alert(job_id, event))
        elif event.action == OVER:
            ended["{kind}/{subject}/{episode}".format(**event.detail)] = event.at_ms
    alerts = (replace(alert, over_ms=ended.get(alert.id, 0)) for alert in raised)
    return sorted(alerts, key=lambda alert: alert.at_ms)


def append_alert(jobs: JobTable, actor: str, alert: Alert) -> bool:
    """Write the alert; False if another process has."""
    return jobs.audit(actor, RAISED, alert.detail(), once=f"{_PREFIX}{alert.id}")


def append_end(jobs: JobTable, actor: str, alert: Alert) -> bool:
    """Write that the alert's episode is over; False if another process has."""
    return jobs.audit(actor, OVER, _episode(alert), once=f"{_PREFIX}{alert.id}/over")


def _episode(alert: Alert) -> dict[str, Value]:
    return {"kind": alert.kind.value, "subject": alert.subject, "episode": alert.episode}


def _alert(job_id: str, event: AuditEvent) -> Alert:
    """Read what `Alert.detail` wrote."""
    detail: Mapping[str, Any] = event.detail
    numbers = {n: x if isinstance(x, int) else float(x) for n, x in detail["numbers"].items()}
    fields = {name: detail[name] for name in ("subject", "episode", "message", "advice")}
    kind = AnomalyKind(detail["kind"])
    return Alert(job_id, kind, **fields, numbers=numbers, at_ms=event.at_ms)
