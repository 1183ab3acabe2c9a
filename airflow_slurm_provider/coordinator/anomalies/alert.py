"""An alert: how an anomaly is reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, cast

from slurm_worker.protocol.job_rows import AuditEvent
from slurm_worker.protocol.ports import Value

#: The alert's action in the audit log, and that of its episode's end.
RAISED, OVER = "anomaly", "anomaly over"


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
            "kind": self.kind.value,
            "subject": self.subject,
            "episode": self.episode,
            "message": self.message,
            "advice": self.advice,
            "numbers": {
                name: number if isinstance(number, int) else repr(number)
                for name, number in self.numbers.items()
            },
        }

    @classmethod
    def of_event(cls, job_id: str, event: AuditEvent) -> Alert:
        """Read an event of the audit log with the action `RAISED`."""
        detail = event.detail
        numbers = cast("dict[str, int | str]", detail["numbers"])
        return cls(
            job_id=job_id,
            kind=AnomalyKind(str(detail["kind"])),
            subject=str(detail["subject"]),
            episode=cast("int", detail["episode"]),
            message=str(detail["message"]),
            advice=str(detail["advice"]),
            numbers={
                name: number if isinstance(number, int) else float(number)
                for name, number in numbers.items()
            },
            at_ms=event.at_ms,
        )

    def ended(self, at_ms: int) -> Alert:
        """The same alert, its episode over."""
        return replace(self, over_ms=at_ms)
