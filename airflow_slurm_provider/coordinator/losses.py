"""Workers that died, why Slurm says they did, and the tasks that they held.

A worker's name holds its array, element and restart; a task's row names who holds it, and
its history from whom it was taken. So Slurm's word on an element becomes the class of the
tasks it held. Requests: a few rows of the job, one ``sacct``, a scan of the task rows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.ship import read_spec
from airflow_slurm_provider.slurm.endings import Ending
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.config import LeaseConfig
from slurm_worker.errors import ErrorClass
from slurm_worker.keys import JobId, TaskState
from slurm_worker.table import TaskRow, TaskTable

_TAKEN_FROM = re.compile(r" stolen by \S+ from (\S+)")
_LAST_BY = re.compile(r"last by ([^\s;]+)")


@dataclass(frozen=True, slots=True)
class Loss:
    """One worker that died.

    Args:
        element: the array's element, such as ``123_4``.
        error_class: why, by Slurm's word.
        state: Slurm's word.
        max_rss: most bytes of memory that Slurm saw it use.
        tasks: tasks that it held.
    """

    element: str
    restart: int
    error_class: ErrorClass
    state: str
    exit_code: str
    node: str
    elapsed_s: int
    max_rss: int
    tasks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            "element": self.element,
            "restart": self.restart,
            "error_class": self.error_class.value,
            "state": self.state,
            "exit_code": self.exit_code,
            "node": self.node,
            "elapsed_s": self.elapsed_s,
            "max_rss": self.max_rss,
            "tasks": list(self.tasks),
        }

    def line(self) -> str:
        """One line for a log."""
        memory = f", {self.max_rss / 2**20:.0f} MB" if self.max_rss else ""
        held = f"; held {', '.join(self.tasks[:5])}" if self.tasks else ""
        more = f" and {len(self.tasks) - 5} more" if len(self.tasks) > 5 else ""
        return (
            f"worker {self.element} (start {self.restart + 1}) on {self.node or 'no node'}: "
            f"{self.error_class.value} ({self.state}, exit {self.exit_code}, after "
            f"{self.elapsed_s} s{memory}){held}{more}"
        )


def find_losses(services: Services, job_id: JobId) -> list[Loss]:
    """The job's workers that died, with the tasks that they held.

    Raises:
        ServiceError: if the table or the accounting can't be read.
    """
    jobs = services.jobs(job_id)
    job = jobs.get()
    arrays = [each for row in jobs.submissions() for each in row.slurm_job_ids]
    died = [each for each in services.slurm.endings(arrays) if each.error_class is not None]
    if not died:
        return []
    classes = read_spec(services, job).slurm_classes
    table = TaskTable(services.rows, job_id, job.shards, LeaseConfig(), services.clock)
    held = _held(row for shard in range(job.shards) for row in table.all_rows(shard))
    return [_loss(each, held, classes) for each in died]


def attribute(services: Services, job_id: JobId) -> int:
    """Give tasks that were given up because workers died the class that Slurm knows.

    So that a retry by class finds them: ``out_of_memory`` with more memory, ``node_failure``
    on other nodes. Returns how many; repeating it does no harm.
    """
    jobs = services.jobs(job_id)
    job = jobs.get()
    table = TaskTable(services.rows, job_id, job.shards, LeaseConfig(), services.clock)
    lost = [
        row
        for shard in range(job.shards)
        for row in table.all_rows(shard)
        if row.state is TaskState.QUARANTINED and row.error_class == ErrorClass.WORKER_CRASH.value
    ]
    if not lost:
        return 0
    losses = find_losses(services, job_id)
    count = 0
    for row in lost:
        why = next((each for each in reversed(losses) if row.task in each.tasks), None)
        if why is not None and why.error_class is not ErrorClass.WORKER_CRASH:
            # What it said before holds whose lease it was: it is kept.
            message = f"{row.error}; {why.line()}"
            count += table.attribute(row, why.error_class, message)
    return count


def _held(rows: Any) -> dict[str, list[TaskRow]]:
    """Task rows by the workers that held them without ending them."""
    found: dict[str, list[TaskRow]] = defaultdict(list)
    for row in rows:
        owners = {owner for entry in row.history for owner in _TAKEN_FROM.findall(entry)}
        owners.update(_LAST_BY.findall(row.error))
        if row.state is TaskState.LEASED:
            owners.add(row.owner)
        for owner in owners:
            found[owner].append(row)
    return found


def _loss(
    ending: Ending, held: dict[str, list[TaskRow]], classes: Mapping[ElementState, ErrorClass]
) -> Loss:
    tasks = {
        row.task for owner, rows in held.items() if owner.startswith(ending.worker) for row in rows
    }
    assert ending.error_class is not None, "only those that died are asked for"
    return Loss(
        element=f"{ending.array}_{ending.element}",
        restart=ending.restart,
        error_class=classes.get(ending.state, ending.error_class),
        state=ending.state.value,
        exit_code=ending.exit_code,
        node=ending.node,
        elapsed_s=ending.elapsed_s,
        max_rss=ending.max_rss,
        tasks=tuple(sorted(tasks)),
    )
