"""What a job has left behind on S3 and nothing names: found, counted, deleted.

| garbage | when |
| --- | --- |
| a part that its task's marker doesn't name | at once: the marker has decided |
| a part of a task without a marker | the job is complete, and the part is old |
| a checkpoint or a proposed marker of a task with a marker | at once; a proposal when complete |
| a dataset's file that the manifest doesn't name | it is old |
| a draft of a round that has another as its plan | at once: that has been decided |
| an object of a probe | it is an hour old |

What a marker or the manifest names is never touched, nor are the plans of rounds, code,
configurations and logs. A draft of a round without a plan may yet become it, so it stays. A part
without a marker may belong to a worker that was suspended and will yet commit, so it counts as
old only after `older_than_s` and twice the longest that a lease may be kept.

Requests: a list per thousand objects, drafts and markers, a GET per task with parts of several
attempts, one delete per thousand objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from airflow_slurm_provider.coordinator import ship
from airflow_slurm_provider.coordinator.progress import read_progress
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.aggregate.publish import find_manifest
from slurm_worker.ahead import ahead
from slurm_worker.keys import JobId, JobPaths, RoundState, TaskId
from slurm_worker.ports import Entry
from slurm_worker.store import JobStore

WEEK_S = 7 * 24 * 3600.0
_HOUR_S = 3600.0
_BATCH = 1000

Log = Callable[[str], None]


@dataclass(slots=True)
class Collected:
    """What was garbage.

    Args:
        dry_run: it is still there.
        complete: whether the job was; where not, parts of open tasks were not looked at.
        objects: how many, by kind: ``parts checkpoints proposed dataset drafts probe``.
        sizes: bytes, by kind.
    """

    job_id: str
    dry_run: bool
    complete: bool
    objects: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)

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
) -> Collected:
    """Delete a job's garbage; calling again finds none.

    Args:
        services: the edges.
        job_id: the job.
        older_than_s: seconds after which what might still be used is garbage.
        dry_run: count only.
        log: told of progress.
        actor: who asks, for the audit trail.

    Raises:
        UserError: if there is no such job.
    """
    jobs = services.jobs(job_id)
    spec = ship.read_spec(services, jobs.get())
    complete = read_progress(services, job_id).complete
    lease = spec.resolve_lease()
    longest_s = max(lease.ttl_s, lease.stall_s)
    now = services.clock.now()
    look = _Look(
        services.store(job_id),
        complete=complete,
        old=now - older_than_s,
        abandoned=now - max(older_than_s, 2 * longest_s),
        hour_ago=now - _HOUR_S,
        plans={
            each.number: each.draft
            for each in jobs.rounds()
            if each.draft or each.state is RoundState.OPEN
        },
    )
    found = Collected(job_id, dry_run, complete)
    batch: list[str] = []
    for kind, entry in look.garbage():
        found.objects[kind] += 1
        found.sizes[kind] += entry.size
        batch.append(entry.key)
        if len(batch) == _BATCH:
            _delete(services, batch, dry_run, log, found)
            batch.clear()
    _delete(services, batch, dry_run, log, found)
    if found.objects and not dry_run:
        jobs.audit(
            actor,
            "collected",
            {"objects": found.objects.total(), "bytes": found.sizes.total()},
        )
    return found


def _delete(services: Services, keys: list[str], dry_run: bool, log: Log, found: Collected) -> None:
    if keys and not dry_run:
        services.objects.delete_many(keys)
        log(f"deleted {found.objects.total():,} objects")


@dataclass(frozen=True, slots=True)
class _Task:
    """The objects of one task in a folder, and whether it has a marker."""

    id: TaskId
    entries: tuple[Entry, ...]
    done: bool

    @property
    def attempts(self) -> set[str]:
        """The names of the attempts that have parts: ``a1-3f…``."""
        return {each.key.rpartition("/")[2].partition(".")[0] for each in self.entries}


@dataclass(frozen=True, slots=True)
class _Look:
    """What is garbage by now.

    Args:
        store: the job's objects.
        complete: whether the job is.
        old: what was written before this time counts as old.
        abandoned: what was written before this time no worker will commit.
        hour_ago: what was written before this time no probe still needs.
        plans: the draft that is each round's plan, of rounds that have one.
    """

    store: JobStore
    complete: bool
    old: float
    abandoned: float
    hour_ago: float
    plans: dict[int, int]

    @property
    def _paths(self) -> JobPaths:
        return self.store.paths

    def garbage(self) -> Iterator[tuple[str, Entry]]:
        """Kind and object, one after the other."""
        for entry in self._parts():
            yield "parts", entry
        for entry in self._of_done(self._paths.all_checkpoints):
            yield "checkpoints", entry
        if self.complete:
            for entry in self._of_done(self._paths.all_proposed):
                yield "proposed", entry
        for entry in self._unpublished():
            yield "dataset", entry
        for entry in self._drafts():
            yield "drafts", entry
        for entry in self.store.objects.entries(self._paths.probe("")):
            if entry.modified < self.hour_ago:
                yield "probe", entry

    def _parts(self) -> Iterator[Entry]:
        """Parts that no marker names."""
        with closing(ahead(self._unnamed, self._tasks(self._paths.parts))) as tasks:
            for _, entries in tasks:
                yield from entries

    def _unnamed(self, task: _Task) -> list[Entry]:
        """A task's parts that are garbage."""
        if task.done and len(task.attempts) == 1:
            # It is the one that was committed.
            return []
        if not task.done and not self.complete:
            return []
        # Read after the parts were listed: what is committed meanwhile is named in it.
        marker = self.store.marker(task.id)
        if marker is None:
            return [each for each in task.entries if each.modified < self.abandoned]
        named = {part.key for part in marker.parts}
        return [each for each in task.entries if each.key not in named]

    def _of_done(self, folder: str) -> Iterator[Entry]:
        """Objects of tasks that have a marker, below a folder with one for each task."""
        for task in self._tasks(folder):
            if task.done:
                yield from task.entries

    def _tasks(self, folder: str) -> Iterator[_Task]:
        """The objects below a folder task by task, beside the listing of markers."""

        def task_of(entry: Entry) -> str:
            return entry.key.removeprefix(folder).partition("/")[0]

        markers = (
            key.removeprefix(self._paths.done_folder).removesuffix(".done")
            for key in self.store.objects.list(self._paths.done_folder)
        )
        # Ids have one width, so both listings are in the order of the tasks.
        standing = next(markers, "")
        for task, entries in groupby(self.store.objects.entries(folder), task_of):
            while standing and standing < task:
                standing = next(markers, "")
            yield _Task(TaskId(task), tuple(entries), done=standing == task)

    def _drafts(self) -> Iterator[Entry]:
        """Objects of drafts that are nobody's plan, and never will be."""
        for number, plan in self.plans.items():
            for entry in self.store.objects.entries(self._paths.segments(number)):
                if self._paths.draft_in(entry.key) not in (None, plan):
                    yield entry
            standing = self._paths.title(number, plan)
            for entry in self.store.objects.entries(self._paths.titles(number)):
                if entry.key != standing:
                    yield entry

    def _unpublished(self) -> Iterator[Entry]:
        """Old files of datasets that the manifest doesn't name."""
        manifest = find_manifest(self.store.objects, self._paths)
        if manifest is None and self.store.objects.size(self._paths.manifest) is not None:
            # Of another release: what it names is not known.
            return
        files = () if manifest is None else (*manifest.files, *manifest.errors)
        kept = {self._paths.manifest, *(each.key for each in files)}
        for folder in (self._paths.dataset, self._paths.errors):
            for entry in self.store.objects.entries(folder):
                if entry.key not in kept and entry.modified < self.old:
                    yield entry
