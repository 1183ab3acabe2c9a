"""How fast a job is of late, how long it will take, and which tasks keep it: from one look.

No look before it is needed: when tasks were done is in the sum of what is done
(`History.timeline`), and how far the running ones are is on their rows. Makes no requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_slurm_provider.coordinator.status.progress import progress_of
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.units import format_duration
from slurm_worker.protocol.tasks import TaskRow

#: The rate is that of so many seconds, or of so many buckets where these are longer.
_WINDOW_S = 120.0
_BUCKETS = 3
#: A task that is held for so many times what 95 of 100 took keeps the others.
_SLOW = 1.5
_LEAST_SLOW_S = 10.0
#: So few tasks say nothing of what is usual.
_FEW = 10


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a job's pace comes to.

    Args:
        rate: items a second, of late; 0 where nothing was done.
        eta_s: seconds until nothing is pending at this rate; None where there is none.
        running_items: items that are finished within tasks that are not.
    """

    rate: float
    eta_s: int | None
    running_items: int

    def line(self) -> str:
        """Rate and time left, to stand behind a progress line; empty where nothing is known."""
        rate = f"{self.rate:,.1f} items/s" if self.rate else ""
        left = "" if self.eta_s is None else f"about {format_duration(self.eta_s)} left"
        return ", ".join(each for each in (rate, left) if each)


def outlook_of(snapshot: Snapshot) -> Outlook:
    """The pace of a job at the moment of the snapshot."""
    pending = progress_of(snapshot).pending
    running = sum(row.items_ok + row.items_failed for row in snapshot.leased)
    rate = _rate(snapshot, running) if pending > 0 and snapshot.leased else 0.0
    left = max(0, pending - running)
    return Outlook(
        rate=round(rate, 3),
        eta_s=math.ceil(left / rate) if rate else None,
        running_items=min(running, max(0, pending)),
    )


def usual_ms(snapshot: Snapshot) -> float:
    """Milliseconds that 95 of 100 tasks took at most; 0 where too few are done to tell."""
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
    """Items that were finished in the last buckets, by their length."""
    done = snapshot.done
    now_s = snapshot.at_ms / 1000
    window_s = max(_WINDOW_S, _BUCKETS * done.width_s)
    first = int((now_s - window_s) // done.width_s) + 1
    items = sum(
        each.ok + each.failed.total() for number, each in done.timeline.items() if number >= first
    )
    begun_s = min((each.started_ms for each in snapshot.leased if each.started_ms), default=0) / 1e3
    if done.timeline:
        begun_s = min(begun_s or now_s, min(done.timeline) * done.width_s)
    elapsed_s = now_s - max(first * done.width_s, begun_s)
    if not items:
        # Its first tasks are still running: what they have done so far is all that is known.
        items = running
        elapsed_s = now_s - begun_s if begun_s else 0.0
    return items / elapsed_s if elapsed_s >= 1 else 0.0
