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
    services: Services, snapshot: Snapshot, state: TaskState | None, after: str, limit: int
) -> models.TaskList:
    """A page of tasks.

    Args:
        services: the edges.
        snapshot: the job.
        state: of these only.
        after: where the page before ended; empty for the first.
        limit: at most so many.
    """
    shard_text, _, sk = after.partition(":")
    place = (int(shard_text or 0), sk)
    if state in _IN_SNAPSHOT:
        return _of_snapshot(snapshot, state, place, limit)
    return _of_table(services, snapshot, state, place, limit)


def _of_snapshot(
    snapshot: Snapshot, state: TaskState | None, place: tuple[int, str], limit: int
) -> models.TaskList:
    shards = snapshot.job.shards
    rows = sorted(
        (row for row in (*snapshot.leased, *snapshot.ended) if row.state is state),
        key=lambda row: _place(row, shards),
    )
    left = [row for row in rows if _place(row, shards) > place]
    if len(left) <= limit:
        return _list(left)
    shard, sk = _place(left[limit - 1], shards)
    return _list(left[:limit], f"{shard}:{sk}")


def _of_table(
    services: Services,
    snapshot: Snapshot,
    state: TaskState | None,
    place: tuple[int, str],
    limit: int,
) -> models.TaskList:
    shards = snapshot.job.shards
    table = services.tasks(snapshot.job)
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
                return _list(found, f"{shard}:{after}")
        if len(rows) < size:
            shard, after = shard + 1, ""
        if shard >= shards:
            return _list(found)
    return _list(found, f"{shard}:{after}")


def _list(rows: list[TaskRow], following: str = "") -> models.TaskList:
    return models.TaskList(tasks=[views.task_summary(row) for row in rows], next=following)


def _place(row: TaskRow, shards: int) -> tuple[int, str]:
    return shard_of(row.sequence, shards), row.sk
