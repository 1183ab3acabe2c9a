"""How all commands show a job's progress, workers, failures, events and dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_slurm_provider.cli.rendering.output import Fields, by_class, by_count
from airflow_slurm_provider.slurm.array_state import named
from airflow_slurm_provider.units import format_count, format_size
from slurm_worker.errors import ErrorClass
from slurm_worker.printable import printable

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.status.dead_workers import WorkerFailure
    from airflow_slurm_provider.coordinator.status.failures import FailureGroup
    from airflow_slurm_provider.coordinator.status.progress import JobStatus, Progress
    from airflow_slurm_provider.slurm.array_state import ArrayState
    from slurm_worker.protocol.job_rows import AuditEvent

Manifest = Mapping[str, Any]
_WORKERS_SHOWN = 5
_GROUPS_SHOWN = 20
#: A retry runs the handler of the last submit.
_FIRST = "correct the handler, run slurmctl submit CONFIG, then "


def progress_fields(progress: Progress, problem: str = "") -> Fields:
    """A job's progress, and the problem that waiting can't fix, if there is one."""
    tasks = ", ".join(f"{count:,} {state}" for state, count in sorted(progress.tasks.items()))
    fields = [
        ("job", progress.job_id),
        ("state", _state(progress)),
        *([("problem", problem)] if problem else []),
        ("rounds", _rounds(progress.rounds)),
        ("tasks", tasks or "none yet"),
        ("items in", format_count(progress.items)),
        ("ok", format_count(progress.ok)),
        ("failed", by_class(progress.failed)),
        ("pending", format_count(progress.pending)),
    ]
    if progress.task_errors:
        fields.append(("tasks failed", by_class(progress.task_errors)))
    return fields


def workers_document(array: ArrayState | None) -> dict[str, object] | None:
    """The array for JSON; None where its state was not read."""
    if array is None:
        return None
    return {
        "slurm_job_ids": array.slurm_job_id.split(","),
        "alive": array.alive,
        "states": array.counts(),
        "known": not array.unknown,
    }


def workers_text(status: JobStatus) -> str:
    """How many workers are alive, of which arrays, and their states."""
    array = status.array
    if array is None:
        return "none needed" if status.finished else "not submitted"
    arrays = named(array.slurm_job_id.split(","))
    if array.unknown:
        return f"{arrays}: not known to Slurm yet"
    return f"{array.alive:,} alive of {arrays} ({by_count(array.counts())})"


def worker_failure_fields(failures: Sequence[WorkerFailure] | None) -> Fields:
    """Workers that died, by error class, and the last of them."""
    if not failures:
        return []
    classes = Counter(failure.error_class.value for failure in failures)
    fields = [("workers lost", by_class(classes))]
    return fields + [("", failure.line()) for failure in failures[-_WORKERS_SHOWN:]]


def failure_fields(job_id: str, groups: Sequence[FailureGroup]) -> Fields:
    """Failures by class and message, each with its examples, and the command for the class."""
    if not groups:
        workers = f"for workers that died, see: slurmctl status {job_id}"
        return [("failures", "no item or task failed"), ("note", workers)]
    fields: list[tuple[str, str]] = []
    for group in groups[:_GROUPS_SHOWN]:
        fields.append((group.error_class, f"{_counted(group)}: {group.message}"))
        if not group.count:
            continue
        fields += [("", f"{key}: {message}") for key, message in group.examples]
        if group.first:
            times = " to ".join(_utc(at) for at in (group.first, group.last))
            nodes = ", ".join(f"{node} {count:,}" for node, count in group.nodes.most_common(5))
            fields.append(("", f"{times}{f'; on {nodes}' if nodes else ''}"))
    left = len(groups) - _GROUPS_SHOWN
    if left > 0:
        fields.append(("", f"and {left:,} more messages; see --json"))
    counts = Counter[str]()
    for group in groups:
        counts[group.error_class] += group.count
    for name, count in counts.most_common():
        if count:
            first = _FIRST if name == ErrorClass.HANDLER_BUG else ""
            fields.append((f"retry {name}", f"{first}slurmctl retry {job_id} --errors={name}"))
    return fields


def _counted(group: FailureGroup) -> str:
    """The number of failures in a group."""
    if not group.count:
        return f"none left; {format_count(group.superseded, group.of)} retried"
    given_up = " given up" if group.of == "task" else ""
    # They may be the same items, which failed again.
    earlier = f"{format_count(group.superseded, 'earlier failure')} retried"
    again = f" ({earlier})" if group.superseded else ""
    return f"{format_count(group.count, group.of)}{given_up}{again}"


def waited_fields(status: JobStatus) -> Fields:
    """The result of a wait."""
    progress = status.progress
    failed = sum(progress.failed.values())
    warnings = _warnings(progress.job_id, progress.ok, failed) if status.finished else []
    return [*progress_fields(progress, status.problem), *warnings]


def manifest_fields(manifest: Manifest) -> Fields:
    """What a published dataset holds."""
    size = format_size(sum(int(file["size"]) for file in manifest["files"]))
    return [
        ("items in", format_count(manifest["items"])),
        ("ok", format_count(manifest["ok"])),
        ("failed", by_class(manifest["failed"])),
        ("rows out", format_count(manifest["rows"])),
        ("files", f"{len(manifest['files']):,}, {size}"),
        ("dataset", manifest["dataset"]),
        ("manifest", manifest["manifest"]),
        *_warnings(manifest["job"], manifest["ok"], sum(manifest["failed"].values())),
    ]


def _warnings(job_id: str, ok: int, failed: int) -> Fields:
    return [("note", f"most items failed; see: slurmctl errors {job_id}")] if failed > ok else []


def event_line(event: AuditEvent) -> str:
    """An event in a line: time, who, what, details."""
    from airflow_slurm_provider.coordinator.status.audit_log import as_utc

    detail = ", ".join(f"{name}={value}" for name, value in event.detail.items() if value != "")
    line = f"{as_utc(event.at_ms)} {event.actor}: {event.action}{f' ({detail})' if detail else ''}"
    return printable(line)


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def _rounds(count: int) -> str:
    """How many rounds; retry rounds are called by their numbers, which start at 0."""
    return f"{count} (0 to {count - 1})" if count > 1 else str(count)


def _state(progress: Progress) -> str:
    state = progress.summary_state
    if state == "stopped":
        return f"stopped: {progress.stop}"
    return f"paused by {progress.paused}" if state == "paused" else state
