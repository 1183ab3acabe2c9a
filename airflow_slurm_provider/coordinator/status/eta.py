"""A job's rate, its time left, and the tasks that delay it, all from one snapshot.

No earlier snapshot is needed: `JobTotals.timeline` has the times at which tasks were done, and the
rows of running tasks have their progress. Makes no requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_slurm_provider.coordinator.status.progress import progress_of
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.units import format_duration
from slurm_worker.protocol.tasks import TaskRow

#: The rate is measured over so many seconds, or over so many buckets where these are longer.
_WINDOW_S = 120.0
_BUCKETS = 3
#: A task is a straggler when it is held for so many times the 95th percentile.
_SLOW = 1.5
_LEAST_SLOW_S = 10.0
#: With fewer tasks the usual duration is not known.
_FEW = 10


@dataclass(frozen=True, slots=True)
class Eta:
    """A job's rate and time left."""

    rate: float  #: items a second in the last minutes; 0 where nothing was done
    eta_s: int | None  #: seconds until nothing is pending at this rate; None where there is none
    running_items: int  #: items that are finished within tasks that are not

    def line(self) -> str:
        """Rate and time left, for the end of a progress line; empty where neither is known."""
        rate = f"{self.rate:,.1f} items/s" if self.rate else ""
        left = "" if self.eta_s is None else f"about {format_duration(self.eta_s)} left"
        return ", ".join(part for part in (rate, left) if part)


def eta_of(snapshot: Snapshot) -> Eta:
    """The job's rate and time left at the time of the snapshot."""
    pending = progress_of(snapshot).pending
    running = sum(row.items_ok + row.items_failed for row in snapshot.leased)
    rate = _rate(snapshot, running) if pending > 0 and snapshot.leased else 0.0
    left = max(0, pending - running)
    return Eta(
        rate=round(rate, 3),
        eta_s=math.ceil(left / rate) if rate else None,
        running_items=min(running, max(0, pending)),
    )


def usual_ms(snapshot: Snapshot) -> float:
    """The 95th percentile of task durations in milliseconds; 0 where too few are done."""
    return snapshot.done.quantile_ms(0.95) if snapshot.done.tasks >= _FEW else 0.0


def stragglers(snapshot: Snapshot) -> list[TaskRow]:
    """Tasks that are held for far longer than the others took, the longest first."""
    usual = usual_ms(snapshot)
    if not usual:
        return []
    least_ms = max(_LEAST_SLOW_S * 1000, _SLOW * usual)
    slow = [row for row in snapshot.leased if snapshot.at_ms - row.started_ms > least_ms]
    return sorted(slow, key=lambda row: row.started_ms)


def _rate(snapshot: Snapshot, running: int) -> float:
    """Items a second in the last buckets."""
    done = snapshot.done
    now_s = snapshot.at_ms / 1000
    window_s = max(_WINDOW_S, _BUCKETS * done.width_s)
    first = int((now_s - window_s) // done.width_s) + 1
    items = sum(
        bucket.ok + bucket.failed.total()
        for number, bucket in done.timeline.items()
        if number >= first
    )
    begun_s = min((row.started_ms for row in snapshot.leased if row.started_ms), default=0) / 1e3
    if done.timeline:
        begun_s = min(begun_s or now_s, min(done.timeline) * done.width_s)
    elapsed_s = now_s - max(first * done.width_s, begun_s)
    if not items:
        # The first tasks are still running: only their progress is known.
        items = running
        elapsed_s = now_s - begun_s if begun_s else 0.0
    return items / elapsed_s if elapsed_s >= 1 else 0.0
