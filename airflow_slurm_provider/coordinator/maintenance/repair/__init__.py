"""The table's rows rebuilt from S3, where rows were lost or don't say what a marker decided.

| row | rebuilt from |
| --- | --- |
| job | the newest ``config/<sha256>.json`` of the input that its first round's draft is of |
| round | the draft whose slices its markers were made from |
| task | its slice of a segment; its marker, if it has one: then it is done by that |
| half of a bisected task | the marker of the whole, and its own |
| submission | the names of its workers' logs |

The job's row comes last, when all else is there and agrees: without it, nobody plans another
input under a name that has results. What is right is left as it is, so that a second call finds
nothing to do. A task without a marker is ready again, from the last attempt that left an object.
Leases, tries, the reasons of failed tasks, the audit trail and the tokens of submissions are in
the table alone.

Requests: a query per page of rows, a list per thousand markers; where rows are missing a GET
per segment; per row that is brought right one GET and two writes.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.maintenance.repair.drafts import find_plan
from airflow_slurm_provider.coordinator.maintenance.repair.report import Repaired
from airflow_slurm_provider.coordinator.maintenance.repair.tasks import (
    StandingClock,
    TaskRepair,
)
from airflow_slurm_provider.coordinator.planning.initial_round import has_plan
from airflow_slurm_provider.coordinator.planning.planner import DraftSummary
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec, spec_of
from airflow_slurm_provider.coordinator.status.failures import read_failures, retried_items
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId, JobState, RoundState
from slurm_worker.protocol.ports import ObjectInfo, Value
from slurm_worker.protocol.tasks import TaskRow

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


@dataclass(frozen=True, slots=True)
class _Config:
    """A configuration that the job has had."""

    digest: str
    spec: JobSpec
    shards: int


class _Repair:
    def __init__(self, services: Services, store: JobStore, found: Repaired, log: Log) -> None:
        self._services = services
        self._store = store
        self._found = found
        self._log = log
        self._write = not found.dry_run
        self._job_id = store.paths.job
        self._drafts: dict[int, int] = {}

    def run(self) -> None:
        """Tasks, rounds and submissions from S3, and last the job's row.

        While a job has no row its results guard its name: nobody plans another input under it.
        So the row is written when all else is there and agrees.
        """
        job = self._services.jobs(self._job_id).find()
        if job is None or (job.state is JobState.PLANNING and self._has_lost_plan(job)):
            self._rebuild_job(job)
            self._begin_generation()
            return
        self._check_register(job)
        standing = {each.number: each for each in self._services.jobs(self._job_id).rounds()}
        for number in range(max(job.rounds, len(standing))):
            round_row = standing.get(number)
            if round_row is None:
                round_row = self._round(number, job.created_ms / 1000, job)
                self._repair_tasks(job, round_row)
                self._write_round(round_row)
            elif round_row.state is RoundState.OPEN:
                self._repair_tasks(job, round_row)
        self._submissions(job.rounds)
        self._begin_generation()

    def _repair_tasks(self, job: JobRow, round_row: RoundRow, *, strict: bool = False) -> None:
        table = self._services.tasks(job)
        TaskRepair(self._store, table, round_row, self._found, self._log, strict=strict).run()

    def _begin_generation(self) -> None:
        """Have everybody look at every row again.

        Also where nothing is missing any more: an earlier call may have been cut off before this.
        """
        if self._write:
            self._services.jobs(self._job_id).begin_generation()

    # --- the job ---------------------------------------------------------------

    def _has_lost_plan(self, job: JobRow) -> bool:
        """Whether a job that is being planned has results: those of a job that lost its row."""
        committed = next(iter(self._store.objects.list(self._store.paths.done_folder)), None)
        return committed is not None and not has_plan(self._services, job)

    def _check_register(self, job: JobRow) -> None:
        register = keys.register_sk(job.created_ms, self._job_id)
        if self._services.rows.get(keys.JOBS_PK, register) is None:
            self._found.job = True
            if self._write:
                self._services.jobs(self._job_id).register(job)

    def _rebuild_job(self, standing_job: JobRow | None) -> None:
        """A job without a row that tells its plan, from its objects."""
        entries = list(self._store.objects.entries(self._store.paths.config_folder))
        born = self._created(min(map(_modified, entries), default=0.0))
        # A round whose plan nobody says is complete is rebuilt as one that has no row.
        standing = {
            each.number: each
            for each in self._services.jobs(self._job_id).rounds()
            if each.state is RoundState.OPEN
        }
        configs = self._configs(entries)
        rounds = self._rounds_open(standing)
        found = [standing.get(each) or self._round(each, born, None) for each in range(rounds)]
        job = self._job_of(found[0], configs, born)
        if standing_job is not None and standing_job.identity != job.identity:
            raise UserError(
                f"job_id: the row of {self._job_id!r} is of another input than its results; give "
                "the new input another job_id, delete that row and repair again"
            )
        self._found.job = True
        self._found.unmended.append(
            "the audit trail, a pause and the reasons of failed tasks were in the table alone; "
            "failed tasks are ready again"
        )
        self._log(f"the job's row is missing; rebuilding it from config {job.config}")
        for each in found:
            self._repair_tasks(job, each, strict=True)
        for each in found:
            if each.number not in standing:
                self._write_round(each)
        self._submissions(rounds)
        if self._write:
            # Workers may lease only now that every task has its row.
            self._write_job(job, rounds)

    def _write_job(self, job: JobRow, rounds: int) -> None:
        jobs = _jobs_at(self._services, self._job_id, job.created_ms / 1000)
        now = int(self._services.clock.now())
        written = jobs.create(
            job.identity,
            job.config,
            job.shards,
            draft=job.draft,
            open_rounds=rounds,
            voided=now,
        )
        if written.state is JobState.PLANNING:
            jobs.adopt_plan(job.identity, job.config, job.shards, job.draft)
            self._begin_generation()
            jobs.open(rounds)

    def _job_of(self, first: RoundRow, configs: list[_Config], born: float) -> JobRow:
        """The job whose first round this is."""
        title = DraftSummary.read(self._store, 0, first.draft) if first.draft else None
        if title is not None and title.identity:
            configs = [
                each
                for each in configs
                if (each.spec.identity(), each.shards) == (title.identity, title.shards)
            ]
            if not configs:
                raise UserError(
                    f"job_id: no configuration below {self._store.paths.config_folder} is of the "
                    f"input that {self._job_id!r} was planned from; restore it"
                )
        shards = {each.shards for each in configs}
        # Only submits that were cut short before the job had its row differ in this.
        fitting = max(shards, key=self._rows_of) if len(shards) > 1 else shards.pop()
        config = next(each for each in configs if each.shards == fitting)
        return JobRow(
            self._job_id,
            JobState.OPEN,
            fitting,
            config.spec.identity(),
            config.digest,
            0,
            "",
            int(born * 1000),
            draft=first.draft,
        )

    def _created(self, first: float) -> float:
        """When the job was created: as the sum of its progress says, else as its oldest object."""
        data = self._store.objects.get(self._store.paths.progress)
        created = 0 if data is None else json.loads(data).get("created_ms", 0)
        return float(created / 1000 or first)

    def _configs(self, entries: list[ObjectInfo]) -> list[_Config]:
        """The configurations that the job has had, the newest first."""
        found = []
        for entry in sorted(entries, key=_modified, reverse=True):
            data = self._store.objects.get(entry.key)
            if data:
                digest = entry.key.rpartition("/")[2].removesuffix(".json")
                found.append(_Config(digest, spec_of(data), json.loads(data)["worker"]["shards"]))
        if not found:
            raise UserError(
                f"job_id: there is no job {self._job_id!r} in this table, nor a configuration "
                f"below {self._store.paths.root} to rebuild it from; check the spelling and "
                "storage.prefix"
            )
        return found

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
                f"whether its plan was complete; retry again"
            )
        return rounds

    def _round(self, number: int, born: float, job: JobRow | None) -> RoundRow:
        """A round whose row is missing, from its segments; writes nothing.

        Raises:
            UserError: if its segments are missing, or its markers are not of them.
        """
        self._found.rounds.append(number)
        self._log(f"the row of round {number} is missing; rebuilding it from its segments")
        known = job.draft if job and not number else 0
        plan = find_plan(self._store, number, known, self._standing_draft(number))
        entries = list(self._store.objects.entries(self._store.paths.segments(number)))
        at_ms = int(max(map(_modified, entries), default=born) * 1000)
        if not plan.tasks:
            self._found.unmended.append(
                f"round {number} has no items of its own, and which failed tasks it put back was "
                "in the table alone; retry again"
            )
        title = DraftSummary.read(self._store, number, plan.draft) if plan.draft else None
        if number:
            retried = title.retried if title else self._retried(number)
            source = "retry"
        else:
            retried = {}
            source = title.source if title else self._source(job)
        self._drafts[number] = plan.draft
        return RoundRow(
            number,
            RoundState.OPEN,
            source,
            {},
            plan.tasks,
            plan.items,
            0,
            at_ms,
            at_ms,
            retried,
            version=title.version if title else "",
            draft=plan.draft,
        )

    def _standing_draft(self, number: int) -> int:
        """The draft that a round's task rows name; 0 where none of them is left.

        One query, where the row is lost that says how many shards there are; more only where
        rows are lost, too.
        """
        for shard in range(keys.MAX_SHARDS):
            pk, after = keys.task_pk(self._job_id, shard), keys.before_round(number)
            row = next(self._services.rows.query(pk, after=after, limit=1), None)
            if row is not None and (task := TaskRow.from_row(row)).round_no == number:
                return keys.draft_of(task.where.segment)
        return 0

    def _write_round(self, found: RoundRow) -> None:
        if self._write:
            jobs = _jobs_at(self._services, self._job_id, found.created_ms / 1000)
            row = jobs.create_round(
                found.number, found.source, version=found.version, draft=found.draft
            )
            if row.draft != found.draft:
                jobs.adopt_draft(found.number, found.draft)
            jobs.open_round(found.number, found.tasks, found.items, found.retried)

    def _source(self, job: JobRow | None) -> str:
        """The input of a job that a release without drafts has planned, as its config names it."""
        if job is None:
            entries = list(self._store.objects.entries(self._store.paths.config_folder))
            return self._configs(entries)[0].spec.input.path
        return spec_store.read_spec(self._services, job).input.path

    def _retried(self, number: int) -> dict[str, int]:
        """The items of a retry's round by the class that they had failed with."""
        counts: Counter[str] = Counter()
        standing = {each.number: each for each in self._services.jobs(self._job_id).rounds()}
        drafts = [
            standing[each].draft if each in standing else self._drafts.get(each, 0)
            for each in range(number + 1)
        ]
        with (
            retried_items(self._store, drafts[:number]) as before,
            retried_items(self._store, drafts) as upto,
        ):
            for each in read_failures(self._store, before, range(number), None):
                if not each.superseded and upto.superseded(each.key, number - 1):
                    counts[each.error_class] += 1
        return dict(counts)

    # --- submissions -----------------------------------------------------------

    def _submissions(self, rounds: int) -> None:
        """Submissions whose rows are missing, from the logs that their workers shipped."""
        # The logs are listed first: a submission has its row before it has a worker.
        entries = list(self._store.objects.entries(self._store.paths.logs))
        standing = {
            (each.round_no, each.number) for each in self._services.jobs(self._job_id).submissions()
        }
        arrays: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
        workers: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
        first: dict[tuple[int, int], float] = {}
        for entry in entries:
            match = _LOG.match(entry.key.removeprefix(self._store.paths.logs))
            if match is None:
                continue
            which = int(match.group(1)), int(match.group(2))
            if which in standing or which[0] >= rounds:
                continue
            arrays[which].add(match.group(4))
            workers[which].add(match.group(3))
            first[which] = min(first.get(which, entry.modified), entry.modified)
        for which in sorted(arrays):
            self._found.submissions.append(f"{which[0]:03}-{which[1]}")
            if self._write:
                jobs = _jobs_at(self._services, self._job_id, first[which])
                count, ids = len(workers[which]), sorted(arrays[which], key=int)
                token = self._token(which, ids)
                # None: somebody else has rebuilt the row meanwhile, from the same logs.
                jobs.record_submitted(jobs.record_intent(*which, count, count, token=token), ids)

    def _token(self, which: tuple[int, int], slurm_job_ids: list[str]) -> str:
        """The token in the arrays' names: by it they are known; empty where Slurm can't say."""
        prefix = f"{self._job_id}.{which[0]:03}-{which[1]}."
        try:
            names = self._services.slurm.names(slurm_job_ids, prefix)
        except (ServiceError, UserError) as error:
            self._log(f"{error}; arrays of submission {prefix[:-1]} are not recognised")
            return ""
        tokens = {each.removeprefix(prefix).partition(".")[0] for each in names.values()}
        return min(tokens, default="")


def _jobs_at(services: Services, job_id: JobId, at: float) -> JobTable:
    return JobTable(services.rows, job_id, StandingClock(at))


def _modified(entry: ObjectInfo) -> float:
    return entry.modified
