"""The table's rows rebuilt from S3, where rows were lost or don't say what a marker decided.

| row | rebuilt from |
| --- | --- |
| job | the newest ``config/<sha256>.json`` whose shards fit the rows that are left |
| round | its segments; what it retried, from the errors of the rounds before |
| task | its slice of a segment; its marker, if it has one: then it is done by that |
| half of a bisected task | the marker of the whole, and its own |
| submission | the names of its workers' logs |

What is right is left as it is, so that a second call finds nothing to do. A task without a
marker is ready again, from the last attempt that left an object. Leases, tries, the reasons of
failed tasks, the audit trail and the tokens of submissions are in the table alone.

Requests: a query per page of rows, a list per thousand markers; where rows are missing a GET
per segment; per row that is brought right one GET and two writes.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from airflow_slurm_provider.coordinator.config import JobSpec, spec_of
from airflow_slurm_provider.coordinator.failures import read_failures, retried_items
from airflow_slurm_provider.coordinator.repair.report import Repaired
from airflow_slurm_provider.coordinator.repair.tasks import (
    StandingClock,
    TaskRepair,
    planned_slices,
)
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker import keys
from slurm_worker.errors import UserError
from slurm_worker.jobs import JobRow, JobTable, RoundRow
from slurm_worker.keys import JobId, JobState, RoundState
from slurm_worker.ports import Entry, Value
from slurm_worker.store import JobStore

__all__ = ["Repaired", "repair"]

_LOG = re.compile(r"(\d{3})-(\d+)/((\d+)_\d+)")

Log = Callable[[str], None]


def repair(
    services: Services,
    job_id: JobId,
    *,
    dry_run: bool = False,
    log: Log,
    actor: str = "slurmctl",
) -> Repaired:
    """Bring a job's rows to what S3 says of it.

    Args:
        services: the edges.
        job_id: the job.
        dry_run: look only.
        log: told of progress.
        actor: who asks, for the audit trail.

    Raises:
        UserError: if neither the table nor S3 has enough of the job.
    """
    services.objects.verify()
    found = Repaired(job_id, dry_run)
    _Repair(services, services.store(job_id), found, log).run()
    if found.changed and not dry_run:
        detail = cast("dict[str, Value]", found.to_dict())
        services.jobs(job_id).audit(actor, "repaired", detail)
    return found


class _Repair:
    def __init__(self, services: Services, store: JobStore, found: Repaired, log: Log) -> None:
        self._services = services
        self._store = store
        self._found = found
        self._log = log
        self._write = not found.dry_run
        self._job_id = store.paths.job

    def run(self) -> None:
        """The job, its rounds, their tasks, its submissions: each from those before."""
        job = self._job()
        table = self._services.tasks(job)
        standing = {each.number: each for each in self._services.jobs(self._job_id).rounds()}
        lost = job.state is JobState.OPEN and not job.rounds
        if lost:
            job = replace(job, rounds=self._rounds_open(standing))
        for number in range(max(job.rounds, len(standing))):
            round_row = standing.get(number) or self._round(job, number)
            if round_row is not None and round_row.state is RoundState.OPEN:
                TaskRepair(self._store, table, round_row, self._found, self._log).run()
        self._submissions(job)
        if self._write:
            # Also where nothing is missing any more: an earlier call may have been cut off here.
            self._services.jobs(self._job_id).begin_generation()
        if lost and self._write:
            # Workers may lease only now that every task has its row.
            self._services.jobs(self._job_id).open(job.rounds)

    # --- the job ---------------------------------------------------------------

    def _job(self) -> JobRow:
        jobs = self._services.jobs(self._job_id)
        job = jobs.find()
        if job is None:
            return self._lost_job()
        register = keys.register_sk(job.created_ms, self._job_id)
        if self._services.rows.get(keys.JOBS_PK, register) is None:
            self._found.job = True
            if self._write:
                jobs.create(job.identity, job.config, job.shards)
        return job

    def _lost_job(self) -> JobRow:
        """The row of a job that has none, from its configuration."""
        entry, spec, shards = self._config()
        first = min(self._store.objects.entries(self._store.paths.config_folder), key=_modified)
        digest = entry.key.rpartition("/")[2].removesuffix(".json")
        self._found.job = True
        self._found.unmended.append(
            "the audit trail, a pause and the reasons of failed tasks were in the table alone; "
            "failed tasks are ready again"
        )
        self._log(f"the job's row is missing; rebuilding it from {entry.key}")
        born = self._created(first)
        if self._write:
            _jobs_at(self._services, self._job_id, born).create(spec.identity(), digest, shards)
        return JobRow(
            self._job_id, JobState.OPEN, shards, spec.identity(), digest, 0, "", int(born * 1000)
        )

    def _created(self, first: Entry) -> float:
        """When the job was created: as the sum of its progress says, else as its oldest object."""
        data = self._store.objects.get(self._store.paths.progress)
        created = 0 if data is None else json.loads(data).get("created_ms", 0)
        return float(created / 1000 or first.modified)

    def _config(self) -> tuple[Entry, JobSpec, int]:
        """The configuration that stands, and the job's shards."""
        paths = self._store.paths
        entries = sorted(self._store.objects.entries(paths.config_folder), key=_modified)
        documents = [(each, self._store.objects.get(each.key)) for each in reversed(entries)]
        read = [
            (each, data, json.loads(data)["worker"]["shards"]) for each, data in documents if data
        ]
        if not read:
            raise UserError(
                f"job_id: there is no job {self._job_id!r} in this table, nor a configuration "
                f"below {paths.root} to rebuild it from; check the spelling and storage.prefix"
            )
        shards = {each[2] for each in read}
        # Only submits that were cut short before the job had its row differ in this.
        fitting = max(shards, key=self._rows_of) if len(shards) > 1 else shards.pop()
        entry, data, _ = next(each for each in read if each[2] == fitting)
        return entry, spec_of(data), fitting

    def _rows_of(self, shards: int) -> int:
        """Task rows that are where they belong with so many shards."""
        return sum(
            keys.shard_of(int(str(row["sk"]).partition("#")[2]), shards) == shard
            for shard in range(shards)
            for row in self._services.rows.query(keys.task_pk(self._job_id, shard))
        )

    # --- rounds ----------------------------------------------------------------

    def _rounds_open(self, standing: dict[int, RoundRow]) -> int:
        """How many rounds are open for work, where the job's row was lost."""
        paths = self._store.paths
        found = {
            folder: {int(key.removeprefix(folder)[:3]) for key in self._store.objects.list(folder)}
            for folder in (paths.segments_folder, paths.done_folder)
        }
        committed = found[paths.done_folder] | {
            number for number, row in standing.items() if row.state is RoundState.OPEN
        }
        if not committed:
            raise UserError(
                f"job_id: none of the tasks of {self._job_id!r} is committed, so S3 doesn't tell "
                "whether its plan was complete; submit it again, which plans what is missing"
            )
        rounds = max(committed) + 1
        for number in sorted(found[paths.segments_folder] - set(range(rounds))):
            self._found.unmended.append(
                f"round {number} has segments and no task of it is committed, so S3 doesn't tell "
                f"whether its plan was complete; delete {paths.segments(number)} and retry again"
            )
        return rounds

    def _round(self, job: JobRow, number: int) -> RoundRow | None:
        """A round whose row is missing, from its segments."""
        self._found.rounds.append(number)
        self._log(f"the row of round {number} is missing; rebuilding it from its segments")
        tasks = items = 0
        for each in planned_slices(self._store, number):
            tasks, items = tasks + 1, items + each.count
        entries = list(self._store.objects.entries(self._store.paths.segments(number)))
        at = max((each.modified for each in entries), default=job.created_ms / 1000)
        document = self._store.objects.get(self._store.paths.config(job.config))
        if number == 0 and (not tasks or document is None):
            raise UserError(
                f"job_id: the input of {self._job_id!r} is not below "
                f"{self._store.paths.segments(0)} any more; submit it under another job_id"
            )
        source = spec_of(document).input.path if document and not number else "retry"
        if not tasks:
            self._found.unmended.append(
                f"round {number} has no items of its own, and which failed tasks it put back was "
                "in the table alone; retry again"
            )
        retried = self._retried(number) if number else {}
        if self._write:
            jobs = _jobs_at(self._services, self._job_id, at)
            jobs.create_round(number, source)
            jobs.open_round(number, tasks, items, retried)
        at_ms = int(at * 1000)
        return RoundRow(number, RoundState.OPEN, source, {}, tasks, items, 0, at_ms, at_ms, retried)

    def _retried(self, number: int) -> dict[str, int]:
        """The items of a retry's round by the class that they had failed with."""
        counts: Counter[str] = Counter()
        with (
            retried_items(self._store, number) as before,
            retried_items(self._store, number + 1) as upto,
        ):
            for each in read_failures(self._store, before, range(number)):
                if not each.superseded and upto.superseded(each.key, number - 1):
                    counts[each.error_class] += 1
        return dict(counts)

    # --- submissions -----------------------------------------------------------

    def _submissions(self, job: JobRow) -> None:
        """Submissions whose rows are missing, from the logs that their workers shipped."""
        standing = {
            (each.round_no, each.number) for each in self._services.jobs(self._job_id).submissions()
        }
        arrays: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
        workers: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
        first: dict[tuple[int, int], float] = {}
        for entry in self._store.objects.entries(self._store.paths.logs):
            match = _LOG.match(entry.key.removeprefix(self._store.paths.logs))
            if match is None:
                continue
            which = int(match.group(1)), int(match.group(2))
            if which in standing or which[0] >= job.rounds:
                continue
            arrays[which].add(match.group(4))
            workers[which].add(match.group(3))
            first[which] = min(first.get(which, entry.modified), entry.modified)
        for which in sorted(arrays):
            self._found.submissions.append(f"{which[0]:03}-{which[1]}")
            if self._write:
                jobs = _jobs_at(self._services, self._job_id, first[which])
                count = len(workers[which])
                jobs.submitted(jobs.intend(*which, count, count), sorted(arrays[which], key=int))


def _jobs_at(services: Services, job_id: JobId, at: float) -> JobTable:
    return JobTable(services.rows, job_id, StandingClock(at))


def _modified(entry: Entry) -> float:
    return entry.modified
