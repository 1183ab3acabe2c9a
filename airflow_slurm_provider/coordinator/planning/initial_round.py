"""Round 0: a job is created from its input, or loaded if it exists.

Both give a `PlannedJob`: the job, its spec as stored on S3, and its first round, open for work.

    create    read the whole input into a draft  →  store the spec  →  the META row, with the
              draft as the plan  →  task rows  →  the round opens
    load      the spec with the job's bundle  →  store it  →  write what is missing of the round

Requests: create: a list request, those of `planner.py`, three writes for the job and its first
round. Load: a query and a GET; more only if an earlier call was interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.inputs.files import version_of
from airflow_slurm_provider.coordinator.inputs.reader import Input
from airflow_slurm_provider.coordinator.planning import bundle_size, planner
from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec, spec_of
from airflow_slurm_provider.units import format_count, format_size
from slurm_worker.errors import UserError
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.keys import JobState, RoundState, shard_count


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job whose first round is planned and open."""

    job: JobRow  #: as it was before the job was opened
    spec: JobSpec  #: the one that was submitted, with the job's bundle
    digest: str  #: of the document on S3 that holds the spec
    first: RoundRow
    planned_now: bool  #: this call has planned the round, or finished its plan


def find_planned(services: Services, spec: JobSpec) -> JobRow | None:
    """The job of this id; None if there is none, or none with a plan.

    Raises:
        UserError: if the job has another input.
    """
    job = services.jobs(spec.id).find()
    if job is None or not has_plan(services, job):
        return None
    _check_identity(job, spec)
    return job


def has_plan(services: Services, job: JobRow) -> bool:
    """Whether it is decided which items the job's first round holds; that never changes again."""
    if job.draft or job.state is JobState.OPEN:
        return True
    # An older release created the job before it had read the input.
    first = _first_of(services.jobs(job.job).rounds())
    if first is None or first.state is RoundState.OPEN or first.draft:
        return first is not None
    return planner.begun_without_draft(services.store(job.job), services.tasks(job), first)


def create_job(services: Services, spec: JobSpec, code_sha256: str, log: Log) -> PlannedJob:
    """Draft the input, and make the draft the plan of a job that has none.

    The job is created when its whole input has been read and checked. Of two calls at the same
    time, the plan of one is the job's. The other call finishes that plan.

    Raises:
        UserError: if the input is wrong: then nothing of the job stays in the table. Also if
            another call has planned another input under this id, or if this id has results.
    """
    # Needs pyarrow; other commands should not wait for its import.
    from airflow_slurm_provider.coordinator.inputs.unique_keys import KeyCheck

    _check_no_results(services, spec)
    found = Input(spec.input, services.bucket, services.engine)
    sized = bundle_size.with_bundle(spec, services.bucket, log, found)
    shards = shard_count(spec.max_workers)
    source, version = spec.input.source, found.files.version()
    if found.files.count:
        log(f"found {format_count(found.files.count, 'file')} of {format_size(found.files.size)}")
    bundle, store = bundle_size.bundle_of(sized), services.store(spec.id)
    with KeyCheck() as keys:
        items = keys.watch(found.items())
        with planner.new_draft(store, 0, items, bundle, log) as draft:
            keys.check(found.places, "generate_key" if spec.input.generate_key else "key")
            draft.write_files(found.files.described())
            figures, identity = draft.totals.figures, spec.identity()
            summary = planner.DraftSummary(
                *figures, identity=identity, shards=shards, source=source, version=version
            )
            draft.complete(summary)
            digest = spec_store.store_spec(services, sized, shards, code_sha256)
            job = _adopt(services, sized, digest, shards, draft.number)
            draft.discard_unless(job.draft)
            _check_identity(job, spec)
            first = _first_round(services, job, source, draft)
            first = _planner(services, job, log).finish(first, draft)
    if job.config != digest:
        # The plan of another call was first, and its spec differs.
        return replace(load_job(services, job, spec, code_sha256, log), planned_now=True)
    return PlannedJob(job, sized, digest, first, planned_now=True)


