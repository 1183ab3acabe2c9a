"""Observations of a job, and what a detector keeps of earlier ones: little, and bounded.

Most of what it needs is in the snapshot itself (`JobTotals` has durations and the timeline).
This is the rest: when something last ended, and the counters of some minutes ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from airflow_slurm_provider.coordinator.anomalies.statistics import Share
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import AnomaliesSection
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.task_history import TaskEvent

#: Samples per window: the resolution of "some minutes ago".
_SAMPLES = 5
#: Lost leases whose nodes are kept; more would not change a verdict.
_MOST_LOST = 500


@dataclass(frozen=True, slots=True)
class Observation:
    """A snapshot, and what else is known at that time: what the detector is given."""

    snapshot: Snapshot  #: the job's tasks
    finished: bool = False  #: every task has ended
    workers: int | None = None  #: elements of the array that run; None where Slurm was not queried
    #: Node by the beginning of its workers' names (``<array>_<element>-``)
    nodes: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[LimitState, ...] = ()  #: the state of the job's rate limits
    #: The cost of the workers' requests so far; None where it is not known
    dollars: float | None = None
    estimate: float = 0.0  #: the expected cost of their requests in the whole job, in dollars
    lease: LeaseConfig = field(default_factory=LeaseConfig)  #: times of the job's leases

    @property
    def at_ms(self) -> int:
        """When, by AWS's clock."""
        return self.snapshot.at_ms


@dataclass(frozen=True, slots=True)
class CounterSample:
    """The leases lost by a time, and the tokens used by then, by limit."""

    at_ms: int
    lost: int
    used: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeSample:
    """What nodes had done by a time."""

    at_ms: int
    shares: Mapping[str, Share] = field(default_factory=dict)


@dataclass(slots=True)
class Baseline:
    """What earlier observations have left."""

    ended: int = 0  #: most items and tasks that had ended so far; `ended_ms` is when that last rose
    ended_ms: int = 0
    since_ms: int = 0  #: since when tasks have been held without a break; 0 while none is
    observed_ms: int = 0  #: the last observation
    samples: list[CounterSample] = field(default_factory=list)  #: counters over the longest window
    #: What nodes had done one and two windows ago
    nodes: list[NodeSample] = field(default_factory=list)
    #: Those within the window, as time and node
    lost_leases: list[tuple[int, str]] = field(default_factory=list)

    def update(self, observation: Observation, thresholds: AnomaliesSection) -> None:
        """Take an observation into account, before the rules judge it."""
        self._note_ends(observation)
        self._note_samples(observation, thresholds)
        self._note_nodes(observation, thresholds)
        self._note_lost_leases(observation, thresholds)
        self.observed_ms = observation.at_ms

    def reset(self, observation: Observation) -> None:
        """The job rests or has ended: measuring starts again."""
        self.since_ms, self.ended_ms, self.observed_ms = 0, observation.at_ms, observation.at_ms
        self.samples.clear()

    def sample_before(self, now_ms: int, seconds: float) -> CounterSample | None:
        """The latest sample that is at least `seconds` old."""
        old = (one for one in reversed(self.samples) if one.at_ms <= now_ms - seconds * 1000)
        return next(old, None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it."""
        return {
            "ended": self.ended,
            "ended_ms": self.ended_ms,
            "since_ms": self.since_ms,
            "looked_ms": self.observed_ms,
            "marks": [astuple(sample) for sample in self.samples],
            "nodes": [astuple(sample) for sample in self.nodes],
            "losses": self.lost_leases,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Baseline:
        """Read what `to_dict` wrote."""
        times = raw["ended_ms"], raw["since_ms"], raw["looked_ms"]
        samples = [CounterSample(*sample) for sample in raw["marks"]]
        nodes = [
            NodeSample(at_ms, {name: Share(*counts) for name, counts in shares.items()})
            for at_ms, shares in raw["nodes"]
        ]
        return cls(raw["ended"], *times, samples, nodes, [(at, node) for at, node in raw["losses"]])

    def _note_ends(self, observation: Observation) -> None:
        snapshot = observation.snapshot
        held = sum(row.items_ok + row.items_failed for row in snapshot.leased)
        # Only a new maximum counts: a task that is started again and again ends nothing.
        ended = snapshot.done.tasks + snapshot.done.ok + snapshot.done.failed.total() + held
        more = ended > self.ended
        if more or not self.ended_ms:
            self.ended, self.ended_ms = max(ended, self.ended), observation.at_ms
        # An observation may fall between two short tasks: then something has ended since.
        if not snapshot.leased and not more:
            self.since_ms = 0
        elif not self.since_ms:
            # The first observation may come late; then the timeline has the work before it.
            opened = max((round_row.opened_ms for round_row in snapshot.rounds), default=0)
            self.since_ms = observation.at_ms if self.observed_ms else max(opened, 1)

    def _note_samples(self, observation: Observation, thresholds: AnomaliesSection) -> None:
        longest_ms = max(thresholds.window, thresholds.idle_after) * 1000
        apart_ms = min(thresholds.window, thresholds.idle_after) * 1000 / _SAMPLES
        if self.samples and observation.at_ms < self.samples[-1].at_ms + apart_ms:
            return
        used = {limit.name: limit.used for limit in observation.limits}
        self.samples.append(CounterSample(observation.at_ms, observation.snapshot.lost, used))
        # One sample older than the longest window is kept: the window starts there.
        while len(self.samples) > 1 and self.samples[1].at_ms <= observation.at_ms - longest_ms:
            del self.samples[0]

    def _note_nodes(self, observation: Observation, thresholds: AnomaliesSection) -> None:
        if self.nodes and observation.at_ms < self.nodes[-1].at_ms + thresholds.window * 1000:
            return
        # Work before the first observation counts too: the first base is empty.
        shares = node_shares(observation) if self.nodes else {}
        self.nodes = [*self.nodes[-1:], NodeSample(observation.at_ms, shares)]

    def _note_lost_leases(self, observation: Observation, thresholds: AnomaliesSection) -> None:
        from_ms = observation.at_ms - thresholds.window * 1000
        found = {(at_ms, node) for at_ms, node in self.lost_leases if at_ms >= from_ms}
        for row in observation.snapshot.leased:
            for entry in row.history:
                if entry.event is TaskEvent.STOLEN and entry.at_ms >= from_ms:
                    found.add((entry.at_ms, node_of(entry.previous, observation.nodes)))
        self.lost_leases = sorted(found)[-_MOST_LOST:]


def node_shares(observation: Observation) -> dict[str, Share]:
    """Failures by node, of all that is done."""
    return {
        name: Share(share.failed, share.ok + share.failed, share.tasks)
        for name, share in observation.snapshot.done.nodes.items()
    }


def node_of(worker: str, nodes: Mapping[str, str]) -> str:
    """A worker's node; empty where it is not known."""
    return next((node for start, node in nodes.items() if worker.startswith(start)), "")
