"""Round 0: the input as tasks, and what a job id that is in use stands for."""

from __future__ import annotations

from collections.abc import Callable

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.inputs.reader import open_input, version_of
from airflow_slurm_provider.coordinator.planning import bundle_size
from airflow_slurm_provider.coordinator.planning.planner import (
    Draft,
    Planner,
    Tally,
    Title,
    begun_without_draft,
    drafted,
)
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec, spec_of
from slurm_worker.errors import UserError
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.keys import JobState, RoundState, shard_count

Log = Callable[[str], None]


def check_identity(job: JobRow | None, spec: JobSpec) -> None:
    """Refuse a spec of another input than the job that has its id.

    Raises:
        UserError: naming the job.
    """
    if job is not None and job.identity != spec.identity():
        raise UserError(
            f"job_id: {spec.job_id!r} exists with another input, key or format; give this "
            "one another job_id, or restore the old settings to go on with that job"
        )


def check_no_results(services: Services, spec: JobSpec) -> None:
    """Refuse to plan what has been worked on; a list request, for a job that has no plan.

    Raises:
        UserError: naming the repair.
    """
    folder, storage = services.paths(spec.id).done_folder, services.site.storage
    committed = next(iter(services.objects.list(folder)), None) is not None
    # Another call may have planned the job since, and its workers be quick.
    if committed and not has_plan(services, services.jobs(spec.id).find()):
        raise UserError(
            f"job_id: {spec.job_id!r} has results in s3://{services.site.bucket}/{folder} and no "
            f"rows in table {storage.table!r}; slurmctl doctor --repair --job {spec.job_id} brings "
            "the rows back, or give this one another job_id"
        )


def has_plan(services: Services, job: JobRow | None) -> bool:
    """Whether it is decided what a job's first round holds; then that doesn't change."""
    if job is None:
        return False
    if job.draft or job.state is JobState.OPEN:
        return True
    # Of a release that created the job before it had read the input.
    first = next((each for each in services.jobs(job.job).rounds() if each.number == 0), None)
    if first is None:
        return False
    if first.state is RoundState.OPEN or first.draft:
        return True
    return begun_without_draft(services.store(job.job), services.tasks(job), first)


def standing_bundle(services: Services, job: JobRow, spec: JobSpec, log: Log) -> JobSpec:
    """The spec with the bundle that the job was created with, whoever chose it.

    Raises:
        UserError: if the spec has another one.
    """
    document = services.objects.get(services.paths(job.job).config(job.config))
    if document is None:
        return bundle_size.sized(spec, services.bucket, log)  # it was lost, and is shipped anew
    standing = bundle_size.bundle_of(spec_of(document))
    if spec.bundle not in (None, standing):
        raise UserError(
            f"bundle: {spec.job_id!r} exists with {standing:,} items a task, not {spec.bundle:,}; "
            "give this one another job_id, or restore the old bundle to go on with that job"
        )
    return spec.model_copy(update={"bundle": standing})


def tell_other_input(spec: JobSpec, round_row: RoundRow, version: str, log: Log) -> None:
    """Tell of an input that was written anew since it was planned: the job has what it was."""
    if version and round_row.version and version != round_row.version:
        log(
            f"input.path: {spec.input.path} was written again since this job was planned; the job "
            f"keeps the {round_row.items:,} items that were there then: for others give another "
            "job_id"
        )


def plan_job(services: Services, spec: JobSpec, code: str, log: Log) -> JobRow:
    """Draft the input, make it the plan of a job that has none, and open its first round.

    The job is created when its whole input is read and found right. Of two calls at a time the
    plan of one is the job's; the other finishes it too.

    Args:
        services: the edges.
        spec: the job.
        code: digest of the handler's code.
        log: told of progress.

    Raises:
        UserError: if the input is not right: nothing is left of it then. Or if another call
            has planned another input under this id, or there are results of this id.
    """
    # Needs pyarrow, for which no other command should wait.
    from airflow_slurm_provider.coordinator.inputs.unique_keys import KeyCheck

    check_no_results(services, spec)
    spec = bundle_size.sized(spec, services.bucket, log)
    shards = shard_count(spec.max_workers)
    version = version_of(spec.source, services.bucket)

    def title(tally: Tally) -> Title:
        return Title(
            tally.tasks,
            tally.items,
            tally.sha256,
            identity=spec.identity(),
            shards=shards,
            source=spec.input.path,
            version=version,
        )

    with KeyCheck() as keys:
        items = keys.watch(open_input(spec.source, services.bucket))
        with drafted(
            services.store(spec.id),
            0,
            items,
            bundle_size.bundle_of(spec),
            lambda: keys.check(lambda: open_input(spec.source, services.bucket)),
            title,
            log,
        ) as draft:
            config = spec_store.ship_config(services, spec, shards, code)
            job = _adopt(services, spec, config, shards, draft.number)
            draft.settle(job.draft)
            check_identity(job, spec)
            finish_first_round(services, spec, job, log, draft)
    return job


def _adopt(services: Services, spec: JobSpec, config: str, shards: int, draft: int) -> JobRow:
    """The job, with this draft as its plan or with the one that was first."""
    jobs = services.jobs(spec.id)
    job = jobs.create(spec.identity(), config, shards, draft=draft)
    if has_plan(services, job):
        return job
    return jobs.adopt_plan(spec.identity(), config, shards, draft)


def finish_first_round(
    services: Services, spec: JobSpec, job: JobRow, log: Log, draft: Draft | None = None
) -> bool:
    """Write what is missing of the first round of a job that has a plan; whether anything was.

    Raises:
        UserError: if objects of the plan are missing.
    """
    jobs, store = services.jobs(job.job), services.store(job.job)
    round_row = next((each for each in jobs.rounds() if each.number == 0), None)
    if round_row is None or (job.draft and not round_row.draft):
        title = Title.read(store, 0, job.draft) if job.draft else None
        source, version = (title.source, title.version) if title else (spec.input.path, "")
        round_row = jobs.create_round(0, source, version=version, draft=job.draft)
        if job.draft and not round_row.draft:
            round_row = jobs.adopt_draft(0, job.draft)
    if round_row.state is RoundState.OPEN:
        return False
    # Whoever created the job may have been cut short before this.
    jobs.register(job)
    bundle = bundle_size.bundle_of(spec) if spec.bundle else 1
    Planner(store, services.tasks(job), jobs, bundle, log).finish(round_row, draft)
    return True
