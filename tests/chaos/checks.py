"""What must be true of a job after chaos; each check gives sentences, none where all is well."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import pyarrow.parquet as pq

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import job_name
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import Row, Value, int_of
from slurm_worker.protocol.task_history import TaskEvent
from slurm_worker.protocol.task_table import HISTORY_LIMIT
from slurm_worker.protocol.tasks import TaskRow
from tests.chaos.handler.digest import fails, value_of
from tests.chaos.queue_watch import all_arrays
from tests.stack.facts import job_facts

_ROW_LIMIT = 1024
_SHOWN = 5


def problems(services: Services, job_id: str, expected: list[str]) -> list[str]:
    """Everything that is wrong with the published job.

    Args:
        services: the services themselves, with no proxy before them.
        job_id: a job that was aggregated.
        expected: the key of every item that was planned.
    """
    rows = task_rows(services, job_id)
    facts = job_facts(services, job_id)
    found = facts.problems()
    if facts.items != len(expected):
        found.append(f"{facts.items:,} items in the manifest, {len(expected):,} were planned")
    found += wrong_items(services, job_id, expected)
    markers = list(services.store(JobId(job_id)).markers())
    found += disagreements([TaskRow.from_row(row) for row in rows], markers)
    for row in rows:
        found += unexplained(row)
    return found


def audit_problems(services: Services, job_id: str, commands: Mapping[str, int]) -> list[str]:
    """What the audit log does not explain: arrays that no row names, commands without a line.

    Args:
        services: the services themselves.
        job_id: the job.
        commands: by action of the audit log, how many commands said that they have done it.
    """
    jobs = services.jobs(JobId(job_id))
    named = {
        job_name(jobs.job, row, part)
        for row in jobs.submissions()
        for part in range(len(row.sizes()))
    }
    known = all_arrays(job_id)
    if known is None:
        return ["Slurm does not say which arrays it had"]
    found = [
        f"Slurm had the arrays {sorted(known[name])} of {name}, which no row names"
        for name in sorted(set(known) - named)
    ]
    told = Counter(event.action for event in jobs.events())
    found += [
        f"{count} commands have {action} the job, the audit log has {told[action]}"
        for action, count in commands.items()
        if told[action] < count
    ]
    return found


def leases_lost(rows: Iterable[Row]) -> int:
    """Leases that ran out and were taken by another worker."""
    return sum(TaskRow.from_row(row).lost for row in rows)


def task_rows(services: Services, job_id: str) -> list[Row]:
    """Every task row as it is in the table."""
    job = services.jobs(JobId(job_id)).get()
    return [
        row
        for shard in range(job.shards)
        for row in services.rows.query(keys.task_pk(job.job, shard), consistent=True)
    ]


def wrong_items(services: Services, job_id: str, expected: list[str]) -> list[str]:
    """Items missing, doubled, of another value, or not where they belong."""
    manifest = read_manifest(services, job_id)
    values = list(_columns(services, manifest["files"], "value"))
    errors = list(_columns(services, manifest["errors"], "class"))
    failing = {key for key in expected if fails(key)}
    found = [
        *_differences("in the dataset", Counter(key for key, _ in values), set(expected) - failing),
        *_differences("in the errors", Counter(key for key, _ in errors), failing),
    ]
    wrong = [key for key, value in values if value != value_of(key)]
    if wrong:
        found.append(f"{len(wrong):,} values are wrong: {wrong[:_SHOWN]}")
    classes = Counter(error_class for _, error_class in errors) - Counter(bad_input=len(errors))
    if classes:
        found.append(f"items failed for other reasons than their own: {dict(classes)}")
    return found


def disagreements(tasks: list[TaskRow], markers: list[Marker]) -> list[str]:
    """Tasks whose row in the table differs from their marker."""
    said = {task.task: (task.winner, task.items_ok, task.items_failed) for task in tasks}
    decided = {
        marker.task: (marker.attempt, marker.ok, sum(marker.failed.values())) for marker in markers
    }
    return [
        f"task {task}: (attempt, ok, failed) is {said.get(task)} in its row but "
        f"{decided.get(task)} in its marker"
        for task in sorted({*said, *decided})
        if said.get(task) != decided.get(task)
    ]


def unexplained(row: Row) -> list[str]:
    """Gaps in the history of a task: each attempt after the first must have a reason."""
    task = TaskRow.from_row(row)
    entries = task.history
    found = []
    # A task that a retry put back has an entry for it, beside that of the attempt that failed.
    ended = sum(entry.event is not TaskEvent.REOPENED for entry in entries)
    missing = task.attempt - 1 - ended
    if missing and len(entries) < HISTORY_LIMIT:
        found.append(f"task {task.task}: attempt {task.attempt}, history {list(entries)}")
    stolen = sum(entry.event is TaskEvent.STOLEN for entry in entries)
    if stolen > task.lost or (stolen < task.lost and len(entries) < HISTORY_LIMIT):
        found.append(f"task {task.task}: {task.lost} leases lost, history {list(entries)}")
    if not 1 <= task.winner <= task.attempt:
        found.append(f"task {task.task}: attempt {task.winner} of {task.attempt} won")
    if (size := row_size(row)) > _ROW_LIMIT:
        found.append(f"task {task.task}: its row has {size} bytes, a write costs two units")
    return found


def row_size(row: Row) -> int:
    """Bytes of a row, about as DynamoDB counts them."""
    return sum(len(name) + _value_size(value) for name, value in row.items())


def read_manifest(services: Services, job_id: str) -> dict[str, list[dict[str, str]]]:
    data = services.objects.get(services.paths(JobId(job_id)).manifest)
    if data is None:
        raise LookupError(f"{job_id}: no dataset is published")
    manifest: dict[str, list[dict[str, str]]] = json.loads(data)
    return manifest


def attempts_over_one(rows: Iterable[Row]) -> int:
    return sum(max(0, int_of(row, "attempt") - 1) for row in rows)


def _differences(where: str, seen: Counter[str], wanted: set[str]) -> Iterator[str]:
    for what, some in (
        ("missing", wanted - set(seen)),
        ("not expected", set(seen) - wanted),
        ("more than once", {key for key, count in seen.items() if count > 1}),
    ):
        if some:
            yield f"{len(some):,} items {what} {where}: {sorted(some)[:_SHOWN]}"


def _columns(
    services: Services, files: list[dict[str, str]], name: str
) -> Iterator[tuple[str, str]]:
    for entry in files:
        data = services.objects.get(entry["key"])
        if data is None:
            raise LookupError(f"{entry['key']}: the manifest names it and it is not there")
        columns = pq.read_table(io.BytesIO(data), columns=["_key", name]).to_pydict()
        yield from zip(columns["_key"], columns[name], strict=True)


def _value_size(value: Value) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return 3 + sum(1 + _value_size(each) for each in value)
    if isinstance(value, dict):
        return 3 + sum(1 + len(name) + _value_size(each) for name, each in value.items())
    return len(str(value)) // 2 + 2
