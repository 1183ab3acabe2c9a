"""What a detector remembers of the looks before: little, and bounded.

Most of what it knows is in the snapshot itself (`History` keeps durations and the timeline);
this is the rest: when something last ended, how counters stood some minutes ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_slurm_provider.coordinator.anomalies.observation import Observation
from airflow_slurm_provider.coordinator.anomalies.statistics import Share
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import Thresholds
from slurm_worker.protocol.task_history import TaskEvent

#: Marks per window: how finely "some minutes ago" is known.
_MARKS = 5
#: Lost leases whose nodes are remembered; more say no more.
_MOST_LOSSES = 500


@dataclass(frozen=True, slots=True)
class Mark:
    """How counters stood at a moment.

    Args:
        lost: leases lost by then.
        used: tokens used by then, by limit.
    """

    at_ms: int
    lost: int
    used: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Nodes:
    """What nodes had done by a moment."""

    at_ms: int
    shares: Mapping[str, Share] = field(default_factory=dict)


@dataclass(slots=True)
class Memory:
    """The memory.

    Args:
        ended: most items and tasks that were seen ended; `ended_ms` is when that last rose.
        since_ms: since when tasks have been worked on without a break; 0 where they are not.
        looked_ms: the last look.
        marks: how counters stood, over the longest window.
        nodes: what nodes had done one and two windows ago.
        losses: leases lost within the window, as time and node.
    """

    ended: int = 0
    ended_ms: int = 0
    since_ms: int = 0
    looked_ms: int = 0
    marks: list[Mark] = field(default_factory=list)
    nodes: list[Nodes] = field(default_factory=list)
    losses: list[tuple[int, str]] = field(default_factory=list)

    def note(self, look: Observation, thresholds: Thresholds) -> None:
        """Take a look into account, before the rules do."""
        self._note_ends(look)
        self._note_marks(look, thresholds)
        self._note_nodes(look, thresholds)
        self._note_losses(look, thresholds)
        self.looked_ms = look.at_ms

    def rest(self, look: Observation) -> None:
        """Nobody works on the job, as is right: what is measured begins anew."""
        self.since_ms, self.ended_ms, self.looked_ms = 0, look.at_ms, look.at_ms
        self.marks.clear()

    def mark(self, now_ms: int, seconds: float) -> Mark | None:
        """The youngest mark of at least `seconds` ago."""
        old = [each for each in self.marks if each.at_ms <= now_ms - seconds * 1000]
        return old[-1] if old else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it."""
        return {
            "ended": self.ended,
            "ended_ms": self.ended_ms,
            "since_ms": self.since_ms,
            "looked_ms": self.looked_ms,
            "marks": [[each.at_ms, each.lost, dict(each.used)] for each in self.marks],
            "nodes": [
                [
                    each.at_ms,
                    {name: [s.failed, s.tried, s.tasks] for name, s in each.shares.items()},
                ]
                for each in self.nodes
            ],
            "losses": [list(each) for each in self.losses],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Memory:
        """Read what `to_dict` wrote."""
        return cls(
            raw["ended"],
            raw["ended_ms"],
            raw["since_ms"],
            raw["looked_ms"],
            [Mark(*each) for each in raw["marks"]],
            [
                Nodes(at_ms, {name: Share(*each) for name, each in shares.items()})
                for at_ms, shares in raw["nodes"]
            ],
            [(at_ms, node) for at_ms, node in raw["losses"]],
        )

    def _note_ends(self, look: Observation) -> None:
        snapshot = look.snapshot
        held = sum(row.items_ok + row.items_failed for row in snapshot.leased)
        # Only more than ever counts: a task that is begun again and again ends nothing.
        ended = snapshot.done.tasks + snapshot.done.ok + snapshot.done.failed.total() + held
        more = ended > self.ended
        if more or not self.ended_ms:
            self.ended, self.ended_ms = max(ended, self.ended), look.at_ms
        # A look may fall between two short tasks: nobody works where nothing ends either.
        if not snapshot.leased and not more:
            self.since_ms = 0
        elif not self.since_ms:
            # The first look may come late; then the work before it is in the timeline.
            opened = max((each.opened_ms for each in snapshot.rounds), default=0)
            self.since_ms = look.at_ms if self.looked_ms else max(opened, 1)

    def _note_marks(self, look: Observation, thresholds: Thresholds) -> None:
        longest_ms = max(thresholds.window_s, thresholds.idle_after_s) * 1000
        apart_ms = min(thresholds.window_s, thresholds.idle_after_s) * 1000 / _MARKS
        if self.marks and look.at_ms < self.marks[-1].at_ms + apart_ms:
            return
        used = {each.name: each.used for each in look.limits}
        self.marks.append(Mark(look.at_ms, look.snapshot.lost, used))
        # One that is older than the longest window is kept: it is what the window is from.
        while len(self.marks) > 1 and self.marks[1].at_ms <= look.at_ms - longest_ms:
            del self.marks[0]

    def _note_nodes(self, look: Observation, thresholds: Thresholds) -> None:
        if self.nodes and look.at_ms < self.nodes[-1].at_ms + thresholds.window_s * 1000:
            return
        # Work from before the first look counts too: the first base is nothing.
        shares = node_shares(look) if self.nodes else {}
        self.nodes = [*self.nodes[-1:], Nodes(look.at_ms, shares)]

    def _note_losses(self, look: Observation, thresholds: Thresholds) -> None:
        from_ms = look.at_ms - thresholds.window_s * 1000
        found = {each for each in self.losses if each[0] >= from_ms}
        for row in look.snapshot.leased:
            for entry in row.history:
                if entry.event is TaskEvent.STOLEN and entry.at_ms >= from_ms:
                    found.add((entry.at_ms, node_of(entry.previous, look.nodes)))
        self.losses = sorted(found)[-_MOST_LOSSES:]


def node_shares(look: Observation) -> dict[str, Share]:
    """Failures by node, of all that is done."""
    return {
        name: Share(each.failed, each.ok + each.failed, each.tasks)
        for name, each in look.snapshot.done.nodes.items()
    }


def node_of(worker: str, nodes: Mapping[str, str]) -> str:
    """The node of a worker; empty where it is not known."""
    return next((node for start, node in nodes.items() if worker.startswith(start)), "")
