"""What the rules look at: a look, the memory, and what several rules derive from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from airflow_slurm_provider.coordinator.anomalies.alert import AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.baseline import Memory, node_shares
from airflow_slurm_provider.coordinator.anomalies.observation import Observation
from airflow_slurm_provider.coordinator.anomalies.statistics import (
    Share,
    Timeline,
    Usual,
    usual_durations,
)
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import LEAST_SINCE, Thresholds
from slurm_worker.protocol.tasks import TaskRow

#: What an anomaly is about, where it is all of the job.
WHOLE = "job"
#: Heartbeats that may be late or lost by chance.
_MISSED_BEATS = 2.5


@dataclass(frozen=True, slots=True)
class Finding:
    """An anomaly's condition holds."""

    kind: AnomalyKind
    subject: str
    message: str
    advice: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[AnomalyKind, str]:
        """What it is an episode of."""
        return self.kind, self.subject


@dataclass(frozen=True)
class Facts:
    """Everything that rules may look at.

    Args:
        levels: numbers of the alerts whose episodes last, by kind and subject.
    """

    look: Observation
    memory: Memory
    thresholds: Thresholds
    levels: Mapping[tuple[AnomalyKind, str], Mapping[str, float]]

    @property
    def now_ms(self) -> int:
        """When the look was had."""
        return self.look.at_ms

    @property
    def ready(self) -> int:
        """Tasks that nobody holds."""
        return self.look.snapshot.ready

    @cached_property
    def live(self) -> list[TaskRow]:
        """Tasks whose lease is renewed as it should, the one that was taken first foremost."""
        rows = (each for each in self.look.snapshot.leased if not self._is_overdue(each))
        return sorted(rows, key=lambda each: each.started_ms)

    @cached_property
    def overdue(self) -> list[TaskRow]:
        """Tasks whose worker has missed heartbeats: it is dead, frozen or cut off."""
        return [each for each in self.look.snapshot.leased if self._is_overdue(each)]

    @cached_property
    def usual(self) -> Usual | None:
        """How long tasks take."""
        return usual_durations(self.look.snapshot.done, self.thresholds)

    @property
    def round_ms(self) -> int:
        """When the latest round began: what is tried again fails more often than the rest."""
        return max((each.opened_ms for each in self.look.snapshot.rounds), default=0)

    @cached_property
    def timeline(self) -> Timeline:
        """What has ended in the latest round."""
        done = self.look.snapshot.done
        # At the end nothing more is added to the bucket that has begun.
        until_ms = self.now_ms + (done.width_s * 1000 if self.look.finished else 0)
        return Timeline.of(done, self.round_ms, until_ms)

    @cached_property
    def slow(self) -> list[TaskRow]:
        """Tasks held for longer than is usual while others ended theirs; one per worker."""
        if self.usual is None or not self._moving(self.usual):
            return []
        found: dict[str, TaskRow] = {}
        for row in self.live:
            found.setdefault(row.owner, row)
        return [
            row
            for row in found.values()
            if self._renewed_s(row) > self.usual.longest_s and self._ended_since(row)
        ]

    @cached_property
    def nodes(self) -> dict[str, Share]:
        """Failures by node, lately."""
        before = self.memory.nodes[0].shares if self.memory.nodes else {}
        return {
            name: share - before.get(name, Share())
            for name, share in node_shares(self.look).items()
        }

    def held_s(self, row: TaskRow) -> float:
        """Seconds since a lease was taken."""
        return (self.now_ms - row.started_ms) / 1000

    def _renewed_s(self, row: TaskRow) -> float:
        """Seconds for which the worker surely held it: until then it was alive."""
        return (row.lease_until_ms - row.started_ms) / 1000 - self.look.lease.ttl_s

    def _is_overdue(self, row: TaskRow) -> bool:
        lease = self.look.lease
        left_s = lease.ttl_s - _MISSED_BEATS * lease.heartbeat_s
        return row.lease_until_ms < self.now_ms + 1000 * max(0.0, left_s)

    def _moving(self, usual: Usual) -> bool:
        """Whether tasks go on ending, or none is left that could: else all are slow."""
        done = self.look.snapshot.done
        last_s = (max(done.timeline, default=0) + 1) * done.width_s
        return not self.ready or self.now_ms / 1000 - last_s <= 2 * usual.median_s + done.width_s

    def _ended_since(self, row: TaskRow) -> bool:
        """Whether enough other tasks have ended since this one was leased."""
        done = self.look.snapshot.done
        first = -(-row.started_ms // (done.width_s * 1000))
        ended = sum(each.tasks for number, each in done.timeline.items() if number >= first)
        return ended >= LEAST_SINCE
