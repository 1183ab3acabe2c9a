"""The verbs that every face calls: submit, resubmit, retry, aggregate.

`submission/control.py` has those that control a running job: pause, resume, cancel.

Each verb may be called again at any point, and by several processes at the same time. `log` gets a
line per step, and `actor` is the name in the audit log. Results are plain data with a `to_dict`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.planning import append_round, initial_round, retry_round
from airflow_slurm_provider.coordinator.planning.bundle_size import bundle_of
from airflow_slurm_provider.coordinator.planning.initial_round import PlannedJob
from airflow_slurm_provider.coordinator.planning.planner import Planner
from airflow_slurm_provider.coordinator.planning.retry_round import RetryPlan, RetryRequest
from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, JobSpec
from airflow_slurm_provider.coordinator.status.dead_workers import attribute_failures
from airflow_slurm_provider.coordinator.status.progress import (
    Progress,
    cancelled_by,
    check_running,
    latest,
    of_round,
    open_round_of,
    read_progress,
    tasks_of,
)
from airflow_slurm_provider.coordinator.submission import upload
from airflow_slurm_provider.coordinator.submission.workers import (
    VerbResult,
    Workers,
    audit_workers,
    ensure_workers,
)
from airflow_slurm_provider.slurm.client import SubmissionCancelledError
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import UserError
from slurm_worker.protocol.generations import open_round
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId, JobState, RoundState, SubmitState
from slurm_worker.protocol.ports import Value


@dataclass(frozen=True, slots=True)
class SubmitResult(VerbResult):
    """The result of `submit`."""

    round: int  #: the round that the workers work on
    tasks: int  #: of the first round
    items: int  #: of the first round
    workers: int
    slurm_job_name: str
    reattached: bool  #: an earlier call has submitted these workers


@dataclass(frozen=True, slots=True)
class RetryResult(VerbResult):
    """The result of `retry`."""

    round: int | None  #: the new round's number; None if there was nothing to retry
    items: dict[str, int] = field(default_factory=dict)  #: in it, by error class
    tasks: int = 0  #: failed tasks that were put back
    given_up: dict[str, int] = field(default_factory=dict)  #: items not retried, by error class
    reattached: bool = False  #: an earlier call has planned and submitted this round


def submit(
    services: Services, config: Config, *, log: Log, actor: str = "slurmctl"
) -> SubmitResult:
    """Plan the job and submit its array, or continue where an earlier call was interrupted.

    Raises:
        UserError: a mistake in the config or the input; the table has no row of the job then.
        ServiceError: a service can't be reached; calling again continues.
    """
    jobs = services.jobs(config.spec.id)
    job = initial_round.find_planned(services, config.spec)
    # A service that can't be reached is found before anything is written.
    services.objects.verify()
    services.slurm.version()
    code = upload.upload_code(services, config)
    if job is None:
        planned = initial_round.create_job(services, config.spec, code, log)
    else:
        planned = initial_round.load_job(services, job, config.spec, code, log)
    first = planned.first
    if planned.planned_now:
        jobs.audit(actor, "planned", {"tasks": first.tasks, "items": first.items})
    if planned.job.state is not JobState.OPEN:
        jobs.open(1)
    job = jobs.get()
    if config.spec.input.append and not planned.planned_now:
        added = append_round.append_new(services, job, planned.spec, log)
        if added is not None:
            detail: dict[str, Value] = {
                "round": added.number,
                "tasks": added.tasks,
                "items": added.items,
            }
            jobs.audit(actor, "appended", detail)
            job = jobs.get()
    # A later round has workers of its own, with its options; until then it is the first round.
    retried = None if job.rounds < 2 else open_round_of(job, jobs.rounds())
    round_row = retried or first
    workers = _submit_with(services, planned, job, round_row, log)
    if not workers.reattached:
        audit_workers(services, job.job, workers, actor)
    return SubmitResult(
        job_id=job.job,
        round=round_row.number,
        tasks=first.tasks,
        items=first.items,
        workers=workers.workers,
        slurm_job_ids=workers.slurm_job_ids,
        slurm_job_name=workers.slurm_job_name,
        reattached=workers.reattached,
    )


def resubmit(
    services: Services, job_id: JobId, *, max_resubmits: int, log: Log, actor: str = "slurmctl"
) -> Workers | None:
    """New workers for a job whose workers have ended and left tasks.

    None if the latest round had new ones `max_resubmits` times already, or if its workers were
    cancelled.
    """
    jobs = services.jobs(job_id)
    job, rounds = jobs.get(), jobs.rounds()
    spec = spec_store.read_spec(services, job)
    round_row = open_round_of(job, rounds) or rounds[-1]
    submissions = of_round(jobs.submissions(), round_row.number)
    # A submission that was refused or interrupted does not count: it is carried out now.
    made = [row for row in submissions if row.state is SubmitState.SUBMITTED]
    if sum(not row.requested for row in made) > max_resubmits:
        return None
    if canceller := cancelled_by(jobs, submissions):
        log(f"the workers were cancelled by {canceller}; they are not replaced")
        return None
    try:
        workers = ensure_workers(services, spec, job, round_row, tasks_of(round_row), log)
    except SubmissionCancelledError as error:
        log(f"{error}")
        return None
    if not workers.reattached:
        audit_workers(services, job_id, workers, actor)
    return workers


def plan_retry(
    services: Services,
    job_id: JobId,
    classes: list[str] | None = None,
    *,
    policy: Mapping[str, Any] | None = None,
    only: Iterable[str] | None = None,
) -> RetryPlan:
    """What `retry` with the same arguments would do now; writes nothing."""
    request = RetryRequest.of(classes, policy, only)
    jobs = services.jobs(job_id)
    job, rounds = jobs.get(), jobs.rounds()
    spec = spec_store.read_spec(services, job)
    return retry_round.plan_retry(services, spec, job, rounds, request)


def retry(
    services: Services,
    job_id: JobId,
    classes: list[str] | None = None,
    *,
    policy: Mapping[str, Any] | None = None,
    only: Iterable[str] | None = None,
    max_items: int | None = None,
    log: Log,
    actor: str = "slurmctl",
) -> RetryResult:
    """Retry failed items and tasks: one new round, and workers for it.

    Two calls at the same time make one round. So does a call after one that was interrupted.

    Without `classes`, the retry policy decides which error classes are retried. The rules in
    `policy` override the job's own. `only` has the keys of the items to retry; None for all. A
    round of more than `max_items` items is not started.

    Raises:
        UserError: if a class or a rule is wrong, or if the first round is not complete.
    """
    request = RetryRequest.of(classes, policy, only)
    jobs = services.jobs(job_id)
    job, rounds = jobs.get(), jobs.rounds()
    spec = spec_store.read_spec(services, job)
    last = _last_planned(job_id, rounds)
    attribute_failures(services, job_id)
    unfinished = _unfinished_retry(jobs, last)
    if unfinished is None and not (state := read_progress(services, job_id)).complete:
        # Another call may have started a round since.
        unfinished = jobs.rounds()[-1]
        if unfinished.number == last.number:
            return _still_running(jobs, job, state, last)
    if unfinished is not None:
        return _finish_retry(services, spec, job, unfinished, log, actor)
    # Plan with the rounds that were read before the job was seen complete: if another call starts
    # a round meanwhile, that round has our number, and both calls finish it.
    plan = retry_round.plan_retry(services, spec, job, rounds, request)
    for note in plan.notes:
        log(note)
    too_many = max_items is not None and sum(plan.items.values()) > max_items
    if plan.round is None or too_many:
        left = Counter(plan.given_up) + Counter(plan.items if too_many else {})
        return RetryResult(job_id, None, given_up=dict(left))
    started = jobs.create_round(
        plan.round,
        "retry",
        request.selector(spec).rounds,
        tasks_back=plan.tasks,
        only="" if request.only is None else retry_round.store_keys(services, job_id, request.only),
        slurm=plan.resources.slurm,
        delay_s=plan.resources.delay_s,
    )
    if started.appended:
        raise UserError(
            f"job_id: another call adds new items to {job_id!r}; retry when they are complete"
        )
    return _finish_retry(services, spec, job, started, log, actor)


def aggregate(
    services: Services, job_id: JobId, *, log: Log, actor: str = "slurmctl"
) -> dict[str, Any]:
    """Publish the job's dataset; return its manifest, with the version's folder as `dataset`.

    Raises:
        UserError: if the job is not complete, or if a part has changed since it was committed.
    """
    # pyarrow takes a third of a second to import, and most commands don't use it.
    from airflow_slurm_provider.coordinator import dataset

    jobs = services.jobs(job_id)
    spec = spec_store.read_spec(services, jobs.get())
    dataset.check_complete(services, job_id)
    manifest = dataset.merge(services, spec, log)
    summary = {name: manifest[name] for name in ("items", "ok", "rows")}
    jobs.audit(actor, "published", cast("dict[str, Value]", summary))
    top = f"s3://{services.site.bucket}/"
    own = services.paths(job_id).manifest
    return {**manifest, "dataset": top + manifest["folder"], "manifest": top + own}


def merges_where(services: Services, job_id: JobId) -> str:
    """Where the job's config says that its parts are merged: ``local`` or ``slurm``."""
    return spec_store.read_spec(services, services.jobs(job_id).get()).aggregate.where


