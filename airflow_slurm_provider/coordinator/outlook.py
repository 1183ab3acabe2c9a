"""How fast a job is of late, and how long it will take, from one look at its tasks.

No look before it is needed: when tasks were done is in the sum of what is done
(`History.timeline`), and how far the running ones are is on their rows. Makes no requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_slurm_provider.coordinator.progress import progress_of
from airflow_slurm_provider.coordinator.snapshot import Snapshot

#: The rate is that of so many seconds, or of so many buckets where these are longer.
_WINDOW_S = 120.0
_BUCKETS = 3


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
