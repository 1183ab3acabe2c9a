"""The repair of a job: its tasks, its rounds, its submissions, and last its own row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.maintenance.repair.context import (
    RepairContext,
    RepairResult,
)
from airflow_slurm_provider.coordinator.maintenance.repair.rounds import (
    RoundRepair,
    repair_submissions,
)
from airflow_slurm_provider.coordinator.maintenance.repair.tasks import TaskRepair
from airflow_slurm_provider.coordinator.planning.initial_round import has_plan
from airflow_slurm_provider.coordinator.planning.planner import DraftSummary
from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec, spec_of
from slurm_worker.errors import UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.keys import JobId, JobState, RoundState
from slurm_worker.protocol.ports import ObjectInfo, Value


def repair(
    services: Services, job_id: JobId, *, dry_run: bool = False, log: Log, actor: str = "slurmctl"
) -> RepairResult:
    """Make a job's rows agree with its objects on S3, or report it in a dry run.

    Raises:
        UserError: if neither the table nor S3 has enough of the job.
    """
    services.objects.verify()
    context = RepairContext(services, services.store(job_id), RepairResult(job_id, dry_run), log)
    _JobRepair(context).run()
    if context.result.changed and not dry_run:
        detail = cast("dict[str, Value]", context.result.to_dict())
        context.jobs.audit(actor, "repaired", detail)
    return context.result


@dataclass(frozen=True, slots=True)
class _Config:
    """A configuration that the job has had."""

    digest: str
    spec: JobSpec
    shards: int


class _JobRepair:
    def __init__(self, context: RepairContext) -> None:
        self._context = context
        self._services = context.services
        self._store = context.store
        self._job_id = context.store.paths.job
        self._rounds = RoundRepair(context)

    def run(self) -> None:
        """Tasks, rounds and submissions from S3, and last the job's row.

        While a job has no row, its results protect its name: no other input is planned under it.
        So the row is written when everything else is there and agrees.
        """
        job = self._context.jobs.find()
        if job is None or (job.state is JobState.PLANNING and self._has_lost_plan(job)):
            self._rebuild_job(job)
            self._begin_generation()
            return
        self._check_register(job)
        existing = self._rounds.existing()
        for number in range(max(job.rounds, len(existing))):
            round_row = existing.get(number)
            if round_row is None:
                round_row = self._rounds.rebuild(
                    number,
                    job.created_ms / 1000,
                    known=0 if number else job.draft,
                    source=lambda: spec_store.read_spec(self._services, job).input.source,
                )
                self._repair_tasks(job, round_row)
                self._rounds.write(round_row)
            elif round_row.state is RoundState.OPEN:
                self._repair_tasks(job, round_row)
        repair_submissions(self._context, job.rounds)
        self._begin_generation()

    def _repair_tasks(self, job: JobRow, round_row: RoundRow, *, strict: bool = False) -> None:
        table = self._services.tasks(job)
        TaskRepair(self._context, table, round_row, strict=strict).run()

    def _begin_generation(self) -> None:
        """Make all workers read every row again, in case an earlier call stopped before this."""
        if self._context.write:
            self._context.jobs.begin_generation()

    def _has_lost_plan(self, job: JobRow) -> bool:
        """Whether a job in planning has results: then they belong to a job that lost its row."""
        committed = any(True for _ in self._store.objects.list(self._store.paths.done_folder))
        return committed and not has_plan(self._services, job)

    def _check_register(self, job: JobRow) -> None:
        register = keys.register_sk(job.created_ms, self._job_id)
        if self._services.rows.get(keys.JOBS_PK, register) is None:
            self._context.result.job = True
            if self._context.write:
                self._context.jobs.register(job)

    def _rebuild_job(self, existing_job: JobRow | None) -> None:
        """Rebuild, from its objects, a job without a row that names its plan."""
        entries = list(self._store.objects.entries(self._store.paths.config_folder))
        born = self._created(min((entry.modified for entry in entries), default=0.0))
        # A round that is not open may have an incomplete plan: its row is rebuilt, too.
        existing = {
            number: round_row
            for number, round_row in self._rounds.existing().items()
            if round_row.state is RoundState.OPEN
        }
        configs = self._configs(entries)
        rounds = self._rounds.count_open(existing)
        found = [
            existing.get(number)
            or self._rounds.rebuild(
                number, born, known=0, source=lambda: configs[0].spec.input.source
            )
            for number in range(rounds)
        ]
        job = self._job_of(found[0], configs, born)
        if existing_job is not None and existing_job.identity != job.identity:
            raise UserError(
                f"job_id: the row of {self._job_id!r} belongs to another input than its results; "
                "use another job_id for the new input, delete that row and repair again"
            )
        self._context.result.job = True
        self._context.result.unrepaired.append(
            "the audit log, a pause and the reasons of failed tasks were only in the table and are "
            "lost; failed tasks are ready again"
        )
        self._context.log(f"the job's row is missing; rebuilding it from config {job.config}")
        for round_row in found:
            self._repair_tasks(job, round_row, strict=True)
        for round_row in found:
            if round_row.number not in existing:
                self._rounds.write(round_row)
        repair_submissions(self._context, rounds)
        if self._context.write:
            # Workers may lease only now that every task has its row.
            self._write_job(job, rounds)

    def _write_job(self, job: JobRow, rounds: int) -> None:
        jobs = self._context.jobs_at(job.created_ms / 1000)
        now = int(self._services.clock.now())
        written = jobs.create(
            job.identity, job.config, job.shards, draft=job.draft, open_rounds=rounds, voided=now
        )
        if written.state is JobState.PLANNING:
            jobs.adopt_plan(job.identity, job.config, job.shards, job.draft)
            self._begin_generation()
            jobs.open(rounds)

    def _job_of(self, first: RoundRow, configs: list[_Config], born: float) -> JobRow:
        """The job whose first round this is."""
        title = DraftSummary.read(self._store, 0, first.draft)
        if title is not None and title.identity:
            configs = [
                config
                for config in configs
                if (config.spec.identity(), config.shards) == (title.identity, title.shards)
            ]
            if not configs:
                raise UserError(
                    f"job_id: no configuration below {self._store.paths.config_folder} has the "
                    f"input that {self._job_id!r} was planned from; restore that configuration"
                )
        shards = {config.shards for config in configs}
        # They differ only after a submit that stopped before the job had its row.
        fitting = max(shards, key=self._rows_of) if len(shards) > 1 else shards.pop()
        config = next(config for config in configs if config.shards == fitting)
        identity = config.spec.identity(), config.digest
        born_ms = int(born * 1000)
        return JobRow(
            self._job_id, JobState.OPEN, fitting, *identity, 0, "", born_ms, draft=first.draft
        )

    def _created(self, first: float) -> float:
        """When the job was created: by the stored progress, else by its oldest object."""
        data = self._store.objects.get(self._store.paths.progress)
        created = 0 if data is None else json.loads(data).get("created_ms", 0)
        return float(created / 1000 or first)

    def _configs(self, entries: list[ObjectInfo]) -> list[_Config]:
        """The configurations that the job has had, the newest first."""
        found = []
        for entry in sorted(entries, key=lambda entry: entry.modified, reverse=True):
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