def merge_on_nodes(
    services: Services, job_id: JobId, *, log: Log, actor: str = "slurmctl"
) -> SubmitResult | None:
    """Start a job that merges the parts on the cluster; None if there is nothing to merge.

    Call `aggregate` to publish when it is done.

    Raises:
        UserError: if the job is not complete, or if its dataset is to be sorted.
    """
    from airflow_slurm_provider.coordinator import dataset

    spec = spec_store.read_spec(services, services.jobs(job_id).get())
    dataset.check_complete(services, job_id)
    with tempfile.TemporaryDirectory(prefix="airflow-slurm-merging-") as folder:
        config = dataset.plan_on_nodes(services, spec, Path(folder))
        return None if config is None else submit(services, config, log=log, actor=actor)


def _submit_with(
    services: Services, planned: PlannedJob, job: JobRow, round_row: RoundRow, log: Log
) -> Workers:
    """Workers with the planned spec, which becomes the job's when Slurm has accepted it."""
    with_config = replace(job, config=planned.digest)
    tasks = tasks_of(round_row)
    workers = ensure_workers(services, planned.spec, with_config, round_row, tasks, log)
    if with_config != job:
        # Only now: if Slurm refuses the options, later workers must not get them.
        services.jobs(job.job).set_config(planned.digest)
        log(
            "code, settings or worker count changed; workers started from now on use the new "
            "version"
        )
    return workers


