"""What the rules judge: an observation, the baseline, and what several rules derive from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from airflow_slurm_provider.coordinator.anomalies.alert import AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.baseline import Baseline, Observation, node_shares
from airflow_slurm_provider.coordinator.anomalies.statistics import (
    Share,
    Timeline,
    Usual,
    usual_durations,
)
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import LEAST_SINCE, AnomaliesSection
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from slurm_worker.protocol.tasks import TaskRow

#: What an anomaly is about, where it is all of the job.
WHOLE = "job"
#: Heartbeats that may be late or lost by chance.
_MISSED_BEATS = 2.5


@dataclass(frozen=True, slots=True)
class Detection:
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
class RuleContext:
    """The input of every rule."""

    observation: Observation  #: the job now
    baseline: Baseline  #: what earlier observations have left
    thresholds: AnomaliesSection  #: when something is an anomaly
    #: Numbers of the alerts whose episodes last, by kind and subject
    levels: Mapping[tuple[AnomalyKind, str], Mapping[str, float]]

    @property
    def snapshot(self) -> Snapshot:
        """The job's tasks."""
        return self.observation.snapshot

    @property
    def now_ms(self) -> int:
        """When the job was observed."""
        return self.observation.at_ms

    @cached_property
    def live(self) -> list[TaskRow]:
        """Tasks whose worker renews the lease in time; the one that was leased first is first."""
        rows = (row for row in self.snapshot.leased if not self._is_overdue(row))
        return sorted(rows, key=lambda row: row.started_ms)

    @cached_property
    def overdue(self) -> list[TaskRow]:
        """Tasks whose worker has missed heartbeats: it is dead, frozen or cut off."""
        return [row for row in self.snapshot.leased if self._is_overdue(row)]

    @cached_property
    def usual(self) -> Usual | None:
        """How long tasks take."""
        return usual_durations(self.snapshot.done, self.thresholds)

    @property
    def round_ms(self) -> int:
        """When the latest round began: what is tried again fails more often than the rest."""
        return max((round_row.opened_ms for round_row in self.snapshot.rounds), default=0)

    @cached_property
    def timeline(self) -> Timeline:
        """What has ended in the latest round."""
        done = self.snapshot.done
        # When the job has ended, its last bucket is complete too.
        until_ms = self.now_ms + (done.width_s * 1000 if self.observation.finished else 0)
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
        """Failures by node in the last window or two."""
        before = self.baseline.nodes[0].shares if self.baseline.nodes else {}
        return {
            name: share - before.get(name, Share())
            for name, share in node_shares(self.observation).items()
        }

    def held_s(self, row: TaskRow) -> float:
        """Seconds since a lease was taken."""
        return (self.now_ms - row.started_ms) / 1000

    def _renewed_s(self, row: TaskRow) -> float:
        """Seconds for which the worker surely held it: until then it was alive."""
        return (row.lease_until_ms - row.started_ms) / 1000 - self.observation.lease.ttl_s

    def _is_overdue(self, row: TaskRow) -> bool:
        lease = self.observation.lease
        left_s = lease.ttl_s - _MISSED_BEATS * lease.heartbeat_s
        return row.lease_until_ms < self.now_ms + 1000 * max(0.0, left_s)

    def _moving(self, usual: Usual) -> bool:
        """Whether tasks still end, or none is left to start: if not, all tasks are slow."""
        done = self.snapshot.done
        last_s = (max(done.timeline, default=0) + 1) * done.width_s
        return (
            not self.snapshot.ready
            or self.now_ms / 1000 - last_s <= 2 * usual.median_s + done.width_s
        )

    def _ended_since(self, row: TaskRow) -> bool:
        """Whether enough other tasks have ended since this one was leased."""
        done = self.snapshot.done
        first = -(-row.started_ms // (done.width_s * 1000))
        ended = sum(bucket.tasks for number, bucket in done.timeline.items() if number >= first)
        return ended >= LEAST_SINCE
