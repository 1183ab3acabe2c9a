"""Workers that died, the reason by Slurm's accounting, and the tasks that they held.

A worker's name holds its array, element and restart. A task's row names the worker that holds it,
and its history the workers that lost it. So Slurm's state of an element gives the class of the
tasks that it held. Requests: those of `snapshot.py`, a few rows of the job, one ``sacct``; every
task row is read only where leases were lost and taken over. Functions raise a ServiceError if the
table or the accounting can't be read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.arrays import arrays_of
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot, read_snapshot
from airflow_slurm_provider.slurm.accounting import JobRecord
from airflow_slurm_provider.slurm.exit_codes import reason_of
from airflow_slurm_provider.slurm.states import ElementState
from airflow_slurm_provider.units import format_memory
from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.keys import JobId, TaskState
from slurm_worker.protocol.task_history import TaskEvent
from slurm_worker.protocol.tasks import TaskRow


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """One worker that died."""

    element: str  #: the array's element, such as ``123_4``
    restart: int
    error_class: ErrorClass  #: why, by Slurm's word
    state: str  #: Slurm's word
    exit_code: str
    node: str
    elapsed_s: int
    max_rss: int  #: most bytes of memory that Slurm saw it use
    tasks: tuple[str, ...]  #: tasks that it held

    @property
    def reason(self) -> str:
        """Why it ended, and what to do, where its exit code says it; otherwise empty."""
        return reason_of(self.exit_code)

    @property
    def array(self) -> str:
        """The array's id."""
        return self.element.partition("_")[0]

    @property
    def worker(self) -> str:
        """The prefix of the names of this start's workers."""
        return f"{self.element}-r{self.restart}-"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        own = {"error_class": self.error_class.value, "tasks": list(self.tasks)}
        return {**asdict(self), **own, "reason": self.reason}

    def line(self) -> str:
        """One line for a log."""
        # 0 where the accounting does not say it, as in the embedded mode.
        ran = f", after {self.elapsed_s} s" if self.elapsed_s else ""
        memory = f", {format_memory(self.max_rss)}" if self.max_rss else ""
        held = f"; held {', '.join(self.tasks[:5])}" if self.tasks else ""
        more = f" and {len(self.tasks) - 5} more" if len(self.tasks) > 5 else ""
        return (
            f"worker {self.element} (start {self.restart + 1}) on {self.node or 'no node'}: "
            f"{self.error_class.value} ({self.state}, exit {self.exit_code}{ran}{memory})"
            f"{held}{more}{f'; {self.reason}' if self.reason else ''}"
        )


def find_worker_failures(services: Services, job_id: JobId) -> list[WorkerFailure]:
    """The job's workers that died, with the tasks that they held."""
    died = _died(services, job_id)
    if not died:
        return []
    snapshot = read_snapshot(services, job_id)
    rows: Iterable[TaskRow] = (*snapshot.leased, *snapshot.ended)
    # A leased row names its holder, and a row whose lease was lost names the earlier ones.
    # Where all lost leases are of tasks that were read anyway, no other row is read.
    if snapshot.lost != sum(row.lost for row in rows):
        table = services.tasks(snapshot.job)
        rows = chain.from_iterable(map(table.all_rows, range(table.shards)))
    return _failures_of(services, snapshot, died, rows)


def read_job_records(services: Services, job_id: JobId) -> list[JobRecord]:
    """How the job's workers ended that have, by Slurm's accounting: one ``sacct``."""
    submissions = services.jobs(job_id).submissions()
    records = services.slurm.records(arrays_of(services, job_id, submissions))
    return [record for record in records if record.ended]


def failed_nodes(
    records: Iterable[JobRecord], classes: Mapping[ElementState, ErrorClass]
) -> dict[str, set[str]]:
    """The nodes on which workers died, by error class; makes no request.

    `classes` are the job's own rules of what a Slurm state means.
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.error_class is not None and record.node:
            found[_class_of(record, classes).value].add(record.node)
    return found


def attribute_failures(services: Services, job_id: JobId) -> int:
    """Give tasks that were given up because workers died the class that Slurm knows.

    So that a retry by class finds them: ``out_of_memory`` with more memory, ``node_failure``
    on other nodes. The last holder that died decides; deaths from before the task was put back
    do not count. Returns how many; repeating it does no harm.
    """
    snapshot = read_snapshot(services, job_id)
    lost = [
        row
        for row in snapshot.ended
        if row.state is TaskState.QUARANTINED and row.error_class == ErrorClass.WORKER_CRASH.value
    ]
    if not lost:
        return 0
    failures = _failures_of(services, snapshot, _died(services, job_id), lost)
    table, count = services.tasks(snapshot.job), 0
    for row in lost:
        deaths = (f for name in _last_holders(row) for f in failures if name.startswith(f.worker))
        why = next(deaths, None)
        if why is not None and why.error_class is not ErrorClass.WORKER_CRASH:
            # The earlier text is kept: it names the worker.
            message = f"{row.error}; {why.line()}"
            count += table.record_cause(row, why.error_class, message)
    return count


def _died(services: Services, job_id: JobId) -> list[JobRecord]:
    """How the job's dead workers ended."""
    return [
        record for record in read_job_records(services, job_id) if record.error_class is not None
    ]


def _last_holders(row: TaskRow) -> list[str]:
    """The workers that lost a task's lease since it was last put back, the last one first."""
    found = []
    for entry in reversed(row.history):
        if entry.event is TaskEvent.REOPENED:
            break
        if entry.previous:
            found.append(entry.previous)
    return found


def _failures_of(
    services: Services, snapshot: Snapshot, died: list[JobRecord], rows: Iterable[TaskRow]
) -> list[WorkerFailure]:
    if not died:
        return []
    # Building the models of a job's YAML takes a good part of the time of `slurmctl status`.
    from airflow_slurm_provider.coordinator.spec_store import read_spec

    classes = read_spec(services, snapshot.job).slurm_classes
    held: set[tuple[str, str]] = set()  # workers, and tasks that they held and did not end
    for row in rows:
        held.update((entry.previous, row.task) for entry in row.history if entry.previous)
        if row.state is TaskState.LEASED:
            held.add((row.owner, row.task))
    return [
        WorkerFailure(
            element=f"{record.array}_{record.element}",
            restart=record.restart,
            error_class=_class_of(record, classes),
            state=record.state.value,
            exit_code=record.exit_code,
            node=record.node,
            elapsed_s=record.elapsed_s,
            max_rss=record.max_rss,
            tasks=tuple(sorted({task for name, task in held if name.startswith(record.worker)})),
        )
        for record in died
    ]


def _class_of(record: JobRecord, classes: Mapping[ElementState, ErrorClass]) -> ErrorClass:
    """Why a worker died: by the job's own rules, else by Slurm's word."""
    assert record.error_class is not None, "callers pass dead workers only"
    return classes.get(record.state, record.error_class)
