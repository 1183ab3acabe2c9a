"""The log lines about one task, from the logs of the workers that have held it.

Requests: for each of them a list per thousand chunks of the job's logs, and a GET for each
chunk of theirs.
"""

from __future__ import annotations

import itertools

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.logs import Selection, as_text, read_logs
from airflow_slurm_provider.dashboard import models
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.tasks import TaskRow

_MOST_LINES = 1_000


def read_task_log(services: Services, job_id: JobId, row: TaskRow) -> models.LogLines:
    """The lines, worker by worker, those of the latest ones last.

    Raises:
        ServiceError: if the store can't be reached.
    """
    lines = (
        as_text(line)
        for worker in workers_of(row)
        for line in read_logs(services, job_id, Selection(task=row.task, worker=worker))
    )
    found = list(itertools.islice(lines, _MOST_LINES + 1))
    return models.LogLines(lines=found[:_MOST_LINES], more=len(found) > _MOST_LINES)


def workers_of(row: TaskRow) -> list[str]:
    """The workers that are known to have held the task, in that order."""
    named = [name for entry in row.history for name in (entry.worker, entry.previous)]
    known = (row.owner, row.worker)
    return list(dict.fromkeys(name for name in (*named, *known) if name))
