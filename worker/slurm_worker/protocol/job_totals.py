"""Totals of a job's done tasks; they only grow.

A done row never changes, so it is counted once and not read again. The totals hold what the
views of a job show: items and rows, failures by class, nodes and workers, progress over time,
durations of tasks, AWS requests. Their size does not grow with the number of tasks: the time
line has at most `MOST_BUCKETS` buckets, durations have `PER_DOUBLING` per doubling.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from slurm_worker.protocol.tasks import TaskRow

MOST_BUCKETS = 480
FIRST_WIDTH_S = 2
_SLOWEST = 20
PER_DOUBLING = 8
#: Fields of `JobTotals` that are numbers.
_PLAIN = ("tasks", "ok", "rows", "lost", "width_s")


@dataclass(slots=True)
class WorkTotals:
    """The work of one node or worker; `busy_ms` is the time that its tasks took."""

    tasks: int = 0
    ok: int = 0
    failed: int = 0
    busy_ms: int = 0

    def add(self, other: WorkTotals) -> None:
        """Count these too."""
        self.tasks += other.tasks
        self.ok += other.ok
        self.failed += other.failed
        self.busy_ms += other.busy_ms


@dataclass(slots=True)
class TimeBucket:
    """The work within one interval; `touched` counts tasks with a failure, by class."""

    tasks: int = 0
    ok: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    touched: Counter[str] = field(default_factory=Counter)

    def add(self, other: TimeBucket) -> None:
        """Count these too."""
        self.tasks += other.tasks
        self.ok += other.ok
        self.failed.update(other.failed)
        self.touched.update(other.touched)


@dataclass(frozen=True, slots=True, order=True)
class SlowTask:
    """One of the slowest tasks."""

    took_ms: int
    task: str
    worker: str
    node: str


@dataclass(slots=True)
class JobTotals:
    """The totals; tasks are those that are done."""

    #: Done tasks, bisected ones included; the items of these are counted in the halves.
    tasks: int = 0
    ok: int = 0
    rows: int = 0
    lost: int = 0  #: leases that these tasks had lost
    failed: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)  #: of workers to AWS, by kind
    nodes: dict[str, WorkTotals] = field(default_factory=dict)
    workers: dict[str, WorkTotals] = field(default_factory=dict)
    #: Tasks by the logarithm of the time that they took; see `quantile_ms`.
    durations: Counter[int] = field(default_factory=Counter)
    #: Seconds of a bucket of `timeline`, whose keys are the buckets' numbers.
    width_s: int = FIRST_WIDTH_S
    timeline: dict[int, TimeBucket] = field(default_factory=dict)
    slowest: list[SlowTask] = field(default_factory=list)  #: the slowest tasks, the slowest first

    def add_row(self, row: TaskRow) -> None:
        """Count a task that is done."""
        # Counted in place: new objects for each row would take as long as all the rest.
        failed = sum(row.failed_by.values())
        self.tasks += 1
        self.ok += row.items_ok
        self.rows += row.rows
        self.lost += row.lost
        for kind, count in row.requests.items():
            self.requests[kind] += count
        for shares, name in ((self.nodes, row.node), (self.workers, row.worker)):
            share = shares.setdefault(name or "unknown", WorkTotals())
            share.tasks += 1
            share.ok += row.items_ok
            share.failed += failed
            share.busy_ms += row.took_ms
        self.durations[_log(row.took_ms)] += 1
        number = row.finished_ms // (self.width_s * 1000)
        bucket = self.timeline.setdefault(number, TimeBucket())
        bucket.tasks += 1
        bucket.ok += row.items_ok
        for error_class, count in row.failed_by.items():
            self.failed[error_class] += count
            bucket.failed[error_class] += count
            if count:
                bucket.touched[error_class] += 1
        if len(self.slowest) < _SLOWEST or row.took_ms >= self.slowest[-1].took_ms:
            self._keep_slowest([SlowTask(row.took_ms, row.task, row.worker, row.node)])
        self._coarsen()

    def add(self, other: JobTotals) -> None:
        """Add the totals of `other`, which is not changed."""
        self.tasks += other.tasks
        self.ok += other.ok
        self.rows += other.rows
        self.lost += other.lost
        self.failed.update(other.failed)
        self.requests.update(other.requests)
        for ours, theirs in ((self.nodes, other.nodes), (self.workers, other.workers)):
            for name, share in theirs.items():
                ours.setdefault(name, WorkTotals()).add(share)
        self.durations.update(other.durations)
        while self.width_s < other.width_s:
            self._double()
        for number, bucket in other.timeline.items():
            start = number * other.width_s // self.width_s
            self.timeline.setdefault(start, TimeBucket()).add(bucket)
        self._keep_slowest(other.slowest)
        self._coarsen()

    def quantile_ms(self, share: float) -> float:
        """The duration in ms that this share of tasks did not exceed, within 10 %; 0 for none."""
        left = share * self.durations.total()
        for number in sorted(self.durations):
            left -= self.durations[number]
            if left <= 0:
                return float(2 ** ((number + 0.5) / PER_DOUBLING)) if number else 0.0
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "failed": dict(self.failed),
            "requests": dict(self.requests),
            "nodes": {name: list(astuple(done)) for name, done in self.nodes.items()},
            "workers": {name: list(astuple(done)) for name, done in self.workers.items()},
            "durations": {str(number): count for number, count in self.durations.items()},
            "timeline": {
                str(number): [bucket.tasks, bucket.ok, dict(bucket.failed), dict(bucket.touched)]
                for number, bucket in self.timeline.items()
            },
            "slowest": [list(astuple(task)) for task in self.slowest],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> JobTotals:
        """Read what `to_dict` wrote."""
        return cls(
            **{name: raw[name] for name in _PLAIN},
            failed=Counter(raw["failed"]),
            requests=Counter(raw["requests"]),
            nodes={name: WorkTotals(*done) for name, done in raw["nodes"].items()},
            workers={name: WorkTotals(*done) for name, done in raw["workers"].items()},
            durations=Counter({int(number): count for number, count in raw["durations"].items()}),
            timeline={
                int(number): TimeBucket(tasks, ok, Counter(failed), Counter(touched))
                for number, (tasks, ok, failed, touched) in raw["timeline"].items()
            },
            slowest=[SlowTask(*task) for task in raw["slowest"]],
        )

    def _keep_slowest(self, tasks: list[SlowTask]) -> None:
        self.slowest = sorted([*self.slowest, *tasks], reverse=True)[:_SLOWEST]

    def _coarsen(self) -> None:
        while len(self.timeline) > MOST_BUCKETS:
            self._double()

    def _double(self) -> None:
        before, self.timeline = self.timeline, {}
        self.width_s *= 2
        for number, bucket in before.items():
            self.timeline.setdefault(number // 2, TimeBucket()).add(bucket)


def _log(took_ms: int) -> int:
    return int(math.log2(took_ms) * PER_DOUBLING) if took_ms > 1 else 0