def load_job(
    services: Services, job: JobRow, spec: JobSpec, code_sha256: str, log: Log
) -> PlannedJob:
    """A job that has a plan, with this spec; writes what is missing of its first round.

    Raises:
        UserError: if the spec has another bundle than the job, or if objects of the plan are
            missing.
    """
    spec = _with_bundle_of(services, job, spec, log)
    digest = spec_store.store_spec(services, spec, job.shards, code_sha256)
    first = _first_round(services, job, spec.input.source)
    planned_now = first.state is not RoundState.OPEN
    if planned_now:
        # The call that created the job may have been interrupted before this.
        services.jobs(job.job).register(job)
        first = _planner(services, job, log).finish(first)
    version = "" if spec.input.append else version_of(spec.input.paths, services.bucket)
    if version and first.version and version != first.version:
        log(
            f"input.path: {spec.input.source} has changed since this job was planned; the job "
            f"keeps the {first.items:,} items that it had then; submit the new ones under another "
            "job_id, or set input.append: true"
        )
    return PlannedJob(job, spec, digest, first, planned_now)


def _check_identity(job: JobRow, spec: JobSpec) -> None:
    if job.identity != spec.identity():
        raise UserError(
            f"job_id: {spec.job_id!r} exists with another input, key or format; choose another "
            "job_id, or restore the old settings to continue that job"
        )


def _check_no_results(services: Services, spec: JobSpec) -> None:
    """Refuse to plan a job that has results and no plan: its rows are lost. A list request."""
    folder, storage = services.paths(spec.id).done_folder, services.site.storage
    if next(iter(services.objects.list(folder)), None) is None:
        return
    # Another call may have planned the job since, and its workers may have committed tasks.
    if find_planned(services, spec) is None:
        raise UserError(
            f"job_id: {spec.job_id!r} has results in s3://{services.site.bucket}/{folder} but no "
            f"rows in table {storage.table!r}; restore the rows with slurmctl doctor --repair "
            f"--job {spec.job_id}, or choose another job_id"
        )


def _adopt(services: Services, spec: JobSpec, digest: str, shards: int, draft: int) -> JobRow:
    """The job, with this draft as its plan, or with an earlier one."""
    identity, jobs = spec.identity(), services.jobs(spec.id)
    job = jobs.create(identity, digest, shards, draft=draft)
    return job if has_plan(services, job) else jobs.adopt_plan(identity, digest, shards, draft)


def _with_bundle_of(services: Services, job: JobRow, spec: JobSpec, log: Log) -> JobSpec:
    """The spec with the bundle that the job was created with."""
    document = services.objects.get(services.paths(job.job).config(job.config))
    if document is None:  # it was lost; this call stores it again
        return bundle_size.with_bundle(spec, services.bucket, log)
    bundle = bundle_size.bundle_of(spec_of(document))
    if spec.bundle not in (None, bundle):
        raise UserError(
            f"bundle: {spec.job_id!r} exists with {bundle:,} items per task, not {spec.bundle:,}; "
            "choose another job_id, or restore the old bundle to continue that job"
        )
    return spec.model_copy(update={"bundle": bundle})


def _first_round(
    services: Services, job: JobRow, source: str, draft: planner.Draft | None = None
) -> RoundRow:
    """The row of the first round of a job that has a plan, created if it is missing.

    `source` names the input if the plan has no summary. `draft` is on this machine; it may differ
    from the plan.
    """
    jobs, store = services.jobs(job.job), services.store(job.job)
    ours = draft if draft and draft.number == job.draft else None
    first = None if ours else _first_of(jobs.rounds())
    if first is not None and (first.draft or not job.draft):
        return first
    summary = ours.summary if ours else planner.DraftSummary.read(store, 0, job.draft)
    source, version = (summary.source, summary.version) if summary else (source, "")
    first = jobs.create_round(0, source, version=version, draft=job.draft)
    return jobs.adopt_draft(0, job.draft) if job.draft and not first.draft else first


def _planner(services: Services, job: JobRow, log: Log) -> planner.Planner:
    store, jobs = services.store(job.job), services.jobs(job.job)
    return planner.Planner(store, services.tasks(job), jobs, log)


def _first_of(rounds: list[RoundRow]) -> RoundRow | None:
    return next((row for row in rounds if row.number == 0), None)
