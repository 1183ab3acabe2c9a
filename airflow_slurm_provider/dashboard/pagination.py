"""Tasks, a page at a time: a shard's rows in order, then the next shard's.

Those that failed or are held come out of the job's snapshot. Requests: otherwise one query
per page of rows, at most `_MOST_PAGES` of them per call, however few rows match.
"""

from __future__ import annotations

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.dashboard import models, views
from slurm_worker.protocol.keys import TaskState, shard_of
from slurm_worker.protocol.tasks import TaskRow

_MOST_PAGES = 8
_PAGE = 250
_IN_SNAPSHOT = {TaskState.LEASED, TaskState.FAILED, TaskState.QUARANTINED}


def page_of_tasks(
    services: Services, seen: Snapshot, state: TaskState | None, after: str, limit: int
) -> models.TaskList:
    """A page of tasks.

    Args:
        services: the edges.
        seen: the job.
        state: of these only.
        after: where the page before ended; empty for the first.
        limit: at most so many.
    """
    shard_text, _, sk = after.partition(":")
    place = (int(shard_text or 0), sk)
    if state in _IN_SNAPSHOT:
        return _of_snapshot(seen, state, place, limit)
    return _of_table(services, seen, state, place, limit)


def _of_snapshot(
    seen: Snapshot, state: TaskState | None, place: tuple[int, str], limit: int
) -> models.TaskList:
    shards = seen.job.shards
    rows = sorted(
        (row for row in (*seen.leased, *seen.ended) if row.state is state),
        key=lambda row: _place(row, shards),
    )
    left = [row for row in rows if _place(row, shards) > place]
    return _list(left[:limit], shards, more=len(left) > limit)


def _of_table(
    services: Services, seen: Snapshot, state: TaskState | None, place: tuple[int, str], limit: int
) -> models.TaskList:
    shards = seen.job.shards
    table = services.tasks(seen.job)
    shard, after = place
    found: list[TaskRow] = []
    size = limit + 1 if state is None else _PAGE
    for _ in range(_MOST_PAGES):
        rows = table.page(shard, after, size)
        for row in rows:
            after = row.sk
            if state in (None, row.state):
                found.append(row)
            if len(found) == limit:
                return _list(found, shards, more=True)
        if len(rows) < size:
            shard, after = shard + 1, ""
        if shard >= shards:
            return _list(found, shards, more=False)
    summaries = [views.task_summary(row) for row in found]
    return models.TaskList(tasks=summaries, next=f"{shard}:{after}")


def _list(rows: list[TaskRow], shards: int, *, more: bool) -> models.TaskList:
    goes_on = ""
    if more and rows:
        shard, sk = _place(rows[-1], shards)
        goes_on = f"{shard}:{sk}"
    return models.TaskList(tasks=[views.task_summary(row) for row in rows], next=goes_on)


def _place(row: TaskRow, shards: int) -> tuple[int, str]:
    return shard_of(row.sequence, shards), row.sk
