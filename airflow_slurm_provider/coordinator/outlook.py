"""How fast a job goes, when it will be done, and which tasks keep it: from one snapshot."""

from __future__ import annotations

from airflow_slurm_provider.coordinator.progress import Progress
from airflow_slurm_provider.coordinator.snapshot import Snapshot
from slurm_worker.table import TaskRow

_WINDOW_S = 300.0
#: A task that is held for so many times what 95 of 100 took keeps the others.
_SLOW = 1.5
_LEAST_S = 10.0
#: So few tasks say nothing of what is usual.
_FEW = 10


def rate_of(snapshot: Snapshot) -> float:
    """Items with an outcome per second, over the last five minutes; 0 where nothing is known.

    Items count when their task is done, so that long tasks show late.
    """
    done, now_s = snapshot.done, snapshot.at_ms / 1000
    if not done.timeline:
        return 0.0
    started_ms = min(each.opened_ms or each.created_ms for each in snapshot.rounds)
    window_s = max(_WINDOW_S, 2.0 * done.width_s)
    first = max(now_s - window_s, started_ms / 1000)
    items = sum(
        bucket.ok + bucket.failed.total()
        for number, bucket in done.timeline.items()
        if (number + 1) * done.width_s > first
    )
    return items / max(1.0, now_s - first)


def left_s(progress: Progress, rate: float) -> float | None:
    """Seconds until every item has its outcome, at this rate; None where it can't be told."""
    return progress.pending / rate if rate and progress.pending else None


def usual_ms(snapshot: Snapshot) -> float:
    """Milliseconds that 95 of 100 tasks took at most; 0 where too few are done to tell."""
    return snapshot.done.quantile_ms(0.95) if snapshot.done.tasks >= _FEW else 0.0


def stragglers(snapshot: Snapshot) -> list[TaskRow]:
    """Tasks that are held for far longer than the others took, the longest first."""
    usual = usual_ms(snapshot)
    if not usual:
        return []
    least_ms = max(_LEAST_S * 1000, _SLOW * usual)
    slow = [row for row in snapshot.leased if snapshot.at_ms - row.started_ms > least_ms]
    return sorted(slow, key=lambda row: row.started_ms)
