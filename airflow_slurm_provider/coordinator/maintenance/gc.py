"""Garbage of a job on S3, which no marker or manifest names: found, counted, deleted.

| garbage | when |
| --- | --- |
| a part that its task's marker doesn't name | at once: the marker has decided |
| a checkpoint of a task with a marker | at once |
| a proposed marker of a task with a marker | the job is complete |
| a file of a dataset that can't be read or published any more | `aggregate.job.publish` |
| a draft of a round that has another as its plan | at once |

An object is garbage only after a final decision, so it may be deleted at any later time, even
while workers run. Without a decision it stays. A part of a task without a marker may belong to a
suspended worker that will commit it. A probe's object may still be in use. A draft of a round
without a plan may become the plan. Code, configurations, inline items and logs are never deleted:
a submit relies on those that exist.

Requests: a list per thousand objects, drafts and markers, a GET per task with parts of several
attempts, those of `slurm_worker.aggregate.job.publish.sweep`, one delete per thousand objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.coordinator.status.progress import read_progress
from slurm_worker.aggregate.job.publish import sweep
from slurm_worker.prefetch import prefetch
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.keys import JobId, RoundState, TaskId
from slurm_worker.protocol.ports import ObjectInfo

WEEK_S = 7 * 24 * 3600.0
_BATCH = 1000


@dataclass(slots=True)
class GcResult:
    """The garbage that was found."""

    job_id: str
    dry_run: bool  #: nothing was deleted
    complete: bool  #: whether the job is complete; else proposed markers were not checked
    #: Their number, by kind: ``parts checkpoints proposed dataset drafts``
    objects: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)  #: bytes, by kind

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            "job_id": self.job_id,
            "dry_run": self.dry_run,
            "complete": self.complete,
            "objects": self.objects.total(),
            "bytes": self.sizes.total(),
            "by_kind": {
                kind: {"objects": self.objects[kind], "bytes": self.sizes[kind]}
                for kind in sorted(self.objects)
            },
        }


def collect(
    services: Services,
    job_id: JobId,
    *,
    older_than_s: float = WEEK_S,
    dry_run: bool = False,
    log: Log,
    actor: str = "slurmctl",
) -> GcResult:
    """Delete a job's garbage, or count it in a dry run; calling again finds none.

    A replaced version of the dataset, and files of an aggregation that has not published yet, are
    kept for `older_than_s` seconds at least. `log` gets a line for each batch. Raises a UserError
    if there is no such job.
    """
    jobs = services.jobs(job_id)
    jobs.get()
    complete = read_progress(services, job_id).complete
    plans = {
        round_row.number: round_row.draft
        for round_row in jobs.rounds()
        if round_row.draft or round_row.state is RoundState.OPEN
    }
    found = GcResult(job_id, dry_run, complete)
    batch: list[str] = []

    def delete() -> None:
        if batch and not dry_run:
            services.objects.delete_many(batch)
            log(f"deleted {found.objects.total():,} objects")
        batch.clear()

    store = services.store(job_id)
    for kind, entry in _garbage(store, complete, older_than_s, plans, dry_run=dry_run):
        found.objects[kind] += 1
        found.sizes[kind] += entry.size
        batch.append(entry.key)
        if len(batch) == _BATCH:
            delete()
    delete()
    if found.objects and not dry_run:
        jobs.audit(
            actor, "collected", {"objects": found.objects.total(), "bytes": found.sizes.total()}
        )
    return found


def _garbage(
    store: JobStore, complete: bool, older_than_s: float, plans: dict[int, int], *, dry_run: bool
) -> Iterator[tuple[str, ObjectInfo]]:
    """Kind and object, one after the other; `plans` are the drafts that are plans, by round."""
    yield from (("parts", entry) for entry in _parts(store))
    yield from (("checkpoints", entry) for entry in _of_done(store, store.paths.all_checkpoints))
    if complete:
        yield from (("proposed", entry) for entry in _of_done(store, store.paths.all_proposed))
    swept = sweep(store.objects, store.paths, older_than_s, dry_run=dry_run)
    yield from (("dataset", entry) for entry in swept)
    yield from (("drafts", entry) for entry in _drafts(store, plans))


@dataclass(frozen=True, slots=True)
class _Task:
    """The objects of one task in a folder, and whether it has a marker."""

    id: TaskId
    entries: tuple[ObjectInfo, ...]
    done: bool


def _parts(store: JobStore) -> Iterator[ObjectInfo]:
    """Parts that no marker names."""

    def unnamed(task: _Task) -> list[ObjectInfo]:
        # Such as a1-3f…
        attempts = {entry.key.rpartition("/")[2].partition(".")[0] for entry in task.entries}
        if not task.done or len(attempts) == 1:
            # Not decided yet, or the one that was committed.
            return []
        marker = store.marker(task.id)
        if marker is None:
            # It was removed, to run the task again.
            return []
        named = {part.key for part in marker.parts}
        return [entry for entry in task.entries if entry.key not in named]

    with closing(prefetch(unnamed, _tasks(store, store.paths.parts))) as tasks:
        for _, entries in tasks:
            yield from entries


def _of_done(store: JobStore, folder: str) -> Iterator[ObjectInfo]:
    """Objects of tasks that have a marker, below a folder with one for each task."""
    for task in _tasks(store, folder):
        if task.done:
            yield from task.entries


def _tasks(store: JobStore, folder: str) -> Iterator[_Task]:
    """The objects below a folder task by task, beside the listing of markers."""

    def task_of(entry: ObjectInfo) -> str:
        return entry.key.removeprefix(folder).partition("/")[0]

    done = store.paths.done_folder
    markers = (key.removeprefix(done).removesuffix(".done") for key in store.objects.list(done))
    # Ids have one width, so both listings are in the order of the tasks.
    marker = next(markers, "")
    for task, entries in groupby(store.objects.entries(folder), task_of):
        while marker and marker < task:
            marker = next(markers, "")
        yield _Task(TaskId(task), tuple(entries), done=marker == task)


def _drafts(store: JobStore, plans: dict[int, int]) -> Iterator[ObjectInfo]:
    """Objects of drafts that are not a plan and can't become one."""
    for number, plan in plans.items():
        for entry in store.objects.entries(store.paths.segments(number)):
            if store.paths.draft_in(entry.key) not in (None, plan):
                yield entry
        kept = (store.paths.draft_summary(number, plan), store.paths.draft_files(number, plan))
        for entry in store.objects.entries(store.paths.draft_summaries(number)):
            if entry.key not in kept:
                yield entry
