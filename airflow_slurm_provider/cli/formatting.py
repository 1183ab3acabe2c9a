"""How a job's progress, its workers and its dataset are shown: one form for all commands."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_slurm_provider.cli.output import Fields, by_class
from airflow_slurm_provider.slurm.array_state import named
from airflow_slurm_provider.units import format_count, format_size
from slurm_worker.protocol.keys import JobId

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services
    from airflow_slurm_provider.coordinator.status.dead_workers import WorkerFailure
    from airflow_slurm_provider.coordinator.status.failures import Group
    from airflow_slurm_provider.coordinator.status.progress import JobStatus, Progress
    from airflow_slurm_provider.slurm.array_state import ArrayState

Manifest = Mapping[str, Any]
_LOSSES_SHOWN = 5
_GROUPS_SHOWN = 20


def read_manifest(services: Services, job: JobId) -> Manifest | None:
    """The published dataset's manifest, if the job has one; one request."""
    data = services.objects.get(services.paths(job).manifest)
    manifest: Manifest | None = None if data is None else json.loads(data)
    return manifest


def manifest_address(services: Services, job: JobId) -> str:
    """Where the job's manifest is, or will be."""
    return f"s3://{services.site.bucket}/{services.paths(job).manifest}"


def progress_fields(progress: Progress, problem: str = "") -> Fields:
    """What the table says of a job, and why waiting for it is vain, if it is."""
    tasks = ", ".join(f"{count:,} {state}" for state, count in sorted(progress.tasks.items()))
    fields = [
        ("job", progress.job_id),
        ("state", _state(progress)),
        *([("problem", problem)] if problem else []),
        ("rounds", str(progress.rounds)),
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
    """The array in the machine form; None where it was not looked at."""
    if array is None:
        return None
    return {
        "slurm_job_ids": array.slurm_job_id.split(","),
        "alive": array.alive,
        "states": array.counts(),
        "known": not array.unknown,
    }


def workers_text(poll: JobStatus) -> str:
    """The array in a line."""
    array = poll.array
    if array is None:
        return "none needed" if poll.finished else "not submitted"
    arrays = named(array.slurm_job_id.split(","))
    if array.unknown:
        return f"{arrays}: Slurm doesn't say yet"
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(array.counts().items()))
    return f"{arrays}: {array.alive:,} alive ({states})"


def loss_fields(losses: Sequence[WorkerFailure] | None) -> Fields:
    """Workers that died, by error class, and the last of them."""
    if not losses:
        return []
    classes = Counter(each.error_class.value for each in losses)
    fields = [("workers lost", by_class(classes))]
    return fields + [("", each.line()) for each in losses[-_LOSSES_SHOWN:]]


def failure_fields(job_id: str, groups: Sequence[Group]) -> Fields:
    """Failures by class and message, each with its examples, and the command for the class."""
    if not groups:
        workers = f"workers that died are told by: slurmctl status {job_id}"
        return [("failures", "none of items or tasks"), ("note", workers)]
    fields: list[tuple[str, str]] = []
    for each in groups[:_GROUPS_SHOWN]:
        fields.append((each.error_class, f"{_counted(each)}: {each.message}"))
        if not each.count:
            continue
        fields += [("", f"{key}: {message}") for key, message in each.examples]
        if each.first:
            times = " to ".join(_utc(at) for at in (each.first, each.last))
            nodes = ", ".join(f"{node} {count:,}" for node, count in each.nodes.most_common(5))
            fields.append(("", f"{times}{f'; on {nodes}' if nodes else ''}"))
    left = len(groups) - _GROUPS_SHOWN
    if left > 0:
        fields.append(("", f"and {left:,} further messages; see --json"))
    standing = Counter[str]()
    for each in groups:
        standing[each.error_class] += each.count
    for name, count in standing.most_common():
        if count:
            fields.append((f"retry {name}", f"slurmctl retry {job_id} --errors={name}"))
    return fields


def _counted(group: Group) -> str:
    """How many failures a group stands for."""
    if not group.count:
        return f"none left; {group.superseded:,} {_plural(group.of, group.superseded)} tried again"
    given_up = " given up" if group.of == "task" else ""
    again = f" ({group.superseded:,} more were tried again)" if group.superseded else ""
    return f"{group.count:,} {_plural(group.of, group.count)}{given_up}{again}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def waited_fields(poll: JobStatus) -> Fields:
    """What a wait came to."""
    progress = poll.progress
    failed = sum(progress.failed.values())
    warnings = _warnings(progress.job_id, progress.ok, failed) if poll.finished else []
    return [*progress_fields(progress, poll.problem), *warnings]


def manifest_fields(manifest: Manifest) -> Fields:
    """What a published dataset holds."""
    size = format_size(sum(int(each["size"]) for each in manifest["files"]))
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
    return [("note", f"most items failed; why: slurmctl errors {job_id}")] if failed > ok else []


def dataset_text(manifest: Manifest | None, address: str) -> str:
    """The dataset in a line."""
    if manifest is None:
        return "not published"
    return f"{manifest['rows']:,} rows in {len(manifest['files'])} files, {address}"


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def _state(progress: Progress) -> str:
    standing = progress.standing
    if standing == "stopped":
        return f"stopped: {progress.stop}"
    return f"paused by {progress.paused}" if standing == "paused" else standing