def _last_planned(job_id: JobId, rounds: list[RoundRow]) -> RoundRow:
    if not rounds or (rounds[-1].number == 0 and rounds[-1].state is RoundState.PLANNING):
        raise UserError(f"job_id: {job_id!r} is not planned yet; run slurmctl submit first")
    return rounds[-1]


def _unfinished_retry(jobs: JobTable, last: RoundRow) -> RoundRow | None:
    """The last round, if it is a retry round that has no workers yet."""
    submitted = last.state is RoundState.OPEN and any(
        row.round_no == last.number and row.slurm_job_ids for row in jobs.submissions()
    )
    if last.appended and last.state is RoundState.OPEN and not last.items:
        return None  # the input's new items had gone when it was planned
    if last.appended and not submitted:
        raise UserError(
            f"job_id: round {last.number} of {jobs.job!r}, of new items, has no workers yet; "
            "submit the job again"
        )
    return last if last.number > 0 and not submitted else None


def _still_running(jobs: JobTable, job: JobRow, state: Progress, last: RoundRow) -> RetryResult:
    """The retry round that is running; the first round must be complete before a retry."""
    if last.number == 0 or last.appended:
        check_running(job)
        raise UserError(
            f"job_id: {state.job_id!r} has "
            f"{format_count(state.unfinished_tasks, 'unfinished task')}; "
            f"retry when it is complete (slurmctl wait {state.job_id})"
        )
    submission = latest(jobs.submissions())
    ids = submission.slurm_job_ids if submission else ()
    return RetryResult(state.job_id, last.number, last.retried, reattached=True, slurm_job_ids=ids)


def _finish_retry(
    services: Services, spec: JobSpec, job: JobRow, round_row: RoundRow, log: Log, actor: str
) -> RetryResult:
    """Finish a retry round, whose row says what it retries."""
    jobs, tasks = services.jobs(spec.id), services.tasks(job)
    number = round_row.number
    only = retry_round.load_keys(services, spec.id, round_row.only)
    selector = retry_round.Selector(round_row.selector, only)
    items = retry_round.FailedItems.of(services, job, selector, jobs.rounds()[:number])
    planned = Planner(services.store(spec.id), tasks, jobs, log).plan(
        round_row, items, bundle_of(spec), retried=lambda: dict(items.retried)
    )
    failed = partial(retry_round.failed_tasks, services, job.job, selector)
    if put_back := open_round(jobs, tasks, number, failed):
        log(f"put back {format_count(put_back, 'failed task')}")
    back = sum(round_row.tasks_back.values())
    workers = ensure_workers(services, spec, job, round_row, planned.tasks + back, log)
    retried, given_up = dict(planned.retried), dict(items.given_up)
    ids, reattached = workers.slurm_job_ids, workers.reattached
    # Only the round's first submission waits.
    if round_row.delay_s and not reattached and workers.submission.endswith("-1"):
        log(f"the workers start in {round_row.delay_s:,} s (backoff)")
    result = RetryResult(spec.id, number, retried, back, given_up, reattached, slurm_job_ids=ids)
    if not reattached:
        detail = {**result.to_dict(), "config": job.config}
        jobs.audit(actor, "retried", cast("dict[str, Value]", detail))
        audit_workers(services, spec.id, workers, actor)
    return result
